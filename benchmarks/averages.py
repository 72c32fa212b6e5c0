"""``python -m benchmarks.averages --out DIR``: averages of students' weights and of their predictions.

The students are of several seeds, of one recipe and one base, and taught by the same teachers. Every average
is scored out of fold: its model of fold k is the mean of the seeds' models of fold k. Goes on with what is
missing in DIR.
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
from data.softlabels import read_store
from distill import average_runs, cross_fit, train_student
from distill.average import losses_of
from ensemble.scoring.bootstrap import bootstrap


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
    students = students_of(data, args.out, args.seeds)
    rows, folds = load_prepared(data)
    groups = bootstrap(np.array(folds.group_ids))
    lines = []
    for size in range(1, args.seeds + 1):
        of_predictions, of_weights = [], []
        for chosen in combinations(range(args.seeds), size):
            stores = [read_store(students[i]) for i in chosen]
            of_predictions.append(losses_of(stores, rows)[0])
            name = "mean-" + "-".join(map(str, chosen))
            mean = average_runs([students[i] for i in chosen], args.out / name) if size > 1 else stores[0]
            of_weights.append(losses_of([mean], rows)[0])
        ensemble, average = np.mean(of_predictions, axis=0), np.mean(of_weights, axis=0)
        low, high = groups.interval(average - ensemble).as_list()
        lines.append(
            [str(size), f"{ensemble.mean():.4f}", f"{average.mean():.4f}"]
            + ([f"{(average - ensemble).mean():+.4f} ({low:+.4f} to {high:+.4f})"] if size > 1 else [""])
        )
    head = ["students", "mean of predictions", "average of weights", "difference, 95 % over prompts"]
    print(format_table(head, lines))


def students_of(data: Path, out: Path, seeds: int) -> list[Path]:
    """Train students of several seeds on the base that the first one's seed has made."""
    train_student(data, out=out / "seed0")
    base = json.loads((out / "seed0" / "manifest.json").read_text(encoding="utf-8"))["backbone_path"]
    own = ["student.backbone.tiny=null", f"student.backbone.path={base}"]
    for seed in range(1, seeds):
        train_student(data, out=out / f"seed{seed}", overrides=[*own, f"student.train.seed={seed}"])
    return [out / f"seed{seed}" for seed in range(seeds)]


if __name__ == "__main__":
    main()
