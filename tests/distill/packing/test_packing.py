"""Every row once an epoch, both orders in a step, equal tokens a step, and packs laid out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.encoding.encode import Encoded
from distill.packing.cutting import Cutter, Static, by_length, cost, cut, static_shape
from distill.packing.examples import Examples, pad
from distill.packing.pack import pack
from distill.packing.steps import Step, plan_steps, targets_of


def encoded(lengths, orders=2):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Encoded(np.arange(offsets[-1], dtype=np.int32) + 10, offsets, orders, 0)


def planned(n, lengths=None, **changes):
    settings = {"epochs": 1, "rows_per_step": 8, "orders": 2, "both_orders": True, "seed": 0} | changes
    return plan_steps(np.arange(n), np.full(n, 7) if lengths is None else lengths, **settings)


@given(n=st.integers(1, 150), seed=st.integers(0, 5), epochs=st.sampled_from([1, 2, 0.5]), both=st.booleans())
def test_every_row_comes_once_an_epoch_in_whole_steps(n, seed, epochs, both):
    lengths = np.random.default_rng(seed).integers(1, 50, size=n)
    steps = planned(n, lengths, seed=seed, epochs=epochs, both_orders=both)
    times = np.bincount(np.concatenate([s.rows for s in steps]), minlength=n)
    copies = 2 if both else 1
    assert times.sum() == int(np.ceil(epochs * n)) * copies
    if epochs >= 1:
        assert (times == epochs * copies).all()
    sizes = [len(s) for s in steps]
    partial = [size for size in sizes if size != 8 * copies]
    assert len(partial) <= np.ceil(epochs)
    for step in steps:
        if both:
            assert all(sorted(step.swapped[step.rows == row]) == [False, True] for row in step.rows)


def test_steps_depend_on_the_seed_alone_and_differ_between_epochs():
    lengths = np.arange(64) % 13
    first, again, other = (planned(64, lengths, seed=s, epochs=2) for s in (1, 1, 2))
    assert all((a.rows == b.rows).all() for a, b in zip(first, again, strict=True))
    assert any((a.rows != b.rows).any() for a, b in zip(first, other, strict=True))
    epochs = [{frozenset(s.rows) for s in part} for part in (first[:8], first[8:])]
    assert len(epochs[0] & epochs[1]) < 4


def test_single_order_is_drawn_by_lot():
    swapped = np.concatenate([s.swapped for s in planned(400, both_orders=False)])
    assert 140 < swapped.sum() < 260


def test_steps_hold_equal_tokens_so_that_static_packs_waste_little():
    lengths = np.minimum(np.random.default_rng(0).lognormal(6, 0.8, size=4096).astype(int) + 20, 2048)
    steps = planned(4096, lengths, rows_per_step=16)
    twice = np.repeat(lengths, 2)
    packs = [twice[s.sequences(2)][p] for s in steps for p in Cutter(16384).packs(twice[s.sequences(2)])[0]]
    static = static_shape(packs, 2048)
    assert static.tokens <= 16384
    assert twice.sum() / (len(packs) * static.tokens) > 0.95


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    budget=st.integers(1, 200),
    most=st.integers(0, 7),
)
def test_packs_keep_the_budget_and_lose_nothing(lengths, budget, most):
    lengths = np.array(lengths)
    for packs in (cut(lengths, budget, most), by_length(lengths, budget, most)):
        assert sorted(np.concatenate(packs)) == list(range(len(lengths)))
        for chosen in packs:
            assert lengths[chosen].sum() <= budget or len(chosen) == 1
            assert not most or len(chosen) <= most


@given(
    lengths=st.lists(st.integers(1, 2048), min_size=1, max_size=30),
    processes=st.integers(1, 4),
    budget=st.integers(2048, 9000),
    pairs=st.booleans(),
)
def test_processes_share_a_step_so_that_none_has_a_document_more_than_it_must(
    lengths, processes, budget, pairs
):
    lengths = np.repeat(lengths, 2)
    cutter = Cutter(budget, 0, processes, 2 if pairs else 1)
    shares = cutter.packs(lengths)
    assert len(shares) == processes
    everything = [p for share in shares for p in share]
    assert sorted(np.concatenate(everything)) == list(range(len(lengths)))
    for chosen in everything:
        assert lengths[chosen].sum() <= max(budget, 4096 if pairs else 0)
        if pairs:
            assert (chosen[::2] % 2 == 0).all()
            assert (chosen[1::2] == chosen[::2] + 1).all()
    load = [sum(cost(lengths[p]).sum() for p in share) for share in shares]
    assert max(load) - min(load) <= cost(lengths).max() * (2 if pairs else 1) * (1 + 1e-9)


@given(
    lengths=st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=90), min_size=1, max_size=5),
)
def test_a_static_shape_is_one_for_all_packs(lengths):
    packs = [np.array(p) for p in lengths]
    static = static_shape(packs, max(p.max() for p in packs))
    shapes = set()
    for own in packs:
        made = pack(encoded(own, 1), np.arange(len(own)), 0, static)
        shapes.add((*made.input_ids.shape, *made.cu_seqlens.shape, made.max_length))
        assert made.input_ids.shape[1] - own.sum() < max(p.sum() for p in packs) + 128
    assert len(shapes) == 1


def test_a_pack_by_hand():
    made = pack(encoded([2, 3, 1, 4]), np.array([1, 2]), pad_id=5)
    assert made.input_ids.tolist() == [[12, 13, 14, 15]]
    assert made.position_ids.tolist() == [[0, 1, 2, 0]]
    assert made.documents.tolist() == [0, 0, 0, 1]
    assert made.cu_seqlens.tolist() == [0, 3, 4]
    assert made.last.tolist() == [2, 3]
    assert (made.rows, made.max_length) == (2, 3)


def test_a_static_pack_is_filled_up_with_documents_of_padding():
    made = pack(encoded([2, 3, 1, 4]), np.array([1, 2]), pad_id=5, static=Static(9, 32, 4))
    assert made.input_ids.tolist() == [[12, 13, 14, 15, 5, 5, 5, 5, 5]]
    assert made.position_ids.tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 0]]
    assert made.cu_seqlens.tolist()[:6] == [0, 3, 4, 8, 9, 9]
    assert made.cu_seqlens.shape == (33,)
    assert made.last.tolist() == [2, 3, 7, 8]
    assert (made.rows, made.max_length) == (2, 4)


def test_targets_are_permuted_where_the_order_is_swapped():
    targets = np.array([[0.7, 0.1, 0.2], [0.0, 0.0, 1.0]])
    teachers = np.arange(12.0).reshape(2, 2, 3)
    examples = Examples(encoded([2, 3, 1, 4]), targets, [1, 0, 2], 5, teachers)
    made = targets_of(examples, Step(np.array([0, 0, 1]), np.array([False, True, True])))
    np.testing.assert_allclose(made["targets"], [[0.7, 0.1, 0.2], [0.1, 0.7, 0.2], [0, 0, 1]], rtol=1e-6)
    assert made["teacher_logits"][1].tolist() == [[1, 0, 2], [4, 3, 5]]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("which", [[0], [3, 1]])
def test_pad_keeps_the_asked_order(which, side):
    made = pad(encoded([2, 3, 1, 4]), np.array(which), 0, side)
    last = {"right": [[1], [3, 2]], "left": [[1], [3, 3]]}[side]
    assert made["last"].tolist() == last[len(which) - 1]
    assert made["attention_mask"].sum(1).tolist() == [[2], [4, 3]][len(which) - 1]
