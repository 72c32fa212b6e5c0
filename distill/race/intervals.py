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

The error of a mean is itself drawn where there are few groups: an interval that the normal law would make c
errors wide is as wide as Student's law of one degree less than there are groups makes it at the same level
(Pocock 1977, Biometrika 64, for looks). Three whole debates tell next to nothing.

Rows are not all that is uncertain. In the middle of a training, at a rate that has not yet fallen, a model's
loss wanders: on real models by .02 to .05 between two looks, on all rows alike, so that the rows' spread does
not show it, and it decided real races (``benchmarks/study.md``). How far a pair wanders is read off its own
looks: the second differences of its mean, which a straight line has not, less what the drawing of rows
explains of them (:func:`wander`). Its variance falls with the learning rate, as that of stochastic gradient
descent about a minimum does (Mandt, Hoffman and Blei 2017, JMLR 18), so that of a rate fallen to zero nothing
is left. Three looks are the fewest that tell: the first two have no interval, and nothing is stopped before
the fourth.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
from scipy.stats import norm, t

from ensemble.scoring.bootstrap import group_errors

DRAWS = 40_000
KNOWN_LOOKS = 3
"""Looks from which on an interval is known: as many have one second difference."""
MIN_LOOKS = 4
"""Two second differences, the fewest by which a race keeps its level; nothing is stopped before."""


@dataclass(frozen=True)
class Look:
    """One look at a pair: how much worse the first model is than the second, by log-loss.

    Attributes
    ----------
    share : float
        Share of the budget trained so far.
    difference, half : float
        Mean paired difference and half the width of its repeated confidence interval; infinite for the first
        two looks.
    forecast, forecast_half : float
        The same for the difference at the end, on a straight line; equal to the difference where the gap
        is not closing. NaN while nothing is stopped yet.
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


def error_of(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """:func:`~ensemble.scoring.bootstrap.group_errors` of values (n,) in groups (n,) from 0 on."""
    return group_errors(np.bincount(groups, weights=values), np.bincount(groups))


LEVEL = 0.975
"""At which Student's quantile is held against the normal one; simulated races keep their level by it."""
DEPENDENT = 1.94
"""Second differences that are worth one independent: 1 + 2 (4/6)^2 + 2 (1/6)^2, of white noise."""


def wander(looks: np.ndarray, groups: np.ndarray, rates: np.ndarray) -> float:
    """How far the mean difference wanders at the full learning rate, beyond a line and beyond its rows.

    Second differences of white noise have its variance once, four times and once; what sampling of rows adds
    to their mean is known from the rows, and taken off.

    Parameters
    ----------
    looks : ndarray of shape (looks, n)
        Differences a row, evenly spaced looks; three or more.
    groups : ndarray of shape (n,), int
    rates : ndarray of shape (looks,)
        Learning rate at each look, as a share of the full one.

    Returns
    -------
    float
        A standard deviation, widened for its few degrees of freedom.
    """
    bends = looks[:-2] - 2 * looks[1:-1] + looks[2:]
    sampled = [float((error_of(bend, groups) ** 2).sum()) for bend in bends]
    times = rates[:-2] + 4 * rates[1:-1] + rates[2:]
    variance = float((bends.mean(axis=1) ** 2 - sampled).sum()) / max(float(times.sum()), 1e-9)
    freedom = max(1.0, len(bends) / DEPENDENT)
    return float(np.sqrt(max(0.0, variance)) * t.ppf(LEVEL, freedom) / norm.ppf(LEVEL))


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
        self._errors: list[list[np.ndarray]] = [[], []]
        self._wandered: list[list[float]] = [[], []]
        self._rows: list[np.ndarray] = []
        self._shares: list[float] = []
        self._rates: list[float] = []

    def add(self, difference: np.ndarray, share: float, rate: float = 1.0) -> Look:
        """Add a look.

        Parameters
        ----------
        difference : ndarray of shape (n,)
            Loss of the first model less that of the second, a row.
        share : float
            Share of the budget trained so far, rising evenly from look to look.
        rate : float
            Learning rate there, as a share of the full one.
        """
        self._rows.append(np.asarray(difference, dtype=np.float64))
        self._shares.append(share)
        self._rates.append(rate)
        mean, half, full = float(self._rows[-1].mean()), np.inf, 0.0
        if len(self._rows) >= KNOWN_LOOKS:
            full = wander(np.stack(self._rows), self.groups, np.array(self._rates))
            mean, half = self._interval(0, self._rows[-1], full * np.sqrt(rate), share)
        forecast, forecast_half = np.nan, np.nan
        if len(self._rows) >= MIN_LOOKS:
            back = len(self._rows) // 2
            ahead = (1 - share) / (share - self._shares[-1 - back])
            end = (1 + ahead) * self._rows[-1] - ahead * self._rows[-1 - back]
            both = np.hypot((1 + ahead) * np.sqrt(rate), ahead * np.sqrt(self._rates[-1 - back]))
            forecast, forecast_half = self._interval(1, end, full * both, share)
            if abs(forecast) > abs(mean) and np.sign(forecast) == np.sign(mean):  # not closing: as it is
                forecast, forecast_half = mean, half
        look = Look(share, mean, half, forecast, forecast_half)
        self.looks.append(look)
        return look

    def _interval(self, which: int, rows: np.ndarray, wandered: float, share: float) -> tuple[float, float]:
        """Mean and half the width, of the difference now (0) or of its forecast for the end (1)."""
        self._errors[which].append(error_of(rows, self.groups))
        self._wandered[which].append(wandered)
        errors = np.stack(self._errors[which])
        covariance = errors @ errors.T + np.diag(np.square(self._wandered[which]))
        scale = np.sqrt(np.maximum(np.diag(covariance), np.finfo(float).tiny))
        correlation = covariance / np.outer(scale, scale)
        factor = np.linalg.cholesky(correlation + 1e-9 * np.eye(len(scale)))[-1]
        level = norm.sf(self._boundaries[which].next(factor, share))
        critical = float(t.isf(level, max(1, errors.shape[1] - 1)))
        return float(rows.mean()), critical * float(np.sqrt(covariance[-1, -1]))
