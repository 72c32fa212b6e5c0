r"""Calibration maps with more than one parameter: a scale a class, a matrix, and curves of log-probabilities.

All are softmax regressions on one prediction's log-probabilities that a penalty draws to the best single
temperature, so that few rows or noisy labels leave little more than that. The penalty is chosen by grouped
cross-validation inside the training rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from data.softmax import softmax
from ensemble.methods.base import Calibrator
from ensemble.methods.temperature import TemperatureScaling
from ensemble.solvers.designs import BlockDesign
from ensemble.solvers.folds import inner_folds
from ensemble.solvers.newton import SoftmaxProblem, choose_strength, minimise
from ensemble.solvers.numbers import as_weights, log_probs

KINDS = ("vector", "matrix", "dirichlet", "spline")
STRENGTHS = (3000.0, 300.0, 30.0, 3.0)
"""Penalties tried, in units of rows, strong to weak."""
KNOTS = 4
"""Where a curve may bend: so many quantiles of each log-probability."""
_FLOOR = 1e-4
_FREE, _BOUND = 1e-3, 1e6
"""Penalties of what may move at will, and of what may not move."""


@dataclass
class LinearScaling(Calibrator):
    r"""A map of log-probabilities :math:`z` to :math:`\mathrm{softmax}(W z + b)`, or of curves of them.

    Parameters
    ----------
    kind : {"vector", "matrix", "dirichlet", "spline"}
        ``vector``: a scale and a bias a class. ``matrix``: every class may use every other's logarithm, with
        off-diagonal entries held K times as tightly as the diagonal, and the bias free (structured).
        ``dirichlet``: a matrix whose off-diagonal entries and biases are held alike and whose diagonal is
        free. ``spline``: a matrix on piecewise linear curves that bend at quantiles.
    n_folds, seed : int
        Of the inner cross-validation.

    Attributes
    ----------
    temperature_ : float
        What the penalty draws to.
    knots_ : ndarray of shape (knots, K)
    coef_ : ndarray of shape (K, d)
    intercept_ : ndarray of shape (K,)
    strength_, loss_ : float
        The penalty chosen and its cross-validated log-loss.
    oof_ : ndarray of shape (n, K)

    Notes
    -----
    Guo et al., *On calibration of modern neural networks* (ICML 2017) for vector and matrix scaling; Kull et
    al., *Beyond temperature scaling* (NeurIPS 2019) for Dirichlet calibration and its off-diagonal and
    intercept penalty; Berta et al., *Structured matrix scaling* (2025) for penalties by kind of entry.
    """

    kind: str = "vector"
    n_folds: int = 5
    seed: int = 0
    fitted: ClassVar[tuple[str, ...]] = ("temperature_", "knots_", "coef_", "intercept_")

    def fit_on(
        self,
        probs: np.ndarray,
        targets: np.ndarray,
        sample_weight: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> Self:
        """Fit on probabilities (n, K) and target distributions (n, K); see :meth:`Calibrator.fit`."""
        n_classes, weights = probs.shape[1], as_weights(sample_weight, len(probs))
        self.temperature_ = TemperatureScaling().fit_on(probs, targets, weights).temperature_
        logs = _centred(probs)
        count = KNOTS if self.kind == "spline" else 0
        inner = np.linspace(0, 1, count + 2)[1:-1]
        self.knots_ = np.quantile(logs, inner, axis=0).reshape(count, n_classes)
        features = self._features(logs)
        scale = features.std(axis=0)
        scale = np.where(scale > 1e-9, scale, 1.0)
        design = BlockDesign(np.concatenate([features / scale, np.ones((len(probs), 1))], axis=1), n_classes)
        centre = np.zeros((n_classes, features.shape[1] + 1))
        centre[:, :n_classes] = np.diag(scale[:n_classes]) / self.temperature_
        problem = SoftmaxProblem(design, targets, weights, self._ridge(centre).ravel(), centre.ravel())
        path = choose_strength(problem, inner_folds(targets, groups, self.n_folds, self.seed), STRENGTHS)
        self.strength_, self.loss_, self.oof_ = path.strength, path.loss, path.oof
        theta = minimise(problem.penalised(path.strength)).reshape(n_classes, -1)
        self.coef_, self.intercept_ = theta[:, :-1] / scale, theta[:, -1]
        return self

    def predict_on(self, probs: np.ndarray) -> np.ndarray:
        """Return the calibrated probabilities (n, K)."""
        return softmax(self._features(_centred(probs)) @ self.coef_.T + self.intercept_)

    def _features(self, logs: np.ndarray) -> np.ndarray:
        return np.concatenate([logs, *(np.maximum(logs - knot, 0) for knot in self.knots_)], axis=1)

    def _ridge(self, centre: np.ndarray) -> np.ndarray:
        n_classes = len(centre)
        ridge = np.ones_like(centre)
        own = np.eye(n_classes, dtype=bool)
        if self.kind == "vector":
            ridge[:, :n_classes] = np.where(own, 1.0, _BOUND)
        elif self.kind == "dirichlet":
            ridge[:, :n_classes] = np.where(own, _FREE, 1.0)
        else:
            ridge[:, :n_classes] = np.where(own, 1.0, float(n_classes))
        ridge[:, -1] = 1.0 if self.kind == "dirichlet" else _FREE
        return ridge


def _centred(probs: np.ndarray) -> np.ndarray:
    logs = log_probs(probs, _FLOOR)
    return logs - logs.mean(axis=1, keepdims=True)
