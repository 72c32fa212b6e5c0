"""Ids joined, and looked through for repeated ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError
from data.ids import align, places, refuse_repeated, refuse_repeated_batches


@given(st.lists(st.text(max_size=3), unique=True), st.data())
def test_aligned_positions_hold_the_ids_asked_for(onto: list[str], data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.sampled_from(onto))) if onto else []
    found = align(ids, onto, "store")
    assert found.dtype == np.int64
    assert [onto[i] for i in found] == ids


def test_what_is_absent_or_twice_is_named() -> None:
    assert places(["b", "x"], ["a", "b"]).tolist() == [1, -1]
    with pytest.raises(UserError, match=r"^s: lacks 2 of 3 rows: x, y; both must come from the same"):
        align(["x", "a", "y"], ["a", "b"], "s")
    with pytest.raises(UserError, match=r"^s: 1 row ids appear more than once: a$"):
        align(["a"], ["a", "b", "a"], "s")
    with pytest.raises(UserError, match=r"^f: 2 rows appear more than once: b, a; leave one$"):
        refuse_repeated(["b", "a", "a", "b"], "f", "rows", "; leave one")
    refuse_repeated(["a", "b"], "f")


def test_repeated_ids_are_named_however_far_apart():
    ids = [[f"r{i}" for i in range(k, k + 1000)] for k in range(0, 5000, 1000)]
    refuse_repeated_batches(lambda: iter(ids), "rows")
    with pytest.raises(UserError, match="rows: 2 row ids appear more than once: r17, r4000"):
        refuse_repeated_batches(lambda: iter([*ids, ["r17", "r4000", "r17"]]), "rows")
