"""Files that the ensemble's tests share: prediction sets, labels, prepared rows and stores."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data.classes import PREFERENCE
from data.dataset import load_prepared, prepare
from data.files import read_json, read_parquet, write_json, write_parquet
from data.schema import Rows, make_rows
from data.softlabels import MADE_BY, run_hash, write_logits
from data.softmax import softmax

CLASSES = PREFERENCE.names


def write_csv(path: Path, header: Sequence[str], lines: Sequence[Sequence[object]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(header)
        writer.writerows(lines)
    return path


def competition(n: int, k: int = 3, members: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Members' probabilities (n, members, k) and labels."""
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.normal(size=(n, k))
    truth = softmax(z)
    labels = np.minimum((rng.random((n, 1)) > truth.cumsum(axis=1)).sum(axis=1), k - 1)
    return softmax(z[:, None] + rng.normal(size=(n, members, k))), labels


def write_sets(
    folder: Path, n: int = 120, classes: Sequence[str] = CLASSES, members: int = 2, seed: int = 0
) -> tuple[list[str], str]:
    """Write prediction sets ``m1.csv``, ... and ``labels.csv``; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    P, y = competition(n, len(classes), members, seed)
    ids = [f"r{i:04d}" for i in range(n)]
    paths = []
    for m in range(members):
        lines = [[row_id, *probs] for row_id, probs in zip(ids, P[:, m].tolist(), strict=True)]
        paths.append(str(write_csv(folder / f"m{m + 1}.csv", ["id", *classes], lines)))
    labels = write_csv(folder / "labels.csv", ["id", "label"], list(zip(ids, y.tolist(), strict=True)))
    return paths, str(labels)


def prepared(
    folder: Path, n: int = 120, seed: int = 0, text: Callable[[int], str] = "prompt {}".format
) -> tuple[Rows, np.ndarray]:
    """Write prepared preference rows, two of each prompt; returns them and members' probabilities."""
    P, y = competition(n, seed=seed)
    columns = {
        "row_id": [f"r{i:04d}" for i in range(n)],
        "prompt": [[text(i // 2)] for i in range(n)],
        "response_a": [[f"answer {i}"] for i in range(n)],
        "response_b": [[f"other answer {i}"] for i in range(n)],
        "label": y.tolist(),
        "true_probs": P[:, 0].tolist(),
    }
    rows = make_rows(columns, PREFERENCE, "test")
    prepare(rows, folder, n_folds=3, seed=0)
    return rows, P


def write_store(folder: Path, home: Path, probs: np.ndarray, **changes: object) -> Path:
    """Write a store of ``probs`` (n, K) for the rows of prepared data."""
    rows, folds = load_prepared(home)
    logits = np.stack([np.log(probs)] * 2, axis=1)
    folder.mkdir(parents=True)
    write_logits(folder / "oof.parquet", rows.row_ids, folds.fold, logits, rows.classes)
    manifest = {
        "classes": list(rows.classes.names),
        "swap": list(rows.classes.swap or ()),
        "rows_hash": rows.content_hash,
        "folds_hash": folds.content_hash,
        "label_kind": "oof",
        "data": str(home.resolve()),
        **changes,
    }
    write_json(folder / "manifest.json", manifest)
    return folder


def change_manifest(store: Path, **changes: object) -> None:
    """Give a store another manifest and its files with it, as if a run had written all of it so."""
    manifest = {**read_json(store / "manifest.json"), **changes}
    write_json(store / "manifest.json", manifest)
    for file in store.rglob("*.parquet"):
        table = read_parquet(file)
        marks = {**(table.schema.metadata or {}), MADE_BY: run_hash(manifest)}
        write_parquet(file, table.replace_schema_metadata(marks))
