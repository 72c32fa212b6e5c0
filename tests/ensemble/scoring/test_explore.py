"""What the report and the notebooks compute about weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stack_files import prepared, write_store

from data.classes import Classes
from ensemble.methods.blend import SimplexBlend
from ensemble.methods.calibrate import TemperatureScaling
from ensemble.scoring.explore import (
    best_weights,
    linear_losses,
    move_weight,
    open_problem,
    pool_loss,
    shrinkage_path,
    simulate_problem,
    take_sample,
    temperature_curve,
    ternary_map,
    triangles,
    weight_curve,
)
from ensemble.solvers.numbers import log_loss


def test_losses_are_those_of_the_blend() -> None:
    problem = simulate_problem(200, 3)
    weights = np.array([[0.2, 0.5, 0.3], [1, 0, 0]])
    expected = [log_loss(np.einsum("nmk,m->nk", problem.P, w), problem.y).mean() for w in weights]
    np.testing.assert_allclose(linear_losses(problem.P, problem.y, weights), expected, rtol=1e-12)
    assert linear_losses(problem.P, problem.labels, weights[0]) == pytest.approx(expected[0])
    soft = 0.7 * problem.y + 0.1
    mixed = log_loss(np.einsum("nmk,m->nk", problem.P, weights[0]), soft).mean()
    assert linear_losses(problem.P, soft, weights[0]) == pytest.approx(mixed)
    one = pool_loss(problem.P, problem.y, np.array([0, 1, 0]))
    assert one == pytest.approx(log_loss(problem.P[:, 1], problem.y).mean(), abs=1e-6)


def test_sample_is_within_rounding_of_the_rows() -> None:
    problem = simulate_problem(300, 4)
    sample = take_sample(problem)
    np.testing.assert_allclose(np.log(sample.P), np.log(problem.P), atol=1.26e-4)
    np.testing.assert_array_equal(sample.y, problem.y)
    assert take_sample(problem, rows=100).codes.shape == (100, 4, 3)
    wide = simulate_problem(900, 12, Classes(tuple(map(str, range(50)))))
    assert take_sample(wide).codes.size <= 300_000
    np.testing.assert_array_equal(take_sample(wide).codes, take_sample(wide).codes)
    extreme = np.zeros((20, 2, 3))
    extreme[..., 0] = 1
    certain = replace(problem, P=extreme, y=problem.y[:20], row_ids=problem.row_ids[:20])
    assert take_sample(certain).P.min() == pytest.approx(1e-7, rel=1e-3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(0, 5), st.floats(-0.5, 1.5))
def test_moving_a_weight_keeps_the_sum(raw: list[float], member: int, value: float) -> None:
    weights = np.array(raw) + 1e-3
    weights /= weights.sum()
    member %= len(weights)
    moved = move_weight(weights, member, value)
    assert moved.sum() == pytest.approx(1)
    assert (moved >= 0).all()
    if len(weights) > 1:
        assert moved[member] == pytest.approx(min(max(value, 0), 1))
    np.testing.assert_allclose(move_weight(np.eye(3)[0], 0, 0.4), [0.4, 0.3, 0.3])


def test_triangles_tile_the_simplex() -> None:
    corners = triangles(7)
    assert corners.shape == (49, 3, 3)
    np.testing.assert_allclose(corners.sum(axis=2), 1)
    assert corners.min() >= 0
    area = 0.5 * np.abs(np.linalg.det(corners[:, 1:, :2] - corners[:, :1, :2]))
    assert area.sum() == pytest.approx(0.5)
    np.testing.assert_allclose(area, area[0])


def test_map_and_curve_find_the_optimum() -> None:
    problem = simulate_problem(400, 4, Classes(("no", "yes")))
    found = ternary_map(problem.P, problem.y, (0, 1, 3), steps=15)
    assert found["best_loss"] <= found["loss"].min() + 1e-9
    np.testing.assert_allclose(
        found["best"], SimplexBlend().fit(problem.P[:, [0, 1, 3]], problem.y).weights_, atol=1e-4
    )
    curve = weight_curve(problem.P, problem.y, (0, 2))
    best = best_weights(problem.P[:, [0, 2]], problem.y)
    assert curve["weight"][curve["loss"].argmin()] == pytest.approx(best[0], abs=0.011)


def test_shrinkage_leads_to_equal_weights() -> None:
    problem = simulate_problem(300, 5)
    path = shrinkage_path(problem, [0.0, 0.1, 1e4])
    np.testing.assert_allclose(path["weights"][0], best_weights(problem.P, problem.y), atol=1e-9)
    np.testing.assert_allclose(path["weights"][2], 0.2, atol=1e-3)
    assert (np.diff(path["in_sample"]) > 0).all()
    assert path["nested"][0] > path["in_sample"][0]


def test_temperature_curve_has_its_least_at_the_fitted_temperature() -> None:
    problem = simulate_problem(500, 1)
    fitted = TemperatureScaling().fit(problem.P[:, 0], problem.y)
    curve = temperature_curve(problem.P[:, 0], problem.y)
    least = curve["temperature"][curve["loss"].argmin()]
    assert np.log(least) == pytest.approx(np.log(fitted.temperature_), abs=0.05)


def test_opens_stores_or_simulates(tmp_path: Path) -> None:
    _, P = prepared(tmp_path, n=120)
    for m in range(2):
        write_store(tmp_path / f"t{m}", tmp_path, P[:, m])
    write_store(tmp_path / "t0-in_sample", tmp_path, P[:, 0], label_kind="in_sample")
    assert open_problem(tmp_path).names == ("t0", "t1")
    assert open_problem(tmp_path / "nothing", rows=100).folds_from == "simulated"
    assert len(open_problem(tmp_path / "nothing", rows=100)) == 100
