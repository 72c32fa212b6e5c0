"""``python -m distill.teacher_oof``: train the recipe's teachers fold by fold; leave one store each.

Without arguments: the embedded demo, two tiny teachers on the simulated arena.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data.command import format_table, run
from data.errors import UserError, listing
from distill.inputs import add_common_arguments, check_tracker, open_data, parse, score_line


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m distill.teacher_oof", description=__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        "--out", type=Path, help="parent of the teachers' stores (default: the data's directory)"
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        choices=("in_sample", "fold_mean"),
        default=[],
        help="also leave these soft labels, each as a store named after the teacher",
    )
    parser.add_argument(
        "--leakage",
        choices=("standard", "strict"),
        default="standard",
        help="strict: also train without every two folds, for students scored with --leakage strict",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train only these teachers of the recipe")
    return parse(parser, argv)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    args = arguments(argv)
    from distill.config import load_recipe
    from distill.processes import join_others

    join_others()
    recipe = load_recipe(args.recipe, args.overrides)
    names = args.only or list(recipe.teachers)
    unknown = sorted(set(names) - set(recipe.teachers))
    if unknown or not names:
        raise UserError(
            f"recipe {args.recipe}: has no teacher {listing(unknown)}; it has {listing(recipe.teachers)}"
        )
    rows, folds, data_dir = open_data(args.data, recipe.data)
    out = args.out or data_dir

    from distill.crossfit import cross_fit, plan_run
    from distill.labels import write_derived, write_strict
    from distill.losses import cross_entropy

    check_tracker(args.report_to)
    lines = []
    for name in names:
        teacher = plan_run(
            "teacher",
            name,
            recipe.teachers[name],
            rows,
            folds,
            data_dir,
            out / name,
            loss=lambda logits, batch: cross_entropy(logits, batch["targets"]),
        )
        store = cross_fit(teacher, args.report_to)
        lines.append([*score_line(name, store, rows), "oof"])
        if args.leakage == "strict":
            write_strict(teacher, args.report_to)
            lines[-1][-1] = "oof, strict too"
        for kind in args.labels:
            derived = write_derived(teacher, kind, args.report_to)
            lines.append([*score_line(derived.name, derived, rows), f"{kind}: rows it was trained on"])
    print(format_table(["teacher", "rows", "log-loss", "accuracy", "store", "soft labels"], lines))


if __name__ == "__main__":
    run(main)
