"""The log-opinion pool: weights on log-probabilities, as far as the rows have evidence for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import comb
from typing import ClassVar, Self

import numpy as np

from data.softmax import over_classes, softmax
from ensemble.methods.base import Blender, Training
from ensemble.methods.registry import register
from ensemble.methods.temperature import TemperatureScaling
from ensemble.solvers.designs import Design, PoolDesign, SharedDesign
from ensemble.solvers.evidence import FIXED, averaged, weigh
from ensemble.solvers.newton import SoftmaxProblem
from ensemble.solvers.numbers import as_weights, cross_entropy, log_probs, useful_floors

ODDS = 3.0
"""So many times as likely as a simple pool must the rows be under others for these to count."""
ODDS_FEW = (5.0, 50.0)
"""So many times as likely as the equal pool of all for pools of the best few to count, and to count alone."""
SPREADS = (300.0, 100.0, 30.0, 10.0, 3.0)
"""Penalties of departures from equal weights, in units of rows, strong to weak."""
BIASES = (300.0, 30.0, 3.0, 0.3)
"""Penalties of biases."""
MANY_NUMBERS = 500_000
"""Beyond so many probabilities every other penalty is left out, and the best few: the rows outweigh both."""
MOST_BIASES = 100
"""Classes up to which each may have a bias: fitting these takes the square of their number."""
SURE_SCALE = 4.0
"""What draws the sum of the weights to 1: as if it were known to within a half."""
LEAST_SHARE = 1e-3
"""Fits and simple pools that count for less are left out."""
LEAST_STRENGTH = 1e-9
"""No penalty at all has no evidence: a strength of 0 is taken as this."""


@dataclass
class LogPool(Blender):
    r"""Weights on log-probabilities and a bias a class, :math:`p_k \propto e^{b_k} \prod_m p_{mk}^{w_m}`.

    Two penalties draw it to equal weights at one temperature: of departures from these, and of biases. Every
    pair of penalties is fitted, once more around the best few members, and all are averaged by their
    evidence: no deal of folds decides, and few rows leave little more than the temperature. Unless all
    together make the rows :data:`ODDS` times as likely as the simple pool does, it stays alone; from there on
    the others count for more the more likely they are. Weights need not sum to one.

    The simple pool is the geometric mean of all members at one temperature. As far as the rows are more
    likely under pools of the best few (:data:`ODDS_FEW`), these stand in its place, averaged over how many
    by their evidence: of members each at its own temperature first, which gives a weak or over-confident one
    the weight that it would deserve by itself.

    Parameters
    ----------
    strength : float, optional
        One penalty in units of rows on departures, biases and the sum of the weights, instead of all this.
    n_folds, seed : int
        Of the cross-fitted predictions.
    floor : float, optional
        Lower probabilities are taken as this; by default the one of
        :func:`ensemble.solvers.numbers.useful_floors` that has the most evidence.

    Attributes
    ----------
    weights_ : ndarray of shape (members,)
    bias_ : ndarray of shape (K,)
        Zero beyond :data:`MOST_BIASES` classes.
    floor_ : float
    departure_ : float
        What other pools than the simple one count for, from 0 to 1.
    oof_ : ndarray of shape (n, K)

    Notes
    -----
    Genest and Zidek, *Combining probability distributions* (Statistical Science 1986); Heskes,
    *Selecting weighting factors in logarithmic opinion pools* (NIPS 1997); MacKay, *Bayesian interpolation*
    (Neural Computation 1992) for the evidence.
    """

    strength: float | None = None
    n_folds: int = 5
    seed: int = 0
    floor: float | None = None
    fitted: ClassVar[tuple[str, ...]] = ("weights_", "bias_", "floor_", "departure_")

    def fit_on(self, data: Training) -> Self:
        """Fit weights and biases; see :meth:`Blender.fit`."""
        best = -np.inf
        for floor in useful_floors(data.P) if self.floor is None else (self.floor,):
            choice = self._choose(_Rows(data.P, data.targets, data.weights, floor))
            if choice.evidence > best:
                best = choice.evidence + np.log(ODDS)  # a higher floor must be worth it likewise
                self.floor_, self.departure_, self._choice = floor, choice.departure, choice
        self._take(data.P, data.targets, data.weights)
        self.oof_ = np.empty_like(data.targets)
        folds = data.folds(self.n_folds, self.seed)
        for fold in np.unique(folds):
            train, test = folds != fold, folds == fold
            other = self.refit(data.P[train], data.targets[train], data.weights[train])
            self.oof_[test] = other.predict_on(data.P[test])
        return self

    def refit(self, P: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> LogPool:
        """Return a pool of the choices made here, fitted on other rows; it has no ``oof_``."""
        other = LogPool(self.strength, self.n_folds, self.seed, self.floor)
        other.floor_, other.departure_, other._choice = self.floor_, self.departure_, self._choice
        other._take(P, targets, as_weights(weights, len(P)))
        return other

    def _choose(self, rows: _Rows) -> _Choice:
        """Weigh every pool by its evidence."""
        n, n_classes, n_members = rows.logs.shape
        equal = np.full(n_members, 1 / n_members)
        if self.strength is not None:
            least = max(self.strength, LEAST_STRENGTH)
            penalties = np.full((1, n_members + _biases(n_classes)), least)
            evidence = float(weigh(rows.problem(equal), penalties).evidence[0])
            return _Choice((_Simple(1.0, equal, True),), 1.0, evidence, ((equal, penalties, np.ones(1)),))
        penalties = _penalties(n, n_members, n_classes)
        starts = [(equal, penalties[1:], 0.0)]  # the first is the simple pool
        simple: tuple[_Simple, ...] = (_Simple(1.0, equal, True),)
        alone = rows.evidence_of_temperature(equal)
        if n_members > 1 and n * n_members * n_classes <= MANY_NUMBERS:
            few, likely = rows.best_few()
            best = few[int(np.argmax(likely))].pool
            starts.append((best, penalties, float(likely.max()) - rows.evidence_of_temperature(best)))
            simple, alone = _with_few(simple[0], alone, few, likely)
        evidences = [
            weigh(rows.problem(centre), tried).evidence + min(before, 0.0) for centre, tried, before in starts
        ]
        shares, together = averaged(np.concatenate(evidences))
        departure = max(0.0, 1 - ODDS * float(np.exp(min(alone - together, 0.0))))
        kept, begin = [], 0
        for centre, tried, _ in starts:
            own = shares[begin : begin + len(tried)]
            begin += len(tried)
            much = own > LEAST_SHARE
            if much.any():
                kept.append((centre, tried[much], own[much]))
        return _Choice(simple, departure, max(alone, together), tuple(kept))

    def _take(self, P: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> None:
        """Fit what was chosen on these rows."""
        rows, choice = _Rows(P, targets, weights, self.floor_), self._choice
        n_members, n_classes = P.shape[1:]
        scaled = [
            one.share * one.pool / (rows.temperature(one.pool) if one.tempered else 1.0)
            for one in choice.simple
        ]
        self.weights_ = (1 - choice.departure) * np.sum(scaled, axis=0)
        self.bias_ = np.zeros(n_classes)
        if choice.departure == 0:
            return
        total = sum(float(shares.sum()) for _, _, shares in choice.kept)
        for centre, penalties, shares in choice.kept:
            theta = (choice.departure / total * shares) @ weigh(rows.problem(centre), penalties).thetas
            self.weights_ = self.weights_ + turned(centre) @ theta[:n_members]
            if len(theta) > n_members:
                self.bias_ += theta[n_members:]

    def predict_on(self, P: np.ndarray) -> np.ndarray:
        """Return the pooled probabilities (n, K)."""
        return softmax(np.einsum("nmk,m->nk", log_probs(P, self.floor_), self.weights_) + self.bias_)


@dataclass(frozen=True)
class _Simple:
    """A pool of nothing but a temperature.

    Attributes
    ----------
    share : float
        What it counts for.
    pool : ndarray of shape (members,)
        Weights, before the temperature.
    tempered : bool
        Whether it has one, which one member alone may do without.
    """

    share: float
    pool: np.ndarray
    tempered: bool


@dataclass(frozen=True)
class _Choice:
    """What is fitted: simple pools, and others around them.

    Attributes
    ----------
    simple : tuple of _Simple
        Their shares sum to 1.
    departure : float
    evidence : float
    kept : tuple of (ndarray, ndarray, ndarray)
        For each centre (members,): penalties (fits, p), and what each fit counts for.
    """

    simple: tuple[_Simple, ...]
    departure: float
    evidence: float
    kept: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]


class _Rows:
    """Members' centred log-probabilities (n, K, members) with what happened."""

    def __init__(self, P: np.ndarray, targets: np.ndarray, weights: np.ndarray, floor: float) -> None:
        logs = log_probs(P, floor).transpose(0, 2, 1)
        self.logs, self.targets, self.weights = logs - logs.mean(axis=1, keepdims=True), targets, weights
        self.count = 1 / float(weights @ weights)

    def best_few(self) -> tuple[list[_Simple], np.ndarray]:
        """Pools of the best members for each number of them, each member at its own temperature first.

        Returns
        -------
        pools : list of _Simple
        evidence : ndarray of shape (pools,)
            Less what it takes to say which of so many members these are. Own temperatures cost nothing: they
            are fitted to the members, not to the pool.
        """
        n_members = self.logs.shape[2]
        alone = np.eye(n_members)
        own = np.array([1 / self.temperature(pool) for pool in alone])
        losses = [self._loss(softmax(self.logs[:, :, m])) for m in range(n_members)]
        best = int(np.argmin(losses))
        pools, evidence = [_Simple(1.0, alone[best], False)], [-self.count * losses[best] - np.log(n_members)]
        order = np.argsort([self._loss(softmax(self.logs[:, :, m] * own[m])) for m in range(n_members)])
        for size in range(1, n_members + 1):
            pool = np.zeros(n_members)
            pool[order[:size]] = own[order[:size]]
            pool /= pool.sum()
            pools.append(_Simple(1.0, pool, True))
            evidence.append(self.evidence_of_temperature(pool) - float(np.log(comb(n_members, size))))
        return pools, np.array(evidence)

    def temperature(self, pool: np.ndarray) -> float:
        """The temperature of least loss of a pool of these weights."""
        return TemperatureScaling().fit_on(softmax(self.logs @ pool), self.targets, self.weights).temperature_

    def evidence_of_temperature(self, pool: np.ndarray) -> float:
        """Log evidence for a pool of these weights at one temperature, by Laplace's method."""
        logs, scale = self.logs @ pool, 1 / self.temperature(pool)
        probs = softmax(logs * scale)
        mean = over_classes(np.add, probs * logs)
        spread = self.count * float(self.weights @ (over_classes(np.add, probs * logs**2) - mean**2))
        prior = SURE_SCALE * (scale - 1) ** 2 + float(np.log1p(spread / SURE_SCALE))
        return -self.count * self._loss(probs) - prior / 2

    def problem(self, centre: np.ndarray) -> SoftmaxProblem:
        """The regression, in coordinates of which the first is along ``centre`` (members,)."""
        n_members, n_biases = len(centre), _biases(self.logs.shape[1])
        point = np.zeros(n_members + n_biases)
        point[0] = float(np.linalg.norm(centre))
        features = np.ascontiguousarray(self.logs @ turned(centre))
        design: Design = PoolDesign(features) if n_biases else SharedDesign(features)
        return SoftmaxProblem(design, self.targets, self.weights, np.ones_like(point), point)

    def _loss(self, probs: np.ndarray) -> float:
        return float(self.weights @ cross_entropy(probs, self.targets))


def turned(centre: np.ndarray) -> np.ndarray:
    """An orthonormal basis (members, members) of which the first column points along ``centre``."""
    size = len(centre)
    first = int(np.argmax(centre))
    rest = np.delete(np.eye(size), first, axis=1)
    basis = np.linalg.qr(np.concatenate([centre[:, None], rest], axis=1))[0]
    return basis * np.sign(basis[:, 0] @ centre)


def _with_few(
    equal: _Simple, alone: float, few: list[_Simple], likely: np.ndarray
) -> tuple[tuple[_Simple, ...], float]:
    """What stands for the equal pool, of evidence ``alone``, as far as the rows say so, and its evidence."""
    shares, mean = averaged(likely)
    shares = np.where(shares > LEAST_SHARE, shares, 0.0)
    together = mean + float(np.log(len(few)))  # all numbers of members together, against all members
    least, most = np.log(ODDS_FEW)
    taken = float(np.clip((together - alone - least) / (most - least), 0, 1))
    if taken == 0:
        return (equal,), alone
    shares *= taken / shares.sum()
    parts = [replace(one, share=float(share)) for one, share in zip(few, shares, strict=True)]
    return tuple(one for one in (replace(equal, share=1 - taken), *parts) if one.share > 0), max(
        alone, together
    )


def _biases(n_classes: int) -> int:
    """How many biases are fitted."""
    return n_classes if n_classes <= MOST_BIASES else 0


def _penalties(n: int, n_members: int, n_classes: int) -> np.ndarray:
    """Penalties of all parameters to try, one line each; under the first only the temperature moves."""
    step = 2 if n * n_members * n_classes > MANY_NUMBERS else 1
    n_biases = _biases(n_classes)
    spreads = (FIXED, *SPREADS[::step]) if n_members > 1 else (FIXED,)
    lines = [
        np.concatenate(
            [
                np.full(1, SURE_SCALE * n_members),
                np.full(n_members - 1, spread),
                np.full(n_biases, bias),
            ]
        )
        for bias in ((FIXED, *BIASES[::step]) if n_biases else (FIXED,))
        for spread in spreads
    ]
    return np.array(lines)


register("log-pool", 50, lambda f: LogPool(seed=f.seed).fit_on(f.data), calibrated=True)
