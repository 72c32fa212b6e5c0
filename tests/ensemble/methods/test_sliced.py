"""Weights by slice: learned where slices differ, and not where they do not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data.softmax import softmax
from ensemble.methods.base import from_dict
from ensemble.methods.pool import LogPool
from ensemble.methods.sliced import SlicedPool
from ensemble.reading.features import NAMES
from ensemble.solvers.numbers import cross_entropy


def turning(n: int, seed: int = 0, differ: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two members, each good on rows of one turn or of several; labels; features of the rows."""
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.normal(size=(n, 3))
    y = (rng.random((n, 1)) > softmax(z).cumsum(axis=1)).sum(axis=1).clip(0, 2)
    X = rng.normal(size=(n, len(NAMES)))
    X[:, NAMES.index("turns")] = turns = rng.integers(1, 3, size=n)
    noise = np.where(turns[:, None] == [1, 2], 0.3, 2.0) if differ else np.full((n, 2), 1.0)
    P = softmax(z[:, None] + noise[:, :, None] * rng.normal(size=(n, 2, 3)))
    return P, y, X


def loss(probs: np.ndarray, y: np.ndarray) -> float:
    return float(cross_entropy(probs, np.eye(3)[y]).mean())


def test_members_count_where_they_are_good() -> None:
    P, y, X = turning(1500)
    fitted = SlicedPool().fit(P, y, X=X)
    assert fitted.cut_ == "turns"
    assert fitted.needs_rows
    assert fitted.slice_weights_[0, 0] > fitted.slice_weights_[0, 1] + 0.3
    assert fitted.slice_weights_[1, 1] > fitted.slice_weights_[1, 0] + 0.3
    fresh, truth, features = turning(3000, seed=1)
    plain = LogPool().fit(P, y)
    ours = loss(fitted.predict_known(fresh, features), truth)
    assert ours < loss(plain.predict_proba(fresh), truth) - 0.03
    assert loss(fitted.oof_, y) == pytest.approx(ours, abs=0.05)
    again = from_dict(json.loads(json.dumps(fitted.to_dict())))
    np.testing.assert_array_equal(again.predict_known(fresh, features), fitted.predict_known(fresh, features))


def test_slices_alike_keep_the_common_weights() -> None:
    for seed in range(3):
        P, y, X = turning(800, seed, differ=False)
        plain, fitted = LogPool().fit(P, y), SlicedPool().fit(P, y, X=X)
        fresh, truth, features = turning(3000, seed + 10, differ=False)
        gap = loss(fitted.predict_known(fresh, features), truth) - loss(plain.predict_proba(fresh), truth)
        assert abs(gap) < 0.006
        if fitted.cut_ == "none":
            assert not fitted.needs_rows
            np.testing.assert_allclose(fitted.predict_proba(fresh), plain.predict_proba(fresh), atol=1e-12)


def test_without_rows_slices_come_from_the_members_alone() -> None:
    rng = np.random.default_rng(0)
    P, y, _ = turning(2000, differ=False)
    sure = softmax(np.log(P).mean(axis=1)).max(axis=1) > 0.7
    y = np.where(sure & (rng.random(2000) < 0.4), rng.integers(3, size=2000), y)  # sure rows are often wrong
    fitted = SlicedPool().fit(P, y)
    assert fitted.cut_ in ("confidence", "class", "disagreement")
    assert loss(fitted.oof_, y) < loss(LogPool().fit(P, y).oof_, y)
    assert not fitted.needs_rows
