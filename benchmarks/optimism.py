"""By how much scores flatter, where the truth is known: ``python -m benchmarks.optimism [--data DIR]``.

A score is honest if what it expects on other labels of the same rows is what it found on these. On the
simulated arena the true probabilities say what to expect. The luck of the labels, the same for all models
of a row, is taken out by the mean of the teachers, whose labels never went near their own predictions.
Intervals resample prompt groups. Needs a finished demo: teachers, student, stack.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data.console.command import format_table
from data.dataset import load_prepared
from data.softlabels import is_store, read_manifest, read_store
from ensemble.scoring.bootstrap import bootstrap


def predictions(home: Path, row_ids: list[str], classes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Out-of-fold probabilities (n, K) by name: teachers, student, and the stack's nested ones."""
    found = {}
    for path in sorted(home.iterdir()):
        if is_store(path) and read_manifest(path).get("label_kind") == "oof":
            store = read_store(path)
            place = {row_id: i for i, row_id in enumerate(store.row_ids)}
            found[path.name] = store.probs[[place[row_id] for row_id in row_ids]]
    table = pq.read_table(home / "stack" / "predictions.parquet")
    place = {row_id: i for i, row_id in enumerate(table.column("row_id").to_pylist())}
    stacked = np.stack([table.column(name).to_numpy() for name in classes], axis=1)
    return found | {"stack": stacked[[place[row_id] for row_id in row_ids]]}


def main() -> None:
    """Print scores, what they should be in expectation, and what they flatter by."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("runs/demo"))
    args = parser.parse_args()
    rows, folds = load_prepared(args.data)
    truth = np.array(rows.table.column("true_probs").to_pylist(), dtype=np.float64)
    found = predictions(args.data, list(rows.row_ids), tuple(rows.classes.names))
    teachers = [name for name in found if name not in {"student", "stack"}]
    draw = bootstrap(np.unique(folds.group_ids, return_inverse=True)[1])

    def luck(probs: np.ndarray) -> np.ndarray:
        return -((rows.targets - truth) * np.log(np.clip(probs, 1e-12, None))).sum(axis=1)

    plain = luck(np.mean([found[name] for name in teachers], axis=0))
    lines = []
    for name, probs in found.items():
        logs = np.log(np.clip(probs, 1e-12, None))
        score, expected = (float(-(t * logs).sum(axis=1).mean()) for t in (rows.targets, truth))
        excess = luck(probs) - plain
        ci = draw.interval(excess)
        shown = f"{excess.mean():+.4f} [{ci.low:+.4f}, {ci.high:+.4f}]"
        lines.append([name, f"{score:.4f}", f"{expected:.4f}", shown])
    print(format_table(["", "log-loss", "expected", "beyond the teachers' mean, 95 %"], lines))


if __name__ == "__main__":
    main()
