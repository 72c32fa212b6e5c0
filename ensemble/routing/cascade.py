"""A cascade: a cheap model on every row, dear ones on the rows where they are expected to pay.

What the dear models would gain on a row is predicted from what the cheap one said about it, by a ridge
regression on rows with labels that none of them was trained on: their out-of-fold predictions. Rows are
taken by gain for cost until the budget is spent. The dear models' answer is blended with the cheap one's.

Cascades of language models: Chen, Zaharia and Zou, *FrugalGPT* (arXiv 2305.05176). That taking rows by gain
for cost down to one price is optimal, and estimates of quality are what counts: Dekoninck, Baader and Vechev,
*A unified approach to routing and cascading for LLMs* (arXiv 2410.10347). Why the cheap model's confidence
alone may mislead, and a rule learnt from its output may not: Jitkrittum and others, *When does
confidence-based cascade deferral suffice?* (arXiv 2307.02764).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemble.methods.blend import SimplexBlend
from ensemble.methods.calibrate import TemperatureScaling
from ensemble.solvers.numbers import as_weights, log_loss, log_probs

RIDGE = 100.0
"""Penalty in rows. Gains are noisy: of one row they are a difference of two log-losses."""
LEAST = 1e-3
"""Probabilities below this are taken as this in the features' logarithms, so that no row stands far out."""


def features(probs: np.ndarray) -> np.ndarray:
    """What a cheap model's probabilities (n, K) say about how sure it is, and of what; shape (n, f).

    In order: entropy in nats and its square, the greatest probability, the second, the first less the
    second, every class's probability, its square, and its logarithm, floored at :data:`LEAST`.
    """
    ranked = -np.sort(-probs, axis=1)[:, :2]
    entropy = -(probs * log_probs(probs, 1e-12)).sum(axis=1)
    margin = ranked[:, 0] - ranked[:, 1]
    return np.column_stack([entropy, entropy**2, ranked, margin, probs, probs**2, log_probs(probs, LEAST)])


@dataclass(frozen=True)
class Cascade:
    """A fitted cascade.

    Attributes
    ----------
    temperatures : list of float
        One a model, the cheap one first.
    blend : SimplexBlend
        Of all models, for rows that the dear ones see.
    mean, scale : ndarray of shape (f,)
        Standardise the features.
    coefficients : ndarray of shape (f + 1,)
        Of the expected gain, the constant first.
    """

    temperatures: list[float]
    blend: SimplexBlend
    mean: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray

    def cheap(self, probs: np.ndarray) -> np.ndarray:
        """The cheap model's probabilities (n, K) at its temperature."""
        return _tempered(probs, self.temperatures[0])

    def all_models(self, P: np.ndarray) -> np.ndarray:
        """Blend of all models' probabilities (n, models, K)."""
        parts = [_tempered(P[:, m], t) for m, t in enumerate(self.temperatures)]
        return self.blend.predict_on(np.stack(parts, axis=1))

    def expected_gain(self, probs: np.ndarray) -> np.ndarray:
        """Expected fall of the log-loss (n,) if the dear models see the row too, in nats."""
        standard = (features(self.cheap(probs)) - self.mean) / self.scale
        return self.coefficients[0] + standard @ self.coefficients[1:]


def _tempered(probs: np.ndarray, temperature: float) -> np.ndarray:
    scaling = TemperatureScaling()
    scaling.temperature_ = temperature
    return scaling.predict_on(probs)


def fit_cascade(P: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> Cascade:
    """Fit temperatures, blend and expected gain on predictions (n, models, K), the cheap model first.

    Parameters
    ----------
    P : ndarray of shape (n, models, K)
    y : ndarray of shape (n,) or (n, K)
        Labels or target distributions.
    sample_weight : ndarray of shape (n,), optional
        What each row counts for.
    """
    scalings = [TemperatureScaling().fit(P[:, m], y, sample_weight) for m in range(P.shape[1])]
    tempered = np.stack([s.predict_on(P[:, m]) for m, s in enumerate(scalings)], axis=1)
    blend = SimplexBlend().fit(tempered, y, sample_weight=sample_weight)
    gain = log_loss(tempered[:, 0], y) - log_loss(blend.predict_proba(tempered), y)
    weight = as_weights(sample_weight, len(P))
    return Cascade(
        [s.temperature_ for s in scalings], blend, *foretell(features(tempered[:, 0]), gain, weight)
    )


def foretell(
    X: np.ndarray, gain: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit gains (n,) on features (n, f) by ridge regression, under weights that sum to 1.

    Returns
    -------
    mean, scale : ndarray of shape (f,)
    coefficients : ndarray of shape (f + 1,)
        As :class:`Cascade` has them.
    """
    mean = weight @ X
    scale = np.maximum(np.sqrt(weight @ (X - mean) ** 2), 1e-12)
    Z, rise = (X - mean) / scale, float(weight @ gain)
    counted = Z * (weight * len(Z))[:, None]
    slopes = np.linalg.solve(counted.T @ Z + RIDGE * np.eye(Z.shape[1]), counted.T @ (gain - rise))
    return mean, scale, np.concatenate([[rise], slopes])


def route(gain: np.ndarray, cost: np.ndarray, budget: float) -> np.ndarray:
    """Choose rows by expected gain for cost, as far as the budget goes.

    Parameters
    ----------
    gain, cost : ndarray of shape (n,)
        Expected gain of, and cost of, showing a row to the dear models.
    budget : float
        Share of the cost of showing them every row, 0 to 1.

    Returns
    -------
    ndarray of bool, shape (n,)
    """
    order = np.argsort(-gain / cost, kind="stable")
    affordable = np.cumsum(cost[order]) <= budget * cost.sum() * (1 + 1e-9)
    chosen = np.zeros(len(gain), dtype=bool)
    chosen[order[affordable]] = True
    return chosen
