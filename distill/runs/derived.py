"""Further soft labels from teachers already cross-fitted: in-sample, fold means, and strictly out of fold.

``in_sample`` and ``fold_mean`` become stores of their own beside the teacher's, named after it. ``strict``
adds files to a store: for the student scored on fold i, a row of fold j is labelled by a model trained
without i and j, so that not even the teachers know the labels that the student is scored on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError
from data.files import read_json, write_json
from data.softlabels import MANIFEST, OOF, SoftLabels, derived_path, read_store
from distill.config import CONFIG
from distill.processes import on_first
from distill.recipe import save_resolved
from distill.runs.run import Run
from distill.runs.run_directory import RunDirectory


def write_derived(run: Run, kind: str) -> SoftLabels:
    """Write a finished teacher's ``in_sample`` or ``fold_mean`` labels as a store; return it.

    ``in_sample``: a row's label is the mean of the models that were trained on it, and for the student
    scored on fold k the prediction of that fold's model alone, which never saw fold k. ``fold_mean``: the
    mean of all fold models, the labels for rows that none was trained on.
    """
    derived = RunDirectory(derived_path(run.out, kind))
    out = derived.path
    manifest = {**run.manifest, "label_kind": kind, "derived_from": os.path.relpath(run.out, out)}
    if derived.joined:
        found = read_json(out / MANIFEST, "manifest")
        for field in ("rows_hash", "folds_hash", "backbone", "train", "lora", "label_kind"):
            if found.get(field) != manifest[field]:
                raise UserError(f"{out}: holds other labels: its manifest differs in {field}; delete it")
        return read_store(out)
    on_first(derived.sweep)
    folds, rows = run.folds, np.arange(len(run.rows))
    parts = [run.directory.fold(k) for k in range(folds.n_folds)]
    every = np.stack([run.read([part.predictions, part.elsewhere]) for part in parts])
    if kind == "fold_mean":
        mean = every.mean(axis=0)
    else:
        saw = (folds.fold[None] != np.arange(folds.n_folds)[:, None])[:, :, None, None]
        mean = (every * saw).sum(axis=0) / saw.sum(axis=0)
        for k in range(folds.n_folds):
            outside = np.flatnonzero(folds.fold != k)
            by = np.full(len(outside), k)
            run.write(derived.fold(k).labels, outside, by, every[k][outside], manifest)
    on_first(lambda: _describe(run, out, manifest))
    run.write(out / OOF, rows, folds.fold, mean, manifest)
    return read_store(out)


def _describe(run: Run, out: Path, manifest: dict[str, Any]) -> None:
    save_resolved(out / CONFIG, run.model)
    write_json(out / MANIFEST, manifest)


def write_strict(run: Run) -> None:
    """Sort what the models without two folds predicted into the labels of the folds' students.

    With F folds those are F (F - 1) / 2 further models, each trained on (F - 2) / F of the rows.
    """
    folds = run.folds
    for k in range(folds.n_folds):
        others = [j for j in range(folds.n_folds) if j != k]
        logits = run.read([run.directory.pair(k, j).predictions for j in others])
        outside = np.flatnonzero((folds.fold != k) & ~folds.pinned)
        run.write(run.directory.fold(k).labels, outside, folds.fold[outside], logits[outside])


def check_strict(n_folds: int) -> None:
    """Refuse strict labels where leaving two folds out leaves none."""
    if n_folds < 3:
        raise UserError("strict labels are made without two folds at a time; prepare the data with 3 or more")
