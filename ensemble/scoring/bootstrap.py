"""Intervals of mean losses over groups of rows: a paired bootstrap, and Student's where groups are few.

The percentiles of a bootstrap of few groups, a dozen debates, are too narrow: its draws vary by a divisor of
n instead of n - 1 and by the normal law, and of four groups all draws may lie on one side (Hesterberg 2015,
*What Teachers Should Know About the Bootstrap*, The American Statistician 69). Below :data:`FEW` groups the
interval is Student's, of the groups' own spread; from there on the two are as near as two seeds of the draws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t

DRAWS = 1000
FEW = 100
DRAWN_GROUPS = 60_000
CHUNK_BYTES = 1 << 20
"""Counts held as floating point at once."""
NORMAL = 1.96
"""Deviations on either side of a mean that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float

    def as_list(self) -> list[float]:
        """The two ends."""
        return [self.low, self.high]


def group_errors(totals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How each group puts the mean off: the squared length is the mean's squared standard error.

    Parameters
    ----------
    totals : ndarray of shape (groups,)
        Sums of the values.
    counts : ndarray of shape (groups,)
        Of their rows, or weights.
    """
    n_groups, size = len(totals), max(counts.sum(), 1e-9)
    mean = totals.sum() / size
    return (totals - mean * counts) / size * np.sqrt(n_groups / max(1, n_groups - 1))


def _student(totals: np.ndarray, counts: np.ndarray) -> Interval:
    """Student's 95 % interval of the mean of few groups."""
    mean = float(totals.sum() / max(counts.sum(), 1e-9))
    half = float(t.isf(0.025, len(totals) - 1) * np.linalg.norm(group_errors(totals, counts)))
    return Interval(mean - half, mean + half)


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
        """95 % interval of the mean of ``values`` (n,), whole groups being drawn."""
        return self.intervals(values[:, None])[0]

    def intervals(self, values: np.ndarray) -> list[Interval]:
        """Intervals of the mean of each column of ``values`` (n, columns)."""
        n_groups = self.counts.shape[1]
        count = np.bincount(self.groups, weights=self.weight, minlength=n_groups)
        columns: list[np.ndarray] = [count.astype(np.float64)]
        columns += [np.bincount(self.groups, weights=c, minlength=n_groups) for c in values.T]
        totals = np.stack(columns, axis=1)
        if 1 < n_groups < FEW:
            return [_student(totals[:, column], count) for column in range(1, totals.shape[1])]
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
