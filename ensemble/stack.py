"""Blend out-of-fold predictions and score the blend honestly: ``python -m ensemble.stack``.

Tries every method, scores each by nested cross-fitting on prompt-grouped folds, keeps the best, and
writes it with its predictions and a report. Without arguments it stacks the demo's models.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.command import format_table, run
from data.errors import UserError

if TYPE_CHECKING:
    from ensemble.scoring.results import Result, Score

DEMO = Path("runs/demo")
MOST_REPEATS = 100
MOST_SEED = 2_000_000_000
"""LightGBM's are 32 bits wide, and each booster adds to it."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = build_parser().parse_args(argv)
    oof, data, out = resolve(args)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file where a directory is to be written; choose another --out")
    if not 1 <= args.repeats <= MOST_REPEATS:
        raise UserError(f"--repeats {args.repeats}: the rows must be dealt from once to {MOST_REPEATS} times")
    if not 0 <= args.seed <= MOST_SEED:
        raise UserError(f"--seed {args.seed}: must be a whole number from 0 to {MOST_SEED}")

    from ensemble.output import REPORT, hold, write_result
    from ensemble.reading.lint import leave_out_suspects
    from ensemble.reading.load import load_problem
    from ensemble.reading.members import split_name
    from ensemble.reading.problem import declare_swap
    from ensemble.report.page import write_report
    from ensemble.scoring.results import evaluate

    problem = load_problem(oof, args.labels, data, args.folds, args.seed)
    if args.swap:
        problem = declare_swap(problem, args.swap)
    problem = leave_out_suspects(problem, args.trust)
    inputs = [split_name(argument)[1] for argument in oof]
    with hold(out, [*inputs, *(path for path in (args.labels, args.folds) if path)]):
        result = evaluate(problem, seed=args.seed, repeats=args.repeats)
        write_report(out / REPORT, problem, result)
        write_result(out, problem, result)
    print(score_table(result))
    for note in (*problem.notes, *result.notes):
        print(f"note: {note}")
    print(f"chosen: {result.chosen} ({result.why})")
    low, high = result.choice_included_ci.as_list()
    print(
        f"log-loss with the choice itself cross-fitted: {result.choice_included:.4f} [{low:.4f}, {high:.4f}]"
    )
    print(out / REPORT)


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m ensemble.stack", description=(__doc__ or "").split("\n\n", 1)[1]
    )
    parser.add_argument(
        "--oof",
        nargs="+",
        metavar="MODEL",
        help="soft-label stores or prediction sets (CSV, Parquet), PATH or NAME=PATH; "
        "by default every store directly under --data",
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="id with label or class columns")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared data: rows and folds")
    parser.add_argument("--folds", type=Path, metavar="FILE", help="fold file: row_id, group_id, fold")
    parser.add_argument(
        "--trust",
        nargs="+",
        default=[],
        metavar="NAME",
        help="keep a member that looks as if it had seen the labels it is scored on",
    )
    parser.add_argument(
        "--swap",
        nargs="+",
        default=[],
        metavar="A=B",
        help="classes that change places when a row's two sides do, or none; known for stores and for "
        "winner_model_a, winner_model_b",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=1,
        metavar="N",
        help="deal the rows into folds N times and score the mean, which is less noisy and takes N times "
        "as long (default 1)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the stack goes")
    parser.add_argument("--seed", type=int, default=0, help="of folds, trees and bootstrap (default 0)")
    return parser


def resolve(args: argparse.Namespace) -> tuple[list[str], Path | None, Path]:
    """Return the models, the data directory and the output directory that the arguments mean."""
    from data.softlabels import is_store, read_manifest

    if args.oof:
        return args.oof, args.data, args.out or Path("runs/stack")
    home = args.data or DEMO
    if args.data is not None and not home.exists():
        raise UserError(f"{home}: no such data; prepare it with python -m data.prepare")
    folder = home if home.is_dir() or not home.exists() else home.parent
    stores = sorted(str(p) for p in folder.iterdir() if is_store(p)) if folder.is_dir() else []
    # Soft labels of other kinds beside them are lessons for a student, not members.
    stores = [path for path in stores if read_manifest(Path(path)).get("label_kind", "oof") == "oof"]
    if not stores:
        hint = "python -m distill.teacher_oof" + (f" --data {home}" if args.data else "")
        raise UserError(f"{folder}: holds no soft-label stores; run {hint} first, or give --oof MODEL...")
    if args.data is None and not (DEMO / "rows.parquet").exists():
        home = None
    return stores, home, args.out or folder / "stack"


def score_table(result: Result) -> str:
    """Lay out the scores: prior, members, methods, and the Bayes optimum where it is known."""
    header = ["", "log-loss", "95 %", "in-sample", "against the mean"]

    def line(score: Score) -> list[str]:
        mark = "* " if score.name == result.chosen else "  "
        inside = "" if score.in_sample is None else f"{score.in_sample:.4f}"
        gap = f"{score.vs_mean:+.4f} [{score.vs_mean_ci.low:+.4f}, {score.vs_mean_ci.high:+.4f}]"
        return [
            mark + score.name,
            f"{score.loss:.4f}",
            f"[{score.ci.low:.4f}, {score.ci.high:.4f}]",
            inside,
            "" if score.name == "mean" else gap,
        ]

    return format_table(header, [line(score) for score in result.all_scores])


if __name__ == "__main__":
    run(main)
