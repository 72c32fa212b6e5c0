"""``python -m distill.teacher_oof``: train the recipe's teachers fold by fold; leave one store each.

Without arguments: the embedded demo, two tiny teachers on the simulated arena.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data.console.command import format_table, parser_of, run
from data.console.remote_code import allow_remote_code
from data.errors import UserError, listing
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

if TYPE_CHECKING:
    from distill.config import Recipe


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = parser_of(
        "distill.teacher_oof", __doc__, "distill.teacher_oof --data prepared --recipe lmsys --dry-run"
    )
    add_common_arguments(parser)
    add_launch_arguments(parser)
    parser.add_argument(
        "--out", type=local_path, help="parent of the teachers' stores (default: the data's directory)"
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        choices=("in_sample", "fold_mean"),
        default=[],
        help="also leave these soft labels, each as a store named after the teacher; those that the recipe's "
        "own student asks for are left in any case",
    )
    parser.add_argument(
        "--leakage",
        choices=("standard", "strict"),
        default="standard",
        help="strict: also train without every two folds, for students scored with --leakage strict",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train only these teachers of the recipe")
    return parse(parser, argv)


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = arguments(argv)
    from distill.processes import held, join_others
    from distill.recipe import load_recipe

    join_others()
    allow_remote_code(args.trust_remote_code)
    recipe = load_recipe(args.recipe, args.overrides)
    if not recipe.teachers:
        raise UserError(f"recipe {args.recipe}: has no teachers")
    names = list(dict.fromkeys(args.only or recipe.teachers))
    unknown = sorted(set(names) - set(recipe.teachers))
    if unknown:
        raise UserError(
            f"recipe {args.recipe}: has no teacher {listing(unknown)}; it has {listing(recipe.teachers)}"
        )
    rows, folds, home = open_data(args.data, recipe.data)
    out = args.out or home

    for line in unread(args, [*(f"teachers.{name}" for name in names), "student.distill"]):
        print(line)
    from distill.cluster.launch import estimated, on_cluster, verdict
    from distill.runs.derived import check_strict, write_derived, write_strict
    from distill.runs.units import ModelSpec, run_here, units_of

    check_tracker(args.report_to)
    labels, strict = wanted(recipe, args.labels, args.leakage)
    if strict:
        check_strict(folds.n_folds)
    models = [ModelSpec(name, recipe.teachers[name], args.data or DEMO, out / name) for name in names]
    options = {"strict": strict, "everywhere": bool(labels), "report_to": args.report_to}
    units = {model.name: units_of(model, folds.n_folds, **options) for model in models}
    all_units = [unit for each in units.values() for unit in each]
    if args.dry_run:
        print(estimated(all_units, rows, folds, args.launcher))
        return 0
    if args.launcher == "ray":
        board = on_cluster(models, all_units, out, "teacher_oof", (rows, folds))
        print(verdict(board))
        if board.failures():
            return 1
    lines = []
    for model in models:
        with held(model.out):
            model.fetch()
            fetch(model.out)
            teacher = model.plan((rows, folds))
            store = run_here(units[model.name], teacher)
            lines.append([*score_line(model.name, store, rows), "oof"])
            if strict:
                write_strict(teacher)
                lines[-1][-1] = "oof, strict too"
            publish(teacher.out)
            for kind in labels:
                derived = write_derived(teacher, kind)
                lines.append([*score_line(derived.name, derived, rows), f"{kind}: rows it was trained on"])
                publish(derived.path)
    print(format_table(["teacher", "rows", "log-loss", "accuracy", "store", "soft labels"], lines))
    return 0


def wanted(recipe: Recipe, labels: Sequence[str], leakage: str) -> tuple[list[str], bool]:
    """Which further labels to leave, and whether strict ones: those asked for and those its student needs."""
    from distill.losses import LOSSES

    found = list(labels)
    student = recipe.student
    if student is None or not LOSSES[student.distill.loss].taught:
        return found, leakage == "strict"
    distill = student.distill
    needs = ["in_sample"] if distill.leakage == "apart" and distill.labels != "human" else []
    needs += [distill.labels] if distill.labels in {"in_sample", "fold_mean"} else []
    return list(dict.fromkeys([*found, *needs])), "strict" in {leakage, distill.leakage}


if __name__ == "__main__":
    run(main)
