"""Repeated confidence intervals: the level they hold, and what the forecast keeps them from."""

import numpy as np
import pytest

from distill.race.intervals import Boundary, PairedLooks, group_sums, spent

RACES, LOOKS, ROWS = 300, 6, 200


def looked(curve, seed, stay=0.9, groups=None):
    """Simulate one pair's looks; rows keep most of their noise from look to look."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(ROWS)
    looks = PairedLooks(np.arange(ROWS) if groups is None else groups, draws=5_000)
    for number, gap in enumerate(curve, start=1):
        noise = stay * noise + np.sqrt(1 - stay**2) * rng.standard_normal(ROWS)
        own = noise if groups is None else noise[groups]
        looks.add(gap + own, number / len(curve))
    return looks.looks


@pytest.mark.parametrize("stay", [0.0, 0.9])
def test_all_intervals_together_miss_the_truth_at_most_at_the_level(stay):
    missed = sum(
        any(not look.low <= 0 <= look.high for look in looked(np.zeros(LOOKS), [7, race], stay))
        for race in range(RACES)
    )
    error = np.sqrt(0.05 * 0.95 / RACES)
    assert 0.05 - 3 * error < missed / RACES < 0.05 + 3 * error
    naive = sum(
        any(abs(look.difference) * np.sqrt(ROWS) > 1.96 for look in looked(np.zeros(LOOKS), [7, race], stay))
        for race in range(RACES)
    )
    assert naive > 2 * missed


def test_rows_of_one_prompt_count_once():
    """Every row thrice: intervals as wide as those of the distinct rows, not a root of three narrower."""
    single = looked(np.zeros(LOOKS), 3)
    groups = np.repeat(np.arange(ROWS), 3)
    tripled = looked(np.zeros(LOOKS), 3, groups=groups)
    for one, three in zip(single, tripled, strict=True):
        assert three.half == pytest.approx(one.half, rel=1e-6)


def test_a_gap_that_closes_is_not_stopped_and_one_that_stays_is():
    t = np.arange(1, LOOKS + 1) / LOOKS
    closing = looked(0.6 * (1 - t) - 0.1, 1)
    assert closing[1].low > 0  # shown to be worse now
    assert not any(look.worse for look in closing[:6])
    staying = looked(np.full(LOOKS, 0.6), 1)
    assert any(look.worse for look in staying[:4])
    assert not staying[0].worse  # one look is no forecast
    assert not any(look.better for look in staying)


def test_alpha_is_spent_evenly_and_whole():
    assert spent(0.5, 0.05) == pytest.approx(0.025)
    assert spent(1.0, 0.05) == pytest.approx(0.05)
    boundary = Boundary(0.05, draws=100_000)
    (critical,) = [boundary.next(np.array([1.0]), 1.0)]
    assert critical == pytest.approx(1.96, abs=0.02)
    even = Boundary(0.05, draws=100_000)
    factors = np.linalg.cholesky(np.array([[1, 0.999], [0.999, 1]]))
    first = even.next(factors[0, :1], 0.5)
    second = even.next(factors[1], 1.0)
    assert first == pytest.approx(2.24, abs=0.03)  # half of alpha
    assert second < 2.0  # looking again at all but the same number costs little


def test_group_sums():
    np.testing.assert_array_equal(group_sums(np.array([1.0, 2, 4]), np.array([0, 1, 0])), [5, 2])


def test_an_exact_tie_does_not_break_it():
    looks = PairedLooks(np.arange(20))
    for share in (0.5, 1.0):
        look = looks.add(np.zeros(20), share)
    assert (look.difference, look.half) == (0, 0)
    assert not look.worse
    assert not look.better
