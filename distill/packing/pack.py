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
from distill.packing.sharing import Layout, layout


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
    parents : int32 tensor of shape (documents,) or None
        Where documents share prefixes (:mod:`distill.packing.sharing`): which document each continues, itself
        where none. Prefixes are documents behind the rows', and positions go on from theirs.
    key_tokens : int tensor of shape (keys,) or None
        Beside it: the tokens that documents see, document by document; -1 behind the last.
    key_documents : int tensor of shape (keys,) or None
        The document that sees each of them, -1 behind the last.
    key_seqlens : int32 tensor like ``cu_seqlens`` or None
        Where a document's part of them starts and ends.
    """

    input_ids: Tensor
    position_ids: Tensor
    documents: Tensor
    cu_seqlens: Tensor
    last: Tensor
    rows: int
    max_length: int
    static: bool = False
    parents: Tensor | None = None
    key_tokens: Tensor | None = None
    key_documents: Tensor | None = None
    key_seqlens: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Tokens, entries of ``cu_seqlens``, bound of the lengths, keys: what compiled code depends on."""
        keys = 0 if self.key_tokens is None else len(self.key_tokens)
        return self.input_ids.shape[1], len(self.cu_seqlens), self.max_length, keys

    def to(self, device: torch.device) -> Pack:
        """Copy to a device, without waiting where that device is a GPU."""
        moved = {f.name: send(getattr(self, f.name), device) for f in fields(self)}
        return replace(self, **moved)


def send(value: Any, device: torch.device) -> Any:
    """Copy a tensor to a device, to a GPU through pinned memory without waiting; leave anything else."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device) if device.type != "cuda" else value.pin_memory().to(device, non_blocking=True)


def pack(
    encoded: Encoded,
    sequences: np.ndarray,
    pad_id: int,
    static: Static | None = None,
    prefixes: np.ndarray | None = None,
) -> Pack:
    """Lay sequences one behind another, filled up to the ``static`` shape if there is one.

    Parameters
    ----------
    prefixes : ndarray of shape (all rows,), optional
        Tokens that the sequences of each row begin with, to be laid out once.
    """
    pieces = [encoded[int(s)] for s in sequences]
    longest = max(map(len, pieces))
    laid = layout(encoded, sequences, prefixes)
    if prefixes is not None:
        own = [piece[before:] for piece, before in zip(pieces, laid.before.tolist(), strict=False)]
        leads = np.unique(laid.parents[: len(pieces)], return_index=True)
        shared = [pieces[i][: laid.lengths[at]] for at, i in zip(*leads, strict=True) if at >= len(pieces)]
        pieces = [*own, *shared]
    if static is not None:
        longest = max(longest, static.longest)
        missing = max(0, static.tokens - int(laid.lengths.sum()))
        laid = laid.filled([min(longest, missing - start) for start in range(0, missing, longest)])
        pieces.append(np.full(missing, pad_id, dtype=np.int32))
    ids = np.concatenate(pieces)
    ends = np.cumsum(laid.lengths)
    documents = np.repeat(np.arange(len(ends)), laid.lengths)
    positions = np.arange(len(ids)) + (laid.before - (ends - laid.lengths))[documents]
    size = len(ends) if static is None else max(len(ends), static.documents)
    return Pack(
        input_ids=torch.from_numpy(ids.astype(np.int64))[None],
        position_ids=torch.from_numpy(positions)[None],
        documents=torch.from_numpy(documents.astype(np.int32)),
        cu_seqlens=_bounds(laid.lengths, size),
        last=torch.from_numpy(ends - 1),
        rows=len(sequences),
        max_length=longest,
        static=static is not None,
        **({} if prefixes is None else _keys(laid, size, 0 if static is None else static.keys)),
    )


def _bounds(lengths: np.ndarray, size: int) -> Tensor:
    """Where documents start and end, the end repeated up to ``size`` documents."""
    bounds = np.full(size + 1, lengths.sum())
    bounds[: len(lengths) + 1] = np.concatenate([[0], np.cumsum(lengths)])
    return torch.from_numpy(bounds.astype(np.int32))


def _keys(laid: Layout, size: int, most: int) -> dict[str, Tensor]:
    """The tensors of a pack of ``size`` documents that say what they share, filled up to ``most`` keys."""
    starts = np.cumsum(laid.lengths) - laid.lengths
    own = [np.arange(start, start + n) for start, n in zip(starts, laid.lengths, strict=True)]
    seen = [
        np.concatenate([own[parent], tokens]) if parent != number else tokens
        for number, (parent, tokens) in enumerate(zip(laid.parents, own, strict=True))
    ]
    tokens = np.full(max(most, int(laid.key_lengths.sum())), -1)
    documents = tokens.copy()
    found = np.concatenate(seen)
    tokens[: len(found)] = found
    documents[: len(found)] = np.repeat(np.arange(len(seen)), laid.key_lengths)
    parents = np.arange(size, dtype=np.int32)
    parents[: len(laid.parents)] = laid.parents
    return {
        "parents": torch.from_numpy(parents),
        "key_tokens": torch.from_numpy(tokens),
        "key_documents": torch.from_numpy(documents),
        "key_seqlens": _bounds(laid.key_lengths, size),
    }
