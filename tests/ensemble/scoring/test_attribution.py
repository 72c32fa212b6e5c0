"""What members are worth: sums that must hold, copies, noise and sets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data.classes import Classes
from ensemble.methods.blend import SimplexBlend
from ensemble.reading.problem import Problem
from ensemble.scoring.bootstrap import bootstrap
from ensemble.scoring.explore import simulate_problem
from ensemble.scoring.members import (
    EXACT_MEMBERS,
    SetLosses,
    limit_rows,
    member_correlation,
    member_values,
    smallest_sets,
)
from ensemble.solvers.numbers import cross_entropy


def with_members(problem: Problem, P: np.ndarray) -> Problem:
    return replace(problem, P=P, names=tuple(f"m{m}" for m in range(P.shape[1])))


@pytest.mark.parametrize("members", [2, 3, EXACT_MEMBERS + 2])
def test_shapley_values_sum_to_what_all_gain_on_the_prior(members: int) -> None:
    problem = simulate_problem(300, members)
    sets = SetLosses(problem)
    values = member_values(sets, bootstrap(problem.groups, 100))
    gained = sets.of(()).mean() - sets.of(tuple(range(members))).mean()
    assert sum(v.shapley for v in values) == pytest.approx(gained, abs=1e-12)
    for v in values:
        assert v.lost_interval.low <= v.lost <= v.lost_interval.high
        assert v.shapley_interval.low <= v.shapley <= v.shapley_interval.high
    again = member_values(SetLosses(problem), bootstrap(problem.groups, 100))
    assert again == values


def test_set_losses_are_the_cross_fitted_simplex_blend() -> None:
    problem = simulate_problem(200, 3)
    expected = np.empty(len(problem))
    for fold in np.unique(problem.fold):
        held = problem.fold == fold
        P = problem.P[:, [0, 2]]
        fitted = SimplexBlend().fit(P[~held], problem.y[~held])
        expected[held] = cross_entropy(fitted.predict_proba(P[held]), problem.y[held])
    np.testing.assert_allclose(SetLosses(problem).of((0, 2)), expected, atol=1e-3)


def test_a_copy_is_not_missed_and_noise_is_worth_nothing() -> None:
    base = simulate_problem(3000, 2, seed=3, sharpness=0.5)
    rng = np.random.default_rng(0)
    noise = rng.dirichlet(np.full(3, 2.0), size=len(base))
    P = np.stack([base.P[:, 0], base.P[:, 0], base.P[:, 1], noise], axis=1)
    problem = with_members(base, P)
    draws = bootstrap(problem.groups, 200)
    sets = SetLosses(problem)
    first, copy, other, useless = member_values(sets, draws)
    assert abs(first.lost) < 1e-3
    assert abs(copy.lost) < 1e-3
    assert first.shapley == pytest.approx(copy.shapley, abs=2e-3)
    assert other.lost_interval.low > 0
    assert useless.lost < 0.002 < other.lost
    path, smallest = smallest_sets(sets, draws)
    assert [len(part.members) for part in path] == [4, 3, 2, 1]
    assert 2 in path[smallest].members
    assert len(path[smallest].members) == 2
    assert 3 not in path[smallest].members
    correlation = member_correlation(problem)
    assert correlation[0, 1] == pytest.approx(1)
    assert correlation[0, 3] < correlation[0, 2] < 1
    np.testing.assert_allclose(correlation, correlation.T)


def test_soft_labels_and_a_constant_member() -> None:
    base = simulate_problem(150, 2, Classes(("no", "yes")))
    flat = np.full((150, 1, 2), 0.5)
    problem = with_members(replace(base, y=0.8 * base.y + 0.1), np.concatenate([base.P, flat], axis=1))
    sets = SetLosses(problem)
    values = member_values(sets, bootstrap(problem.groups, 50))
    assert all(np.isfinite([v.lost, v.shapley, v.loss]).all() for v in values)
    assert np.isfinite(member_correlation(problem)).all()
    assert SetLosses(problem, fit_rows=40).of((0, 1)).mean() == pytest.approx(
        sets.of((0, 1)).mean(), abs=0.05
    )


def test_many_rows_are_sampled() -> None:
    problem = simulate_problem(400, 2)
    draws = bootstrap(problem.groups, 100)
    small, fewer = limit_rows(problem, draws, rows=150)
    assert len(small) == 150 == len(fewer.groups)
    member_values(SetLosses(small), fewer)
    same, untouched = limit_rows(problem, draws, rows=400)
    assert same is problem
    assert untouched is draws
