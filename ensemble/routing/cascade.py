"""A cascade: a cheap model on every row, dear ones on the rows where they are expected to pay.

What the dear models would gain on a row is predicted from what the cheap one said about it, by a ridge
regression on rows with labels that none of them was trained on: their out-of-fold stores. Rows are taken by
gain for cost until the budget is spent. The dear models' answer is blended with the cheap one's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemble.methods.blend import SimplexBlend
from ensemble.methods.calibrate import TemperatureScaling
from ensemble.solvers.numbers import log_loss

RIDGE = 100.0
"""Penalty in rows. Gains are noisy: of one row they are a difference of two log-losses."""
STEPS = 20


def features(probs: np.ndarray) -> np.ndarray:
    """What a cheap model's probabilities (n, K) say about how sure it is, and of what; shape (n, f)."""
    ranked = -np.sort(-probs, axis=1)[:, :2]
    entropy = -(probs * np.log(np.maximum(probs, 1e-12))).sum(axis=1)
    return np.column_stack([entropy, entropy**2, ranked, ranked[:, 0] - ranked[:, 1], probs, probs**2])


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
        return self.blend.predict_proba(np.stack(parts, axis=1))

    def expected_gain(self, probs: np.ndarray) -> np.ndarray:
        """Expected fall of the log-loss (n,) if the dear models see the row too, in nats."""
        standard = (features(self.cheap(probs)) - self.mean) / self.scale
        return self.coefficients[0] + standard @ self.coefficients[1:]


def _tempered(probs: np.ndarray, temperature: float) -> np.ndarray:
    scaling = TemperatureScaling()
    scaling.temperature_ = temperature
    return scaling.predict_on(probs)


def fit_cascade(P: np.ndarray, y: np.ndarray) -> Cascade:
    """Fit temperatures, blend and expected gain on predictions (n, models, K), the cheap model first.

    Parameters
    ----------
    y : ndarray of shape (n,) or (n, K)
        Labels or target distributions.
    """
    scalings = [TemperatureScaling().fit(P[:, m], y) for m in range(P.shape[1])]
    tempered = np.stack([s.predict_on(P[:, m]) for m, s in enumerate(scalings)], axis=1)
    blend = SimplexBlend().fit(tempered, y)
    gain = log_loss(tempered[:, 0], y) - log_loss(blend.predict_proba(tempered), y)
    X = features(tempered[:, 0])
    mean, scale = X.mean(axis=0), np.maximum(X.std(axis=0), 1e-12)
    Z = (X - mean) / scale
    slopes = np.linalg.solve(Z.T @ Z + RIDGE * np.eye(Z.shape[1]), Z.T @ (gain - gain.mean()))
    coefficients = np.concatenate([[gain.mean()], slopes])
    return Cascade([s.temperature_ for s in scalings], blend, mean, scale, coefficients)


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


def curve(
    cascade: Cascade, P: np.ndarray, y: np.ndarray, cost: np.ndarray, steps: int = STEPS
) -> list[tuple[float, float, float]]:
    """Log-loss against the budget on labelled rows: (budget, by expected gain, by lot on average)."""
    cheap, dear = log_loss(cascade.cheap(P[:, 0]), y), log_loss(cascade.all_models(P), y)
    gain = cascade.expected_gain(P[:, 0])
    points = []
    for budget in np.linspace(0, 1, steps + 1):
        chosen = route(gain, cost, float(budget))
        by_lot = budget * dear.mean() + (1 - budget) * cheap.mean()
        points.append((float(budget), float(np.where(chosen, dear, cheap).mean()), float(by_lot)))
    return points


def cross_fitted_curve(
    P: np.ndarray, y: np.ndarray, cost: np.ndarray, fold: np.ndarray, steps: int = STEPS
) -> list[tuple[float, float, float]]:
    """:func:`curve` of rows by cascades fitted on the other folds, averaged by rows."""
    numbers, total = np.unique(fold), np.zeros((steps + 1, 3))
    for number in numbers:
        inside = fold == number
        part = curve(fit_cascade(P[~inside], y[~inside]), P[inside], y[inside], cost[inside], steps)
        total += inside.mean() * np.array(part)
    return [(float(b), float(routed), float(lot)) for b, routed, lot in total]
