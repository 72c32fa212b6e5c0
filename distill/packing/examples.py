"""Encoded rows and what to learn from them; padded batches, for one-by-one use and as a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.candidates import ABSENT
from data.encoding.encode import Encoded


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
    row_ids : sequence of str or None
        For messages.
    teacher_weights : ndarray of shape (n, teachers) or None
        Summing to one over the teachers.
    shared_prefix : {"auto", "true", "false"}
        Whether packs lay out once what a row's sequences begin with (:mod:`distill.packing.sharing`).
    """

    encoded: Encoded
    targets: np.ndarray
    permutation: list[int]
    pad_id: int
    teacher_logits: np.ndarray | None = None
    row_ids: Sequence[str] | None = None
    teacher_weights: np.ndarray | None = None
    shared_prefix: str = "false"

    @property
    def labelled(self) -> np.ndarray:
        """Which rows have a target, shape (n,), bool."""
        return np.isfinite(self.targets).all(axis=1)

    @property
    def outputs(self) -> int:
        """Numbers that the model gives for one sequence: one a class, or one for a candidate."""
        return len(self.permutation) if self.encoded.sizes is None else 1

    def of_sets(self, logits: Tensor, rows: np.ndarray) -> Tensor:
        """Lay the logits of rows' candidates (sequences, 1) a row a line, (rows, K); others as they are.

        A softmax over a line is then the one over the row's own set: places that it lacks have ``ABSENT``.
        """
        if self.encoded.sizes is None:
            return logits
        sizes = self.encoded.sizes[rows]
        line = np.repeat(np.arange(len(rows)), sizes)
        place = np.arange(len(line)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        at = torch.from_numpy(np.stack([line, place])).to(logits.device, non_blocking=True)
        empty = logits.new_full((len(rows), len(self.permutation)), ABSENT)
        return empty.index_put((at[0], at[1]), logits[:, 0])


def pad(encoded: Encoded, sequences: np.ndarray, pad_id: int, side: str = "right") -> dict[str, Tensor]:
    """Stack encoded sequences, padded on the right or left; see :func:`padded`."""
    return padded([encoded[int(s)] for s in sequences], pad_id, side)


def padded(pieces: Sequence[np.ndarray], pad_id: int, side: str = "right") -> dict[str, Tensor]:
    """Stack ids, padded on the right or left: ``input_ids``, ``attention_mask``, ``last``."""
    longest = max(len(piece) for piece in pieces)
    ids = np.full((len(pieces), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(pieces), longest), dtype=np.int64)
    for i, piece in enumerate(pieces):
        where = slice(0, len(piece)) if side == "right" else slice(longest - len(piece), longest)
        ids[i, where] = piece
        mask[i, where] = 1
    last = np.array([len(piece) - 1 if side == "right" else longest - 1 for piece in pieces])
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "last": torch.from_numpy(last),
    }
