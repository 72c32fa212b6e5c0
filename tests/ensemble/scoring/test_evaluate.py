"""The estimate is honest: it cannot peek, its intervals cover, and its choice is accounted for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks import task

from data.classes import PREFERENCE, Classes
from data.softmax import softmax
from ensemble.methods.base import Blender
from ensemble.methods.blend import EqualMean
from ensemble.methods.catalogue import METHODS
from ensemble.reading.problem import Problem
from ensemble.scoring.bootstrap import Bootstrap, bootstrap
from ensemble.scoring.choice import KINDS, choice_included, choose, mixed, mixture
from ensemble.scoring.crossfit import cross_fit, sample_note
from ensemble.scoring.results import evaluate
from ensemble.solvers.folds import group_folds
from ensemble.solvers.numbers import log_loss


def make_problem(P: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None, n_folds: int = 3) -> Problem:
    n = len(y)
    targets = np.eye(P.shape[2])[y]
    groups = np.arange(n) if groups is None else groups
    fold = group_folds(targets, groups, n_folds, 0)
    names = tuple(f"m{i}" for i in range(P.shape[1]))
    return Problem([f"{i:05d}" for i in range(n)], P, targets, fold, groups, PREFERENCE, names)


class Memoriser(EqualMean):
    """Remembers every row it was fitted to: perfect in-sample, ignorant elsewhere."""

    def fit(self, P, y, sample_weight=None, groups=None):
        self.known = {row.tobytes(): target for row, target in zip(P, y, strict=True)}
        return self

    def predict_on(self, P):
        blank = np.full(P.shape[2], 1 / P.shape[2])
        return np.stack([0.97 * self.known.get(row.tobytes(), blank) + 0.01 for row in P])


def test_nested_estimate_sees_through_a_memoriser() -> None:
    P, y = task(300)
    problem = make_problem(P, y)
    found = cross_fit(problem, fit=lambda P, y, groups: {"memoriser": Memoriser().fit(P, y)})
    assert log_loss(found.probs["memoriser"], problem.y).mean() == pytest.approx(np.log(3), abs=1e-6)
    assert log_loss(Memoriser().fit(P, problem.y).predict_proba(P), problem.y).mean() < 0.05


def test_no_method_is_fitted_on_a_group_it_predicts() -> None:
    P, y = task(240)
    groups = np.random.default_rng(0).integers(60, size=240)
    problem = make_problem(P, y, groups)
    fitted_on: list[set[int]] = []

    class Spy(EqualMean):
        def __init__(self, seen: set[int]) -> None:
            self.seen = seen

        def predict_on(self, P):
            rows = {i for i in range(240) if any(np.array_equal(problem.P[i], row) for row in P)}
            assert not {int(groups[i]) for i in rows} & self.seen
            return P.mean(axis=1)

    def fit(P, y, groups):
        fitted_on.append(set(groups.tolist()))
        return {"spy": Spy(fitted_on[-1])}

    cross_fit(problem, fit=fit)
    assert len(fitted_on) == 3


def test_workers_do_not_change_the_result() -> None:
    problem = make_problem(*task(200))
    one, two = (cross_fit(problem, workers=workers) for workers in (1, 2))
    for name, probs in one.probs.items():
        np.testing.assert_array_equal(probs, two.probs[name])


@pytest.mark.parametrize("kind", ["shuffled labels", "pure noise"])
def test_nothing_beats_the_prior_where_there_is_nothing_to_learn(kind: str) -> None:
    rng = np.random.default_rng(5)
    P, y = task(600)
    if kind == "pure noise":
        P = rng.dirichlet(np.ones(3), size=(600, 3))
    result = evaluate(make_problem(P, rng.permutation(y)), draws=200)
    for score in result.methods:
        assert score.loss > result.prior.loss - 0.008, score.name


def test_identical_members_break_nothing() -> None:
    P, y = task(300)
    result = evaluate(make_problem(P[:, [1, 1]], y), draws=200)
    alone = evaluate(make_problem(P[:, [1]], y), draws=200)
    assert all(np.isfinite(score.loss) for score in result.all_scores)
    assert result.score("mean").loss == pytest.approx(alone.score("mean").loss)
    assert result.score("simplex").loss == pytest.approx(alone.score("simplex").loss, abs=1e-9)


def test_bootstrap_resamples_whole_groups_and_is_paired() -> None:
    rng = np.random.default_rng(0)
    per_group = rng.normal(size=150)
    groups = np.repeat(np.arange(150), 4)
    draws = bootstrap(groups, 1000)
    grouped = draws.interval(per_group[groups])
    single = bootstrap(np.arange(600), 1000).interval(per_group[groups])
    width = 2 * 1.96 * per_group.std() / np.sqrt(150)
    assert grouped.high - grouped.low == pytest.approx(width, rel=0.15)
    assert single.high - single.low == pytest.approx(width / 2, rel=0.15)
    constant = draws.interval(np.full(600, 0.3))  # a constant difference has no interval
    assert constant.low == pytest.approx(0.3, abs=1e-6)
    assert constant.high == pytest.approx(0.3, abs=1e-6)


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    draws = bootstrap(np.arange(200), 500)
    values = rng.exponential(size=(200, 300))
    covered = np.mean([i.low <= 1 <= i.high for i in draws.intervals(values)])
    assert 0.90 <= covered <= 0.98


def test_the_draws_of_a_subset_are_the_same_draws() -> None:
    draws = bootstrap(np.array([0, 0, 1, 2, 2, 3]), 50)
    rows = np.array([True, False, True, True, True, False])
    part = draws.subset(rows)
    assert isinstance(part, Bootstrap)
    assert part.counts is draws.counts


def draw_methods(seed: int, n_methods: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probs = {name: rng.dirichlet([2, 1, 1], size=60) for name in KINDS[:n_methods]}
    return probs, np.eye(3)[rng.integers(3, size=60)], rng.integers(3, size=60)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_the_choice_of_a_fold_does_not_look_at_it(seed: int, n_methods: int) -> None:
    probs, y, fold = draw_methods(seed, n_methods)
    found = choice_included(probs, y, fold)
    other = np.where((fold == 0)[:, None], y[:, [1, 2, 0]], y)
    np.testing.assert_array_equal(choice_included(probs, other, fold)[fold == 0], found[fold == 0])
    same = dict.fromkeys(probs, probs["log-pool"])
    np.testing.assert_allclose(choice_included(same, y, fold), probs["log-pool"], atol=1e-12)


def test_kinds_count_by_what_they_add_and_noise_adds_nothing() -> None:
    assert set(KINDS) <= set(METHODS)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3000, 3))
    seen = {name: logits + rng.normal(size=logits.shape) for name in ("log-pool", "logit", "mlp")}
    probs = {name: softmax(0.6 * values) for name, values in seen.items()}
    y = np.eye(3)[(rng.random((3000, 1)) > softmax(logits).cumsum(axis=1)).sum(axis=1).clip(0, 2)]
    shares = mixture(probs, y)
    assert sum(shares.values()) == pytest.approx(1)
    assert all(0.2 < share < 0.5 for share in shares.values())
    both = log_loss(mixed(probs, shares), y).mean()
    assert both < min(log_loss(p, y).mean() for p in probs.values()) - 0.01
    worse = {"log-pool": probs["log-pool"], "logit": softmax(seen["log-pool"] + rng.normal(size=(3000, 3)))}
    assert mixture(worse, y) == {"log-pool": 1.0}
    assert mixture({"log-pool": probs["log-pool"]}, y) == {"log-pool": 1.0}
    weight = rng.permutation(np.repeat([0.5, 1.5], 1500))
    assert mixture(probs, y, weight) != shares
    assert choose({"first": np.ones(3), "second": np.zeros(3)}) == "second"


def test_a_mixture_counts_only_as_far_as_the_rows_speak_for_it() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4000, 3))
    y = np.eye(3)[(rng.random((4000, 1)) > softmax(logits).cumsum(axis=1)).sum(axis=1).clip(0, 2)]
    probs = {name: softmax(logits + 0.3 * rng.normal(size=logits.shape)) for name in ("log-pool", "mlp")}

    def simplest(begin: int, n: int) -> float:
        rows = slice(begin, begin + n)
        return mixture({name: p[rows] for name, p in probs.items()}, y[rows]).get("log-pool", 0.0)

    assert sum(simplest(begin, 60) == 1.0 for begin in range(0, 1800, 60)) >= 20
    assert 0.4 < simplest(0, 4000) < 0.6


def test_log_loss_takes_labels_and_soft_targets_and_stays_finite() -> None:
    probs = np.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(log_loss(probs, np.array([0, 1])), [np.log(2), 0])
    np.testing.assert_allclose(log_loss(probs[:1], np.array([[0.5, 0.5, 0]])), [1.5 * np.log(2)])
    assert np.isfinite(log_loss(probs, np.array([0, 2]))).all()


def test_very_many_groups_are_drawn_in_bunches_of_the_same_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(6000), 2)
    values = np.repeat(rng.normal(size=6000), 2)[:, None] + 0.3 * rng.normal(size=(12000, 20))
    each = bootstrap(groups, 400, seed=3)
    monkeypatch.setattr("ensemble.scoring.bootstrap.DRAWN_GROUPS", 500)
    bunched = bootstrap(groups, 400, seed=3)
    assert bunched.counts.shape == (400, 500)
    assert all(len(set(codes)) == 1 for codes in bunched.groups.reshape(-1, 2).tolist())  # none is parted
    widths = [np.array([i.high - i.low for i in draws.intervals(values)]) for draws in (each, bunched)]
    assert widths[1].mean() == pytest.approx(widths[0].mean(), rel=0.1)


def test_of_very_many_rows_a_sample_of_whole_groups_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble.scoring.crossfit.FITTED_ROWS", 150)
    monkeypatch.setattr("ensemble.scoring.crossfit.PREDICTED_ROWS", 70)
    rng = np.random.default_rng(0)
    P, y, groups = (
        rng.dirichlet([1, 1], size=(600, 2)),
        np.eye(2)[rng.integers(2, size=600)],
        np.arange(600) // 3,
    )
    problem = Problem(
        [str(i) for i in range(600)], P, y, groups % 3, groups, Classes(("a", "b")), ("m1", "m2")
    )
    seen: list[np.ndarray] = []

    def fit(P: np.ndarray, y: np.ndarray, groups: np.ndarray) -> dict[str, Blender]:
        seen.append(groups)
        return {"mean": EqualMean().fit(P, y)}

    assert sample_note(problem) == "methods are fitted on about 150 of the 600 rows, drawn by whole groups"
    found = cross_fit(problem, fit=fit, workers=1)
    np.testing.assert_allclose(found.probs["mean"], P.mean(axis=1))
    for sample in seen:
        assert len(sample) == 300  # a hundred groups, which are more than 150 rows
        assert set(np.bincount(sample)) == {0, 3}
    monkeypatch.setattr("ensemble.scoring.crossfit.FITTED_GROUPS", 1)
    seen.clear()
    cross_fit(problem, fit=fit, workers=1)
    assert [len(sample) for sample in seen] == [150] * 3
