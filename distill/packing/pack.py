"""One pack: sequences behind one another without padding, told apart by ``cu_seqlens``, for a model to read.

:mod:`distill.packing.steps` says which rows make a step, :mod:`distill.packing.cutting` how a step is cut.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.encoding.encode import Encoded
from distill.packing.cutting import Static


@dataclass(frozen=True)
class Pack:
    """Tensors of one forward pass.

    Attributes
    ----------
    input_ids, position_ids : int tensors of shape (1, T)
        Positions restart with every document.
    documents : int tensor of shape (T,)
        Which document a token belongs to.
    cu_seqlens : int32 tensor of shape (documents + 1,)
        Where documents start and end; a static pack repeats the end for documents of no tokens.
    last : int tensor of shape (used,)
        Index of the last token of every document that has tokens, fillers included.
    rows : int
        Documents that are rows; fillers come after them.
    max_length : int
        Upper bound of the documents' lengths.
    static : bool
        Whether the pack was filled up to a shape that others have too.
    """

    input_ids: Tensor
    position_ids: Tensor
    documents: Tensor
    cu_seqlens: Tensor
    last: Tensor
    rows: int
    max_length: int
    static: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Tokens, entries of ``cu_seqlens`` and bound of the lengths: what compiled code depends on."""
        return self.input_ids.shape[1], len(self.cu_seqlens), self.max_length

    def to(self, device: torch.device) -> Pack:
        """Copy to a device, without waiting where that device is a GPU."""
        moved = {f.name: send(getattr(self, f.name), device) for f in fields(self)}
        return replace(self, **moved)


def send(value: Any, device: torch.device) -> Any:
    """Copy a tensor to a device, to a GPU through pinned memory without waiting; leave anything else."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device) if device.type != "cuda" else value.pin_memory().to(device, non_blocking=True)


def pack(encoded: Encoded, sequences: np.ndarray, pad_id: int, static: Static | None = None) -> Pack:
    """Lay sequences one behind another, filled up to the ``static`` shape if there is one."""
    pieces = [encoded[int(s)] for s in sequences]
    lengths = [len(piece) for piece in pieces]
    longest = max(lengths) if static is None else max(*lengths, static.longest)
    missing = 0 if static is None else max(0, static.tokens - sum(lengths))
    fillers = [min(longest, missing - start) for start in range(0, missing, longest)]
    all_lengths = np.array([*lengths, *fillers])
    ends = np.cumsum(all_lengths)
    bounds = np.concatenate([[0], ends])
    if static is not None:
        bounds = np.concatenate([bounds, np.full(max(0, static.documents - len(ends)), ends[-1])])
    ids = np.concatenate([*pieces, np.full(missing, pad_id, dtype=np.int32)])
    documents = np.repeat(np.arange(len(all_lengths)), all_lengths)
    positions = np.arange(len(ids)) - (ends - all_lengths)[documents]
    return Pack(
        input_ids=torch.from_numpy(ids.astype(np.int64))[None],
        position_ids=torch.from_numpy(positions)[None],
        documents=torch.from_numpy(documents.astype(np.int32)),
        cu_seqlens=torch.from_numpy(bounds.astype(np.int32)),
        last=torch.from_numpy(ends - 1),
        rows=len(pieces),
        max_length=longest,
        static=static is not None,
    )
