"""Intervals over groups hold what they state, also where there are few groups."""

import numpy as np
import pytest

from ensemble.scoring.bootstrap import FEW, bootstrap


@pytest.mark.parametrize("groups", [4, 12, 40])
def test_intervals_over_few_groups_hold_the_truth_as_often_as_they_say(groups):
    sets, rows = 600, 5
    codes = np.repeat(np.arange(groups), rows)
    drawn = bootstrap(codes, 1000, seed=1)
    rng = np.random.default_rng(groups)
    values = (rng.standard_normal((groups, sets)))[codes] + 0.3 * rng.standard_normal((len(codes), sets))
    missed = np.mean([not interval.low <= 0 <= interval.high for interval in drawn.intervals(values)])
    assert missed < 0.05 + 3 * np.sqrt(0.05 * 0.95 / sets)
    means = np.stack([values[codes == code].mean(axis=0) for code in range(groups)])
    drawn_means = drawn.counts.astype(float) @ means / groups
    low, high = np.percentile(drawn_means, [2.5, 97.5], axis=0)
    plain = np.mean((low > 0) | (high < 0))
    assert plain > missed  # the percentiles of the draws themselves are too narrow


def test_many_groups_have_percentiles_and_few_nearly_the_same():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(3 * FEW)
    few, many = (bootstrap(np.arange(len(values)) % n).interval(values) for n in (FEW - 1, FEW))
    assert few.as_list() == pytest.approx(many.as_list(), abs=0.03)
    one = bootstrap(np.zeros(5, dtype=int)).interval(np.arange(5.0))
    assert one.as_list() == [2.0, 2.0]  # one group is drawn again and again: it tells nothing of others


def test_weights_and_groups_of_unequal_size_count():
    groups, weight = np.array([0, 0, 0, 1, 2, 2]), np.array([1.0, 2, 1, 3, 1, 1])
    values = np.array([0.1, 0.4, 0.2, 0.9, 0.3, 0.5])
    found = bootstrap(groups, weight=weight).interval(values * weight)
    mean = float((values * weight).sum() / weight.sum())
    assert (found.low + found.high) / 2 == pytest.approx(mean)
    same = bootstrap(groups, weight=2 * weight).interval(values * 2 * weight)
    assert same.as_list() == pytest.approx(found.as_list())
