"""The honest score: predictions of every row by methods fitted, with all their choices, on other rows.

A method's nested log-loss is that of predictions for each fold by the method fitted, its
hyper-parameters included, on the other folds. It is what new rows will cost; the in-sample loss beside it is
what the same method claims about rows it was fitted to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from data.console.progress import progress
from ensemble.methods.base import Blender, Known
from ensemble.methods.catalogue import fit_methods
from ensemble.reading.problem import Problem

FITTED_ROWS, FITTED_GROUPS = 60_000, 100
"""About so many rows are fitted at most, unless they are of fewer groups."""
PREDICTED_ROWS = 50_000
"""Rows that are predicted at once."""
FITTED_BYTES = 400_000_000
"""Bytes of predictions fitted at once, those of all rows among them; a fit takes several times as much."""


@dataclass(frozen=True)
class CrossFit:
    """Every method on every row, by fits that did not see the row's fold.

    Attributes
    ----------
    probs : dict of str to ndarray of shape (n, K)
    prior : ndarray of shape (n, K)
        Class frequencies of the other folds.
    """

    probs: dict[str, np.ndarray]
    prior: np.ndarray


Fitter = Callable[[np.ndarray, np.ndarray, np.ndarray], Mapping[str, Blender]]


def cross_fit(
    problem: Problem, seed: int = 0, fit: Fitter | None = None, workers: int | None = None
) -> CrossFit:
    """Fit every method on all folds but one and predict that one, for each fold in turn.

    Parameters
    ----------
    problem : Problem
    seed : int
        Of the methods' inner folds and trees.
    fit : callable, optional
        ``fit(P, y, groups)`` returning fitted methods by name; all of them by default.
    workers : int, optional
        Folds fitted at once; by default the number of processors, or fewer where the predictions of more
        would take too much memory. The result does not depend on it.
    """
    numbers = [int(number) for number in np.unique(problem.fold)]
    probs: dict[str, np.ndarray] = {}

    def one(number: int) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
        test, rest = np.flatnonzero(problem.fold == number), np.flatnonzero(problem.fold != number)
        seen = problem.seen_from(rest, seed)
        return list(predict_all(fit_on(seen, rest, seed, fit), seen, test))

    with threads(workers or _at_once(problem)) as pool:
        for parts in progress(pool.map(one, numbers), "scoring methods, fold by fold", len(numbers), "fold"):
            for rows, found in parts:
                for name, part in found.items():
                    probs.setdefault(name, np.empty_like(problem.y))[rows] = part
    return CrossFit(probs, cross_fitted_prior(problem.y, problem.fold, problem.weight))


def _at_once(problem: Problem) -> int:
    """How many folds are fitted at once."""
    each = min(len(problem), FITTED_ROWS) * problem.P[0].nbytes
    return max(1, min(os.cpu_count() or 1, FITTED_BYTES // each - 1))


@contextmanager
def threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that an error or Ctrl-C does not wait for; what has not begun is not begun."""
    pool = ThreadPoolExecutor(number)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def fit_on(
    problem: Problem, rows: np.ndarray, seed: int = 0, fit: Fitter | None = None
) -> Mapping[str, Blender]:
    """Fit every method on some rows of a problem: all of them, or of very many a sample of whole groups.

    Some hundreds of parameters gain nothing that could be seen from more than :data:`FITTED_ROWS`.
    """
    if len(rows) > FITTED_ROWS:
        sizes = np.bincount(problem.groups[rows])
        order = np.random.default_rng(seed).permutation(np.flatnonzero(sizes))
        enough = int(np.searchsorted(sizes[order].cumsum(), FITTED_ROWS)) + 1
        rows = rows[np.isin(problem.groups[rows], order[: max(enough, FITTED_GROUPS)])]
    data = problem.P[rows], problem.y[rows], problem.groups[rows]
    if fit is not None:
        return fit(*data)
    weight = None if problem.weight is None else problem.weight[rows]
    X = None if problem.features is None else problem.features[rows]
    return fit_methods(*data, problem.classes.swap, seed, weight, X)


def sample_note(problem: Problem) -> str | None:
    """What to tell the user where :func:`fit_on` takes a sample, else ``None``."""
    if len(problem) <= FITTED_ROWS:
        return None
    return f"methods are fitted on about {FITTED_ROWS:,} of the {len(problem):,} rows, drawn by whole groups"


def predict_all(
    methods: Mapping[str, Blender], problem: Problem, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yield, some rows at a time, these rows and what every method predicts of them (rows, K)."""
    for begin in range(0, len(rows), PREDICTED_ROWS):
        part = rows[begin : begin + PREDICTED_ROWS]
        P, X = problem.P[part], None if problem.features is None else problem.features[part]
        known: Known = {}  # what methods have in common is predicted once
        yield part, {name: method.predict_known(P, X, known) for name, method in methods.items()}


def cross_fitted_prior(y: np.ndarray, fold: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Class frequencies of the other folds, a row (n, K)."""
    prior = np.empty_like(y)
    for number in np.unique(fold):
        other = fold != number
        prior[~other] = np.average(y[other], axis=0, weights=None if weight is None else weight[other])
    return prior
