"""Intervals for a difference that is looked at again and again: alpha spending on correlated looks.

Two models are scored on the same validation rows at every look, so the looks are correlated, and by how
much the rows themselves say. Each look spends a share of alpha (Lan and DeMets 1983, Biometrika 70); its
critical value is set so that, were there no difference, the chance of crossing now and not before is that
share. The intervals so widened are repeated confidence intervals (Jennison and Turnbull 1989, JRSS B 51): all
of them hold at once with probability 1 - alpha, whenever and why ever one stops. With m pairs of models alpha
is divided by m (Bonferroni).

A gap that closes may close: a model is stopped only if it is worse now and would still be worse at the end
if the gap went on closing at the pace of the second half of the looks. Both must be shown (an
intersection-union test: Berger 1982, Technometrics 24), so nothing is paid for asking twice. Learning curves
flatten, so the straight line is the cautious forecast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np

DRAWS = 40_000
MIN_LOOKS = 2
"""A forecast needs two looks; nothing is stopped before."""


@dataclass(frozen=True)
class Look:
    """One look at a pair: how much worse the first model is than the second, by log-loss.

    Attributes
    ----------
    share : float
        Share of the budget trained so far.
    difference, half : float
        Mean paired difference and half the width of its repeated confidence interval.
    forecast, forecast_half : float
        The same for the difference at the end, on a straight line; equal to the difference where the gap
        is not closing. NaN before the second look.
    """

    share: float
    difference: float
    half: float
    forecast: float
    forecast_half: float

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.difference - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.difference + self.half

    @property
    def worse(self) -> bool:
        """Whether the first model is shown to be worse, now and at the end."""
        return self.low > 0 and self.forecast - self.forecast_half > 0

    @property
    def better(self) -> bool:
        """Whether the first model is shown to be better, now and at the end."""
        return self.high < 0 and self.forecast + self.forecast_half < 0


def spent(share: float, alpha: float) -> float:
    """Alpha spent when a share of the budget is trained: evenly (Kim and DeMets 1987, power 1)."""
    return alpha * min(1.0, share)


@cache
def _noise(draws: int, seed: int, looks: int) -> np.ndarray:
    """Standard normal draws, one row a look; the rows of earlier looks stay the same."""
    last = np.random.default_rng([seed, looks]).standard_normal((1, draws))
    return last if looks == 1 else np.vstack([_noise(draws, seed, looks - 1), last])


@dataclass
class Boundary:
    """Critical values, look by look, for correlated standard normal statistics.

    Parameters
    ----------
    alpha : float
        Chance, over all looks, that the statistic of a true zero crosses.
    draws : int
        Simulated paths by which the critical values are found; the same for every boundary of the seed.

    Attributes
    ----------
    criticals : list of float
        One a look so far.
    """

    alpha: float = 0.05
    draws: int = DRAWS
    seed: int = 0
    criticals: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._alive = np.ones(self.draws, dtype=bool)
        self._crossed = 0

    def next(self, correlation: np.ndarray, share: float) -> float:
        """Return this look's critical value.

        Parameters
        ----------
        correlation : ndarray of shape (j,)
            Row of the Cholesky factor of the looks' correlation matrix: this look on the j looks so far,
            itself included.
        share : float
            Share of the budget at this look.
        """
        noise = _noise(self.draws, self.seed, len(self.criticals) + 1)
        path = np.abs(correlation @ noise)
        allowed = int(spent(share, self.alpha) * self.draws) - self._crossed
        still = np.sort(path[self._alive])
        allowed = max(0, min(allowed, len(still) - 1))
        critical = float(still[-1] * 1.5 if allowed == 0 else (still[-allowed] + still[-allowed - 1]) / 2)
        self.criticals.append(critical)
        crossing = self._alive & (path > critical)
        self._crossed += int(crossing.sum())
        self._alive &= ~crossing
        return critical


def group_sums(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Sum rows of one group: prompts and not rows are drawn independently."""
    sums = np.zeros((int(groups.max()) + 1, *values.shape[1:]))
    np.add.at(sums, groups, values)
    return sums


class PairedLooks:
    """Repeated looks at one pair of models on the same validation rows.

    Parameters
    ----------
    groups : ndarray of shape (n,), int
        Group of each row; rows of one group are not independent.
    alpha : float
        See :class:`Boundary`.
    """

    def __init__(self, groups: np.ndarray, alpha: float = 0.05, draws: int = DRAWS) -> None:
        self.groups = np.unique(groups, return_inverse=True)[1]
        self.looks: list[Look] = []
        self._boundaries = [Boundary(alpha, draws, seed) for seed in (0, 1)]
        self._centred: list[list[np.ndarray]] = [[], []]
        self._rows: list[np.ndarray] = []
        self._shares: list[float] = []

    def add(self, difference: np.ndarray, share: float) -> Look:
        """Add a look.

        Parameters
        ----------
        difference : ndarray of shape (n,)
            Loss of the first model less that of the second, a row.
        share : float
            Share of the budget trained so far, rising from look to look.
        """
        self._rows.append(np.asarray(difference, dtype=np.float64))
        self._shares.append(share)
        mean, half = self._interval(0, self._rows[-1], share)
        forecast, forecast_half = np.nan, np.nan
        if len(self._rows) >= MIN_LOOKS:
            forecast, forecast_half = self._interval(1, self._forecast(), share)
            if abs(forecast) > abs(mean) and np.sign(forecast) == np.sign(mean):  # not closing: as it is
                forecast, forecast_half = mean, half
        look = Look(share, mean, half, forecast, forecast_half)
        self.looks.append(look)
        return look

    def _forecast(self) -> np.ndarray:
        """Each row's difference at the end, on the line through this look and the one half as many back."""
        back = len(self._rows) // 2
        now, then = self._rows[-1], self._rows[-1 - back]
        passed = self._shares[-1] - self._shares[-1 - back]
        return now + (now - then) * (1 - self._shares[-1]) / passed

    def _interval(self, which: int, rows: np.ndarray, share: float) -> tuple[float, float]:
        mean = float(rows.mean())
        sums = group_sums(rows - mean, self.groups)
        size = float(np.sqrt((sums**2).sum()))
        past = self._centred[which]
        unit = sums / size if size > 0 else sums
        past.append(unit)
        looks = np.stack(past)
        correlation = looks @ looks.T
        factor = np.linalg.cholesky(correlation + 1e-9 * np.eye(len(past)))[-1]
        critical = self._boundaries[which].next(factor, share)
        n_groups = max(2, len(sums))
        error = size / len(rows) * np.sqrt(n_groups / (n_groups - 1))
        return mean, critical * error
