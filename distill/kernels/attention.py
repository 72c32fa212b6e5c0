"""Attention over packed documents: a token sees the earlier tokens of its own document, nothing else.

Four implementations under one contract, registered with ``transformers`` so that its own layers call
them. ``varlen`` and ``flex`` are for CUDA, ``sdpa`` and ``eager`` go document by document; ``eager``
writes the formula out and is what the others are tested against. None makes a mask of all tokens by all
tokens, and none drops soft-capping: what cannot cap refuses to.

Without ``cu_seq_lens_q`` in the call, as in a padded batch, they fall back to plain masked attention.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.errors import UserError, listing
from distill.architectures import architecture
from distill.kernels.agreement import flash_package

REGISTERED = {name: f"packed_{name}" for name in ("varlen", "flex", "sdpa", "eager")}
LIBRARY = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
"""The library's own bindings to FlashAttention packages; they read packed lengths by themselves."""
ALIASES = {"flex_attention": "flex"}
CANNOT_CAP = {"varlen", "sdpa"}
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


def attention_for(model_type: str, wanted: str) -> str:
    """Return the attention implementation; soft-capped models never get one that drops the cap.

    transformers 5.17 gives Gemma-2 ``sdpa``, which ignores ``attn_logit_softcapping`` without a word.
    """
    cuda = torch.cuda.is_available()
    capped = architecture(model_type).capped
    chosen = ALIASES.get(wanted, wanted)
    if chosen == "auto":
        if capped:
            chosen = "flex" if cuda else "eager"
        else:
            chosen = (flash_package() or ("varlen" if has_varlen() else "sdpa")) if cuda else "sdpa"
    if chosen not in REGISTERED and chosen not in LIBRARY:
        raise UserError(
            f"recipe: attention is {wanted!r}; it is auto or one of {listing([*REGISTERED, *LIBRARY], 9)}"
        )
    if chosen in CANNOT_CAP and capped:
        raise UserError(
            f"recipe: attention {wanted} drops the soft-capping of {model_type}; use eager, flex_attention "
            "or flash_attention_2"
        )
    if chosen in {"varlen", "flex"} and not cuda:
        raise UserError(f"recipe: attention {wanted} needs a CUDA device; use auto, eager or sdpa")
    return chosen


def registered(name: str) -> str:
    """Return the name under which ``transformers`` knows an implementation, registering ours."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

    if name == "varlen":
        _probe_groups()
    for own, known in REGISTERED.items():
        AttentionInterface.register(known, IMPLEMENTATIONS[own])
        AttentionMaskInterface.register(known, eager_mask if own in {"eager", "flex"} else sdpa_mask)
    return REGISTERED.get(name, name)


@cache
def has_varlen() -> bool:
    """Whether torch brings variable-length attention."""
    try:
        from torch.nn.attention import varlen  # noqa: F401
    except ImportError:
        return False
    return True


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    window: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Causal attention written out, in float32 softmax; the last query sees the last key.

    Parameters
    ----------
    query : Tensor of shape (batch, heads, q, d)
    key, value : Tensor of shape (batch, kv_heads, k, d)
    mask : Tensor, optional
        Added to the scores instead of the causal mask.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.transpose(2, 3)).float() * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        # The lowest number and not -inf: a padding query that may see nothing must not become NaN.
        lowest = torch.finfo(scores.dtype).min
        scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, lowest)
    else:
        q, k = query.shape[2], key.shape[2]
        ahead = torch.arange(k, device=query.device) - torch.arange(k - q, k, device=query.device)[:, None]
        hidden = ahead > 0 if window is None else (ahead > 0) | (ahead <= -window)
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(-1).to(value.dtype) @ value


def _padded(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor, None]:
    """Attention of a padded batch, masked by the library."""
    if options.get("softcap") is None and (mask is None or not mask.is_floating_point()):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=options["scaling"]
        )
        return out.transpose(1, 2).contiguous(), None
    out = attend(
        query,
        key,
        value,
        scaling=options["scaling"],
        softcap=options.get("softcap"),
        window=options.get("sliding_window"),
        mask=None if mask is None else mask[..., : key.shape[2]],
    )
    return out.transpose(1, 2).contiguous(), None


def _by_document(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, one: Callable[..., Tensor]
) -> tuple[Tensor, None]:
    """Apply ``one`` to each document's own (1, heads, length, d) tensors and join the results."""
    lengths = [n for n in bounds.diff().tolist() if n]
    pieces = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    out = torch.cat([one(*piece) for piece in pieces], dim=2)
    return out.transpose(1, 2).contiguous(), None


def eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The formula, document by document."""
    bounds = options.get("cu_seq_lens_q")
    if bounds is None:
        return _padded(query, key, value, attention_mask, options)

    def one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(
            q,
            k,
            v,
            scaling=options["scaling"],
            softcap=options.get("softcap"),
            window=options.get("sliding_window"),
        )

    return _by_document(query, key, value, bounds, one)


def sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Torch's fused attention, document by document: fast on the CPU."""
    _refuse_cap(options)
    bounds = options.get("cu_seq_lens_q")
    window = options.get("sliding_window")
    if bounds is None or (window is not None and options["max_length_q"] > window):
        return eager(module, query, key, value, attention_mask, **options)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)

    def one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=options["scaling"])

    return _by_document(query, key, value, bounds, one)


def varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Torch's FlashAttention over packed documents."""
    _refuse_cap(options)
    bounds = options.get("cu_seq_lens_q")
    if bounds is None:
        return _padded(query, key, value, attention_mask, options)
    window = options.get("sliding_window")
    longest = options["max_length_q"]
    left = -1 if window is None or window >= longest else window - 1
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    out = varlen_heads(q, k, v, bounds, bounds, longest, longest, options["scaling"], (left, 0))
    return out[None], None


def varlen_heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    longest_query: int,
    longest_key: int,
    scaling: float,
    window: tuple[int, int],
) -> Tensor:
    """Call ``varlen_attn``, repeating key-value heads where it does not take fewer of them than queries.

    Shapes are (tokens, heads, d).
    """
    from torch.nn.attention.varlen import varlen_attn

    groups = query.shape[1] // key.shape[1]
    if groups > 1 and _groups["how"] == "repeat":
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    grouped: dict[str, Any] = {"enable_gqa": True} if groups > 1 and _groups["how"] == "flag" else {}
    out: Any = varlen_attn(
        query,
        key,
        value,
        query_bounds,
        key_bounds,
        longest_query,
        longest_key,
        scale=scaling,
        window_size=window,
        **grouped,
    )
    return out


_groups = {"how": "repeat"}


@cache
def _probe_groups() -> None:
    """Find out how ``varlen_attn`` takes grouped heads: by a flag from torch 2.12 on, before silently or not.

    Outputs and gradients of the silent way are held against those of repeated heads on this very device.
    """
    from torch.nn.attention.varlen import varlen_attn

    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        _groups["how"] = "flag"
        return
    bounds = torch.tensor([0, 70, 200], dtype=torch.int32, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    tensors: Any = [
        torch.randn(200, heads, 64, device="cuda", dtype=torch.bfloat16, generator=generator).requires_grad_()
        for heads in (8, 2, 2)
    ]
    weights = torch.randn(200, 8, 64, device="cuda", dtype=torch.bfloat16, generator=generator)
    results: list[list[Tensor]] = []
    for how in ("repeat", "silent"):
        _groups["how"] = how
        try:
            q, k, v = tensors
            out = varlen_heads(q, k, v, bounds, bounds, 130, 130, 0.125, (-1, 0))
            results.append([out.detach(), *torch.autograd.grad(out, tensors, weights)])
        except (RuntimeError, ValueError):
            break
    same = len(results) == 2 and all(
        (a - b).float().norm() < 0.02 * a.float().norm() for a, b in zip(*results, strict=True)
    )
    _groups["how"] = "silent" if same else "repeat"


def flex(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """Flex attention under the call's block mask of documents, soft-capped where asked."""
    if options.get("block_mask") is None:
        return _padded(query, key, value, attention_mask, options)
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
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if torch.compiler.is_compiling() else _compiled_flex()


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _capped(cap: float) -> Callable[..., Tensor]:
    """``cap * tanh(scores / cap)``, written with a sigmoid.

    Tanh of the GPU's library branches for every score; this form has no branch, and differs from it by
    float32 rounding.
    """

    def score(scores: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return 2 * cap * torch.sigmoid(scores * (2 / cap)) - cap

    return score


def block_masks(positions: Tensor, documents: Tensor, window: int | None, longest: int) -> tuple[Any, Any]:
    """Block masks of full and of windowed layers, one and the same where no document exceeds the window.

    Which blocks are empty, whole or partly masked follows from where documents start.
    ``create_block_mask`` would look at all tokens by all tokens, and compiling the sorts in it took
    longer than all the rest of the first step (ptxas needs over a minute for one).

    Parameters
    ----------
    positions, documents : int Tensor of shape (T,)
        Position of each token in its document, and which that is; documents lie one behind another.
    """

    def causal(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (documents[q] == documents[k]) & (q >= k)

    full = _block_mask(positions, documents, None, causal)
    if window is None or longest <= window:
        return full, full

    def windowed(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return causal(batch, head, q, k) & (q - k < window)

    return full, _block_mask(positions, documents, window, windowed)


@torch.no_grad()
def _block_mask(
    positions: Tensor, documents: Tensor, window: int | None, mask_mod: Callable[..., Tensor]
) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    n, device = len(documents), documents.device
    block = torch.arange(-(-n // BLOCK), device=device)
    opening = block * BLOCK
    closing = (opening + BLOCK - 1).clamp_max(n - 1)
    start = (opening - positions[opening])[:, None]
    alone = ((documents[opening] == documents[closing]) & (opening + BLOCK <= n))[:, None]
    seen = (block <= block[:, None]) & (closing >= start)
    whole = (block < block[:, None]) & alone & (opening >= start)
    if window is not None:
        seen &= opening[:, None] - closing < window
        whole &= closing[:, None] - opening < window

    def ordered(dense: Tensor) -> tuple[Tensor, Tensor]:
        index = dense.int().argsort(dim=-1, descending=True, stable=True)
        return dense.sum(-1, dtype=torch.int32)[None, None], index.int()[None, None].contiguous()

    return BlockMask.from_kv_blocks(
        *ordered(seen & ~whole), *ordered(whole), BLOCK_SIZE=BLOCK, mask_mod=mask_mod, seq_lengths=(n, n)
    )


def last_token_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Tensor,
    last: Tensor,
    scaling: float,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention of one query a document, its last token's, over that document's keys.

    Every key meets a single query, so a softmax over segments does it in memory linear in the tokens.

    Parameters
    ----------
    query : Tensor of shape (n, heads, d)
    key, value : Tensor of shape (T, kv_heads, d)
    documents : int Tensor of shape (T,)
        The document of each key.
    last : int Tensor of shape (n,)
        Index of the last key of each document.

    Returns
    -------
    Tensor of shape (n, heads, d)
    """
    documents = documents.long()
    n, heads, d = query.shape
    grouped = query.view(n, key.shape[1], -1, d)
    scores = (grouped[documents] * key[:, :, None]).sum(-1, dtype=torch.float32) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if window is not None:
        distance = last[documents] - torch.arange(len(documents), device=last.device)
        scores = scores.masked_fill((distance >= window)[:, None, None], float("-inf"))
    index = documents[:, None, None].expand_as(scores)
    highest = scores.new_full((n, *scores.shape[1:]), float("-inf"))
    highest = highest.scatter_reduce(0, index, scores.detach(), "amax")
    weights = (scores - highest[documents]).exp()
    total = weights.new_zeros(highest.shape).index_add(0, documents, weights)
    shares = (weights / total[documents])[..., None] * value[:, :, None].float()
    out = shares.new_zeros(grouped.shape).index_add(0, documents, shares)
    return out.view(n, heads, d).to(value.dtype)


def _refuse_cap(options: dict[str, Any]) -> None:
    if options.get("softcap") is not None:
        raise ValueError("this attention cannot soft-cap its scores; use eager, flex or flash_attention_2")


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "varlen": varlen,
    "flex": flex,
    "sdpa": sdpa,
    "eager": eager,
}
