"""``python -m benchmarks.averages --out DIR``: averages of students' weights and of their predictions.

The students are of several seeds, of one recipe and one base, and taught by the same teachers. Every average
is scored out of fold: its model of fold k is the mean of the seeds' models of fold k. Each seed draws its
adapters by itself, or all start from the adapters of one stage before, on other rows of the arena. Goes on
with what is missing in DIR.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path

import numpy as np

from data.arena import ArenaConfig, simulate_arena
from data.console.command import format_table
from data.dataset import load_prepared, prepare
from data.schema import Rows
from data.softlabels import read_store
from distill import average_runs, cross_fit, train_student
from distill.average import mean_of
from ensemble.scoring.bootstrap import Bootstrap, bootstrap
from ensemble.solvers.numbers import cross_entropy


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1500, help="of the simulated arena")
    parser.add_argument("--seeds", type=int, default=4, help="of students")
    args = parser.parse_args()
    data = args.out / "arena"
    prepare(simulate_arena(ArenaConfig(n_rows=args.rows)), data, n_folds=3)
    cross_fit(data)
    others = args.out / "others"
    prepare(simulate_arena(ArenaConfig(n_rows=args.rows, seed=1)), others, n_folds=3)
    stage = [f"student.pretrain.data={others}", "student.pretrain.seed=0"]
    rows, folds = load_prepared(data)
    groups = bootstrap(np.array(folds.group_ids))
    lines = []
    for start, overrides in (("drawn by each seed", []), ("of one stage before", stage)):
        students = students_of(data, args.out / start.replace(" ", "-"), args.seeds, overrides)
        for size in range(1, args.seeds + 1):
            lines.append([start, str(size), *compared(students, size, rows, groups)])
    head = [
        "adapters",
        "students",
        "mean of predictions",
        "average of weights",
        "difference, 95 % over prompts",
    ]
    print(format_table(head, lines))


def compared(students: list[Path], size: int, rows: Rows, groups: Bootstrap) -> list[str]:
    """Log-loss of both kinds of averages of so many students, over all choices of them; their difference."""
    of_predictions, of_weights = [], []
    for chosen in combinations(students, size):
        stores = [read_store(path) for path in chosen]
        of_predictions.append(cross_entropy(*mean_of(stores, rows)))
        place = chosen[0].parent / "-".join(path.name for path in chosen)
        mean = average_runs(chosen, place) if size > 1 else stores[0]
        of_weights.append(cross_entropy(*mean_of([mean], rows)))
    ensemble, average = np.mean(of_predictions, axis=0), np.mean(of_weights, axis=0)
    low, high = groups.interval(average - ensemble).as_list()
    difference = f"{(average - ensemble).mean():+.4f} ({low:+.4f} to {high:+.4f})" if size > 1 else ""
    return [f"{ensemble.mean():.4f}", f"{average.mean():.4f}", difference]


def students_of(data: Path, out: Path, seeds: int, overrides: list[str]) -> list[Path]:
    """Train students of several seeds on the base that the first one's seed has made."""
    train_student(data, out=out / "seed0", overrides=overrides)
    base = json.loads((out / "seed0" / "manifest.json").read_text(encoding="utf-8"))["backbone_path"]
    own = ["student.backbone.tiny=null", f"student.backbone.path={base}", *overrides]
    for seed in range(1, seeds):
        train_student(data, out=out / f"seed{seed}", overrides=[*own, f"student.train.seed={seed}"])
    return [out / f"seed{seed}" for seed in range(seeds)]


if __name__ == "__main__":
    main()
