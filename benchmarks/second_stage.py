"""``python -m benchmarks.second_stage --out DIR``: a stack as the teacher, beside those that it blends.

Students of several seeds are trained on all rows of the arena, and scored on fresh rows of it, whose class
probabilities are known: neither the leak of a student's own score nor the luck of labels enters. Goes on with
what is missing in DIR.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.arena import ArenaConfig, simulate_arena
from data.console.command import format_table
from data.dataset import prepare
from data.groups import group_prompts
from data.schema import Rows
from distill import cross_fit, load_run
from distill.recipe import load_recipe
from distill.runs.run_directory import FINAL
from distill.runs.units import Unit
from distill.student import student_of
from ensemble import stack
from ensemble.scoring.bootstrap import bootstrap
from ensemble.solvers.numbers import cross_entropy

FRESH = ArenaConfig(n_rows=1500, seed=7)
METHOD = ("--method", "log-pool")
"""The best of two teachers here; the choice by itself is the mean, which a student can be taught without."""


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="of students")
    args = parser.parse_args()
    data = args.out / "arena"
    prepare(simulate_arena(ArenaConfig(n_rows=1500)), data, n_folds=3)
    cross_fit(data)
    teachers = (data / "llama", data / "gemma2")
    if not (data / "stack" / "stack.json").exists():
        stack.main(["--oof", *map(str, teachers), "--data", str(data), "--out", str(data / "stack"), *METHOD])
    fresh = simulate_arena(FRESH)
    arms = {
        "labels alone": (["student.distill.loss=hard"], ()),
        "two teachers, a term each": ([], teachers),
        "their mean": (["student.distill.mixing=probability"], teachers),
        "their stack, a log-pool": ([], (data / "stack",)),
    }
    losses = {
        name: np.mean(
            [
                loss_of(args.out / "-".join(name.replace(",", "").split()), data, taught, own, seed, fresh)
                for seed in range(args.seeds)
            ],
            axis=0,
        )
        for name, (own, taught) in arms.items()
    }
    groups = bootstrap(np.array(group_prompts(fresh.table.column("prompt").to_pylist())))
    against = losses["two teachers, a term each"]
    lines = []
    for name, found in losses.items():
        low, high = groups.interval(found - against).as_list()
        lines.append(
            [name, f"{found.mean():.4f}", f"{(found - against).mean():+.4f} ({low:+.4f} to {high:+.4f})"]
        )
    print(
        format_table(["taught by", "log-loss, fresh rows", "against two teachers, 95 % over prompts"], lines)
    )


def loss_of(
    home: Path, data: Path, taught: Sequence[Path], overrides: list[str], seed: int, fresh: Rows
) -> np.ndarray:
    """Expected log-loss a fresh row of one student, trained on all rows if it is not yet."""
    place = home / f"seed{seed}"
    recipe = load_recipe("demo", [*overrides, f"student.train.seed={seed}"])
    model = student_of(recipe, data, place, taught, "standard")
    Unit(model, FINAL).run(model.plan())
    truth = np.array(fresh.table.column("true_probs").to_pylist())
    return cross_entropy(load_run(place).predict_proba(fresh), truth)


if __name__ == "__main__":
    main()
