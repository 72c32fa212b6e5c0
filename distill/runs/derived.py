"""Further soft labels from teachers already cross-fitted: in-sample, fold means, and strictly out of fold.

``in_sample`` and ``fold_mean`` become stores of their own beside the teacher's, named after it. ``strict``
adds files to a store: for the student scored on fold i, a row of fold j is labelled by a model trained
without i and j, so that not even the teachers know the labels that the student is scored on.
"""

from __future__ import annotations

import os
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError
from data.files import read_json, write_json
from data.schema import Classes
from data.softlabels import (
    MANIFEST,
    OOF,
    SoftLabels,
    derived_path,
    read_logits,
    read_store,
    write_logits,
)
from distill.recipe import save_resolved
from distill.runs.crossfit import Run, trained
from distill.processes import on_first
from distill.teaching.teachers import LABELS
from distill.training.trainer import predict_logits

DERIVED = ("in_sample", "fold_mean")
ELSEWHERE = "elsewhere.parquet"
"""In ``fold-<k>/``: what the model of fold k predicts for the rows of all other folds."""


def write_derived(run: Run, kind: str, report_to: str = "none") -> SoftLabels:
    """Write a finished teacher's ``in_sample`` or ``fold_mean`` labels as a store; return it.

    ``in_sample``: a row's label is the mean of the models that were trained on it, and for the student
    scored on fold k the prediction of that fold's model alone, which never saw fold k. ``fold_mean``: the
    mean of all fold models, the labels for rows that none was trained on.
    """
    out = derived_path(run.out, kind)
    manifest = {**run.manifest, "label_kind": kind, "derived_from": os.path.relpath(run.out, out)}
    if on_first((out / OOF).exists):
        found = read_json(out / MANIFEST, "manifest")
        for field in ("rows_hash", "folds_hash", "backbone", "train", "lora", "label_kind"):
            if found.get(field) != manifest[field]:
                raise UserError(f"{out}: holds other labels: its manifest differs in {field}; delete it")
        return read_store(out)
    folds = run.folds
    every = np.stack([_all_rows(run, k, report_to) for k in range(folds.n_folds)])
    on_first(lambda: _write_derived(run, kind, out, manifest, every))
    return read_store(out)


def _write_derived(run: Run, kind: str, out: Path, manifest: dict[str, Any], every: np.ndarray) -> None:
    folds, classes, ids = run.folds, run.rows.classes, run.rows.row_ids
    if kind == "fold_mean":
        mean = every.mean(axis=0)
    else:
        saw = (folds.fold[None] != np.arange(folds.n_folds)[:, None])[:, :, None, None]
        mean = (every * saw).sum(axis=0) / saw.sum(axis=0)
        for k in range(folds.n_folds):
            outside = np.flatnonzero(folds.fold != k)
            where, by = out / f"fold-{k}" / LABELS, np.full(len(outside), k)
            write_logits(where, [ids[i] for i in outside], by, every[k][outside], classes)
    save_resolved(out / "config.yaml", run.model)
    write_json(out / MANIFEST, manifest)
    write_logits(out / OOF, ids, folds.fold, mean, classes)


def _all_rows(run: Run, fold: int, report_to: str) -> np.ndarray:
    """Logits of every row by the model of ``fold``, shape (n, orders, K)."""
    predict_elsewhere(run, fold, report_to)
    directory = run.out / f"fold-{fold}"
    return _placed(run, [directory / OOF, directory / ELSEWHERE])


def predict_elsewhere(run: Run, fold: int, report_to: str = "none") -> None:
    """Predict the rows of all other folds with the model of ``fold``; do nothing if that is done."""
    directory = run.out / f"fold-{fold}"
    if on_first((directory / ELSEWHERE).exists):
        return
    outside = np.flatnonzero(run.folds.fold != fold)
    logits = _predict(run, directory, fold, outside, report_to, f"fold {fold}")
    ids = [run.rows.row_ids[i] for i in outside]
    _write(directory / ELSEWHERE, ids, np.full(len(ids), fold), logits, run.rows.classes)


def write_strict(run: Run, report_to: str = "none") -> None:
    """Train a model without each two folds and leave ``fold-<k>/labels.parquet`` in the teacher's store.

    With F folds that is F (F - 1) / 2 further models, each on (F - 2) / F of the rows.
    """
    folds = run.folds
    check_strict(folds.n_folds)
    for i, j in combinations(range(folds.n_folds), 2):
        fit_pair(run, i, j, report_to)
    on_first(lambda: _sort_strict(run))


def _sort_strict(run: Run) -> None:
    """Sort what the models without two folds predicted into the files of the folds' students."""
    folds = run.folds
    for k in range(folds.n_folds):
        parts = [run.out / f"without-{min(k, j)}-{max(k, j)}" / OOF for j in range(folds.n_folds) if j != k]
        logits = _placed(run, parts)
        outside = np.flatnonzero((folds.fold != k) & ~folds.pinned)
        where = run.out / f"fold-{k}" / LABELS
        ids = [run.rows.row_ids[row] for row in outside]
        write_logits(where, ids, folds.fold[outside], logits[outside], run.rows.classes)


def check_strict(n_folds: int) -> None:
    """Refuse strict labels where leaving two folds out leaves none."""
    if n_folds < 3:
        raise UserError("strict labels are made without two folds at a time; prepare the data with 3 or more")


def fit_pair(run: Run, i: int, j: int, report_to: str = "none") -> None:
    """Train a model without folds ``i`` and ``j`` and predict them; do nothing if that is done."""
    folds, directory = run.folds, run.out / f"without-{i}-{j}"
    if on_first((directory / OOF).exists):
        return
    held_out = np.flatnonzero((folds.fold == i) | (folds.fold == j))
    # A number of its own a pair, so that no two models share a seed with each other or with a fold.
    number = (i + 1) * folds.n_folds + j + 1
    logits = _predict(run, directory, number, held_out, report_to, f"without folds {i} and {j}")
    ids = [run.rows.row_ids[row] for row in held_out]
    _write(directory / OOF, ids, folds.fold[held_out], logits, run.rows.classes)


def _predict(
    run: Run, directory: Path, number: int, rows: np.ndarray, report_to: str, what: str
) -> np.ndarray:
    """Predict ``rows`` with the model of ``directory``, trained on all others if it is not there yet."""
    allowed = np.ones(len(run.rows), dtype=bool)
    if not on_first((directory / "adapter").exists):
        allowed[rows] = False
    classifier = trained(run, directory, allowed, number, report_to, what)
    shards = directory / "predicting"
    logits = predict_logits(
        classifier,
        run.examples,
        rows,
        run.model.train.predict_rows,
        f"{run.name} predicts, {what}",
        run.model.train.pack_tokens,
        shards,
    )
    on_first(lambda: shutil.rmtree(shards, ignore_errors=True))
    return logits


def _write(path: Path, ids: list[str], fold: np.ndarray, logits: np.ndarray, classes: Classes) -> None:
    on_first(lambda: write_logits(path, ids, fold, logits, classes))


def _placed(run: Run, parts: list[Path]) -> np.ndarray:
    """Join predictions by row id: (n, orders, K), NaN where no part has the row."""
    position = {row_id: i for i, row_id in enumerate(run.rows.row_ids)}
    shape = (len(position), len(run.rows.classes.orders), run.rows.classes.n)
    logits = np.full(shape, np.nan, dtype=np.float32)
    for part in parts:
        ids, _, values = read_logits(part, run.rows.classes)
        logits[[position[row_id] for row_id in ids]] = values
    return logits
