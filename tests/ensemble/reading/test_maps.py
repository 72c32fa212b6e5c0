"""Maps of scores: they rise, follow what is there however it bends, and take whatever scores look like."""

from __future__ import annotations

import numpy as np
import pytest

from data.softmax import softmax
from ensemble.reading.judges import Judge
from ensemble.reading.maps import JudgeMap, fit_map

ORDER = (1, 2, 0)


def judged(score: np.ndarray, swap: tuple[int, ...] | None = None) -> Judge:
    return Judge("score", np.stack([score, np.full(len(score), np.nan)], axis=1), ORDER, swap)


def drawn(score: np.ndarray, slope: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    chances = softmax(np.stack([slope * score, -slope * score, np.zeros(len(score))], axis=1))
    labels = (np.random.default_rng(seed).random((len(score), 1)) > chances.cumsum(axis=1)).sum(axis=1)
    return np.eye(3)[labels.clip(0, 2)], chances


def rises(probs: np.ndarray) -> bool:
    above = probs[:, ORDER][:, ::-1].cumsum(axis=1)[:, :2]
    return bool((np.diff(above, axis=0) >= -1e-12).all())


SCORES = {
    "normal": lambda rng: rng.normal(size=900),
    "heavy tails": lambda rng: rng.standard_t(1.5, size=900),
    "ten marks": lambda rng: rng.integers(-5, 6, size=900).astype(float),
    "two marks": lambda rng: rng.choice([-1.0, 1.0], size=900),
    "mostly one": lambda rng: np.where(rng.random(900) < 0.97, 0.0, rng.normal(size=900)),
    "one mark": lambda rng: np.ones(900),
    "tiny apart": lambda rng: np.where(rng.random(900) < 0.97, 1e-9, 1.0) * rng.normal(size=900),
    "huge": lambda rng: 1e9 + rng.normal(size=900),
    "three rows": lambda rng: np.array([-1.0, 0.0, 2.0]),
}


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("swap", [None, (1, 0, 2)])
def test_a_map_rises_whatever_the_scores_are(kind: str, swap: tuple[int, ...] | None) -> None:
    score = SCORES[kind](np.random.default_rng(1))
    y, _ = drawn(score - (1e9 if kind == "huge" else 0), 1.0)
    judge_map = fit_map(judged(score, swap), y, None)
    reach = np.linspace(score.min() - 1, score.max() + 1, 300)
    probs = judge_map(judged(reach).signal)
    assert np.isfinite(probs).all()
    assert probs.min() > 0
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    assert rises(judge_map.probs)
    assert rises(probs)
    again = JudgeMap.from_dict(judge_map.to_dict())
    assert np.array_equal(again(judged(reach).signal), probs)


def bent(score: np.ndarray) -> np.ndarray:
    """A judge whose words mean little but at the ends."""
    return np.sign(score) * np.maximum(np.abs(score) - 1, 0) * 2


@pytest.mark.parametrize("truth", [lambda s: s, bent], ids=["straight", "bent"])
def test_it_comes_near_the_truth(truth) -> None:
    rng = np.random.default_rng(3)
    score, later = rng.normal(size=4000), rng.normal(size=2000)
    y, _ = drawn(truth(score), 1.0)
    _, chances = drawn(truth(later), 1.0)
    probs = fit_map(judged(score), y, None)(judged(later).signal)
    assert (chances * np.log(chances / probs)).sum(axis=1).mean() < 0.004


def test_rows_count_as_their_weights_say() -> None:
    rng = np.random.default_rng(5)
    score = rng.normal(size=300)
    y, _ = drawn(score, 1.0)
    twice = np.r_[score, score[:100]]
    by_weight = fit_map(judged(score), y, np.r_[np.full(100, 2.0), np.ones(200)])
    by_copies = fit_map(judged(twice), np.concatenate([y, y[:100]]), None)
    at = judged(np.linspace(-2, 2, 50)).signal
    np.testing.assert_allclose(by_weight(at), by_copies(at), atol=0.05)  # their knots differ a little
    nothing = fit_map(judged(score), y, np.r_[np.zeros(100), np.ones(200)])
    rest = fit_map(judged(score[100:]), y[100:], None)
    assert np.array_equal(nothing(at), rest(at))
