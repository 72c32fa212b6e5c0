"""The stackers: what they learn, what they refuse to learn, their symmetry and their form on disk."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tasks import task

from data.softmax import softmax
from ensemble.methods.average import AverageStacker
from ensemble.methods.base import Known, Training, from_dict
from ensemble.methods.blend import GeometricMean
from ensemble.methods.boosters import raw_scores
from ensemble.methods.catalogue import METHODS, fit_methods
from ensemble.methods.logit import MultinomialLogit, stack_features, with_swapped
from ensemble.methods.mlp import MLPStacker
from ensemble.methods.trees import TRACKS, LightGBMStacker, _choose
from ensemble.solvers.designs import BlockDesign
from ensemble.solvers.newton import SoftmaxProblem, choose_strength
from ensemble.solvers.numbers import PROB_FLOOR, cross_entropy

SWAP = (1, 0, 2)


def loss(probs: np.ndarray, y: np.ndarray) -> float:
    return float(cross_entropy(probs, np.eye(probs.shape[1])[y]).mean())


@pytest.mark.parametrize("k", [2, 3, 4])
def test_stackers_beat_the_geometric_mean_on_fresh_rows(k: int) -> None:
    P, y = task(1200, k=k)
    fresh, truth = task(3000, k=k, seed=1)
    fitted = AverageStacker(seed=1).fit(P, y)
    mean = loss(GeometricMean().fit(P, y).predict_proba(fresh), truth)
    for method in (fitted, *fitted.members_):
        probs = method.predict_proba(fresh)
        np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-12)
        assert loss(probs, truth) < mean - 0.02
        # What a method says of its own training rows by cross-fitting is near what fresh rows cost.
        assert loss(method.oof_, y) == pytest.approx(loss(probs, truth), abs=0.06)


def test_strong_penalty_gives_the_geometric_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble.methods.logit.STRENGTHS", (1e9,))
    monkeypatch.setattr("ensemble.methods.logit.useful_floors", lambda P: (PROB_FLOOR,))
    P, y = task(300)
    fitted = MultinomialLogit().fit(P, np.random.default_rng(0).permutation(y))
    logs, mean = np.log(fitted.predict_proba(P)), np.log(GeometricMean().fit(P, y).predict_proba(P))
    shift = logs - mean  # the intercept is free, all else is bound
    np.testing.assert_allclose(
        shift - shift[:, :1], (shift - shift[:, :1])[:1].repeat(300, axis=0), atol=1e-4
    )


def test_noise_is_not_learned() -> None:
    rng = np.random.default_rng(0)
    P, y = rng.dirichlet(np.ones(3), size=(900, 3)), rng.integers(3, size=900)
    fresh, truth = rng.dirichlet(np.ones(3), size=(3000, 3)), rng.integers(3, size=3000)
    fitted = AverageStacker(swap=SWAP).fit(P, y)
    assert loss(fitted.predict_proba(fresh), truth) < np.log(3) + 0.01


def test_networks_start_from_the_pool_and_gain_where_it_cannot_follow() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(1500, 2))
    y = (z[:, 0] * z[:, 1] > 0).astype(int)  # no weights on log-probabilities can say this
    P = softmax(np.stack([z, -z], axis=2))
    fitted = MLPStacker(seed=1).fit(P[:1000], y[:1000])
    assert fitted.epochs_ > 0
    assert loss(fitted.predict_proba(P[1000:]), y[1000:]) < 0.6
    assert loss(fitted.oof_, y[:1000]) == pytest.approx(
        loss(fitted.predict_proba(P[1000:]), y[1000:]), abs=0.1
    )
    still = MLPStacker(max_epochs=0).fit(P[:1000], y[:1000])
    np.testing.assert_allclose(still.oof_, still.start_.oof_, atol=0.05)


def test_trees_start_from_nothing_where_the_pool_misleads() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(1200, 3))
    y = (z[:, 0] * z[:, 1] > 0).astype(int)
    P = softmax(np.stack([z, -z], axis=2))
    trees = LightGBMStacker().fit(P, y)
    assert sum(trees.shares_.values()) == pytest.approx(1)
    assert loss(trees.predict_proba(P), y) < loss(trees.start_.predict_proba(P), y) - 0.2


def test_kinds_of_trees_that_cannot_be_told_apart_are_averaged() -> None:
    P, y = task(600, members=3)
    targets, weights = np.eye(3)[y], np.full(600, 1 / 600)
    P = softmax(np.log(P) / 2)  # members of the task are too sure
    alike = {name: np.log(P[:, 1 + m]) for m, name in enumerate(("plain", "scratch"))}
    wrong = np.random.default_rng(7).normal(size=(600, 3))
    names, probs = _choose({**alike, "refined": wrong}, targets, weights)
    assert set(names) == {"plain", "scratch"}  # what is credibly worse stays out
    np.testing.assert_allclose(probs, softmax((alike["plain"] + alike["scratch"]) / 2), atol=1e-12)
    assert cross_entropy(probs, targets).mean() < min(loss(P[:, 1], y), loss(P[:, 2], y))


def test_caution_takes_the_strongest_penalty_that_rows_cannot_refuse() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 30))
    folds, strengths = np.arange(400) % 5, (3000.0, 300.0, 30.0, 3.0)

    def chosen(y: np.ndarray, cautious: bool) -> float:
        design = BlockDesign(features, 2)
        one = np.ones(60)
        problem = SoftmaxProblem(design, np.eye(2)[y], np.full(400, 1 / 400), one, 0 * one)
        return choose_strength(problem, folds, strengths, cautious=cautious).strength

    signal = (features[:, 0] + 0.3 * rng.normal(size=400) > 0).astype(int)
    assert chosen(signal, True) < 3000  # rows do refuse it
    for y in (signal, rng.integers(2, size=400)):
        assert chosen(y, True) >= chosen(y, False)
    assert chosen(y, True) == 3000


def test_weights_of_stackers_follow_the_better() -> None:
    P, y = task(800)
    good = MultinomialLogit().fit(P, y)
    bad = MultinomialLogit().fit(P, np.random.default_rng(0).permutation(y))
    mixed = AverageStacker(weighted=True).fit_from([good, bad], Training.of(P, y))
    assert mixed.shares_[0] > 0.85
    assert AverageStacker().fit_from([good, bad], Training.of(P, y)).shares_.tolist() == [0.5, 0.5]


def test_swapping_is_declared_and_exact() -> None:
    P, y = task(200)
    targets, weights = np.eye(3)[y], np.full(200, 1 / 200)
    both, t, w = with_swapped(P, targets, weights, SWAP)
    assert w.sum() == pytest.approx(1)
    np.testing.assert_array_equal(both[200:][:, :, 0], P[:, :, 1])
    np.testing.assert_array_equal(t[200:].argmax(axis=1), np.array(SWAP)[y])


def test_symmetric_choices_predict_symmetrically() -> None:
    P, y = task(500, seed=3)
    P, targets, _ = with_swapped(P, np.eye(3)[y], np.ones(500), SWAP)  # a task that truly is symmetric
    pairs = np.concatenate([np.arange(500)] * 2)
    logit = MultinomialLogit(SWAP).fit(P, targets, groups=pairs)
    probs, swapped = logit.predict_proba(P), logit.predict_proba(P[:, :, list(SWAP)])
    np.testing.assert_allclose(probs, swapped[:, list(SWAP)], atol=1e-5)
    trees = LightGBMStacker(SWAP).fit(P, targets, groups=pairs)
    if trees.trees_.get("symmetric") and not trees.trees_.get("plain"):
        probs, swapped = trees.predict_proba(P), trees.predict_proba(P[:, :, list(SWAP)])
        np.testing.assert_allclose(probs, swapped[:, list(SWAP)], atol=1e-4)


def test_trees_that_methods_share_predict_once(monkeypatch: pytest.MonkeyPatch) -> None:
    P, y = task(300, seed=1)
    methods = fit_methods(P, y, None, SWAP)
    shares = methods["lightgbm"].shares_  # type: ignore[attr-defined]
    alone = {name: method.predict_known(P, None) for name, method in methods.items()}
    calls = []

    def counted(boosters: list[Any], *args: Any, **window: int) -> np.ndarray:
        calls.append(boosters)
        return raw_scores(boosters, *args, **window)

    monkeypatch.setattr("ensemble.methods.trees.raw_scores", counted)
    known: Known = {}
    for name, method in methods.items():
        np.testing.assert_array_equal(method.predict_known(P, None, known), alone[name])
    assert shares
    assert 1 <= len(calls) <= len(TRACKS)


def test_every_method_survives_json_exactly_and_repeats_itself() -> None:
    P, y = task(250)
    groups = np.arange(250) // 2
    fitted, again = (fit_methods(P, y, groups, SWAP, seed=4) for _ in range(2))
    assert tuple(fitted) == METHODS
    for name, method in fitted.items():
        text = json.dumps(method.to_dict())
        assert text == json.dumps(again[name].to_dict()), name
        np.testing.assert_array_equal(from_dict(json.loads(text)).predict_proba(P), method.predict_proba(P))


def test_soft_targets_and_row_weights_are_accepted() -> None:
    P, y = task(300)
    soft = 0.8 * np.eye(3)[y] + 0.2 / 3
    weights = np.random.default_rng(0).random(300)
    fitted = AverageStacker().fit(P, soft, sample_weight=weights)
    assert np.isfinite(fitted.predict_proba(P)).all()


def test_features_are_centred_logs_with_zero_probabilities_finite() -> None:
    P = np.eye(3)[None].repeat(2, axis=0)
    features = stack_features(P, "log+prob")
    assert features.shape == (2, 18)
    assert np.isfinite(features).all()
    np.testing.assert_allclose(features[:, :9].reshape(2, 3, 3).sum(axis=2), 0, atol=1e-12)
