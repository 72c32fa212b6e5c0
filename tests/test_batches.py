"""Every row once an epoch, whole steps, both orders together, classes permuted with the order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.encode import Encoded
from distill.batches import Examples, MicroBatch, by_length, collate, pad, plan


def encoded(lengths, orders=2):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Encoded(np.arange(offsets[-1], dtype=np.int32) + 10, offsets, orders, 0)


def settings(**changes):
    return {
        "epochs": 1,
        "rows_per_step": 8,
        "micro_rows": 4,
        "orders": 2,
        "both_orders": True,
        "seed": 0,
    } | changes


@given(n=st.integers(1, 150), seed=st.integers(0, 5), epochs=st.sampled_from([1, 2, 0.5]), both=st.booleans())
def test_plan_covers_each_row_once_an_epoch_in_whole_steps(n, seed, epochs, both):
    lengths = np.random.default_rng(seed).integers(1, 50, size=n)
    rows = np.arange(n)
    batches = plan(rows, lengths, **settings(seed=seed, epochs=epochs, both_orders=both))
    seen = np.concatenate([b.rows for b in batches])
    times = np.bincount(seen, minlength=n)
    copies = 2 if both else 1
    total = int(np.ceil(epochs * n))
    assert times.sum() == total * copies
    if epochs >= 1:
        assert (times == epochs * copies).all()
    for start in range(0, len(batches), 2):  # two micro-batches make a step
        step = batches[start : start + 2]
        assert {b.step_rows for b in step} == {sum(len(b.rows) for b in step)}


def test_plan_depends_on_the_seed_alone():
    lengths = np.arange(64) % 13
    first, again, other = (plan(np.arange(64), lengths, **settings(seed=s)) for s in (1, 1, 2))
    assert all(
        (a.rows == b.rows).all() and (a.swapped == b.swapped).all() for a, b in zip(first, again, strict=True)
    )
    assert any((a.rows != b.rows).any() for a, b in zip(first, other, strict=True))


def test_both_orders_of_a_row_share_a_micro_batch():
    for batch in plan(np.arange(20), np.arange(20), **settings()):
        for row in set(batch.rows):
            assert sorted(batch.swapped[batch.rows == row]) == [False, True]


def test_single_order_is_drawn_by_lot():
    batches = plan(np.arange(400), np.ones(400), **settings(both_orders=False))
    swapped = np.concatenate([b.swapped for b in batches])
    assert 140 < swapped.sum() < 260


def test_micro_batches_hold_rows_of_similar_length():
    lengths = np.random.default_rng(0).integers(1, 1000, size=256)
    batches = plan(np.arange(256), lengths, **settings(rows_per_step=32, micro_rows=8))
    padded = sum(lengths[b.rows].max() * len(b.rows) for b in batches)
    assert padded < 1.2 * 2 * lengths.sum()


def test_pad_and_collate_by_hand():
    examples = Examples(
        encoded([2, 3, 1, 4]),
        np.array([[0.7, 0.1, 0.2], [0.0, 0.0, 1.0]]),
        [1, 0, 2],
        pad_id=5,
        teacher_logits=np.arange(12.0).reshape(2, 2, 3),
    )
    batch = collate(examples, MicroBatch(np.array([0, 0, 1]), np.array([False, True, True]), 3))
    assert batch["input_ids"].tolist() == [[10, 11, 5, 5], [12, 13, 14, 5], [16, 17, 18, 19]]
    assert batch["attention_mask"].sum(1).tolist() == [2, 3, 4]
    assert batch["last"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(batch["targets"], [[0.7, 0.1, 0.2], [0.1, 0.7, 0.2], [0, 0, 1]], rtol=1e-6)
    assert batch["teacher_logits"][1].tolist() == [[1, 0, 2], [4, 3, 5]]
    assert batch["step_rows"] == 3


def test_by_length_yields_every_sequence_longest_first():
    sequences = np.array([0, 1, 2, 3])
    batches = list(by_length(encoded([2, 9, 1, 4]), sequences, 2))
    assert [b.tolist() for b in batches] == [[1, 3], [0, 2]]


@pytest.mark.parametrize("which", [[0], [3, 1]])
def test_pad_keeps_the_asked_order(which):
    made = pad(encoded([2, 3, 1, 4]), np.array(which), 0)
    assert made["last"].tolist() == [[1], [3, 2]][len(which) - 1]
