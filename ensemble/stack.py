"""Blend out-of-fold predictions and score the blend honestly: ``python -m ensemble.stack``.

Tries every method, scores each by nested cross-fitting on prompt-grouped folds, keeps the best, and
writes it with its predictions and a report. Without arguments it stacks the demo's models. It ends with the
command that predicts new rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data.console.command import parser_of, run
from data.errors import UserError, printable
from ensemble.arguments import add_labelled_rows

DEMO = Path("runs/demo")
MOST_REPEATS = 100
MOST_SEED = 2_000_000_000
"""LightGBM's are 32 bits wide, and each booster adds to it."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = build_parser().parse_args(argv)
    oof, data, out, left_out = resolve(args)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file where a directory is to be written; choose another --out")
    if not 1 <= args.repeats <= MOST_REPEATS:
        raise UserError(f"--repeats {args.repeats}: the rows must be dealt from once to {MOST_REPEATS} times")
    if not 0 <= args.seed <= MOST_SEED:
        raise UserError(f"--seed {args.seed}: must be a whole number from 0 to {MOST_SEED}")

    from ensemble.sets.problem import are_sets

    if are_sets(oof):
        stack_sets(args, oof, data, out, left_out)
        return
    from ensemble.methods.catalogue import METHODS

    if args.method is not None and args.method not in METHODS:
        raise UserError(f"--method {args.method}: is no method; there are {', '.join(METHODS)}")
    from ensemble.blending import fit_stack
    from ensemble.lint.suspects import leave_out_suspects
    from ensemble.output import REPORT, hold
    from ensemble.reading.load import load_problem
    from ensemble.reading.members import split_name
    from ensemble.reading.problem import declare_swap
    from ensemble.report.summary import next_commands, next_lines, score_table, summary

    problem = load_problem(oof, args.labels, data, args.folds, args.seed)
    problem = replace(problem, notes=(*problem.notes, *left_out))
    if args.swap:
        problem = declare_swap(problem, args.swap)
    problem = leave_out_suspects(problem, args.trust)
    inputs = [split_name(argument)[1] for argument in oof]
    with hold(out, [*inputs, *(path for path in (args.labels, args.folds) if path)]):
        stack = fit_stack(problem, args.method, args.repeats, args.seed)
        stack.write(out)
    assert stack.result is not None
    result = stack.result
    commands = next_commands(problem, out, result.fitted[result.chosen].needs_rows)
    told = [*score_table(result).splitlines(), ""] if args.all else []
    told += summary(problem, result).splitlines()
    told += [f"note: {note}" for note in (*problem.notes, *result.notes)]
    told += [f"page: {out / REPORT}", *next_lines(commands)]
    for line in told:
        print(printable(line))


def stack_sets(
    args: argparse.Namespace, oof: list[str], data: Path | None, out: Path, left_out: list[str]
) -> None:
    """Run the command on rows with candidates of their own."""
    from ensemble.lint.suspects import leave_out_suspects
    from ensemble.output import hold
    from ensemble.reading.members import split_name
    from ensemble.report.summary import next_commands, next_lines
    from ensemble.set_output import write_stack
    from ensemble.sets.fitting import all_methods, fit_sets, notes, summary
    from ensemble.sets.pool import METHODS
    from ensemble.sets.problem import load_set_problem

    if args.swap:
        raise UserError("--swap is of classes that rows share, and these rows have candidates; leave it out")
    if args.method is not None and args.method not in METHODS:
        raise UserError(
            f"--method {args.method}: is no method of rows with candidates; there are {', '.join(METHODS)}"
        )
    sets = load_set_problem(oof, args.labels, data, args.folds, args.seed)
    problem = leave_out_suspects(sets.problem, args.trust)
    sets = replace(sets, problem=replace(problem, notes=(*problem.notes, *left_out)))
    inputs = [split_name(argument)[1] for argument in oof]
    with hold(out, [*inputs, *(path for path in (args.labels, args.folds) if path)]):
        stack = fit_sets(sets, args.method, args.repeats, args.seed)
        write_stack(out, stack)
    told = [*all_methods(stack), ""] if args.all else []
    told += [*summary(stack), *(f"note: {note}" for note in notes(stack))]
    told += next_lines(next_commands(problem, out))
    for line in told:
        print(printable(line))


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = parser_of(
        "ensemble.stack",
        __doc__,
        "ensemble.stack --oof llama.csv gemma2.csv --labels labels.csv --out stacked",
    )
    parser.add_argument(
        "--oof",
        nargs="+",
        metavar="MODEL",
        help="soft-label stores, prediction sets (CSV, Parquet), or judges' files (id with verdict, or with "
        "score_a,score_b; verdict_swapped is that in the other order), PATH or NAME=PATH; by default every "
        "store directly under --data",
    )
    add_labelled_rows(parser)
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
    parser.add_argument(
        "--method", metavar="NAME", help="write this method instead of the chosen one; --all lists them"
    )
    parser.add_argument(
        "--all", action="store_true", help="print the table of all methods too, the best first"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the stack goes")
    parser.add_argument("--seed", type=int, default=0, help="of folds, trees and bootstrap (default 0)")
    return parser


def resolve(args: argparse.Namespace) -> tuple[list[str], Path | None, Path, list[str]]:
    """Return the models, the data and output directories that the arguments mean, and what was left out."""
    if args.oof:
        return args.oof, args.data, args.out or Path("runs/stack"), []
    from ensemble.reading.stores import member_stores

    home = args.data or DEMO
    if args.data is not None and not home.exists():
        raise UserError(f"{home}: no such data; prepare it with python -m data.prepare")
    folder = home if home.is_dir() or not home.exists() else home.parent
    stores, left_out = member_stores(folder)
    if not stores:
        hint = "python -m distill.teacher_oof" + (f" --data {home}" if args.data else "")
        raise UserError(f"{folder}: holds no soft-label stores; run {hint} first, or give --oof MODEL...")
    if args.data is None and not (DEMO / "rows.parquet").exists():
        home = None
    return stores, home, args.out or folder / "stack", left_out


if __name__ == "__main__":
    run(main)
