"""NF4 weights unpacked straight to FP8 or int8: stored in 4 bits, multiplied at the speed of 8.

A weight is ``code * block``, a code of 16 and the scale of its block of 64. Under one scale an output row,
known when the base is loaded, it becomes the 8-bit number ``code * (block / row)`` and the product gets the
row's scale back. The scale stands beside outputs, so the forward pass multiplies it into what comes out and
the input gradient into what goes in (:mod:`distill.kernels.products`): both read the same 8-bit numbers, and
only their layout differs, which hardware wants with the summed dimension last. The kernel writes either.

Unpacking reads half a byte a weight and writes one, where bf16 takes two. What it costs in accuracy is the
rounding to 8 bits of a number that 4 bits already rounded, and that of the activations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.kernels.rotation import hadamard, rotated
from distill.kernels.scaled import FP8, has_kernels, rounded, row_scale

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


def row_scales(
    packed: Tensor, absmax: Tensor, nested: list[Tensor], shape: list[int], dtype: torch.dtype
) -> Tensor:
    """Scale of each output row of an NF4 weight, (out, 1) float32: its largest number becomes the dtype's."""
    return row_scale(_dense(packed, absmax, nested, shape, dtype), dtype)


def _dense(
    packed: Tensor, absmax: Tensor, nested: list[Tensor], shape: list[int], dtype: torch.dtype
) -> Tensor:
    scales = block_scales(absmax, nested)
    weight = torch.ops.bitsandbytes.dequantize_4bit(packed, scales, NF4_BLOCK, "nf4", shape, torch.float32)
    return rotated(weight) if dtype == torch.int8 else weight


def unpack(stored: list[Tensor], shape: list[int], dtype: torch.dtype, turned: bool = False) -> Tensor:
    """Return an NF4 weight in 8 bits under its row scales, (out, in), or (in, out) if ``turned``.

    Parameters
    ----------
    stored : list of Tensor
        Packed codes, row scales, block scales, and what unpacks these (:func:`block_scales`).
    shape : list of int
        Out, in.
    dtype : torch.dtype
        FP8 (e4m3), or int8 of the rotated weight (:mod:`distill.kernels.rotation`), as the row scales are.
    """
    packed, scale, absmax, *nested = stored
    if packed.is_cuda and shape[1] % NF4_BLOCK == 0 and (dtype == FP8 or has_kernels(packed.device)):
        from distill.kernels.unpack_triton import launch

        rotation = hadamard(NF4_BLOCK, packed.device, torch.float16) if dtype == torch.int8 else None
        return launch(packed, scale, absmax, nested, shape, rotation, turned)
    weight = rounded(_dense(packed, absmax, nested, shape, dtype) / scale, dtype)
    return weight.t().contiguous() if turned else weight
