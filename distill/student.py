"""``python -m distill.student``: train a student on the teachers' out-of-fold logits.

Leaves the student's own out-of-fold store, for the stack, and ``final/``, the model trained on all rows.
Without arguments: the embedded demo, taught by the stores that ``distill.teacher_oof`` left.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from data.console.command import format_table, parser_of, run
from data.console.remote_code import allow_remote_code
from data.errors import UserError
from data.storage import fetch, local_path, publish
from distill.arguments import (
    DEMO,
    add_common_arguments,
    add_launch_arguments,
    check_tracker,
    open_data,
    parse,
    score_line,
    unread,
)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = parser_of(
        "distill.student", __doc__, "distill.student --data prepared --recipe lmsys student.train.lr=1e-4"
    )
    add_common_arguments(parser)
    add_launch_arguments(parser)
    parser.add_argument(
        "--teachers",
        nargs="+",
        type=local_path,
        default=[],
        metavar="DIR",
        help="stores (default: all of the data's directory)",
    )
    parser.add_argument(
        "--out", type=local_path, help="the student's store (default: student in the data's directory)"
    )
    parser.add_argument(
        "--leakage",
        choices=("standard", "apart", "strict"),
        help="instead of the recipe's student.distill.leakage: whom a fold's student learns from. standard: "
        "the makers of the out-of-fold labels, which saw the scored fold and flatter the score; apart: the "
        "teachers' models of that fold, which did not (in-sample labels); strict: models that saw neither it "
        "nor the rows they label. teacher_oof leaves what the recipe asks for, or its --labels in_sample and "
        "--leakage strict. The final student is the same in all",
    )
    parser.add_argument(
        "--loss",
        metavar="FILE.py:FUNCTION",
        help="a loss of your own, which this executes: short for student.distill.loss=FILE.py:FUNCTION",
    )
    args = parse(parser, argv)
    if args.loss is not None:
        args.overrides.append(f"student.distill.loss={json.dumps(args.loss)}")
    return args


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = arguments(argv)
    from distill.processes import held, join_others
    from distill.recipe import load_recipe

    join_others()
    allow_remote_code(args.trust_remote_code)
    recipe = load_recipe(args.recipe, args.overrides)
    if recipe.student is None:
        raise UserError(f"recipe {args.recipe}: has no student")
    rows, folds, home = open_data(args.data, recipe.data)

    for line in unread(args, ["student"]):
        print(line)
    from data.softlabels import second_order_leak
    from distill.cluster.launch import estimated, on_cluster, verdict
    from distill.losses import LOSSES
    from distill.runs.run_directory import FINAL
    from distill.runs.units import ModelSpec, run_here, units_of
    from distill.teaching.lessons import mode_of

    check_tracker(args.report_to)
    out = args.out or home / "student"
    leakage = args.leakage or recipe.student.distill.leakage
    model = ModelSpec(
        "student",
        recipe.student,
        args.data or DEMO,
        out,
        tuple(args.teachers),
        leakage,
        LOSSES[recipe.student.distill.loss].source,
    )
    units = units_of(model, folds.n_folds, final=True, report_to=args.report_to)
    if args.dry_run:
        print(estimated(units, rows, folds, args.launcher))
        return 0
    if args.launcher == "ray":
        board = on_cluster([model], units, out.parent, "student", (rows, folds))
        print(verdict(board))
        if board.failures():
            return 1
    with held(out):
        model.fetch()
        fetch(out)
        student = model.plan((rows, folds))
        store = run_here(units, student)
        publish(out)
    print(
        format_table(
            ["student", "rows", "log-loss", "accuracy", "out-of-fold store", "soft labels"],
            [[*score_line("student", store, rows), mode_of(recipe.student.distill, student.manifest)]],
        )
    )
    if second_order_leak(student.manifest):
        print(
            "this score flatters the student, whose teachers saw the folds it is scored on; "
            "student.distill.leakage apart or strict gives one to believe"
        )
    print(f"deployable model: {student.directory.part(FINAL).adapter}")
    return 0


if __name__ == "__main__":
    run(main)
