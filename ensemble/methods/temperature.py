"""One temperature: the calibration that every other is measured against."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from data.softmax import over_classes, softmax
from ensemble.methods.base import Estimator
from ensemble.solvers.numbers import as_targets, as_weights, log_probs

LOG_T_BRACKET = (math.log(0.05), math.log(20.0))
"""Where the temperature is sought; an unbounded search once returned T = -1242 (AutoGluon PR #4396)."""


@dataclass
class TemperatureScaling(Estimator):
    r"""Divide log-probabilities by one temperature, :math:`p_k^{1/T} / \sum_j p_j^{1/T}`.

    Attributes
    ----------
    temperature_ : float
        Above 1 softens over-confident predictions; within ``exp`` of :data:`LOG_T_BRACKET`.

    Notes
    -----
    Guo, Pleiss, Sun and Weinberger, *On calibration of modern neural networks* (ICML 2017). The loss is
    convex in 1/T, so its derivative has one root; Brent's method finds it in log T.
    """

    fitted: ClassVar[tuple[str, ...]] = ("temperature_",)

    def fit(self, probs: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> Self:
        """Fit on probabilities (n, K) and labels (n,) or target distributions (n, K)."""
        from scipy.optimize import brentq

        logs = log_probs(probs)
        targets, weights = as_targets(y, probs.shape[1]), as_weights(sample_weight, len(probs))
        wanted = float(weights @ over_classes(np.add, targets * logs))

        def slope(log_t: float) -> float:
            """Derivative of the loss with respect to 1/T."""
            expected = over_classes(np.add, softmax(logs * math.exp(-log_t)) * logs)
            return float(weights @ expected) - wanted

        low, high = LOG_T_BRACKET
        at_low, at_high = slope(low), slope(high)
        if abs(at_low - at_high) < 1e-12:  # every row is uniform: any temperature is the same
            log_t = 0.0
        elif at_high >= 0:  # even the smallest 1/T is too sharp
            log_t = high
        elif at_low <= 0:
            log_t = low
        else:
            log_t = float(brentq(slope, low, high, xtol=1e-12))
        self.temperature_ = math.exp(log_t)
        return self

    def transform(self, probs: np.ndarray) -> np.ndarray:
        """Return the probabilities (n, K) at the fitted temperature."""
        return softmax(log_probs(probs) / self.temperature_)


def held_out_scaling(
    probs: np.ndarray, targets: np.ndarray, weights: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    """Scale each fold of probabilities (n, K) by the temperature of the other folds; returns (n, K)."""
    found = np.empty_like(targets)
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        scaling = TemperatureScaling().fit(probs[train], targets[train], weights[train])
        found[test] = scaling.transform(probs[test])
    return found
