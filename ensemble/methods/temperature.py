"""One temperature: the calibration that every other is measured against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from data.softmax import over_classes, softmax
from ensemble.methods.base import Calibrator
from ensemble.solvers.numbers import as_weights, log_probs

LEAST_T, MOST_T = 0.05, 20.0
"""Where the temperature is sought; an unbounded search once returned T = -1242 (AutoGluon PR #4396)."""
_TOLERANCE, _FLAT, _MOST_STEPS = 1e-10, 1e-12, 100


@dataclass
class TemperatureScaling(Calibrator):
    r"""Divide log-probabilities by one temperature, :math:`p_k^{1/T} / \sum_j p_j^{1/T}`.

    Attributes
    ----------
    temperature_ : float
        Above 1 softens over-confident predictions; from :data:`LEAST_T` to :data:`MOST_T`.

    Notes
    -----
    Guo, Pleiss, Sun and Weinberger, *On calibration of modern neural networks* (ICML 2017). The loss is
    convex in 1/T, so its derivative has one root; Newton's steps find it, inside a bracket.
    """

    fitted: ClassVar[tuple[str, ...]] = ("temperature_",)

    def fit_on(
        self,
        probs: np.ndarray,
        targets: np.ndarray,
        sample_weight: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> Self:
        """Fit on probabilities (n, K) and target distributions (n, K); see :meth:`Calibrator.fit`."""
        logs, weights = log_probs(probs), as_weights(sample_weight, len(probs))
        wanted = float(weights @ over_classes(np.add, targets * logs))

        def slope(scale: float) -> tuple[float, float]:
            """First and second derivative of the loss with respect to 1/T."""
            probs = softmax(logs * scale)
            probs *= logs
            mean = over_classes(np.add, probs)
            probs *= logs
            return float(weights @ mean) - wanted, float(weights @ (over_classes(np.add, probs) - mean**2))

        self.temperature_ = 1 / _root(slope, 1 / MOST_T, 1 / LEAST_T)
        return self

    def predict_on(self, probs: np.ndarray) -> np.ndarray:
        """Return the probabilities (n, K) at the fitted temperature."""
        return softmax(log_probs(probs) / self.temperature_)


def _root(slope: Callable[[float], tuple[float, float]], low: float, high: float) -> float:
    """Where a rising function, given with its derivative, is zero, by Newton's steps inside a bracket.

    One end of the bracket where it has the same sign in all of it; 1 where it is flat.
    """
    ends, at = {low, high}, 1.0
    for _ in range(_MOST_STEPS):
        value, rise = slope(at)
        if abs(value) < _FLAT and rise < _FLAT:  # everywhere, or towards one end alone
            return at if at == 1 else low if value > 0 else high
        nearer = at - value / rise if rise > 0 else math.nan
        if abs(nearer - at) <= _TOLERANCE * at:
            return nearer
        low, high = (low, at) if value > 0 else (at, high)
        if not low < nearer < high:
            end = low if value > 0 else high
            if end in ends and slope(end)[0] * math.copysign(1, value) > -_FLAT:
                return end
            nearer = math.sqrt(low * high)
        at = nearer
    return at


def held_out_scaling(
    probs: np.ndarray, targets: np.ndarray, weights: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    """Scale each fold of probabilities (n, K) by the temperature of the other folds; returns (n, K)."""
    found = np.empty_like(targets)
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        scaling = TemperatureScaling().fit_on(probs[train], targets[train], weights[train])
        found[test] = scaling.predict_on(probs[test])
    return found
