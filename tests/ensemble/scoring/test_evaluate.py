"""The estimate is honest: it cannot peek, its intervals cover, and its choice is accounted for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks import task

from data.schema import PREFERENCE, Classes
from ensemble.methods.base import Blender
from ensemble.methods.blend import EqualMean
from ensemble.reading.problem import Problem
from ensemble.scoring.bootstrap import Bootstrap, bootstrap
from ensemble.scoring.choice import average, choice_included, choose, near_best
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

    def predict_proba(self, P):
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

        def predict_proba(self, P):
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
    probs = {f"method {i}": rng.dirichlet([2, 1, 1], size=60) for i in range(n_methods)}
    return probs, np.eye(3)[rng.integers(3, size=60)], rng.integers(3, size=60)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_the_choice_of_a_fold_does_not_look_at_it(seed: int, n_methods: int) -> None:
    probs, y, fold = draw_methods(seed, n_methods)
    losses = {name: log_loss(p, y) for name, p in probs.items()}
    found = choice_included(losses, probs, fold)
    other = {name: np.where(fold == 0, 9 - loss, loss) for name, loss in losses.items()}
    np.testing.assert_array_equal(choice_included(other, probs, fold)[fold == 0], found[fold == 0])
    same = dict.fromkeys(losses, losses["method 0"])
    np.testing.assert_array_equal(choice_included(same, probs, fold), probs["method 0"])


def test_methods_that_the_rows_cannot_tell_apart_are_averaged() -> None:
    rng = np.random.default_rng(0)
    loss = rng.random(1000)
    noise = rng.permutation(np.linspace(-0.5, 0.5, 1000))  # its mean's standard error is .0091
    losses = {
        "far": loss + noise + 0.0280,
        "near": loss + noise + 0.0268,
        "near+temperature": loss + noise + 0.0267,
        "best": loss,
        "best+calibration": loss + 1e-4 * noise + 1e-6,
        "surely worse": loss + 1e-4,
        "the same": loss,
    }
    assert near_best(losses) == ("best", "near+temperature")
    assert near_best({"far": losses["far"]}) == ("far",)
    many = {f"method {i}": loss + noise + 1e-4 * (i + 1) for i in range(9)}
    assert near_best(many | {"best": loss}) == ("best", *(f"method {i}" for i in range(4)))
    assert choose(losses) == "best"
    probs = {name: rng.dirichlet([1, 1], size=1000) for name in losses}
    wanted = (probs["best"] + probs["near+temperature"]) / 2
    np.testing.assert_array_equal(average(probs, near_best(losses)), wanted)


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
