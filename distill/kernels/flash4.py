"""FlashAttention-4 over packs, as one operator that the compiler does not look into.

The package is written in Python and compiles its kernels as they are called; traced by the compiler of the
layers it would come apart, as the library's own binding does. Here its two passes are an operator each, whose
shapes alone the compiler sees.

Layout. (T, heads, d) in 16 bits, documents one behind another, their bounds int32 (documents + 1,); keys and
values have their own number of heads, and bounds of their own, as prefixes that documents share are laid
before each: the last query of a document sees its last key. The forward pass also leaves the logarithm of
each softmax's sum, float32 (heads, T), which the backward pass reads instead of the scores.

The passes are the package's own functions behind its public one, which hides that logarithm; they may change
with a version. What no longer fits fails :func:`distill.kernels.agreement.agrees`, and is left out.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from distill.kernels.attention import masked, repeated, tokens_before
from distill.kernels.operator import operator


def flash4(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """FlashAttention-4 over packed documents, windowed and soft-capped where asked."""
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
    cap = options.get("softcap") or 0.0
    return flash4_forward(q, k, v, bounds, key_bounds, longest, options["scaling"], left, cap)[0][None], None


@cache
def _package() -> Any:
    """The module of the package that has its passes; compiled for the card at their first call."""
    from flash_attn.cute import interface

    warnings.filterwarnings("ignore", "Argument aux_data", UserWarning)  # of its compiler, to its authors
    return interface


def _told(
    bounds: Tensor, key_bounds: Tensor, longest: int, scaling: float, left: int, cap: float
) -> dict[str, Any]:
    """What both passes are told alike."""
    return {
        "softmax_scale": scaling,
        "causal": True,
        "softcap": cap,
        "window_size_left": None if left < 0 else left,
        "cu_seqlens_q": bounds,
        "cu_seqlens_k": key_bounds,
        "max_seqlen_q": longest,
        "max_seqlen_k": longest,
    }


@operator("flash4")
def flash4_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    key_bounds: Tensor,
    longest: int,
    scaling: float,
    left: int,
    cap: float,
) -> tuple[Tensor, Tensor]:
    """Attention and the logarithm of each softmax's sum.

    Parameters
    ----------
    query : Tensor of shape (T, heads, d)
    key, value : Tensor of shape (keys, kv_heads, d)
    bounds, key_bounds : int32 Tensor of shape (documents + 1,)
        Of the documents' tokens, and of the keys that they see.
    longest : int
        Keys of the longest document, or more.
    left : int
        Earlier tokens that a token sees, or -1 for all.
    cap : float
        Of the scores, or 0.

    Returns
    -------
    tuple of Tensor
        (T, heads, d), and (heads, T) float32.
    """
    told = _told(bounds, key_bounds, longest, scaling, left, cap)
    out, lse = _package()._flash_attn_fwd(query, key, value, return_lse=True, **told)[:2]
    return out, lse


@torch.library.register_fake(flash4_forward)
def _(query, key, value, bounds, key_bounds, longest, scaling, left, cap):  # type: ignore[no-untyped-def]
    tokens, heads = query.shape[:2]
    return torch.empty_like(query), query.new_empty((heads, tokens), dtype=torch.float32)


@operator("flash4_backward")
def flash4_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    bounds: Tensor,
    key_bounds: Tensor,
    longest: int,
    scaling: float,
    left: int,
    cap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; ``grad`` is that of the output."""
    told = _told(bounds, key_bounds, longest, scaling, left, cap)
    found = _package()._flash_attn_bwd(query, key, value, out, grad.contiguous(), lse, **told)
    return found[0], found[1], found[2]


@torch.library.register_fake(flash4_backward)
def _(grad, query, key, value, *rest):  # type: ignore[no-untyped-def]
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, bounds, key_bounds, *ctx.rest = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, *output, bounds, key_bounds)


def _gradients(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    return (*flash4_backward(grad, *ctx.saved_tensors, *ctx.rest), *[None] * 6)


torch.library.register_autograd(flash4_forward, _gradients, setup_context=_remember)
