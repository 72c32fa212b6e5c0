"""``python -m distill.student``: train a student on the teachers' out-of-fold logits.

Leaves the student's own out-of-fold store, for the stack, and ``final/``, the model trained on all rows.
Without arguments: the embedded demo, taught by the stores that ``distill.teacher_oof`` left.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data.command import format_table, run
from data.errors import UserError
from distill.inputs import add_common_arguments, check_tracker, open_data, parse, score_line


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m distill.student", description=__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        "--teachers",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="stores (default: all of the data's directory)",
    )
    parser.add_argument(
        "--out", type=Path, help="the student's store (default: student in the data's directory)"
    )
    return parse(parser, argv)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    args = arguments(argv)
    from distill.config import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    if recipe.student is None:
        raise UserError(f"recipe {args.recipe}: has no student")
    rows, folds, data_dir = open_data(args.data, recipe.data)

    from distill.crossfit import cross_fit, fit_final, plan_run
    from distill.teaching import find_teachers, read_teachers, student_loss, teacher_details

    check_tracker(args.report_to)
    teachers = read_teachers(args.teachers or find_teachers(data_dir), rows, folds)
    student = plan_run(
        "student",
        "student",
        recipe.student,
        rows,
        folds,
        data_dir,
        args.out or data_dir / "student",
        loss=student_loss(recipe.student.distill, teachers.names),
        teacher_logits=teachers.logits,
        details=teacher_details(recipe.student.distill, teachers),
    )
    store = cross_fit(student, args.report_to)
    final = fit_final(student, args.report_to)
    print(
        format_table(
            ["student", "rows", "log-loss", "accuracy", "out-of-fold store"],
            [score_line("student", store, rows)],
        )
    )
    print(f"deployable model: {final}")


if __name__ == "__main__":
    run(main)
