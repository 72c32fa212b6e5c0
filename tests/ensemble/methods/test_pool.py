"""The log-opinion pool on few rows: how far the best few members stand for all of them."""

from __future__ import annotations

import numpy as np
import pytest

from data.softmax import softmax
from ensemble.methods.pool import LogPool
from ensemble.methods.temperature import TemperatureScaling
from ensemble.solvers.numbers import cross_entropy


def unequal(n: int, noise: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Members of these noises, and one-hot targets."""
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.normal(size=(n, 3))
    labels = (rng.random((n, 1)) > softmax(z).cumsum(axis=1)).sum(axis=1).clip(0, 2)
    members = z[:, None] + noise[None, :, None] * rng.normal(size=(n, len(noise), 3))
    return softmax(members), np.eye(3)[labels]


@pytest.mark.parametrize("seed", range(3))
def test_one_member_far_better_than_nine_stands_nearly_alone(seed: int) -> None:
    noise = np.array([0.1, *np.full(9, 6.0)])
    P, y = unequal(5150, noise, seed)
    pool = LogPool().fit(P[:150], y[:150])
    assert np.abs(pool.weights_[1:]).sum() < 0.2 * pool.weights_[0]
    fresh = cross_entropy(pool.predict_proba(P[150:]), y[150:]).mean()
    assert fresh < cross_entropy(P[150:, 0], y[150:]).mean() + 0.01


@pytest.mark.parametrize("seed", range(3))
def test_members_alike_keep_equal_weights(seed: int) -> None:
    P, y = unequal(200, np.full(6, 1.0), seed)
    weights = LogPool().fit(P, y).weights_
    assert weights.std() < 0.15 * weights.mean()


def test_unequal_members_one_of_them_too_sure_beat_the_mean_of_all_and_the_best_alone() -> None:
    noise = np.array([0.5, 0.7, 1.0, 1.5, 2.5, 4.0])
    gains = []
    for seed in range(12):
        P, y = unequal(4150, noise, seed)
        P[:, 4] = softmax(4 * np.log(P[:, 4]))
        part, rest = slice(0, 150), slice(150, None)
        losses = [cross_entropy(P[part, m], y[part]).mean() for m in range(len(noise))]
        logs = np.log(P).mean(axis=1)
        warm = TemperatureScaling().fit(softmax(logs[part]), y[part])
        others = warm.predict_proba(softmax(logs[rest])), P[rest, int(np.argmin(losses))]
        own = cross_entropy(LogPool().fit(P[part], y[part]).predict_proba(P[rest]), y[rest])
        gains.append([(cross_entropy(other, y[rest]) - own).mean() for other in others])
    assert np.mean(gains, axis=0).min() > 0.02
    assert np.min(gains) > -0.01
