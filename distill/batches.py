"""Which rows make which optimiser step: decided in advance, by seed alone, hence resumable.

The whole training is one list of micro-batches. Rows are shuffled anew each epoch; the rows of a few
steps together are sorted by length, so that a micro-batch holds rows of similar length, and dealt out
again. Both orders of a pair sit in the same micro-batch (the 2nd-place LMSYS solution found that worth
.003 against a random order).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.encode import Encoded

WINDOW_STEPS = 8


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass, the order seed of each, and how many rows its whole step has."""

    rows: np.ndarray
    swapped: np.ndarray
    step_rows: int


@dataclass(frozen=True)
class Examples:
    """Encoded rows and what to learn from them.

    Attributes
    ----------
    encoded : Encoded
    targets : ndarray of shape (n, K)
        Target distribution in the row's own class order; NaN where unlabelled.
    permutation : list of int
        What swapping does to the classes.
    teacher_logits : ndarray of shape (n, teachers, K) or None
    pad_id : int
    """

    encoded: Encoded
    targets: np.ndarray
    permutation: list[int]
    pad_id: int
    teacher_logits: np.ndarray | None = None


def plan(
    train_rows: np.ndarray,
    lengths: np.ndarray,
    *,
    epochs: float,
    rows_per_step: int,
    micro_rows: int,
    orders: int,
    both_orders: bool,
    seed: int,
) -> list[MicroBatch]:
    """Lay out the whole training as a list of micro-batches.

    Parameters
    ----------
    train_rows : ndarray of int
        Row indices to train on.
    lengths : ndarray of int
        Tokens of every row, for grouping.
    orders : int
        Orders a row has: 2 for pairs.
    both_orders : bool
        Put both orders in the step; otherwise one order a row and epoch, by lot.
    """
    generator = np.random.default_rng(seed)
    total = max(1, math.ceil(epochs * len(train_rows)))
    stream = np.concatenate([generator.permutation(train_rows) for _ in range(math.ceil(epochs))])[:total]
    lots = generator.integers(orders, size=total).astype(bool)
    batches: list[MicroBatch] = []
    window = rows_per_step * WINDOW_STEPS
    for start in range(0, total, window):
        batches += _window(
            stream[start : start + window],
            lots[start : start + window],
            lengths,
            rows_per_step,
            micro_rows,
            generator,
        )
    if not both_orders or orders == 1:
        return batches
    return [
        MicroBatch(np.repeat(b.rows, 2), np.tile([False, True], len(b.rows)), 2 * b.step_rows)
        for b in batches
    ]


def _window(
    rows: np.ndarray,
    lots: np.ndarray,
    lengths: np.ndarray,
    rows_per_step: int,
    micro_rows: int,
    generator: np.random.Generator,
) -> list[MicroBatch]:
    by_length = np.argsort(lengths[rows], kind="stable")
    micro = [by_length[i : i + micro_rows] for i in range(0, len(rows), micro_rows)]
    full = [m for m in micro if len(m) == micro_rows]
    partial = [m for m in micro if len(m) < micro_rows]
    dealt = [full[i] for i in generator.permutation(len(full))] + partial
    per_step = rows_per_step // micro_rows
    batches = []
    for start in range(0, len(dealt), per_step):
        step = dealt[start : start + per_step]
        step_rows = sum(len(m) for m in step)
        batches += [MicroBatch(rows[m], lots[m], step_rows) for m in step]
    return batches


def pad(encoded: Encoded, sequences: np.ndarray, pad_id: int) -> dict[str, Tensor]:
    """Stack sequences, padded on the right: ``input_ids``, ``attention_mask``, ``last``."""
    pieces = [encoded[int(s)] for s in sequences]
    longest = max(len(piece) for piece in pieces)
    ids = np.full((len(pieces), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(pieces), longest), dtype=np.int64)
    for i, piece in enumerate(pieces):
        ids[i, : len(piece)] = piece
        mask[i, : len(piece)] = 1
    last = np.array([len(piece) - 1 for piece in pieces])
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "last": torch.from_numpy(last),
    }


def collate(examples: Examples, batch: MicroBatch) -> dict[str, Tensor]:
    """Build the tensors of a micro-batch; classes of swapped sequences are permuted."""
    sequences = batch.rows * examples.encoded.orders + batch.swapped
    tensors = pad(examples.encoded, sequences, examples.pad_id)

    def in_order(values: np.ndarray) -> Tensor:
        own = values[batch.rows]
        swapped = own[..., examples.permutation]
        shape = (len(own),) + (1,) * (own.ndim - 1)
        return torch.from_numpy(np.where(batch.swapped.reshape(shape), swapped, own)).float()

    tensors["targets"] = in_order(examples.targets)
    if examples.teacher_logits is not None:
        tensors["teacher_logits"] = in_order(examples.teacher_logits)
    tensors["step_rows"] = torch.tensor(float(batch.step_rows))
    return tensors


def by_length(encoded: Encoded, sequences: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yield ``sequences`` in batches, longest first, so that memory peaks at once."""
    order = sequences[np.argsort(-encoded.lengths[sequences], kind="stable")]
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
