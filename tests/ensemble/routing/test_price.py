"""The price meets the budget: in the sample exactly, on fresh rows on average, ties by the row's own lot."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.routing.price import lot, price_for


@given(seed=st.integers(0, 1000), allowance=st.floats(0.01, 3.0), levels=st.sampled_from([1, 2, 5, 1000]))
def test_the_rows_it_was_made_of_cost_what_is_allowed(seed: int, allowance: float, levels: int) -> None:
    """To the lot of the rows at the price, which spend the rest on average."""
    rng = np.random.default_rng(seed)
    gain = rng.integers(1, levels + 1, size=300) / levels
    cost, weight = rng.uniform(1, 2, size=300), rng.uniform(0.5, 2, size=300)
    cost = cost if levels == 1000 else np.full(300, 1.5)
    price = price_for(gain, cost, allowance, weight)
    rate, share = gain / cost, weight / weight.sum()
    above = rate > price.price + price.tie
    ties = (rate >= price.price - price.tie) & ~above
    spent = float((share * cost)[above].sum() + price.at_price * (share * cost)[ties].sum())
    assert spent == pytest.approx(min(allowance, float((share * cost).sum())))


def test_nothing_is_paid_for_rows_that_promise_nothing() -> None:
    gain = np.array([0.2, 0.1, 0.0, -0.1])
    price = price_for(gain, np.ones(4), 10.0)
    assert price.send(gain, list("abcd")).tolist() == [True, True, False, False]
    none = price_for(np.zeros(4), np.ones(4), 0.5)
    assert not none.send(np.zeros(4), list("abcd")).any()


def test_rows_at_the_price_are_sent_by_lot_and_always_alike() -> None:
    """As where the cheap model says few different things."""
    ids = [f"r{i}" for i in range(20_000)]
    rate = np.where(np.arange(20_000) % 2, 1.0, 0.3)
    price = price_for(rate, np.ones(20_000), 0.7)
    chosen = price.send(rate, ids)
    assert chosen[1::2].all()
    assert chosen.mean() == pytest.approx(0.7, abs=0.01)
    order = np.random.default_rng(0).permutation(20_000)
    again = price.send(rate[order] * (1 + 1e-13), [ids[i] for i in order])
    np.testing.assert_array_equal(again, chosen[order])


def test_a_lot_is_the_head_of_a_hash() -> None:
    assert lot("r1") == int(sha256(b"r1").hexdigest()[:8], 16) / 2**32
    drawn = [lot(f"row {i}") for i in range(4000)]
    assert np.histogram(drawn, 10, (0, 1))[0].min() > 300
