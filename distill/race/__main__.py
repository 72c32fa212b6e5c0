"""``python -m distill.race``: train backbones side by side under one budget and stop the losers early.

Same rows, same order, same validation rows. At every look the paired differences get intervals that hold for
all looks at once (:mod:`distill.race.intervals`); a backbone is stopped when it is shown to be worse now
and, at the pace the gap closes, at the end. The same command continues a killed race; the winner is trained
to its end from its last checkpoint, in a directory that ``distill.teacher_oof`` can go on with.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data.console.command import format_table, parser_of, run
from data.console.remote_code import allow_remote_code
from data.errors import UserError, listing
from distill.arguments import add_common_arguments, open_data, parse, unread

if TYPE_CHECKING:
    from data.folds import Folds
    from data.schema import Rows
    from distill.config import ModelConfig, Recipe
    from distill.race.race import Race, Rules
    from distill.runs.run import Run

FEW_GROUPS = 10
"""Groups of validated rows below which the verdict says how little they can tell."""


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = parser_of(
        "distill.race", __doc__, "distill.race --recipe demo --backbones llama gemma2 --budget seconds=60"
    )
    add_common_arguments(parser)
    parser.add_argument(
        "--backbones",
        nargs="+",
        metavar="NAME",
        help="models of the recipe, or checkpoints to train as the recipe's first model "
        "(default: all of the recipe's)",
    )
    parser.add_argument(
        "--out", type=Path, help="directory of the race (default: race in the data's directory)"
    )
    parser.add_argument("--budget", default="rows", help="rows, tokens or seconds=S (default: rows)")
    parser.add_argument("--looks", type=int, default=10, help="evaluations, evenly spaced (default: 10)")
    parser.add_argument("--alpha", type=float, default=0.05, help="error rate of a stop (default: 0.05)")
    parser.add_argument("--fold", type=int, default=0, help="the fold to validate on (default: 0)")
    parser.add_argument("--validation-rows", type=int, default=0, help="at most so many of its rows (0: all)")
    parser.add_argument("--tune", choices=["lr"], help="first sweep each backbone's learning rate")
    parser.add_argument(
        "--probe",
        action="store_true",
        help="instead of a race, minutes: a regression on each backbone's frozen states, on all folds",
    )
    parser.add_argument(
        "--probe-rows",
        type=int,
        default=4000,
        metavar="N",
        help="about so many rows, of all folds alike (default: 4000; 0: all)",
    )
    return parse(parser, argv)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    args = arguments(argv)
    from data.classes import refuse_candidates
    from distill.processes import held, stand_alone
    from distill.recipe import load_recipe

    stand_alone("distill.race")
    allow_remote_code(args.trust_remote_code)
    recipe = load_recipe(args.recipe, args.overrides)
    models = choose(recipe, args.backbones, args.recipe)
    if args.looks < 3 or not 0 < args.alpha < 1:
        raise UserError("--looks must be 3 or more, and --alpha lie between 0 and 1")
    if args.validation_rows < 0:
        raise UserError(f"--validation-rows is {args.validation_rows}; give 0 for all, or more")
    if args.probe and args.tune:
        raise UserError(f"--tune {args.tune} is of a race, and --probe trains nothing; leave one of them out")
    rows, folds, data_dir = open_data(args.data, recipe.data)
    if args.probe:
        refuse_candidates(rows.classes, f"{data_dir}: --probe", "race without it")
    if not 0 <= args.fold < folds.n_folds:
        raise UserError(f"--fold {args.fold}: the data have folds 0 to {folds.n_folds - 1}")

    for line in unread(args, [f"teachers.{name}" for name in models]):
        print(line)
    import distill.quick  # noqa: F401 - before what it imports quicker

    if args.probe:
        show_probe(models, rows, folds, args.out or data_dir / "probe", args.probe_rows)
        return
    from distill.race.page import DIFFERENCES, difference_lines, write_pages
    from distill.race.race import Contestant, Race, Rules
    from distill.race.treatment import HEADER, treatment, treatment_line

    out = args.out or data_dir / "race"
    rules = Rules(args.looks, args.alpha, args.fold, args.validation_rows, args.budget, args.tune or "")
    with held(out):
        runs = plan_all(models, rows, folds, data_dir, out, rules, tell)
        race = Race([Contestant(r) for r in runs], rows, folds, rules, out)
        for contestant in runs:
            contestant.claim()
        race.go(tell)
        race.finish()
        verdict = verdict_of(race)
        page, picture = write_pages(race, verdict)
    print()
    print(format_table(HEADER, [treatment_line(treatment(c)) for c in race.contestants]))
    print()
    print(format_table(DIFFERENCES, difference_lines(race)))
    print(f"\n{verdict}\n{page}\n{picture}")


def tell(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def show_probe(models: dict[str, ModelConfig], rows: Rows, folds: Folds, out: Path, most: int) -> None:
    """Probe every backbone's frozen states and print what they tell."""
    from distill.processes import held
    from distill.race.frozen import PROBED, probe_all, probe_lines, some_rows

    if most < 0:
        raise UserError(f"--probe-rows is {most}; give 0 for all, or more")
    rows, folds = some_rows(rows, folds, most)
    with held(out):
        found = probe_all(models, rows, folds, out, tell)
    print()
    print(format_table(PROBED, probe_lines(found, folds)))
    print(
        f"\n{len(rows):,} rows, out of fold; only a regression on frozen states was trained. Intervals are "
        "paired, over prompt groups. A trained backbone that does not beat its own line here is broken. "
        "Which is best once trained a race tells: the order may turn round."
    )


def choose(recipe: Recipe, names: Sequence[str] | None, where: str) -> dict[str, ModelConfig]:
    """Return the models to race by name: the recipe's own, or its first model on another checkpoint."""
    if not recipe.teachers:
        raise UserError(f"recipe {where}: has no teachers to race")
    first = next(iter(recipe.teachers.values()))
    models: dict[str, ModelConfig] = {}
    for name in names or list(recipe.teachers):
        if name in recipe.teachers:
            models[name] = recipe.teachers[name]
        elif Path(name).is_dir() or "/" in name:
            short = Path(name).name
            models[short] = replace(first, backbone=replace(first.backbone, path=name, tiny=None))
        else:
            raise UserError(
                f"--backbones {name}: no model of recipe {where} ({listing(recipe.teachers)}), no directory "
                "and no hub name"
            )
    if len(models) < 2:
        raise UserError("--backbones: a race needs two or more backbones of different names")
    return models


def plan_all(
    models: dict[str, ModelConfig],
    rows: Rows,
    folds: Folds,
    data_dir: Path,
    out: Path,
    rules: Rules,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Run]:
    """Plan every backbone's run under the declared budget, its learning rate tuned first if asked.

    ``tell`` is given a line about every rate that was tuned.
    """
    from distill.losses import label_loss
    from distill.race.race import claim, refuse_few_steps, share_seconds, share_tokens, with_epochs
    from distill.race.tuning import tune_lr
    from distill.runs.run import plan_run

    def plan(name: str, model: ModelConfig) -> Run:
        if model.pretrain.data:
            raise UserError(
                f"recipe: {name} has pretrain.data, which is no part of a race: it compares backbones as "
                "they are; race without it"
            )
        return plan_run(
            "teacher", name, model, rows, folds, data_dir, out / name,
            loss=label_loss,
        )  # fmt: skip

    if rules.tune and folds.n_folds < 3:
        raise UserError(f"--tune {rules.tune} needs a third fold to score on; the data have {folds.n_folds}")
    runs = [plan(name, model) for name, model in models.items()]
    if not rules.budget.startswith("seconds"):  # which may be more steps than the rows are
        refuse_few_steps(runs, rules)  # the whole budget, before any of it is spent
    claim(out, runs, rules)
    if rules.tune:
        tuned = [tune_lr(r, rules.fold, out / "tuning" / r.name, tell) for r in runs]
        runs = [
            plan(r.name, replace(r.model, train=replace(r.model.train, lr=lr)))
            for r, lr in zip(runs, tuned, strict=True)
        ]
    kind, _, amount = rules.budget.partition("=")
    if kind == "rows":
        return runs
    if kind == "tokens":
        epochs = share_tokens(runs, rules.fold)
    else:
        epochs = share_seconds(runs, rules.fold, float(amount), out / "pace")
    return [with_epochs(r, e) for r, e in zip(runs, epochs, strict=True)]


def verdict_of(race: Race) -> str:
    """Say which backbone won, by how much, how sure that is, and what stopping early saved."""
    winner = race.winner
    best = race.contestants[winner]
    from distill.race.race import uninformed_loss

    groups = race.groups
    few = (
        f" The fold has {groups} groups of rows, and intervals are over groups: so few can show only what is "
        "large and the same in all of them."
        if groups < FEW_GROUPS
        else ""
    )
    nothing = uninformed_loss(race.rows)
    lost = [c.name for c in race.contestants if c.losses[-1].mean() > nothing]
    rate = "" if race.rules.tune else "a learning rate too high for it, which --tune lr looks for, or of "
    worse = (
        f" Worse than knowing nothing, {nothing:.4f}: {listing(lost, 9)}; that tells of {rate}too few rows, "
        "and not of the backbone."
        if lost
        else ""
    )
    parts = []
    for i, other in enumerate(race.contestants):
        if i == winner:
            continue
        look = race.last_look(i, winner)
        gap = f"{look.difference:+.4f} log-loss ({look.low:+.4f} to {look.high:+.4f})"
        if other.stopped:
            left = 1 - look.share
            spent = sum(record["seconds"] for record in other.looks)
            hours = spent / look.share * left / 3600
            parts.append(
                f"{other.name} was stopped at {look.share:.0%} of the budget, {gap} behind {best.name}, "
                f"which saved {left:.0%} of its steps, about {hours:.2g} hours"
            )
        elif look.low > 0:
            parts.append(f"{other.name} ends {gap} behind {best.name}")
        else:
            parts.append(f"{other.name} and {best.name} cannot be told apart: {gap} at the end")
    return (
        f"{best.name} is ahead at {best.losses[-1].mean():.4f}. {'; '.join(parts)}. All intervals hold at "
        f"once with {1 - race.rules.alpha:.0%} confidence, and a stop is wrong no oftener than they miss, as "
        "long as gaps close no faster than they did. They cover rows and how far losses wandered "
        f"from look to look, not other seeds.{few}{worse}"
    )


if __name__ == "__main__":
    run(main)
