"""Methods over sets of candidates: means, the simplex blend, and the log-pool as a conditional logit.

``P`` is (n, members, K), 0 where a row has no such candidate and above 0 where it has one, so that each row
says by itself how large its set is; a place means nothing from row to row, and no parameter belongs to one.
Methods with a bias, a scale or a tree a class have no meaning here and are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from data.softmax import softmax
from ensemble.methods.base import Blender, Training
from ensemble.methods.blend import BestSingle, EqualMean, SimplexBlend
from ensemble.methods.catalogue import TEMPERATURE
from ensemble.methods.temperature import LEAST_T, MOST_T, TemperatureScaling
from ensemble.solvers.numbers import PROB_FLOOR, cross_entropy, with_error

STRENGTHS = (np.inf, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)
"""Penalties of departures from equal weights, in units of rows; the first leaves the temperature alone."""
_BELOW = -1e30
"""The score of a place without a candidate, whose probability is then 0."""
_STEPS, _TOLERANCE = 60, 1e-10


def set_logs(P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of candidates (n, K, members), 0 where there is none, and which there are (n, K)."""
    there = P.max(axis=1) > 0
    logs = np.where(there[:, :, None], np.log(np.maximum(P, PROB_FLOOR)).transpose(0, 2, 1), 0.0)
    return logs, there


def softmax_of_sets(scores: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The softmax over each row's own candidates (n, K), 0 elsewhere."""
    return softmax(np.where(there, scores, _BELOW))


@dataclass
class SetPool(Blender):
    r"""A weight a member on log-probabilities within each set, :math:`p_c \propto \prod_m p_{mc}^{w_m}`.

    A conditional logit whose features are the members' log-probabilities. A ridge draws the weights to one
    another, not to a size: how strongly is chosen by cross-validation inside the training rows, of several
    within one paired standard error the strongest. Equal weights leave one temperature.

    Parameters
    ----------
    equal : bool
        Equal weights that sum to 1, with nothing fitted: the geometric mean.
    n_folds, seed : int
        Of the inner cross-validation.

    Attributes
    ----------
    weights_ : ndarray of shape (members,)
    strength_ : float
        The penalty chosen, -1 where there is no other than equal weights.

    Notes
    -----
    McFadden, *Conditional logit analysis of qualitative choice behavior* (1974); Genest and Zidek, *Combining
    probability distributions* (Statistical Science 1986).
    """

    equal: bool = False
    n_folds: int = 5
    seed: int = 0
    fitted: ClassVar[tuple[str, ...]] = ("weights_", "strength_")

    def fit_on(self, data: Training) -> Self:
        """Fit the weights; see :meth:`Blender.fit`."""
        n, n_members, _ = data.P.shape
        self.weights_, self.strength_ = np.full(n_members, 1 / n_members), -1.0
        if self.equal:
            return self
        logs, there = set_logs(data.P)
        strengths = STRENGTHS if n_members > 1 else STRENGTHS[:1]
        chosen = strengths[0]
        if len(strengths) > 1:
            folds = data.folds(self.n_folds, self.seed)
            losses = np.zeros((len(strengths), n))
            for fold in np.unique(folds):
                rest, held = folds != fold, folds == fold
                for i, strength in enumerate(strengths):
                    weights = fit_weights(
                        logs[rest], there[rest], data.targets[rest], data.weights[rest], strength
                    )
                    probs = softmax_of_sets(logs[held] @ weights, there[held])
                    losses[i, held] = cross_entropy(probs, data.targets[held])
            best = losses[int(np.argmin(losses @ data.weights))]
            within = [with_error(loss - best, data.weights) for loss in losses]
            chosen = next(s for s, (mean, error) in zip(strengths, within, strict=True) if mean <= error)
        self.weights_ = fit_weights(logs, there, data.targets, data.weights, chosen)
        self.strength_ = float(chosen) if np.isfinite(chosen) else -1.0
        return self

    def predict_on(self, P: np.ndarray) -> np.ndarray:
        """Return the pooled probabilities (n, K)."""
        logs, there = set_logs(P)
        return softmax_of_sets(logs @ self.weights_, there)


@dataclass
class SetTemperature(Blender):
    """A method followed by one temperature within each set, fitted on the same rows.

    Parameters
    ----------
    base : Blender
        One of at most a parameter a member, which cannot fit noise.

    Attributes
    ----------
    temperature_ : float
    """

    base: Blender
    fitted: ClassVar[tuple[str, ...]] = ("temperature_",)

    def fit_on(self, data: Training) -> Self:
        """Fit the method, then the temperature; see :meth:`Blender.fit`."""
        self.base.fit_on(data)
        return self.fit_after(data)

    def fit_after(self, data: Training) -> Self:
        """Fit the temperature alone, after a ``base`` already fitted on the same rows."""
        logs, there = set_logs(self.base.predict_on(data.P)[:, None])
        (scale,) = fit_weights(logs, there, data.targets, data.weights, np.inf)
        self.temperature_ = float(np.clip(1 / max(float(scale), 1 / MOST_T), LEAST_T, MOST_T))
        return self

    def predict_on(self, P: np.ndarray) -> np.ndarray:
        """Return the probabilities (n, K) at the fitted temperature."""
        logs, there = set_logs(self.base.predict_on(P)[:, None])
        return softmax_of_sets(logs[:, :, 0] / self.temperature_, there)


def fit_temperature(
    probs: np.ndarray, targets: np.ndarray, sets: bool
) -> tuple[float, Callable[[np.ndarray], np.ndarray]]:
    """Fit one temperature to a model's probabilities (n, K); return it, and what applies it to others.

    Of ``sets``, rows with candidates of their own, it works within each.
    """
    if not sets:
        plain = TemperatureScaling().fit(probs, targets)
        return plain.temperature_, plain.predict_on
    within = SetTemperature(EqualMean()).fit_on(Training.of(probs[:, None], targets))
    return within.temperature_, lambda other: within.predict_on(other[:, None])


def fit_weights(
    logs: np.ndarray, there: np.ndarray, targets: np.ndarray, row_weights: np.ndarray, strength: float
) -> np.ndarray:
    """Weights (members,) of least penalised log-loss, by Newton's steps.

    Parameters
    ----------
    logs : ndarray of shape (n, K, members)
    there : ndarray of shape (n, K)
    targets : ndarray of shape (n, K)
    row_weights : ndarray of shape (n,)
        Any sum.
    strength : float
        Penalty, in units of rows, of the squared departures of the weights from their mean; infinite for one
        common weight.
    """
    n_members = logs.shape[2]
    equal = np.full((n_members, 1), 1 / n_members)
    basis = equal if np.isinf(strength) else np.eye(n_members)
    features = logs @ basis
    share = row_weights / row_weights.sum()
    away = np.zeros((1, 1)) if np.isinf(strength) else np.eye(n_members) - 1 / n_members
    ridge = (0.0 if np.isinf(strength) else strength) / len(logs) * away + 1e-9 * np.eye(basis.shape[1])
    theta = np.linalg.lstsq(basis, np.full(n_members, 1 / n_members), rcond=None)[0]
    wanted = np.einsum("n,nk,nkd->d", share, targets, features)

    def value(at: np.ndarray) -> tuple[float, np.ndarray]:
        probs = softmax_of_sets(features @ at, there)
        return float(share @ cross_entropy(probs, targets) + at @ ridge @ at / 2), probs

    loss, probs = value(theta)
    for _ in range(_STEPS):
        means = np.einsum("nk,nkd->nd", probs, features)
        gradient = share @ means - wanted + ridge @ theta
        spread = np.einsum("n,nk,nkd,nke->de", share, probs, features, features)
        hessian = spread - np.einsum("n,nd,ne->de", share, means, means) + ridge
        step = np.linalg.solve(hessian + 1e-12 * np.eye(len(theta)), gradient)
        size = 1.0
        while size > 1e-8 and (tried := value(theta - size * step))[0] > loss:
            size /= 2
        if size <= 1e-8 or loss - tried[0] < _TOLERANCE:
            break
        theta, (loss, probs) = theta - size * step, tried
    return basis @ theta


_PLAIN: dict[str, type[Blender]] = {"best single": BestSingle, "mean": EqualMean, "simplex": SimplexBlend}
_SCALED = ("best single", "mean", "geometric mean", "simplex")
"""Each is tried at a temperature, too; the log-pool has its own."""
METHODS = (*(name + suffix for name in _SCALED for suffix in ("", TEMPERATURE)), "log-pool")
"""Names of the methods that sets of any size have, simplest first."""


def fit_set_methods(data: Training, seed: int = 0) -> dict[str, Blender]:
    """Fit each of :data:`METHODS` on the same rows; returns them by name."""
    methods: dict[str, Blender] = {}
    for name in _SCALED:
        method = _PLAIN[name]() if name in _PLAIN else SetPool(equal=True)
        methods[name] = method.fit_on(data)
        methods[name + TEMPERATURE] = SetTemperature(method).fit_after(data)
    methods["log-pool"] = SetPool(seed=seed).fit_on(data)
    return methods
