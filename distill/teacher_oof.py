"""``python -m distill.teacher_oof``: train the recipe's teachers fold by fold; leave one store each.

Without arguments: the embedded demo, two tiny teachers on the simulated arena.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
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
    score_names,
    unread,
)

if TYPE_CHECKING:
    from data.folds import Folds
    from data.schema import Rows
    from data.softlabels import SoftLabels
    from distill.config import Recipe
    from distill.runs.units import ModelSpec, Unit


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
    from distill.processes import join_others
    from distill.recipe import load_recipe

    join_others()
    allow_remote_code(args.trust_remote_code)
    recipe = load_recipe(args.recipe, args.overrides)
    names = chosen(recipe, args.recipe, args.only)
    rows, folds, home = open_data(args.data, recipe.data)
    out = args.out or home

    for line in unread(args, [*(f"teachers.{name}" for name in names), "student.distill"]):
        print(line)
    from distill.cluster.launch import estimated, on_cluster, verdict

    check_tracker(args.report_to)
    labels, strict = wanted(recipe, args.labels, args.leakage)
    units = units_for(recipe, names, args.data or DEMO, out, folds, labels, strict, args.report_to)
    models, all_units = [model for model, _ in units], [unit for _, own in units for unit in own]
    if args.dry_run:
        print(estimated(models, all_units, rows, folds, args.launcher))
        return 0
    if args.launcher == "ray":
        board = on_cluster(models, all_units, out, "teacher_oof", (rows, folds))
        print(verdict(board))
        if board.failures():
            return 1
    stores = trained(units, (rows, folds), labels, strict)
    lines = [[*score_line(name, store, rows), what] for name, store, what in stores]
    print(format_table(["teacher", *score_names(rows), "store", "soft labels"], lines))
    return 0


def cross_fit(
    data: str | Path,
    *,
    recipe: str = "demo",
    only: Sequence[str] | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    labels: Sequence[str] = (),
    leakage: str = "standard",
) -> dict[str, SoftLabels]:
    """Train teachers fold by fold, as the command does; return the soft labels that they leave.

    Parameters
    ----------
    data : path
        Prepared rows and folds.
    recipe : str
        A recipe's name or YAML file.
    only : sequence of str, optional
        Train only these teachers of the recipe.
    out : path, optional
        Parent of the teachers' stores; by default the data's directory.
    overrides : sequence of str
        ``key=value``, dotted.
    labels : sequence of {"in_sample", "fold_mean"}
        Further soft labels to leave.
    leakage : {"standard", "strict"}
        ``strict``: also train without every two folds.

    Returns
    -------
    dict of str to SoftLabels
        By the name of the store. What is finished there already is read and not trained again.

    Raises
    ------
    UserError
        The recipe, the data or what stands in ``out`` do not fit.
    """
    from distill.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    names = chosen(loaded, recipe, only)
    rows, folds, home = open_data(Path(data), loaded.data)
    kinds, strict = wanted(loaded, labels, leakage)
    place = home if out is None else Path(out)
    units = units_for(loaded, names, Path(data), place, folds, kinds, strict)
    return {store.name: store for _, store, _ in trained(units, (rows, folds), kinds, strict)}


def chosen(recipe: Recipe, called: str, only: Sequence[str] | None) -> list[str]:
    """The teachers to train: all of the recipe's, or those named."""
    if not recipe.teachers:
        raise UserError(f"recipe {called}: has no teachers")
    names = list(dict.fromkeys(only or recipe.teachers))
    unknown = sorted(set(names) - set(recipe.teachers))
    if unknown:
        raise UserError(
            f"recipe {called}: has no teacher {listing(unknown)}; it has {listing(recipe.teachers)}"
        )
    return names


def units_for(
    recipe: Recipe,
    names: Sequence[str],
    data: Path,
    out: Path,
    folds: Folds,
    labels: Sequence[str],
    strict: bool,
    report_to: str = "none",
) -> list[tuple[ModelSpec, list[Unit]]]:
    """The units of work of each teacher."""
    from distill.runs.derived import check_strict
    from distill.runs.units import ModelSpec, units_of

    if strict:
        check_strict(folds.n_folds)
    models = [ModelSpec(name, recipe.teachers[name], data, out / name) for name in names]
    everywhere = bool(labels)
    return [(model, units_of(model, folds.n_folds, False, strict, everywhere, report_to)) for model in models]


def trained(
    units: Sequence[tuple[ModelSpec, Sequence[Unit]]],
    loaded: tuple[Rows, Folds],
    labels: Sequence[str],
    strict: bool,
) -> Iterator[tuple[str, SoftLabels, str]]:
    """Do what is left of each teacher's units; yield each store with its name and what its labels are."""
    from distill.processes import held
    from distill.runs.derived import write_derived, write_strict
    from distill.runs.units import run_here

    for model, own in units:
        with held(model.out):
            model.fetch()
            fetch(model.out)
            teacher = model.plan(loaded)
            store = run_here(own, teacher)
            if strict:
                write_strict(teacher)
            publish(teacher.out)
            yield model.name, store, "oof, strict too" if strict else "oof"
            for kind in labels:
                derived = write_derived(teacher, kind)
                publish(derived.path)
                yield derived.name, derived, f"{kind}: rows it was trained on"


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
    needs += ["fold_mean"] if distill.pseudo_labels is not None and distill.labels == "oof" else []
    return list(dict.fromkeys([*found, *needs])), "strict" in {leakage, distill.leakage}


if __name__ == "__main__":
    run(main)
