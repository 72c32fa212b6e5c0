"""Matrix products with frozen weights, alone and with a low-rank adapter beside them.

A frozen weight has an input gradient and none of its own, whatever it is stored in.

Layout. ``x`` is (tokens, in), a weight (out, in), adapters ``a`` (r, in) and ``b`` (out, r). A stored weight
is a kind and a list of tensors:

=========  ==========================================================================================
kind       tensors
=========  ==========================================================================================
dense      the weight
nf4        two values a byte, one scale for 64 of them; doubly quantised scales: their code book, outer
           scales (one for 256) and offset beside them
nf4_fp8    as nf4, with float32 scales (out, 1) for its rows in FP8 behind the values
nf4_int8   the same with scales for its rows rotated and in int8
int8       int8 (out, in) and float32 scales (out, 1)
int8_int8  the same of the rotated weight, multiplied as it is
fp8        e4m3 (out, in), float32 scales (out, 1) and, on a GPU, the same values laid out (in, out)
=========  ==========================================================================================

Dtype. NF4 and int8 are written out in the activations' dtype before each product, forward and backward, so
that nothing of full size is kept between; nf4_fp8 and nf4_int8 are unpacked to 8 bits
(:mod:`distill.kernels.unpack`). FP8 and int8_int8 multiply as they are: each row of activations is rounded
under a scale of its own, hardware multiplies the 8-bit values, and both scales are applied to the sum
(:mod:`distill.kernels.scaled`). In the backward pass the weight's row scales are multiplied into the gradient
before that is rounded, so the very values of the forward pass serve again. What is multiplied in int8 is
rotated before it is rounded, and the input gradient back (:mod:`distill.kernels.rotation`). The adapter is
computed in the activations' dtype; its factors may be kept in float32.

Trade-offs. FP8's second layout costs a byte a weight, since hardware reads only one of the two; int8's is
made anew for each backward pass, in a tenth of the product's time, because int8 is for cards with little
memory. e4m3 has three bits of mantissa, so a rounded value is off by up to 6 %, however small it is; int8
has 254 even steps, so a value is off by up to half a step, and a row whose largest is far above the others
leaves these few. The adapter is added into the product in place: a product written out, read back and added
costs some 3 % of a step. The inner product ``x @ a.T`` is kept for the backward pass, for it is r wide; the
written-out weight is not.

The products are opaque operators, so that a compiled layer keeps the in-place addition; the rounding of
activations is ordinary code, which the compiler fuses with what comes before it. Stored tensors are
handed over one by one, because the compiler misreads ``*args``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.kernels.operator import operator
from distill.kernels.rotation import rotated, rotated_mm
from distill.kernels.scaled import FP8, quantise_rows, scaled_mm, turned
from distill.kernels.unpack import NF4_BLOCK, block_scales, unpack

ROUNDED = {"fp8": FP8, "nf4_fp8": FP8, "nf4_int8": torch.int8, "int8_int8": torch.int8}
"""Kinds of weights whose products are in 8 bits, and in which: what they multiply is rounded too."""


def dense(kind: str, stored: list[Tensor], shape: list[int], dtype: torch.dtype) -> Tensor:
    """Return a stored weight as an ordinary matrix (out, in)."""
    if kind == "dense":
        return stored[0] if stored[0].dtype == dtype else stored[0].to(dtype)
    if kind in ("int8", "int8_int8"):
        weight = stored[0].to(torch.float32) * stored[1]
        return (weight if kind == "int8" else rotated(weight)).to(dtype)
    packed, scales, *nested = stored if kind == "nf4" else (stored[0], *stored[2:])
    scales = block_scales(scales, nested)
    return torch.ops.bitsandbytes.dequantize_4bit(packed, scales, NF4_BLOCK, "nf4", shape, dtype)


def _product(
    x: Tensor, x_scale: Tensor | None, kind: str, stored: list[Tensor], shape: list[int], dtype: torch.dtype
) -> Tensor:
    if x_scale is not None:
        weight = unpack(stored, shape, ROUNDED[kind]) if kind.startswith("nf4") else stored[0]
        return scaled_mm(x, x_scale, weight, stored[1], dtype)
    return x @ dense(kind, stored, shape, dtype).t()


def _transposed_product(
    dy: Tensor, dy_scale: Tensor | None, kind: str, stored: list[Tensor], shape: list[int], dtype: torch.dtype
) -> Tensor:
    if dy_scale is not None:
        # The weight's own row scales were multiplied into dy, so the very 8-bit values of the forward pass
        # serve again, and the scale of the transposed weight is one.
        if kind.startswith("nf4"):
            weight = unpack(stored, shape, ROUNDED[kind], turned=True)
        else:
            weight = stored[2] if len(stored) > 2 else turned(stored[0])
        product = rotated_mm if ROUNDED[kind] == torch.int8 else scaled_mm
        return product(dy, dy_scale, weight, dy_scale.new_ones(len(weight), 1), dtype)
    return dy @ dense(kind, stored, shape, dtype)


@operator("frozen_mm")
def _frozen_mm(
    x: Tensor, x_scale: Tensor | None, kind: str, stored: list[Tensor], shape: list[int], dtype: torch.dtype
) -> Tensor:
    return _product(x, x_scale, kind, stored, shape, dtype)


@torch.library.register_fake(_frozen_mm)
def _(x, x_scale, kind, stored, shape, dtype):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], shape[0], dtype=dtype)


@operator("frozen_mm_backward")
def _frozen_mm_backward(
    dy: Tensor, dy_scale: Tensor | None, kind: str, stored: list[Tensor], shape: list[int], dtype: torch.dtype
) -> Tensor:
    return _transposed_product(dy, dy_scale, kind, stored, shape, dtype)


@torch.library.register_fake(_frozen_mm_backward)
def _(dy, dy_scale, kind, stored, shape, dtype):  # type: ignore[no-untyped-def]
    return dy.new_empty(dy.shape[0], shape[1], dtype=dtype)


@operator("lora_mm")
def _lora_mm(
    x: Tensor,
    rounded: Tensor | None,
    x_scale: Tensor | None,
    kind: str,
    stored: list[Tensor],
    shape: list[int],
    a: Tensor,
    b: Tensor,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    y = _product(x if rounded is None else rounded, x_scale, kind, stored, shape, x.dtype)
    inner = x @ a.t()
    return y.addmm_(inner, b.t(), alpha=scaling), inner


@torch.library.register_fake(_lora_mm)
def _(x, rounded, x_scale, kind, stored, shape, a, b, scaling):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], shape[0]), x.new_empty(x.shape[0], a.shape[0])


@operator("lora_mm_backward")
def _lora_mm_backward(
    dy: Tensor,
    rounded: Tensor | None,
    dy_scale: Tensor | None,
    x: Tensor,
    inner: Tensor,
    kind: str,
    stored: list[Tensor],
    shape: list[int],
    a: Tensor,
    b: Tensor,
    scaling: float,
    needs_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    # The factor is part of the products: by itself it would be two launches more.
    d_inner = dy @ b
    da = torch.empty_like(a).addmm_(d_inner.t(), x, beta=0, alpha=scaling)
    db = torch.empty_like(b).addmm_(dy.t(), inner, beta=0, alpha=scaling)
    if not needs_x:
        return x.new_empty(0), da, db
    dx = _transposed_product(dy if rounded is None else rounded, dy_scale, kind, stored, shape, dy.dtype)
    return dx.addmm_(d_inner, a, alpha=scaling), da, db


@torch.library.register_fake(_lora_mm_backward)
def _(dy, rounded, dy_scale, x, inner, kind, stored, shape, a, b, scaling, needs_x):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape if needs_x else (0,)), torch.empty_like(a), torch.empty_like(b)


def _rounded(kind: str, x: Tensor, factors: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
    if kind not in ROUNDED:
        return None, None
    if factors is not None:
        return quantise_rows(x.float() * factors, ROUNDED[kind])
    if ROUNDED[kind] == torch.int8:
        return torch.ops.distillstack.quantise_rotated(x)
    return quantise_rows(x)


def _given(*stored: Tensor | None) -> list[Tensor]:
    return [tensor for tensor in stored if tensor is not None]


class FrozenProduct(torch.autograd.Function):
    """``x @ weight.T`` with an input gradient only."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kind: str,
        shape: tuple[int, int],
        s0: Tensor,
        s1: Tensor | None = None,
        s2: Tensor | None = None,
        s3: Tensor | None = None,
        s4: Tensor | None = None,
        s5: Tensor | None = None,
    ) -> Tensor:
        """Multiply; ``x`` is (tokens, in). Stored tensors come singly: the compiler misreads ``*args``."""
        stored = _given(s0, s1, s2, s3, s4, s5)
        ctx.kind, ctx.shape = kind, shape
        ctx.save_for_backward(*stored)
        rounded, scale = _rounded(kind, x)
        return torch.ops.distillstack.frozen_mm(
            x if rounded is None else rounded, scale, kind, stored, list(shape), x.dtype
        )

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        """Return the input gradient."""
        stored = ctx.saved_tensors
        dy = dy.contiguous()
        rounded, scale = _rounded(ctx.kind, dy, stored[1].t() if ctx.kind in ROUNDED else None)
        dx = torch.ops.distillstack.frozen_mm_backward(
            dy if rounded is None else rounded, scale, ctx.kind, list(stored), list(ctx.shape), dy.dtype
        )
        return dx, *[None] * 8


class LoraProduct(torch.autograd.Function):
    """``x @ weight.T + scaling * x @ a.T @ b.T``, the second added into the first in place."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        scaling: float,
        kind: str,
        shape: tuple[int, int],
        s0: Tensor,
        s1: Tensor | None = None,
        s2: Tensor | None = None,
        s3: Tensor | None = None,
        s4: Tensor | None = None,
        s5: Tensor | None = None,
    ) -> Tensor:
        """Multiply; ``x`` is (tokens, in), ``a`` (r, in), ``b`` (out, r), all of one dtype."""
        stored = _given(s0, s1, s2, s3, s4, s5)
        rounded, scale = _rounded(kind, x)
        y, inner = torch.ops.distillstack.lora_mm(x, rounded, scale, kind, stored, list(shape), a, b, scaling)
        ctx.scaling, ctx.kind, ctx.shape = scaling, kind, shape
        ctx.save_for_backward(x, inner, a, b, *stored)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        """Return the gradients of ``x``, ``a`` and ``b``."""
        x, inner, a, b, *stored = ctx.saved_tensors
        dy = dy.contiguous()
        needs_x = ctx.needs_input_grad[0]
        rounded, scale = None, None
        if needs_x:
            rounded, scale = _rounded(ctx.kind, dy, stored[1].t() if ctx.kind in ROUNDED else None)
        dx, da, db = torch.ops.distillstack.lora_mm_backward(
            dy, rounded, scale, x, inner, ctx.kind, stored, list(ctx.shape), a, b, ctx.scaling, needs_x
        )
        return dx if needs_x else None, da, db, *[None] * 9
