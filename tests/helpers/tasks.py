"""A simulated blending task whose truth is known."""

from __future__ import annotations

import numpy as np

from data.softmax import softmax


def task(n: int, members: int = 2, k: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Members that see the truth through noise and are each wrong about the last class in their own way."""
    rng = np.random.default_rng(seed)
    z = 1.2 * rng.normal(size=(n, k))
    truth = softmax(z)
    labels = np.minimum((rng.random((n, 1)) > truth.cumsum(axis=1)).sum(axis=1), k - 1)
    seen = z[:, None] + rng.normal(size=(n, members, k))
    seen[:, 0, -1] *= -0.5
    return softmax(1.5 * seen), labels
