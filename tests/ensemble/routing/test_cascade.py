"""The cascade spends where it pays: on real predictions, against routing by lot."""

import numpy as np
import pyarrow.csv as pc
import pytest
from stack_files import competition

from ensemble.routing.cascade import features, fit_cascade, route
from ensemble.routing.held import cross_fit, cross_fitted_curve
from ensemble.solvers.numbers import log_loss

CLASSES = ["winner_model_a", "winner_model_b", "winner_tie"]


@pytest.fixture(scope="module")
def real(real_data):
    """Two real language models on 8,594 rows, and the labels."""
    labels = pc.read_csv(real_data / "lmsys" / "teacher_labels.csv").to_pandas()
    models = []
    for m in (1, 2):
        table = pc.read_csv(real_data / "lmsys" / f"teacher_m{m}_predictions.csv").to_pandas().set_index("id")
        models.append(table.loc[labels.id, CLASSES].to_numpy())
    return np.stack(models, axis=1), labels.label.to_numpy()


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_it_beats_routing_by_lot_at_every_budget_on_real_predictions(real, order):
    P, y = real
    fold = np.random.default_rng(0).integers(10, size=len(y))
    points = cross_fitted_curve(P[:, order], y, np.ones(len(y)), fold, steps=10)
    for budget, routed, by_lot in points:
        assert routed <= by_lot + 1e-12, budget
    middle = points[5]
    assert middle[1] < middle[2] - 5e-4
    assert points[0][1] == pytest.approx(points[0][2])
    assert points[-1][1] == pytest.approx(points[-1][2])


def test_a_budget_is_kept_whatever_rows_cost():
    rng = np.random.default_rng(0)
    gain, cost = rng.normal(size=200), rng.uniform(1, 20, size=200)
    for budget in (0.0, 0.1, 0.5, 1.0):
        chosen = route(gain, cost, budget)
        assert cost[chosen].sum() <= budget * cost.sum() * (1 + 1e-6)
    assert not route(gain, cost, 0.0).any()
    assert route(gain, cost, 1.0).all()
    few = route(gain, cost, 0.2)
    assert (gain / cost)[few].min() >= (gain / cost)[~few].max()


def test_a_gain_that_can_be_foreseen_is_found():
    """The dear model knows better exactly where the cheap one is unsure."""
    rng = np.random.default_rng(1)
    n = 3000
    y = rng.integers(3, size=n)
    unsure = rng.random(n) < 0.3
    cheap = np.full((n, 3), 0.05)
    cheap[np.arange(n), y] = 0.9
    cheap[unsure] = 1 / 3
    dear = np.full((n, 3), 0.05)
    dear[np.arange(n), y] = 0.9
    P = np.stack([cheap, dear], axis=1)
    cascade = fit_cascade(P[:1500], y[:1500])
    chosen = route(cascade.expected_gain(cheap[1500:]), np.ones(1500), float(unsure[1500:].mean()))
    assert (chosen == unsure[1500:]).mean() > 0.99
    (_, first, _), *_, (_, last, _) = cross_fitted_curve(P, y, np.ones(n), np.arange(n) % 5)
    assert last < first
    assert features(cheap).shape == (n, 14)


def test_held_out_rows_are_seen_by_cascades_that_were_not_fitted_on_them():
    P, y = competition(400)
    fold = np.arange(400) % 4
    held = cross_fit(P, y, fold)
    cascade = fit_cascade(P[fold != 2], y[fold != 2])
    inside = fold == 2
    np.testing.assert_array_equal(held.gain[inside], cascade.expected_gain(P[inside, 0]))
    np.testing.assert_array_equal(held.dear[inside], log_loss(cascade.all_models(P[inside]), y[inside]))
    (_, none, _), *_, (_, every, _) = cross_fitted_curve(P, y, np.ones(400), fold)
    assert none == pytest.approx(held.cheap.mean())
    assert every == pytest.approx(held.dear.mean())
    best = held.foreseen(np.ones(400), 0.3)
    assert best.mean() <= 0.3
    assert held.routed(best).mean() <= held.routed(held.best(held.gain, np.ones(400), 0.3)).mean()


def test_a_row_of_weight_two_counts_as_two_rows():
    P, y = competition(300)
    weight = np.random.default_rng(0).integers(1, 3, size=300)
    twice = np.repeat(np.arange(300), weight)
    one, other = fit_cascade(P, y, weight), fit_cascade(P[twice], y[twice])
    np.testing.assert_allclose(one.temperatures, other.temperatures, rtol=1e-6)
    # The penalty is in rows, which weights do not add to; where it is small, gains agree.
    np.testing.assert_allclose(one.expected_gain(P[:, 0]), other.expected_gain(P[:, 0]), atol=0.03)
