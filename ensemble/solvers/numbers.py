"""What every fit counts with: log-probabilities and their floors, targets, weights and log-loss.

``softmax`` and ``over_classes`` lie a floor below, where the store of soft labels needs them too.
"""

from __future__ import annotations

import numpy as np

from data.softmax import over_classes

PROB_FLOOR = 1e-7
"""Probabilities below this are taken as this where a logarithm becomes a feature."""
FLOORS = (1e-3, 1e-2)
"""Higher floors for logarithms, tried inside the training rows; see :func:`useful_floors`."""
LOSS_FLOOR = 1e-15
"""Probabilities below this are taken as this in a log-loss, which stays finite (as scikit-learn's did)."""


def log_probs(P: np.ndarray, floor: float = PROB_FLOOR) -> np.ndarray:
    """Logarithm of probabilities, floored at ``floor``."""
    return np.log(np.maximum(P, floor))


def useful_floors(P: np.ndarray) -> tuple[float, ...]:
    """The floors worth trying on ``P``: the lowest, and each that at least one row in a thousand is under.

    A member that says 0 where it means "seldom" (a forest, neighbours) makes an outlier of its
    logarithm, which a linear method pays for; where to floor is chosen like any other penalty.
    """
    lowest = P.min(axis=(1, 2))
    return (PROB_FLOOR, *(floor for floor in FLOORS if np.mean(lowest < floor) > 1e-3))


def as_targets(y: np.ndarray, n_classes: int) -> np.ndarray:
    """Return target distributions (n, K) from class indices (n,) or distributions (n, K)."""
    y = np.asarray(y)
    if y.ndim == 2:
        return y.astype(np.float64, copy=False)
    return np.eye(n_classes)[y.astype(np.int64)]


def as_weights(sample_weight: np.ndarray | None, n: int) -> np.ndarray:
    """Return row weights that sum to 1, shape (n,)."""
    if sample_weight is None:
        return np.full(n, 1.0 / n)
    weights = np.asarray(sample_weight, dtype=np.float64)
    return weights / weights.sum()


def with_error(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Mean of ``values`` (n,) and its standard error, under weights that sum to 1."""
    mean = float(weights @ values)
    return mean, float(np.sqrt(np.sum((weights * (values - mean)) ** 2)))


def cross_entropy(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Log-loss of each row, shape (n,), in nats; targets are distributions (n, K)."""
    return -over_classes(np.add, targets * np.log(np.maximum(probs, LOSS_FLOOR)))


def log_loss(probs: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Log-loss of each row (n,), in nats; ``y`` are class indices (n,) or target distributions (n, K)."""
    return cross_entropy(probs, as_targets(y, probs.shape[1]))
