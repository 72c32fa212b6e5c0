"""Attention over packed documents: a token sees the earlier tokens of its own document, nothing else.

Implementations under one contract, the library's, registered with it so that its own layers call them
(:mod:`distill.kernels.choice`).

Layout. The library hands over (1, heads, T, d) and takes back (1, T, heads, d): all documents of a pack lie
behind one another on the axis of tokens, told apart by ``cu_seq_lens_q``, int32 (documents + 1,), of which a
static pack repeats the end. Keys and values have as many heads as the model stores; a kernel that takes fewer
of them than query heads gets them so, the others get them repeated. A window of w means that a token sees
itself and the w - 1 before it.

Shared prefixes (:mod:`distill.packing.sharing`). ``key_tokens`` then lists the keys that each document sees,
document by document, a prefix's again for every document that continues it; ``cu_seq_lens_k`` has the
bounds. A document's last query sees the last of its keys, in torch's ``varlen_attn`` as in the formula. Flex
leaves keys where they lie, and its mask says who continues whom.

Dtype. Scores and softmax are in float32 in every implementation, whatever the inputs are; the product with
the values is in the values' dtype.

Trade-offs.

=========  =======  ====================  ==========================================================
name       device   documents             for
=========  =======  ====================  ==========================================================
eager      any      one by one            the formula, in full: what all others are held against
sdpa       any      one by one            speed on the CPU; a window that cuts goes to eager; no cap
varlen     CUDA     all at once           speed: torch's FlashAttention-2, 16 bits only; no cap
flex       CUDA     all, by block masks   soft caps: compiled, wants packs of one shape
fa4        CUDA     all at once           speed from Hopper on, caps too, where its package is installed
=========  =======  ====================  ==========================================================

``flex`` and ``fa4``, FlashAttention-4, have files of their own; FlashAttention packages of versions 3 and 4
are taken where they agree with the formula (:mod:`distill.kernels.agreement`). None makes a mask of all
tokens by all tokens, and none drops soft-capping: what cannot cap refuses to. The last layer has one query a
document, and is attended to by :func:`last_token_attention`, in memory linear in the tokens.

Without ``cu_seq_lens_q`` in the call, as in a padded batch, they fall back to plain masked attention.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

GQA_FLAG: dict[str, Any] = (
    {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
)
"""How ``varlen_attn`` is told of fewer key heads than query heads: torch 2.11 needs no telling."""


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


def masked(
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


def repeated(x: Tensor, tokens: Tensor, dim: int) -> Tensor:
    """Keys or values in the order in which documents see them: zeros, without gradient, where a token is -1.

    Gradients of a token that several documents see are added up in float32. Kernels leave those of keys
    beyond the last document undefined, so that they must not be added to any token's.
    """
    found = x.float().index_select(dim, tokens.clamp_min(0)).to(x.dtype)
    shape = [1] * x.ndim
    shape[dim] = len(tokens)
    return torch.where((tokens >= 0).view(shape), found, 0)


def _by_document(
    query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any], one: Callable[..., Tensor]
) -> tuple[Tensor, None]:
    """Apply ``one`` to each document's (1, heads, length, d) queries, keys and values; join the results."""
    lengths = [[n for n in options[f"cu_seq_lens_{kind}"].diff().tolist() if n] for kind in "qk"]
    tokens = options.get("key_tokens")
    if tokens is not None:
        tokens = tokens[: sum(lengths[1])]
        key, value = repeated(key, tokens, 2), repeated(value, tokens, 2)
    split = query.split(lengths[0], 2), key.split(lengths[1], 2), value.split(lengths[1], 2)
    out = torch.cat([one(*piece) for piece in zip(*split, strict=True)], dim=2)
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
        return masked(query, key, value, attention_mask, options)

    def one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(
            q,
            k,
            v,
            scaling=options["scaling"],
            softcap=options.get("softcap"),
            window=options.get("sliding_window"),
        )

    return _by_document(query, key, value, options, one)


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
        before = k.shape[2] - q.shape[2]
        mask = None  # torch's own causal mask has the first query see the first key
        if before:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(before)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=options["scaling"]
        )

    return _by_document(query, key, value, options, one)


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
        return masked(query, key, value, attention_mask, options)
    longest = options["max_length_q"]
    left = tokens_before(options.get("sliding_window"), longest)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    tokens = options.get("key_tokens")
    if tokens is not None:
        k, v = repeated(k, tokens, 0), repeated(v, tokens, 0)
    q, k, v = (x.contiguous() for x in (q, k, v))
    key_bounds = options["cu_seq_lens_k"]
    out = varlen_heads(q, k, v, bounds, key_bounds, longest, longest, options["scaling"], (left, 0))
    return out[None], None


def tokens_before(window: int | None, longest: int) -> int:
    """Earlier tokens that a token sees, as FlashAttention's kernels are told: -1 where no window cuts."""
    return -1 if window is None or window >= longest else window - 1


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
    """Call ``varlen_attn``; shapes are (tokens, heads, d), of keys and values with their own heads."""
    grouped = GQA_FLAG if query.shape[1] != key.shape[1] else {}
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
        The document of each key; -1 where it is nobody's.
    last : int Tensor of shape (n,)
        Index of the last key of each document.

    Returns
    -------
    Tensor of shape (n, heads, d)
    """
    nobodys = (documents < 0)[:, None, None]
    documents = documents.long().clamp_min(0)
    n, heads, d = query.shape
    grouped = query.view(n, key.shape[1], -1, d)
    scores = (grouped[documents] * key[:, :, None]).sum(-1, dtype=torch.float32) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(nobodys, float("-inf"))
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
