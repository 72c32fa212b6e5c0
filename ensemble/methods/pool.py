"""The log-opinion pool: weights on log-probabilities, as far as the rows have evidence for them."""

from __future__ import annotations

from dataclasses import dataclass
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
ODDS_FEW = 10.0
"""So many times as likely for the equal pool of some members to be the simple one instead of that of all."""
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
"""Penalties whose fits count for less are not fitted again."""
LEAST_STRENGTH = 1e-9
"""No penalty at all has no evidence: a strength of 0 is taken as this."""


@dataclass
class LogPool(Blender):
    r"""Weights on log-probabilities and a bias a class, :math:`p_k \propto e^{b_k} \prod_m p_{mk}^{w_m}`.

    Two penalties draw it to equal weights at one temperature: of departures from these, and of biases. Every
    pair of penalties is fitted, once more around equal weights of the best few members, and all are averaged
    by their evidence: no deal of folds decides, and few rows leave little more than the temperature. Unless
    all together make the rows :data:`ODDS` times as likely as the simple pool does (the geometric mean at one
    temperature, of all members or of few that are far better), it stays alone; from there on the others count
    for more the more likely they are. Weights need not sum to one.

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
            return _Choice(equal, True, 1.0, evidence, ((equal, penalties, np.ones(1)),))
        penalties = _penalties(n, n_members, n_classes)
        starts = [(equal, penalties[1:], 0.0)]  # the first is the simple pool
        simple, tempered, alone = equal, True, rows.evidence_of_temperature(equal)
        if n_members > 1 and n * n_members * n_classes <= MANY_NUMBERS:
            few, warm, evidence = rows.best_few()
            starts.append((few, penalties, evidence - rows.evidence_of_temperature(few)))
            if evidence - float(np.log(ODDS_FEW)) > alone:
                simple, tempered, alone = few, warm, evidence
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
        return _Choice(simple, tempered, departure, max(alone, together), tuple(kept))

    def _take(self, P: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> None:
        """Fit what was chosen on these rows."""
        rows, choice = _Rows(P, targets, weights, self.floor_), self._choice
        n_members, n_classes = P.shape[1:]
        scale = 1 / rows.temperature(choice.simple) if choice.tempered else 1.0
        self.weights_ = (1 - choice.departure) * scale * choice.simple
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
class _Choice:
    """What is fitted: a simple pool, and others around it.

    Attributes
    ----------
    simple : ndarray of shape (members,)
        Weights, before the temperature.
    tempered : bool
        Whether it has one.
    departure : float
    evidence : float
    kept : tuple of (ndarray, ndarray, ndarray)
        For each centre (members,): penalties (fits, p), and what each fit counts for.
    """

    simple: np.ndarray
    tempered: bool
    departure: float
    evidence: float
    kept: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]


class _Rows:
    """Members' centred log-probabilities (n, K, members) with what happened."""

    def __init__(self, P: np.ndarray, targets: np.ndarray, weights: np.ndarray, floor: float) -> None:
        logs = log_probs(P, floor).transpose(0, 2, 1)
        self.logs, self.targets, self.weights = logs - logs.mean(axis=1, keepdims=True), targets, weights
        self.count = 1 / float(weights @ weights)

    def best_few(self) -> tuple[np.ndarray, bool, float]:
        """The equal pool of the best members, how many being told by the evidence.

        Returns
        -------
        pool : ndarray of shape (members,)
        tempered : bool
            Whether it has a temperature, which one member alone may do without.
        evidence : float
            Less what it takes to say which of so many members these are.
        """
        n_members = self.logs.shape[2]
        losses = [self._loss(softmax(self.logs[:, :, m])) for m in range(n_members)]
        order = np.argsort(losses, kind="stable")
        found = []
        for size in range(1, n_members):
            pool = np.zeros(n_members)
            pool[order[:size]] = 1 / size
            ways = float(np.log(comb(n_members, size)))
            found.append((self.evidence_of_temperature(pool) - ways, True, pool))
            if size == 1:
                found.append((-self.count * losses[order[0]] - ways, False, pool))
        evidence, tempered, pool = max(found, key=lambda item: item[0])
        return pool, tempered, evidence

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
