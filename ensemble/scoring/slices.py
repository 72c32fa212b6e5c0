"""Where a blend helps, against the best single member on parts of the rows; and its reliability."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.folds import source_names
from ensemble.reading.problem import Problem
from ensemble.scoring.bootstrap import Bootstrap, Interval
from ensemble.solvers.numbers import log_loss

_MIN_ROWS = 20
_MAX_SOURCES = 8
_MANY_GROUPS = 100_000
"""Beyond, a slice's interval is the bootstrap's normal limit: the same to print, without the draws."""


@dataclass(frozen=True)
class Slice:
    """A part of the rows and how two predictions fare on it.

    Attributes
    ----------
    kind, name : str
        What the rows are parted by, and which part this is.
    n : int
    single, blend : float
        Mean log-loss of the best single member and of the blend.
    interval : Interval
        Of the mean paired difference, blend minus single.
    """

    kind: str
    name: str
    n: int
    single: float
    blend: float
    interval: Interval


def compare_slices(problem: Problem, single: np.ndarray, blend: np.ndarray, draws: Bootstrap) -> list[Slice]:
    """Compare two predictions (n, K) on every part of at least 20 rows."""
    a, b = (problem.weighted(log_loss(probs, problem.y)) for probs in (single, blend))
    weight = np.ones(len(problem)) if problem.weight is None else problem.weight
    found = []
    for kind, name, mask in _parts(problem):
        n = int(mask.sum())
        if n >= _MIN_ROWS:
            difference = (b - a)[mask]
            if problem.groups.max() >= _MANY_GROUPS:
                interval = _normal_interval(difference / weight[mask].mean(), problem.groups[mask])
            else:
                interval = draws.subset(mask).interval(difference)
            found.append(
                Slice(
                    kind,
                    name,
                    n,
                    a[mask].sum() / weight[mask].sum(),
                    b[mask].sum() / weight[mask].sum(),
                    interval,
                )
            )
    return found


def _normal_interval(values: np.ndarray, groups: np.ndarray) -> Interval:
    """95 % interval of the mean of values that come in groups."""
    mean = float(values.mean())
    codes = np.unique(groups, return_inverse=True)[1]
    totals = np.bincount(codes, weights=values - mean)
    half = 1.959964 * float(np.sqrt((totals**2).sum())) / len(values)
    return Interval(mean - half, mean + half)


def member_slices(problem: Problem) -> list[tuple[str, str, int, np.ndarray]]:
    """Find each member's mean log-loss on every part of at least 20 rows: kind, name, rows and (members,)."""
    losses = np.stack([log_loss(problem.P[:, m], problem.y) for m in range(problem.P.shape[1])], axis=1)
    weight = np.ones(len(problem)) if problem.weight is None else problem.weight
    return [
        (kind, name, int(mask.sum()), np.average(losses[mask], axis=0, weights=weight[mask]))
        for kind, name, mask in _parts(problem)
        if mask.sum() >= _MIN_ROWS
    ]


def disagreement(P: np.ndarray) -> np.ndarray:
    """Mean total-variation distance of the members (n, members, K) from their mean, shape (n,)."""
    return 0.5 * np.abs(P - P.mean(axis=1, keepdims=True)).sum(axis=2).mean(axis=1)


def _parts(problem: Problem) -> Iterator[tuple[str, str, np.ndarray]]:
    for k, name in enumerate(problem.classes.names):
        yield "true class", name, problem.labels == k
    yield from _quartiles("confidence of the mean", problem.P.mean(axis=1).max(axis=1), "{:.2f}")
    if problem.P.shape[1] > 1:
        yield from _quartiles("disagreement of members", disagreement(problem.P), "{:.3f}")
    if problem.rows is not None:
        lengths = text_lengths(problem)
        yield from _quartiles("length in characters", lengths, "{:.0f}")
        yield from _turns(problem)
        column = source_names(problem.rows)
        if column is not None:
            sources = np.array([str(name) for name in column.to_pylist()])
            names, counts = np.unique(sources, return_counts=True)
            if 1 < len(names) <= _MAX_SOURCES:
                for name in names[np.argsort(-counts, kind="stable")]:
                    yield "source", str(name), sources == name


def text_lengths(problem: Problem) -> np.ndarray:
    """Characters of prompt and responses together, shape (n,)."""
    assert problem.rows is not None
    total = np.zeros(len(problem))
    for column in ("prompt", "response_a", "response_b"):
        turns = problem.rows.table.column(column).to_pylist()
        total += [sum(len(turn or "") for turn in row or []) for row in turns]
    return total


def _turns(problem: Problem) -> Iterator[tuple[str, str, np.ndarray]]:
    assert problem.rows is not None
    turns = np.array([len(row or []) for row in problem.rows.table.column("prompt").to_pylist()])
    if turns.max(initial=0) > 1:
        for low, high, name in ((0, 1, "one"), (2, 3, "two or three"), (4, np.inf, "four or more")):
            yield "turns", name, (turns >= low) & (turns <= high)


def _quartiles(kind: str, values: np.ndarray, form: str) -> Iterator[tuple[str, str, np.ndarray]]:
    edges = np.unique(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))
    if len(edges) < 3:
        return
    index = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    for i in range(len(edges) - 1):
        yield kind, f"{form.format(edges[i])} to {form.format(edges[i + 1])}", index == i


@dataclass(frozen=True)
class Reliability:
    """Predicted against observed frequency, all classes pooled, in bins of equal width.

    Attributes
    ----------
    predicted, observed : ndarray
        Mean probability and mean outcome of each bin that is not empty.
    count : ndarray
    error : float
        Mean absolute gap between the two, weighted by count.
    smooth : SmoothReliability
        The same without bins.
    """

    predicted: np.ndarray
    observed: np.ndarray
    count: np.ndarray
    error: float
    smooth: SmoothReliability


@dataclass(frozen=True)
class SmoothReliability:
    """Reliability by a kernel instead of bins.

    Attributes
    ----------
    error : float
        Smooth calibration error; equal to ``bandwidth`` by its definition.
    bandwidth : float
    predicted, observed : ndarray
        Kernel regression of the outcome on the probability, where there is data.
    """

    error: float
    bandwidth: float
    predicted: np.ndarray
    observed: np.ndarray


def reliability(
    probs: np.ndarray, y: np.ndarray, n_bins: int = 12, weight: np.ndarray | None = None
) -> Reliability:
    """Bin every (row, class) probability and compare with what happened; rows count for ``weight`` (n,)."""
    p, t = probs.ravel(), y.ravel()
    w = np.ones(len(p)) if weight is None else np.repeat(weight, probs.shape[1])
    index = np.minimum((p * n_bins).astype(int), n_bins - 1)
    count = np.bincount(index, weights=w, minlength=n_bins)
    kept = count > 0
    predicted = np.bincount(index, weights=w * p, minlength=n_bins)[kept] / count[kept]
    observed = np.bincount(index, weights=w * t, minlength=n_bins)[kept] / count[kept]
    error = float((np.abs(predicted - observed) * count[kept]).sum() / count.sum())
    return Reliability(predicted, observed, count[kept], error, smooth_reliability(p, t, w))


def smooth_reliability(
    p: np.ndarray, t: np.ndarray, weight: np.ndarray | None = None, grid: int = 1000
) -> SmoothReliability:
    """Smooth calibration error of probabilities ``p`` (n,) of outcomes ``t`` (n,), in [0, 1].

    The residuals are smoothed by a Gaussian kernel reflected at 0 and 1, and their absolute value is
    integrated; the bandwidth is the one that equals the resulting error, so none is chosen by hand.

    Notes
    -----
    Błasiok and Nakkiran, *Smooth ECE: principled reliability diagrams via kernel smoothing* (ICLR 2024).
    """
    from scipy.ndimage import gaussian_filter1d

    cell = np.minimum((np.asarray(p) * grid).astype(int), grid - 1)
    w = np.full(len(p), 1 / len(p)) if weight is None else weight / weight.sum()
    count = np.bincount(cell, weights=w, minlength=grid)
    hits = np.bincount(cell, weights=w * t, minlength=grid)
    residual = hits - np.bincount(cell, weights=w * p, minlength=grid)

    def smoothed(values: np.ndarray, width: float) -> np.ndarray:
        return gaussian_filter1d(values, width * grid, mode="reflect", truncate=5.0)

    low, high = 1 / grid, 1.0
    for _ in range(14):  # the error falls and the bandwidth rises: one crossing
        middle = (low + high) / 2
        if float(np.abs(smoothed(residual, middle)).sum()) < middle:
            high = middle
        else:
            low = middle
    width = (low + high) / 2
    error = float(np.abs(smoothed(residual, width)).sum())
    shown = max(width, 0.03)  # the curve alone: an error near zero would draw noise
    mass = smoothed(count, shown)
    kept = np.flatnonzero(mass > 2e-5)[:: grid // 100]
    at = (kept + 0.5) / grid
    return SmoothReliability(error, width, at, np.clip(smoothed(hits, shown)[kept] / mass[kept], 0, 1))


def confusion(probs: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count true class (rows) against most probable class (columns), and average the probabilities.

    Parameters
    ----------
    probs : ndarray of shape (n, K)
    y : ndarray of shape (n, K)
        Targets; a soft one counts for each class by its weight.

    Returns
    -------
    counts : ndarray of shape (K, K)
    given : ndarray of shape (K, K)
        Mean probability of each class (columns) where the row's class is true.
    """
    n_classes = probs.shape[1]
    counts = y.T @ np.eye(n_classes)[probs.argmax(axis=1)]
    given = (y.T @ probs) / np.maximum(y.sum(axis=0), 1e-300)[:, None]
    return counts, given
