"""Prefixes laid out once: where every token lies, what it sees, and that rows stay whole."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.encoding.encode import Encoded
from distill.packing.cutting import by_length
from distill.packing.pack import pack
from distill.packing.sharing import (
    LEAST,
    Whole,
    laid_lengths,
    layout,
    prefixes,
    prefixes_to_share,
    row_prefix,
    saved_share,
    shape_of,
)
from distill.packing.steps import Step
from tests.helpers.shared_rows import encoded

ROWS = st.lists(
    st.tuples(st.integers(0, 60)).flatmap(
        lambda shared: st.lists(st.integers(1, 50), min_size=1, max_size=5).map(lambda o: (*shared, *o))
    ),
    min_size=1,
    max_size=8,
)


def test_a_prefix_leaves_every_sequence_a_token():
    ids = np.array([*range(30), *range(30), *range(25), 7], np.int32)
    three = Encoded(ids, np.array([0, 30, 60, 86]), 1, 0, np.array([3]))
    assert row_prefix(three, np.array([0, 1])) == 29
    assert row_prefix(three, np.array([0, 1, 2])) == 25
    assert row_prefix(three, np.array([2])) == 0
    short = Encoded(np.tile(np.arange(LEAST), 2), np.array([0, LEAST, 2 * LEAST]), 2, 0)
    assert row_prefix(short, np.array([0, 1])) == 0


def test_a_pack_by_hand(monkeypatch):
    monkeypatch.setattr("distill.packing.sharing.LEAST", 1)
    made = encoded([(2, 1, 2), (0, 3), (1, 1, 1)])
    one = pack(made, np.array([0, 1, 2, 3, 4]), 5, None, prefixes(made, np.arange(3)))
    assert one.input_ids[0].tolist() == [102, 103, 104, 105, 106, 107, 109, 110, 100, 101, 108]
    assert one.position_ids[0].tolist() == [2, 2, 3, 0, 1, 2, 1, 1, 0, 1, 0]
    assert one.documents.tolist() == [0, 1, 1, 2, 2, 2, 3, 4, 5, 5, 6]
    assert one.parents.tolist() == [5, 5, 2, 6, 6, 5, 6]
    assert one.cu_seqlens.tolist() == [0, 1, 3, 6, 7, 8, 10, 11]
    assert one.key_seqlens.tolist() == [0, 3, 7, 10, 12, 14, 16, 17]
    assert one.key_tokens.tolist() == [8, 9, 0, 8, 9, 1, 2, 3, 4, 5, 10, 6, 10, 7, 8, 9, 10]
    assert one.key_documents.tolist() == [0] * 3 + [1] * 4 + [2] * 3 + [3] * 2 + [4] * 2 + [5] * 2 + [6]
    assert one.last[: one.rows].tolist() == [0, 2, 5, 6, 7]
    assert one.max_length == 4


@given(rows=ROWS, taken=st.randoms(use_true_random=False), filled=st.booleans())
def test_every_document_sees_its_sequence(rows, taken, filled):
    """Whatever part of the sequences a pack has, in whatever order of rows."""
    made = encoded(rows)
    found = prefixes(made, np.arange(len(rows)))
    chosen = [s for s in range(len(made.lengths)) if taken.random() < 0.8] or [0]
    chosen = np.array(chosen)
    laid = layout(made, chosen, found)
    static = shape_of([laid], int(made.lengths.max())) if filled else None
    one = pack(made, chosen, 5, static, found)
    ids, positions = one.input_ids[0], one.position_ids[0]
    for number, sequence in enumerate(chosen):
        seen = one.key_tokens[one.key_seqlens[number] : one.key_seqlens[number + 1]]
        assert ids[seen].tolist() == made[sequence].tolist()
        assert positions[seen].tolist() == list(range(len(seen)))
        assert seen[-1] == one.last[number]
    assert laid.lengths.sum() == laid_lengths(made, chosen, found).sum()
    once = {int(i) for s in chosen for i in made[s]}
    if filled:
        assert (one.input_ids.shape[1], len(one.key_tokens)) == (static.tokens, static.keys or static.tokens)
        assert len(one.cu_seqlens) == len(one.key_seqlens) == static.documents + 1
    else:
        assert len(once) <= len(ids) == laid.lengths.sum()
    assert torch.equal(one.key_documents >= 0, one.key_tokens >= 0)


@given(rows=ROWS, budget=st.integers(20, 300), most=st.integers(0, 6))
def test_what_a_row_shares_is_cut_into_one_pack(rows, budget, most):
    made = encoded(rows)
    found = prefixes(made, np.arange(len(rows)))
    sequences = made.of_rows(np.arange(len(rows)))
    whole = Whole(made, sequences, found)
    packs = [whole.members(p) for p in by_length(whole.lengths, budget, whole.at_most(most))]
    assert sorted(np.concatenate(packs)) == list(range(len(sequences)))
    for chosen in packs:
        inside = made.rows_of(sequences[chosen])
        assert all((inside == row).sum() == made.sizes[row] for row in np.unique(inside))
        assert len(np.unique(inside)) == 1 or laid_lengths(made, sequences[chosen], found).sum() <= budget
        assert not most or len(chosen) <= most or len(np.unique(inside)) == 1
    alone = Whole(made, sequences, None)
    assert alone.members(np.array([0])).tolist() == [0]
    assert alone.lengths.tolist() == made.lengths.tolist()


def test_auto_shares_where_a_tenth_is_saved_and_nothing_shares_what_cannot():
    saves, not_worth_it = encoded([(30, 5, 5)], 2), encoded([(20, 200, 200)], 2)
    row = np.array([0])
    assert saved_share(saves, row, prefixes(saves, row)) == 30 / 70
    assert prefixes_to_share(saves, row, "auto", True).tolist() == [30]
    assert prefixes_to_share(not_worth_it, row, "auto", True) is None
    assert prefixes_to_share(not_worth_it, row, "True", True).tolist() == [20]
    for wanted, able in (("False", True), ("true", False)):
        assert prefixes_to_share(saves, row, wanted, able) is None


def test_a_step_counts_a_prefix_once():
    pairs = encoded([(30, 5, 6), (0, 40, 40)], 2)
    found = prefixes(pairs, np.arange(2))
    both = Step(np.array([1, 1, 0, 0]), np.array([False, True, False, True]))
    assert both.lengths(pairs, found).tolist() == [40, 40, 35, 6]
    assert both.lengths(pairs).tolist() == [40, 40, 35, 36]
    sets = encoded([(30, 5, 6, 7), (0, 40)])
    assert Step(np.array([1, 0]), np.zeros(2, bool)).lengths(sets, prefixes(sets, np.arange(2))).tolist() == [
        40,
        48,
    ]
