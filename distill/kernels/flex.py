"""Flex attention over packs: the call, its tiles, and block masks laid out from where documents start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from distill.kernels.attention import masked

BLOCK = 128
"""Tokens in a block of flex attention's mask."""
KERNELS: dict[str, dict[str, int]] = {
    "library": {},
    "hopper-256": {
        "fwd_BLOCK_M": 64, "fwd_BLOCK_N": 32, "fwd_num_warps": 4, "fwd_num_stages": 3,
        "bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 64, "bwd_BLOCK_M2": 64, "bwd_BLOCK_N2": 64,
        "bwd_num_warps": 8, "bwd_num_stages": 2,
    },
}  # fmt: skip
"""Tiles of flex attention. The library's own backward for heads of 256 on Hopper (tiles of 64 by 64, 4
warps) spills 1,848 bytes a thread to memory; ``hopper-256`` spills 88."""


def flex(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """Flex attention under the call's block mask of documents, soft-capped where asked."""
    if options.get("block_mask") is None:
        return masked(query, key, value, attention_mask, options)
    cap = options.get("softcap")
    out = _flex_function()(
        query,
        key,
        value,
        score_mod=None if cap is None else _capped(cap),
        block_mask=options["block_mask"],
        scale=options["scaling"],
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=options.get("kernel_options"),
    )
    return out.transpose(1, 2).contiguous(), None


def flex_tiles(head_dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Kernel options of flex attention; found outside the compiled layers, which take them as constants."""
    special = head_dim == 256 and dtype.itemsize == 2 and _hopper()
    return dict(KERNELS["hopper-256" if special else "library"])


@cache
def _hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


def _flex_function() -> Any:
    """Return ``flex_attention``, compiled unless it already is part of a compiled layer.

    Run as it is, it would make the matrix of all scores.
    """
    return flex_attention if torch.compiler.is_compiling() else _compiled_flex()


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def _capped(cap: float) -> Callable[..., Tensor]:
    """``cap * tanh(scores / cap)``, written with a sigmoid.

    Tanh of the GPU's library branches for every score; this form has no branch, and differs from it by
    float32 rounding.
    """

    def score(scores: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return 2 * cap * torch.sigmoid(scores * (2 / cap)) - cap

    return score


def block_masks(
    positions: Tensor,
    documents: Tensor,
    window: int | None,
    longest: int,
    bounds: Tensor | None = None,
    parents: Tensor | None = None,
) -> tuple[Any, Any]:
    """Block masks of full and of windowed layers, one and the same where no document exceeds the window.

    Which blocks are empty, whole or partly masked follows from where documents start.
    ``create_block_mask`` would look at all tokens by all tokens, and compiling the sorts in it took
    longer than all the rest of the first step (ptxas needs over a minute for one).

    Parameters
    ----------
    positions, documents : int Tensor of shape (T,)
        Position of each token in its document, and which that is; documents lie one behind another.
    bounds, parents : int Tensor of shape (documents + 1,), (documents,), optional
        Where documents share prefixes, which lie behind them: where each starts and ends, and which it
        continues (:class:`distill.packing.pack.Pack`). The blocks are then all that a mask lets see, and
        with a window some that it does not.
    """
    if parents is None or bounds is None:

        def causal(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (documents[q] == documents[k]) & (q >= k)

        def windowed(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return causal(batch, head, q, k) & (q - k < limit)

        first, prefix = positions, None
    else:
        own = documents.long()
        before = parents[own].long()

        def causal(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return ((own[q] == own[k]) | (before[q] == own[k])) & (positions[q] >= positions[k])

        def windowed(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return causal(batch, head, q, k) & (positions[q] - positions[k] < limit)

        first = torch.arange(len(own), device=own.device) - bounds[own]
        prefix = _Prefix(positions, before != own, bounds[before], bounds[before + 1])
    full = _block_mask(first, documents, None, causal, prefix)
    if window is None or longest <= window:
        return full, full
    limit = window
    return full, _block_mask(first, documents, window, windowed, prefix)


@dataclass(frozen=True)
class _Prefix:
    """What the document of each token continues: whether anything, and where that starts and ends, (T,)."""

    positions: Tensor
    continues: Tensor
    start: Tensor
    end: Tensor

    def blocks(self, opening: Tensor, closing: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """Blocks of queries by blocks of keys: those seen as prefixes, and those seen whole by every query.

        Prefixes lie in the order of those that continue them, so what a block sees of them is one stretch.
        """
        n = len(self.positions)
        starts, ends = _by_block(self.start, self.continues, n), _by_block(self.end, self.continues, 0)
        lowest, highest = starts.amin(1)[:, None], ends.amax(1)[:, None]
        one = (_by_block(self.start, self.continues, -1).amin(1) == starts.amax(1))[:, None]
        seen = (closing >= lowest) & (opening < highest)
        whole = one & (opening >= lowest) & (opening + BLOCK <= highest)
        if window is not None:
            everywhere = torch.ones_like(self.continues)
            nearest = _by_block(self.positions, self.continues, 2 * n).amin(1)[:, None]
            furthest = _by_block(self.positions, self.continues, -1).amax(1)[:, None]
            seen &= nearest - _by_block(self.positions, everywhere, -1).amax(1) < window
            whole &= furthest - self.positions[opening] < window
        return seen, whole


def _by_block(values: Tensor, where: Tensor, otherwise: int) -> Tensor:
    """A number a token, (blocks, BLOCK): another one elsewhere, and where the last block lacks tokens."""
    values = torch.where(where, values, otherwise)
    return torch.nn.functional.pad(values, (0, -len(values) % BLOCK), value=otherwise).view(-1, BLOCK)


@torch.no_grad()
def _block_mask(
    first: Tensor,
    documents: Tensor,
    window: int | None,
    mask_mod: Callable[..., Tensor],
    prefix: _Prefix | None,
) -> Any:
    n, device = len(documents), documents.device
    block = torch.arange(-(-n // BLOCK), device=device)
    opening = block * BLOCK
    closing = (opening + BLOCK - 1).clamp_max(n - 1)
    start = (opening - first[opening])[:, None]
    alone = ((documents[opening] == documents[closing]) & (opening + BLOCK <= n))[:, None]
    seen = (block <= block[:, None]) & (closing >= start)
    whole = (block < block[:, None]) & alone & (opening >= start)
    if window is not None:
        seen &= opening[:, None] - closing < window
        whole &= closing[:, None] - opening < window
    if prefix is not None:
        also_seen, also_whole = prefix.blocks(opening, closing, window)
        seen, whole = seen | also_seen, whole | also_whole

    def ordered(dense: Tensor) -> tuple[Tensor, Tensor]:
        index = dense.int().argsort(dim=-1, descending=True, stable=True)
        return dense.sum(-1, dtype=torch.int32)[None, None], index.int()[None, None].contiguous()

    return BlockMask.from_kv_blocks(
        *ordered(seen & ~whole), *ordered(whole), BLOCK_SIZE=BLOCK, mask_mod=mask_mod, seq_lengths=(n, n)
    )
