"""``python -m data.prepare``: from a source to rows and folds that everything downstream reads.

Reads the source, checks and cleans it, deals the rows into prompt-grouped folds, writes
``rows.parquet``, ``folds.parquet`` and ``manifest.json``, and prints what it found and changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.command import format_table, run
from data.errors import UserError

if TYPE_CHECKING:
    from data.folds import Folds
    from data.schema import Rows
    from data.sources import SourceOptions

ARENA = "arena"


def main(argv: Sequence[str]) -> None:
    """Run the command with the given arguments."""
    args = _parse(argv)
    from data.clean import Cleaning
    from data.dataset import prepare
    from data.sources import read_source

    out = Path(args.out)
    folds_stood = (out / "folds.parquet").exists()
    if args.source == ARENA:
        rows, cleaning = _simulate(args), Cleaning()
    else:
        rows, cleaning = read_source(args.source, _source_options(args))
    folds = prepare(rows, out, args.folds, args.seed)

    groups = len(set(folds.group_ids))
    print(f"{args.source} -> {out}: {len(rows):,} rows, {groups:,} prompt groups, {folds.n_folds} folds")
    print(_fold_table(rows, folds))
    print("cleaning: " + "; ".join(cleaning.lines()))
    print(f"{out / 'folds.parquet'}: {'kept as it was' if folds_stood else 'written'}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare",
        description="Read a source into rows.parquet, folds.parquet and manifest.json.",
    )
    add = parser.add_argument
    add(
        "--source",
        required=True,
        help="a CSV, Parquet, JSON or JSON-lines file, a directory, the name of a Hugging Face data set, "
        f"or '{ARENA}' for the simulated arena",
    )
    add("--out", required=True, help="directory to write")
    add(
        "--format", default="auto", choices=["auto", "lmsys", "pandalm", "table"], help="layout of the source"
    )
    add(
        "--columns",
        nargs="+",
        default=[],
        metavar="MAP",
        help="for a table: pairs such as prompt=question, or a YAML file of them; fields are row_id, prompt, "
        "response_a, response_b, label, label_probs, model_a, model_b",
    )
    add("--classes", help="for a table: class names in order, e.g. A,B,TIE")
    add("--swap", help="for a table: what each class becomes when the responses change places, e.g. 1,0,2")
    add("--ids", default="column", choices=["column", "row-number"], help="where row ids come from")
    add("--split", default="train", help="split of a data set (default: train)")
    add("--limit", type=int, help="keep the first rows only")
    add("--rows", type=int, help=f"rows to simulate with --source {ARENA}")
    add("--folds", type=int, default=5, help="number of folds (default: 5)")
    add("--seed", type=int, default=0, help="seed of the folds and of the arena (default: 0)")
    return parser.parse_args(argv)


def _simulate(args: argparse.Namespace) -> Rows:
    from data.arena import ArenaConfig, simulate_arena

    for name in ("columns", "classes", "swap", "limit"):
        if getattr(args, name):
            raise UserError(f"--{name} has no meaning with --source {ARENA}; leave it out")
    if args.rows is None:
        return simulate_arena(ArenaConfig(seed=args.seed))
    return simulate_arena(ArenaConfig(n_rows=args.rows, seed=args.seed))


def _source_options(args: argparse.Namespace) -> SourceOptions:
    from data.sources import SourceOptions

    if args.rows is not None:
        raise UserError(f"--rows sizes the simulated arena (--source {ARENA}); for other sources use --limit")
    swap = None
    if args.swap is not None:
        numbers = args.swap.split(",")
        if not all(number.strip().isdecimal() for number in numbers):
            raise UserError(f"--swap {args.swap}: give one class index a class, e.g. 1,0,2")
        swap = tuple(int(number) for number in numbers)
    return SourceOptions(
        format=args.format,
        columns=_column_map(args.columns),
        classes=tuple(name.strip() for name in args.classes.split(",")) if args.classes else None,
        swap=swap,
        ids=args.ids,
        split=args.split,
        limit=args.limit,
    )


def _column_map(items: list[str]) -> dict[str, str]:
    """Read ``field=column`` pairs and YAML files of such pairs; later ones win."""
    columns: dict[str, str] = {}
    for item in items:
        name, equals, column = item.partition("=")
        if equals and column and not Path(item).exists():
            columns[name] = column
        elif item.endswith((".yaml", ".yml")):
            columns.update(_read_column_file(Path(item)))
        else:
            raise UserError(f"--columns {item}: give field=column, e.g. prompt=question, or a .yaml file")
    return columns


def _read_column_file(path: Path) -> dict[str, str]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from data.files import require_file

    try:
        value = OmegaConf.to_container(OmegaConf.load(require_file(path, "column map")))
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not a readable YAML file ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected lines such as 'prompt: question'")
    columns = {}
    for name, column in value.items():
        names = column if isinstance(column, list) else [column]
        if not all(isinstance(entry, str) for entry in names):
            raise UserError(f"{path}: field {name!r} holds {column}; give a column name, or a list of them")
        columns[str(name)] = ",".join(names)
    return columns


def _fold_table(rows: Rows, folds: Folds) -> str:
    """Rows, groups and label shares a fold and in all."""
    import numpy as np

    names = list(rows.classes.names)
    strata = list(range(len(names)))
    if (rows.labels < 0).any():
        names.append("unlabelled")
        strata.append(-1)
    lines = []
    everything = np.ones(len(rows), dtype=bool)
    for title, mask in [(str(k), folds.fold == k) for k in range(folds.n_folds)] + [("all", everything)]:
        groups = len({folds.group_ids[i] for i in np.flatnonzero(mask)})
        shares = [f"{np.mean(rows.labels[mask] == stratum):.3f}" for stratum in strata]
        lines.append([title, f"{mask.sum():,}", f"{groups:,}", *shares])
    return format_table(["fold", "rows", "groups", *names], lines)


if __name__ == "__main__":
    run(main)
