"""Repeated confidence intervals: the level they hold, and what the forecast keeps them from."""

import numpy as np
import pytest

from distill.race.intervals import Boundary, PairedLooks, error_of, spent, wander

RACES, LOOKS, ROWS = 300, 6, 200


def looked(curve, seed, stay=0.9, groups=None, wandering=0.0):
    """Simulate one pair's looks; rows keep most of their noise from look to look."""
    rng = np.random.default_rng(seed)
    curve = curve + wandering * np.random.default_rng([*np.atleast_1d(seed), 1]).standard_normal(len(curve))
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


def test_losses_that_wander_stop_no_backbone_that_is_as_good():
    """All rows move together from look to look, as a model's loss does in the middle of its training."""
    stopped = sum(
        any(look.worse or look.better for look in looked(np.zeros(LOOKS), [8, race], wandering=0.2))
        for race in range(RACES)
    )
    assert stopped / RACES < 0.05 + 3 * np.sqrt(0.05 * 0.95 / RACES)
    by_rows = sum(
        any(
            abs(look.difference) * np.sqrt(ROWS) > 3
            for look in looked(np.zeros(LOOKS), [8, race], wandering=0.2)
        )
        for race in range(RACES)
    )
    assert by_rows > 0.5 * RACES  # three of the rows' own errors: their spread knows nothing of it


def test_how_far_a_pair_wanders_is_read_off_what_no_line_has():
    rng = np.random.default_rng(1)
    groups, share = np.arange(400), np.linspace(0.1, 1, 40)
    rows = rng.standard_normal(400)
    line = 0.3 * share[:, None] + rows
    full, falling = np.ones(40), np.linspace(1, 0, 40)
    assert wander(line, groups, full) == pytest.approx(0, abs=1e-9)
    shift = 0.05 * rng.standard_normal((40, 1))
    assert wander(line + shift, groups, full) == pytest.approx(0.05, rel=0.3)
    assert wander(line + np.sqrt(falling)[:, None] * shift, groups, falling) == pytest.approx(0.05, rel=0.3)
    afresh = line + rng.standard_normal(line.shape)  # other rows' noise at every look: drawn, not wandered
    assert wander(afresh, groups, full) < 0.05


def test_rows_of_one_prompt_count_once():
    """Every row thrice: intervals as wide as those of the distinct rows, not a root of three narrower."""
    single = looked(np.zeros(LOOKS), 3)
    groups = np.repeat(np.arange(ROWS), 3)
    tripled = looked(np.zeros(LOOKS), 3, groups=groups)
    for one, three in zip(single, tripled, strict=True):
        assert three.half == pytest.approx(one.half, rel=1e-6)


def test_few_groups_tell_as_little_as_their_number_lets_them():
    """Three debates whose gaps vary: normal intervals of their error miss in a quarter of the races."""
    groups = np.arange(ROWS) % 3
    missed = normal = 0
    for race in range(RACES):
        gaps = np.random.default_rng([9, race]).standard_normal(3)
        looks = PairedLooks(groups, draws=5_000)
        look = [looks.add(gaps[groups], share) for share in (0.98, 0.99, 1.0)][-1]
        missed += not look.low <= 0 <= look.high
        normal += abs(gaps.mean()) > 1.96 * gaps.std(ddof=1) / np.sqrt(3)
    assert missed / RACES < 0.05 + 3 * np.sqrt(0.05 * 0.95 / RACES)
    assert normal / RACES > 0.12


def test_a_gap_that_closes_is_not_stopped_and_one_that_stays_is():
    t = np.arange(1, 2 * LOOKS + 1) / (2 * LOOKS)
    closing = looked(1.5 * (1 - t) - 0.1, 1)
    assert all(look.low > 0 for look in closing[3:6])  # shown to be worse now
    assert not any(look.worse for look in closing)
    staying = looked(np.full(LOOKS, 0.6), 1)
    assert any(look.worse for look in staying[:5])
    assert not any(look.worse for look in staying[:3])  # two bends are the fewest that tell how it wanders
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


def test_the_error_of_a_mean_is_its_groups():
    found = np.linalg.norm(error_of(np.array([1.0, 3, 2, 6]), np.arange(4)))
    assert found == pytest.approx(np.std([1, 3, 2, 6], ddof=1) / 2)
    np.testing.assert_allclose(
        error_of(np.array([1.0, 3, 2, 6]), np.array([0, 0, 1, 1])), [-0.5 * 2**0.5, 0.5 * 2**0.5]
    )


def test_an_exact_tie_does_not_break_it():
    looks = PairedLooks(np.arange(20))
    for share in (0.25, 0.5, 0.75, 1.0):
        look = looks.add(np.zeros(20), share)
    assert not np.isfinite(looks.looks[1].half)
    assert (look.difference, look.half) == (0, 0)
    assert not look.worse
    assert not look.better
