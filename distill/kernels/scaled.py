"""Matrices in 8 bits under a scale a row, e4m3 or int8: how they are rounded, and how they are multiplied.

Hardware multiplies the 8-bit numbers and sums them, FP8 in float32 and int8 in int32; then both matrices'
scales are applied to the sum. FP8 is torch's own ``_scaled_mm``. int8 takes the first of these that is there:

=============  ======================  =================================================================
by             device                  what it costs beside the product
=============  ======================  =================================================================
Triton kernel  CUDA, 8.0 or higher     nothing: sums stay in registers until they are scaled and rounded
torch          CUDA, 7.5 (T4)          int32 sums written, read and scaled: 18 bytes an output
written out    CPU, odd widths         everything: float32 products; what the others are held against
=============  ======================  =================================================================

Triton has no tensor-core code for cards before 8.0 since its version 3.3 (triton #5066), and says that it
does not support them. ``torch._int_mm`` wants more than 16 rows and widths that are multiples of 8. Integer
sums are exact in any order, so tiles can be chosen by a clock without changing a bit of what comes out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

log = logging.getLogger(__name__)

FP8 = torch.float8_e4m3fn
LARGEST = {FP8: 448.0, torch.int8: 127.0}
"""The largest number of each 8-bit dtype, which a row's largest becomes."""
LEAST_ROWS = 17
"""Of ``torch._int_mm``'s first matrix."""
ROWS_AT_ONCE = 4096
"""Rows whose int32 sums are kept at a time where there is no kernel for them."""
TRITON_SINCE = (8, 0)

Product = Callable[[Tensor, Tensor, Tensor, Tensor, torch.dtype], Tensor]


def row_scale(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The float32 scale of each row, (m, 1), under which its largest number is the dtype's largest."""
    return (x.abs().amax(-1, keepdim=True).float() / LARGEST[dtype]).clamp_min(1e-12)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 numbers that are under their scale already."""
    return (x if dtype.is_floating_point else x.round()).to(dtype)


def quantise_rows(x: Tensor, dtype: torch.dtype = FP8) -> tuple[Tensor, Tensor]:
    """Round each row to 8 bits under a scale of its own: (m, k) of the dtype and (m, 1) float32."""
    scale = row_scale(x, dtype)
    return rounded(x.float() / scale, dtype), scale


def written_out(x: Tensor, x_scale: Tensor, weight: Tensor, w_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The formula ``(x * x_scale) @ (weight * w_scale).T`` in float32; parameters as :func:`scaled_mm`."""
    return ((x.float() * x_scale) @ (weight.float() * w_scale).t()).to(dtype)


def by_torch(x: Tensor, x_scale: Tensor, weight: Tensor, w_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 product by ``torch._int_mm``, for widths that it takes, scaled some rows at a time."""
    out = x.new_empty(len(x), len(weight), dtype=dtype)
    for part, scale, into in zip(*(t.split(ROWS_AT_ONCE) for t in (x, x_scale, out)), strict=True):
        wide = F.pad(part, (0, 0, 0, max(0, LEAST_ROWS - len(part))))
        sums = torch._int_mm(wide, weight.t())[: len(part)] * w_scale.t()
        torch.mul(sums, scale, out=into)
    return out


@cache
def has_kernels(device: torch.device) -> bool:
    """Whether Triton makes tensor-core code for a CUDA device."""
    return torch.cuda.get_device_capability(device) >= TRITON_SINCE


@cache
def int8_product(device: torch.device) -> Product:
    """Return how a CUDA device multiplies int8: by the Triton kernel if that gives the formula's numbers."""
    if not has_kernels(device):
        return by_torch
    try:
        from distill.kernels.scaled_triton import launch

        if agrees(launch, device):
            return launch
        log.warning("the int8 kernel does not compute its formula here; torch's own product is taken")
    except Exception as error:  # whatever a compiler may raise that does not know the card, or is not there
        log.warning("no int8 kernel here (%s); torch's own product is taken", error)
    return by_torch


def agrees(product: Product, device: torch.device) -> bool:
    """Whether a product of int8 matrices gives the formula's numbers, on shapes that fill no tile."""
    generator = torch.Generator(device).manual_seed(0)
    x, weight = (
        quantise_rows(torch.randn(rows, 336, device=device, generator=generator), torch.int8)
        for rows in (150, 208)
    )
    found, wanted = (how(*x, *weight, torch.float32) for how in (product, written_out))
    return bool((found - wanted).norm() < 1e-3 * wanted.norm())


def scaled_mm(x: Tensor, x_scale: Tensor, weight: Tensor, w_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """8-bit product ``x @ weight.T`` under row scales of both.

    Parameters
    ----------
    x, weight : Tensor of shape (m, k) and (n, k), both FP8 or both int8
    x_scale, w_scale : float32 Tensor of shape (m, 1) and (n, 1)
    dtype : torch.dtype
        Of the product, (m, n).
    """
    if not x.is_cuda:
        return written_out(x, x_scale, weight, w_scale, dtype)
    if x.dtype == torch.int8:
        fits = x.shape[1] % 8 == 0 and len(weight) % 8 == 0
        return (int8_product(x.device) if fits else written_out)(x, x_scale, weight, w_scale, dtype)
    if dtype == torch.float32:
        return scaled_mm(x, x_scale, weight, w_scale, torch.bfloat16).float()
    return torch._scaled_mm(
        x, weight.t(), scale_a=x_scale, scale_b=w_scale.t(), out_dtype=dtype, use_fast_accum=True
    )


def turned(weight: Tensor) -> Tensor:
    """Return an 8-bit weight (out, in) laid out as (in, out): hardware wants the summed dimension last."""
    if weight.is_cuda and weight.dtype == torch.int8:
        from distill.kernels.scaled_triton import turn

        return turn(weight)
    return weight.t().contiguous()
