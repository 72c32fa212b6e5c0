"""NF4 weights unpacked straight to FP8: stored in 4 bits, multiplied at FP8's speed.

A weight is ``code * block``, a code of 16 and the scale of its block of 64. Under one scale an output row,
known when the base is loaded, it becomes the FP8 number ``code * (block / row)`` and the product gets the
row's scale back. The scale stands beside outputs, so the forward pass multiplies it into what comes out and
the input gradient into what goes in (:mod:`distill.kernels.products`): both read the same FP8 numbers, and
only their layout differs, which hardware wants with the summed dimension last. The kernel writes either.

Unpacking reads half a byte a weight and writes one, where bf16 takes two. What it costs in accuracy is the
FP8 rounding of a number that 4 bits already rounded, and that of the activations.
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
NF4_BLOCK = 64


def block_scales(absmax: Tensor, nested: list[Tensor]) -> Tensor:
    """The float32 scale of each block, unpacked where it is itself stored in 8 bits (double quantisation).

    Parameters
    ----------
    nested : list of Tensor
        Nothing, or the code of 256 numbers, the outer scales and the offset.
    """
    if not nested:
        return absmax
    code, outer, offset = nested
    return torch.ops.bitsandbytes.dequantize_blockwise(absmax, outer, code, 256, torch.float32) + offset


def row_scales(packed: Tensor, absmax: Tensor, nested: list[Tensor], shape: list[int]) -> Tensor:
    """Scale of each output row of an NF4 weight, (out, 1) float32: its largest number becomes FP8's."""
    return (_dense(packed, absmax, nested, shape).abs().amax(-1, keepdim=True) / FP8_MAX).clamp_min(1e-12)


def _dense(packed: Tensor, absmax: Tensor, nested: list[Tensor], shape: list[int]) -> Tensor:
    scales = block_scales(absmax, nested)
    return torch.ops.bitsandbytes.dequantize_4bit(packed, scales, NF4_BLOCK, "nf4", shape, torch.float32)


def unpack(stored: list[Tensor], shape: list[int], turned: bool = False) -> Tensor:
    """Return an NF4 weight in FP8 under its row scales, (out, in), or (in, out) if ``turned``.

    Parameters
    ----------
    stored : list of Tensor
        Packed codes, row scales, block scales, and what unpacks these (:func:`block_scales`).
    shape : list of int
        Out, in.
    """
    packed, scale, absmax, *nested = stored
    if packed.is_cuda and shape[1] % NF4_BLOCK == 0:
        from distill.kernels.unpack_triton import launch

        return launch(packed, scale, absmax, nested, shape, turned)
    weight = (_dense(packed, absmax, nested, shape) / scale).to(FP8)
    return weight.t().contiguous() if turned else weight
