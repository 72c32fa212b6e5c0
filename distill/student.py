"""``python -m distill.student``: train a student on the teachers' out-of-fold logits.

Leaves the student's own out-of-fold store, for the stack, and ``final/``, the model trained on all rows.
Without arguments: the embedded demo, taught by the stores that ``distill.teacher_oof`` left.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.command import format_table, run
from data.errors import UserError
from distill.inputs import add_common_arguments, check_tracker, open_data, parse, score_line

if TYPE_CHECKING:
    from data.folds import Folds
    from data.schema import Rows
    from distill.config import DistillConfig
    from distill.teaching import Teachers


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
    parser.add_argument(
        "--leakage",
        choices=("standard", "strict"),
        default="standard",
        help="strict: a fold's student learns only from teachers that never saw that fold",
    )
    return parse(parser, argv)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    args = arguments(argv)
    from distill.config import load_recipe
    from distill.processes import join_others

    join_others()
    recipe = load_recipe(args.recipe, args.overrides)
    if recipe.student is None:
        raise UserError(f"recipe {args.recipe}: has no student")
    rows, folds, data_dir = open_data(args.data, recipe.data)

    from distill.crossfit import cross_fit, fit_final, plan_run
    from distill.teaching import StudentLoss, lessons, mode_of, teacher_details

    check_tracker(args.report_to)
    config = recipe.student.distill
    teachers = open_teachers(config, args.teachers, rows, folds, data_dir, args.leakage)
    student = plan_run(
        "student",
        "student",
        recipe.student,
        rows,
        folds,
        data_dir,
        args.out or data_dir / "student",
        loss=StudentLoss(config, rows.classes.permutation),
        lessons=None if teachers is None else lambda k: vars(lessons(config, teachers, rows, folds, k)),
        details=teacher_details(config, teachers),
    )
    store = cross_fit(student, args.report_to)
    final = fit_final(student, args.report_to)
    print(
        format_table(
            ["student", "rows", "log-loss", "accuracy", "out-of-fold store", "soft labels"],
            [[*score_line("student", store, rows), mode_of(config, teachers)]],
        )
    )
    print(f"deployable model: {final}")


def open_teachers(
    config: DistillConfig,
    paths: list[Path] | None,
    rows: Rows,
    folds: Folds,
    data_dir: Path,
    leakage: str,
) -> Teachers | None:
    """Read the teachers that the recipe's loss and soft labels ask for; None where it needs none."""
    from distill.teaching import HUMAN, find_teachers, human_labels, read_teachers, taught

    if not taught(config) or config.labels == HUMAN:
        if paths:
            raise UserError(
                f"recipe: the student's loss {config.loss} with labels {config.labels} has no teachers; "
                "leave --teachers out"
            )
        return human_labels(rows) if taught(config) else None
    return read_teachers(paths or find_teachers(data_dir, config.labels), rows, folds, config.labels, leakage)


if __name__ == "__main__":
    run(main)
