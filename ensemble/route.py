"""Send rows to dear models where they pay, within a budget: ``python -m ensemble.route``.

With labelled rows it fits a router: a cheap model predicts every row, dear ones those on which they are
expected to gain most for their cost. It prints what that wins on rows that it was not fitted on, beside
sending rows by lot and beside an oracle, and writes the decision rule, ``router.json``, and a report.

With ``--router`` it applies one to new rows: from the cheap model's predictions alone it writes which rows to
send; with the dear models' predictions of these rows, too, the answer for every row.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.console.command import parser_of, run
from data.errors import UserError, listing, printable
from ensemble.arguments import add_labelled_rows

if TYPE_CHECKING:
    from ensemble.routing.router import Router

FITTING = ("labels", "data", "folds", "trust", "rows", "seed")
SUFFIXES = (".csv", ".parquet")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = build_parser().parse_args(argv)
    told = fit(args) if args.router is None else apply(args)
    for line in told:
        print(printable(line))


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = parser_of(
        "ensemble.route",
        __doc__,
        "ensemble.route --cheap student.csv --dear llama.csv --labels labels.csv --cost student=0.02 llama=1 "
        "--budget 300 --rows 1000 --out runs/router\n"
        "ensemble.route --router runs/router --cheap new-student.csv --out decisions.csv\n"
        "ensemble.route --router runs/router --cheap new-student.csv --dear new-llama.csv --out answers.csv",
    )
    parser.add_argument(
        "--cheap",
        nargs="+",
        required=True,
        metavar="MODEL",
        help="soft-label store, prediction set or judge's file of the model that sees every row, PATH or "
        "NAME=PATH",
    )
    parser.add_argument(
        "--dear",
        nargs="+",
        action="extend",
        default=[],
        metavar="MODEL",
        help="of each model that sees the rows that are sent",
    )
    add_labelled_rows(parser)
    parser.add_argument(
        "--cost",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=AMOUNT",
        help="what each model costs for a row, in any one unit, money or seconds; or NAME=FILE with id "
        "and cost",
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="AMOUNT",
        help="what --rows new rows may cost, the cheap model's cost included, kept on average; without "
        "--rows, what a row may cost. With --router: what the rows of --cheap may cost, best first, never "
        "exceeded; without it there, each row is decided by itself",
    )
    parser.add_argument("--rows", type=int, metavar="N", help="new rows that the budget is for")
    parser.add_argument("--router", type=Path, metavar="DIR", help="what this command wrote, to apply it")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="the directory of the router; with --router, a .csv or .parquet to write",
    )
    parser.add_argument("--seed", type=int, default=0, help="of folds and bootstrap (default 0)")
    return parser


def fit(args: argparse.Namespace) -> list[str]:
    """Fit a router, write it, and return what to print."""
    if args.budget is None or not args.cost or not args.dear:
        lacking = [f"--{name}" for name in ("dear", "cost", "budget") if not getattr(args, name)]
        raise UserError(f"to fit a router, give {listing(lacking)}; to apply one, --router DIR")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"{args.out}: is a file where a directory is to be written; choose another --out")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must be 0 or more")
    from ensemble.reading.load import load_problem
    from ensemble.records import held_for
    from ensemble.report.summary import member_commands, next_lines
    from ensemble.routing.costs import costs_given
    from ensemble.routing.fitting import budget_of_a_row, route_problem
    from ensemble.routing.router import FILES, REPORT
    from ensemble.routing.rule import ROUTER
    from ensemble.routing.summary import summary

    budget, cost = budget_of_a_row(args.budget, args.rows), named_amounts(args.cost)
    names = [*one_name(args.cheap), *names_of(args.dear)]
    if names[0] in names[1:]:
        raise UserError(f"{names[0]}: is given as the cheap model and as a dear one; name them, NAME=PATH")
    problem = load_problem([*args.cheap, *args.dear], args.labels, args.data, args.folds, args.seed)
    paths = [*files_of([*args.cheap, *args.dear]), *(Path(value) for value in cost.values())]
    inputs = [*paths, *(path for path in (args.labels, args.folds) if path)]
    with held_for("router", args.out, inputs, FILES):
        costs = costs_given(cost, names, problem.row_ids, free=names[0])
        router = route_problem(problem, names, costs, budget, args.rows, args.trust, args.seed)
        router.write(args.out)
    told = summary(router.content).splitlines() + [f"note: {note}" for note in router.notes]
    at = problem.names.index(names[0])
    commands, given = member_commands(names[:1], problem.sources[at : at + 1])
    last = ["ensemble.route", "--router", str(args.out), "--cheap", *given, "--out", "decisions.csv"]
    commands.append(shlex.join(["python", "-m", *last]))
    return [*told, f"rule: {args.out / ROUTER}", f"page: {args.out / REPORT}", *next_lines(commands)]


def apply(args: argparse.Namespace) -> list[str]:
    """Decide new rows, or answer them; return what to print."""
    given = [name for name in FITTING if getattr(args, name) not in (None, [], 0)]
    if given:
        raise UserError(f"--{given[0]} is for fitting a router, not with --router, which applies one")
    if args.out.suffix.lower() not in SUFFIXES:
        raise UserError(f"{args.out}: what is decided is written as .csv or .parquet; give --out such a name")
    from data.files import locked
    from ensemble.predict import write_predictions
    from ensemble.records import refuse_overwriting
    from ensemble.routing.router import GAIN, SEND, read_router
    from ensemble.routing.rule import ROUTER

    cost, dear = named_amounts(args.cost), None
    paths = [*files_of([*args.cheap, *args.dear]), *(Path(value) for value in cost.values())]
    refuse_overwriting(args.out, [*paths, args.router / ROUTER])
    router = read_router(args.router)
    cheap = matched(router, args.cheap, router.members_[:1])[router.members_[0]]
    if args.dear:
        dear = matched(router, args.dear, router.members_[1:])
    with locked(args.out.with_name(f".{args.out.name}.routing")):
        decided = router.decide(cheap, cost=cost, budget=args.budget)
        probs, more = decided.probs, {GAIN: decided.expected_gain, SEND: decided.send}
        if dear is not None:
            probs, more = router.answer(decided, dear), {}
        write_predictions(args.out, decided.row_ids, probs, router.classes_, more)
    n, sent, names = len(decided.row_ids), len(decided.sent), listing(router.members_[1:])
    verb = "to send" if dear is None else "answered also by"
    rows = f"{n} rows by {router.members_[0]}, {sent} of them {verb} {'to ' if dear is None else ''}{names}"
    return [f"{rows}, cost {decided.spent:.6g}: {args.out}"]


def named_amounts(arguments: Sequence[str]) -> dict[str, str]:
    """Split each ``NAME=AMOUNT``; refuse what is none, and a name given twice."""
    found: dict[str, str] = {}
    for argument in arguments:
        name, equals, amount = argument.partition("=")
        if not equals or not name or not amount:
            raise UserError(f"--cost {argument}: give NAME=AMOUNT, or NAME=FILE")
        if name in found:
            raise UserError(f"--cost {argument}: {name} has a cost already")
        found[name] = amount
    return found


def names_of(arguments: Sequence[str]) -> list[str]:
    """Names of models in the order given; files of one name are one model's, a fold each."""
    from ensemble.reading.members import name_of, split_name

    parts = (split_name(argument) for argument in arguments)
    return list(dict.fromkeys(name or name_of(path) for name, path in parts))


def one_name(arguments: Sequence[str]) -> list[str]:
    """The name of the cheap model, of which there is one."""
    names = names_of(arguments)
    if len(names) > 1:
        raise UserError(f"--cheap {listing(names)}: one model sees every row; give the others with --dear")
    return names


def files_of(arguments: Sequence[str]) -> list[Path]:
    """The files that are named."""
    from ensemble.reading.members import split_name

    return [split_name(argument)[1] for argument in arguments]


def matched(router: Router, arguments: Sequence[str], wanted: Sequence[str]) -> dict[str, Any]:
    """Fresh files by the router's names; where one is wanted, whatever its file is called."""
    from ensemble.reading.members import name_of, split_name

    found: dict[str, Path] = {}
    for argument in arguments:
        said, path = split_name(argument)
        name = said or (wanted[0] if len(wanted) == 1 else name_of(path))
        if name in found:
            raise UserError(f"{path}: a second set of {name}; give one file a model, NAME=PATH")
        if name not in wanted:
            raise UserError(
                f"{path}: {name} is none of the router's {listing(wanted, 12)}; match it with NAME=PATH"
            )
        found[name] = path
    return found


if __name__ == "__main__":
    run(main)
