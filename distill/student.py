"""``python -m distill.student``: train a student on the teachers' out-of-fold logits.

Leaves the student's own out-of-fold store, for the stack, and ``final/``, the model trained on all rows.
Without arguments: the embedded demo, taught by the stores that ``distill.teacher_oof`` left.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
    score_names,
    unread,
)

if TYPE_CHECKING:
    from data.folds import Folds
    from data.schema import Rows
    from data.softlabels import SoftLabels
    from distill.config import Recipe
    from distill.runs.run import Run
    from distill.runs.units import ModelSpec, Unit


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
        help="stores (default: all of the data's directory), or a stack: its nested out-of-fold blend",
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
    from distill.processes import join_others
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
    from distill.runs.run_directory import FINAL
    from distill.teaching.lessons import mode_of

    check_tracker(args.report_to)
    out = args.out or home / "student"
    model = student_of(recipe, args.data or DEMO, out, args.teachers, args.leakage)
    units = units_for(model, folds, args.report_to)
    if args.dry_run:
        print(estimated([model], units, rows, folds, args.launcher))
        return 0
    if args.launcher == "ray":
        board = on_cluster([model], units, out.parent, "student", (rows, folds))
        print(verdict(board))
        if board.failures():
            return 1
    store, student = trained(model, units, (rows, folds))
    print(
        format_table(
            ["student", *score_names(rows), "out-of-fold store", "soft labels"],
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


def train_student(
    data: str | Path,
    teachers: Sequence[str | Path] = (),
    *,
    recipe: str = "demo",
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    leakage: str | None = None,
) -> SoftLabels:
    """Train a student, as the command does; return its own out-of-fold soft labels.

    Parameters
    ----------
    data : path
        Prepared rows and folds.
    teachers : sequence of path
        Their stores; by default all of the data's directory.
    recipe : str
        A recipe's name or YAML file.
    out : path, optional
        The student's store; by default ``student`` in the data's directory. The model trained on all rows is
        in ``final`` there, and :func:`distill.load_run` predicts with it.
    overrides : sequence of str
        ``key=value``, dotted.
    leakage : {"standard", "apart", "strict"}, optional
        Instead of the recipe's ``student.distill.leakage``.

    Raises
    ------
    UserError
        The recipe, the data, the teachers or what stands in ``out`` do not fit.
    """
    from distill.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    if loaded.student is None:
        raise UserError(f"recipe {recipe}: has no student")
    rows, folds, home = open_data(Path(data), loaded.data)
    place = home / "student" if out is None else Path(out)
    model = student_of(loaded, Path(data), place, [Path(teacher) for teacher in teachers], leakage)
    return trained(model, units_for(model, folds), (rows, folds))[0]


def student_of(
    recipe: Recipe, data: Path, out: Path, teachers: Sequence[Path], leakage: str | None
) -> ModelSpec:
    """The recipe's student, which is there."""
    from distill.losses import LOSSES
    from distill.runs.units import ModelSpec

    assert recipe.student is not None
    distill = recipe.student.distill
    source, whom = LOSSES[distill.loss].source, leakage or distill.leakage
    return ModelSpec("student", recipe.student, data, out, tuple(teachers), whom, source)


def units_for(model: ModelSpec, folds: Folds, report_to: str = "none") -> list[Unit]:
    """The student's units of work: its folds, and the training on all rows."""
    from distill.runs.units import units_of

    return units_of(model, folds.n_folds, final=True, report_to=report_to)


def trained(model: ModelSpec, units: Sequence[Unit], loaded: tuple[Rows, Folds]) -> tuple[SoftLabels, Run]:
    """Do what is left of the student's units; return its store and its run."""
    from distill.processes import held
    from distill.runs.units import run_here

    with held(model.out):
        model.fetch()
        fetch(model.out)
        student = model.plan(loaded)
        store = run_here(units, student)
        publish(model.out)
    return store, student


if __name__ == "__main__":
    run(main)
