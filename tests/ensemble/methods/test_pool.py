"""The log-opinion pool on few rows: how far the best few members stand for all of them."""

from __future__ import annotations

import numpy as np
import pytest

from data.softmax import softmax
from ensemble.methods.pool import FEW_SHARE, ODDS_FEW, LogOpinionPool, _shared
from ensemble.solvers.numbers import cross_entropy


def unequal(n: int, noise: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Members of these noises, and one-hot targets."""
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.normal(size=(n, 3))
    labels = (rng.random((n, 1)) > softmax(z).cumsum(axis=1)).sum(axis=1).clip(0, 2)
    members = z[:, None] + noise[None, :, None] * rng.normal(size=(n, len(noise), 3))
    return softmax(members), np.eye(3)[labels]


def test_shares_of_simple_pools_follow_their_evidence_without_a_step() -> None:
    ahead = np.linspace(-6, 12, 181)
    all_share = np.array([_shared(0.0, np.array([gap, gap - 3]))[0][0] for gap in ahead])
    assert (np.diff(all_share) <= 1e-12).all()
    assert np.abs(np.diff(all_share)).max() < 0.05
    assert all_share[0] == 1
    assert all_share[-1] == 0
    shares, together = _shared(0.0, np.array([-50.0, -60.0]))
    assert shares.tolist() == [1, 0, 0]
    assert together == pytest.approx(-np.log1p(1 / ODDS_FEW))
    even = _shared(0.0, np.full(2, np.log(ODDS_FEW)))[0]
    np.testing.assert_allclose(even, [0.5, 0.25, 0.25])
    assert even.min() > FEW_SHARE


@pytest.mark.parametrize("seed", range(3))
def test_one_member_far_better_than_nine_stands_nearly_alone(seed: int) -> None:
    noise = np.array([0.1, *np.full(9, 6.0)])
    P, y = unequal(5150, noise, seed)
    pool = LogOpinionPool().fit(P[:150], y[:150])
    assert np.abs(pool.weights_[1:]).sum() < 0.2 * pool.weights_[0]
    fresh = cross_entropy(pool.predict_proba(P[150:]), y[150:]).mean()
    assert fresh < cross_entropy(P[150:, 0], y[150:]).mean() + 0.01


@pytest.mark.parametrize("seed", range(3))
def test_members_alike_keep_equal_weights(seed: int) -> None:
    P, y = unequal(200, np.full(6, 1.0), seed)
    weights = LogOpinionPool().fit(P, y).weights_
    assert weights.std() < 0.15 * weights.mean()
