"""The honest score: nested cross-fitted log-loss, its paired bootstrap, and the choice of a method.

A method's nested log-loss is that of predictions for each fold by the method fitted, its
hyper-parameters included, on the other folds. It is what new rows will cost; the in-sample loss beside it is
what the same method claims about rows it was fitted to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from data.progress import progress
from ensemble.methods.base import Blender, Known
from ensemble.methods.catalogue import family, fit_methods
from ensemble.reading.problem import Problem

DRAWS = 1000
FITTED_ROWS, FITTED_GROUPS = 60_000, 100
"""About so many rows are fitted at most, unless they are of fewer groups."""
PREDICTED_ROWS = 50_000
"""Rows that are predicted at once."""
CHANCE = 3.0
AVERAGED = 5
"""Methods within so many standard errors of the best are averaged with it, and so many in all."""
DRAWN_GROUPS = 60_000
CHUNK_BYTES = 1 << 20
"""Counts held as floating point at once."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float

    def as_list(self) -> list[float]:
        """The two ends."""
        return [self.low, self.high]


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
        Folds fitted at once; the number of processors by default. The result does not depend on it.
    """
    numbers = [int(number) for number in np.unique(problem.fold)]
    probs: dict[str, np.ndarray] = {}

    def one(number: int) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
        test = np.flatnonzero(problem.fold == number)
        methods = fit_on(problem, np.flatnonzero(problem.fold != number), seed, fit)
        return list(predict_all(methods, problem, test))

    with threads(workers or os.cpu_count() or 1) as pool:
        for parts in progress(pool.map(one, numbers), "scoring methods, fold by fold", len(numbers), "fold"):
            for rows, found in parts:
                for name, part in found.items():
                    probs.setdefault(name, np.empty_like(problem.y))[rows] = part
    return CrossFit(probs, cross_fitted_prior(problem.y, problem.fold, problem.weight))


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
        yield part, {name: method.predict(P, X, known) for name, method in methods.items()}


def cross_fitted_prior(y: np.ndarray, fold: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Class frequencies of the other folds, a row (n, K)."""
    prior = np.empty_like(y)
    for number in np.unique(fold):
        other = fold != number
        prior[~other] = np.average(y[other], axis=0, weights=None if weight is None else weight[other])
    return prior


@dataclass(frozen=True)
class Bootstrap:
    """Bootstrap draws of group weights, shared by every comparison so that all are paired.

    Attributes
    ----------
    counts : ndarray of shape (draws, groups)
        How often each group was drawn.
    groups : ndarray of shape (n,)
        Group codes from 0.
    weight : ndarray of shape (n,) or None
        What each row counts for; ``values`` are then already multiplied by it.
    """

    counts: np.ndarray
    groups: np.ndarray
    weight: np.ndarray | None = None

    @property
    def draws(self) -> int:
        """How many."""
        return len(self.counts)

    def interval(self, values: np.ndarray) -> Interval:
        """95 % percentile interval of the mean of ``values`` (n,), resampling whole groups."""
        return self.intervals(values[:, None])[0]

    def intervals(self, values: np.ndarray) -> list[Interval]:
        """Intervals of the mean of each column of ``values`` (n, columns)."""
        n_groups = self.counts.shape[1]
        count = np.bincount(self.groups, weights=self.weight, minlength=n_groups)
        columns: list[np.ndarray] = [count.astype(np.float64)]
        columns += [np.bincount(self.groups, weights=c, minlength=n_groups) for c in values.T]
        totals = np.stack(columns, axis=1)
        size = max(1, CHUNK_BYTES // n_groups)
        chunks = (self.counts[begin : begin + size] for begin in range(0, self.draws, size))
        sums = np.concatenate([chunk.astype(np.float64) @ totals for chunk in chunks])
        means = sums[:, 1:] / np.maximum(sums[:, :1], 1 if self.weight is None else 1e-9)
        low, high = np.percentile(means, [2.5, 97.5], axis=0)
        return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]

    def subset(self, rows: np.ndarray) -> Bootstrap:
        """The same draws over some of the rows (a mask)."""
        return replace(
            self, groups=self.groups[rows], weight=None if self.weight is None else self.weight[rows]
        )


def bootstrap(
    groups: np.ndarray, draws: int = DRAWS, seed: int = 0, weight: np.ndarray | None = None
) -> Bootstrap:
    """Draw groups with replacement, ``draws`` times.

    More than :data:`DRAWN_GROUPS` are first put together at random into as many, which the variance of a
    mean over them does not feel.
    """
    rng = np.random.default_rng(seed)
    codes = np.unique(groups, return_inverse=True)[1]
    n_groups = int(codes.max()) + 1
    if n_groups > DRAWN_GROUPS:
        codes = (rng.permutation(n_groups) % DRAWN_GROUPS)[codes]
        n_groups = DRAWN_GROUPS
    counts = np.empty((draws, n_groups), dtype=np.uint8)
    for row in counts:
        drawn = np.bincount(rng.integers(n_groups, size=n_groups), minlength=n_groups)
        row[:] = np.minimum(drawn, 255)
    return Bootstrap(counts, codes, weight)


def choose(losses: Mapping[str, np.ndarray]) -> str:
    """The method of least mean loss; the first of several equal ones."""
    return min(losses, key=lambda name: float(losses[name].mean()))


def near_best(losses: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The method of least mean loss, and those whose lag behind it may be chance, best first.

    Between methods that the rows cannot tell apart a choice is a throw of dice, and their mean is better
    than the one thrown: those within :data:`CHANCE` paired standard errors of the least, but no more than
    :data:`AVERAGED`, for more are more of the same. Of one method with and without a calibration only the
    better counts.

    Parameters
    ----------
    losses : dict of str to ndarray of shape (n,)
        Nested loss of each row by each method.

    Notes
    -----
    After the one-standard-error rule of Breiman et al., *Classification and Regression Trees* (1984), with
    the error of the paired difference, and averaging in place of the simplest, which may reach further.
    """
    families: dict[str, str] = {}
    for name in sorted(losses, key=lambda name: float(losses[name].mean())):
        families.setdefault(family(name), name)
    best, *others = families.values()
    gaps = {name: losses[name] - losses[best] for name in others}
    near = (name for name, gap in gaps.items() if gap.mean() < CHANCE * gap.std() / np.sqrt(len(gap)))
    return best, *islice(near, AVERAGED - 1)


def final_fit_note(name: str, inside: np.ndarray, nested: np.ndarray) -> str | None:
    """What to tell the user where the fit on all rows is not the one that was scored, else ``None``.

    A fit is better on its own rows than on those it did not see. Where its loss on its own is above the
    nested loss by more than two paired standard errors, what will be deployed learned less than the fits
    that were scored.

    Parameters
    ----------
    name : str
        Of the method.
    inside, nested : ndarray of shape (n,)
        Loss of each row by the fit on all rows, and by the fits that did not see it.
    """
    gap = inside - nested
    error = float(gap.std() / np.sqrt(len(gap)))
    if gap.mean() <= max(2 * error, 1e-9):
        return None
    return (
        f"{name}, fitted on all rows, has a loss of {inside.mean():.4f} on these, above its nested loss of "
        f"{nested.mean():.4f}: it learned less than the fits that were scored; try another --seed"
    )


def average(probs: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Mean prediction (n, K) of some methods."""
    return np.mean([probs[name] for name in names], axis=0)


def choice_included(
    losses: Mapping[str, np.ndarray], probs: Mapping[str, np.ndarray], fold: np.ndarray
) -> np.ndarray:
    """Predict each fold (n, K) by the methods that the other folds choose, averaged.

    The least of many scores is a little too good; the loss of these predictions is not, for they are
    not chosen on the rows that they count.
    """
    found = np.empty_like(next(iter(probs.values())))
    for number in np.unique(fold):
        held = fold == number
        names = near_best({name: loss[~held] for name, loss in losses.items()})
        found[held] = average({name: probs[name][held] for name in names}, names)
    return found
