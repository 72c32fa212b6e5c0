"""Run a cascade of trained models: fit it on their out-of-fold stores, spend a budget on new rows."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.dataset import load_prepared
from data.errors import UserError
from data.ids import align
from data.schema import Rows
from data.softlabels import check_joinable, read_store
from data.softmax import softmax
from distill.runs.loaded import examples_of, predict_rows
from distill.runs.saved import SavedModel
from distill.teaching.trust import check_made_from
from ensemble.routing.cascade import fit_cascade, route
from ensemble.routing.held import cross_fitted_curve

SAMPLE = 32
"""Rows on which the dear models are timed."""


@dataclass(frozen=True)
class Found:
    """A cascade's predictions.

    Attributes
    ----------
    probs : ndarray of shape (n, K)
    routed : int
        Rows that the dear models saw.
    table : list of list of str
        The curve of log-loss against cost, cross-fitted on the stores' rows; an arrow where the budget lands.
    """

    probs: np.ndarray
    routed: int
    table: list[list[str]]


@dataclass(frozen=True)
class Labelled:
    """The rows that a cascade is fitted on, with their folds of shape (n,)."""

    rows: Rows
    fold: np.ndarray


def check_cascade(models: Sequence[SavedModel], budget: float) -> None:
    """Refuse what cannot be a cascade: too few models, exported ones, stores of other rows or folds."""
    if len(models) < 2:
        raise UserError("--cascade needs a cheap model and at least one dear one")
    if not 0 <= budget <= 1:
        raise UserError(f"--budget is {budget}; it must lie between 0 and 1")
    for model in models:
        if model.exported:
            raise UserError(
                f"{model.path}: an exported model has no out-of-fold predictions to fit a cascade on; "
                "give the run that it was made of"
            )
        check_joinable(models[0].manifest, model.manifest, str(models[0].path), str(model.path))


def run_cascade(models: Sequence[SavedModel], rows: Rows, budget: float) -> Found:
    """Fit the cascade, predict ``rows`` with the cheap model and the chosen ones with the dear models.

    Raises
    ------
    UserError
        As :func:`distill.runs.loaded.predict_rows`; or the runs' data are gone.
    """
    P, y, labelled = known_rows(models)
    cascade = fit_cascade(P, y)
    begin = time.perf_counter()
    cheap = softmax(predict_rows(models[0], rows).mean(axis=1))
    cheap_seconds = (time.perf_counter() - begin) / len(rows)
    cost = tokens_of(models[1:], rows)
    chosen = np.flatnonzero(route(cascade.expected_gain(cheap), cost, budget))
    probs = cascade.cheap(cheap)
    # The dear models are timed on rows that they are to predict, or on any if there are none.
    begin, timed = time.perf_counter(), chosen if chosen.size else np.arange(min(SAMPLE, len(rows)))
    dear = [softmax(predict_rows(model, rows.take(timed)).mean(axis=1)) for model in models[1:]]
    seconds = (time.perf_counter() - begin) * cost.sum() / cost[timed].sum() / len(rows)
    if chosen.size:
        probs[chosen] = cascade.all_models(np.stack([cheap[chosen], *dear], axis=1))
    table = []
    tokens = tokens_of(models[1:], labelled.rows)
    for b, routed, by_lot in cross_fitted_curve(P, y, tokens, labelled.fold):
        mark = " <-" if abs(b - budget) <= 0.025 else ""
        spent = 1000 * (cheap_seconds + b * seconds)
        table.append([f"{b:.2f}{mark}", f"{spent:.1f}", f"{routed:.4f}", f"{by_lot:.4f}"])
    return Found(probs, len(chosen), table)


def known_rows(models: Sequence[SavedModel]) -> tuple[np.ndarray, np.ndarray, Labelled]:
    """Out-of-fold probabilities (n, models, K) and targets (n, K) of the labelled rows, and the rows."""
    home = Path(os.path.normpath(models[0].path / models[0].manifest.get("data", ".")))
    rows, folds = load_prepared(home)
    check_made_from(rows, folds, str(home), models[0].manifest, models[0].path)
    known = np.flatnonzero(rows.labelled & ~folds.pinned)
    ids = [rows.row_ids[i] for i in known]
    stores = [read_store(model.path) for model in models]
    parts = [store.probs[align(ids, store.row_ids, str(store.path))] for store in stores]
    return np.stack(parts, axis=1), rows.targets[known], Labelled(rows.take(known), folds.fold[known])


def tokens_of(models: Sequence[SavedModel], rows: Rows) -> np.ndarray:
    """Tokens that models read of each row, all orders and models together, shape (n,)."""
    total = np.zeros(len(rows))
    for model in models:
        encoded = examples_of(model, rows).encoded
        total += encoded.lengths.reshape(len(rows), -1).sum(axis=1) * len(model.weights)
    return total
