"""Rotation of activations and weights that spreads outliers before both are rounded to int8.

A language model's activations have a few channels that are a hundred times and more above the others. Under
one scale a token they leave the others few of int8's steps (LLM.int8(), arXiv 2208.07339). An orthogonal
matrix between the factors changes nothing in their product, ``x @ w.T == (x @ h) @ (w @ h).T``, and a
Hadamard matrix gives every number of a block the same share of each outlier in it (QuaRot, arXiv 2404.00456).
Unlike SmoothQuant's factors (arXiv 2211.10438) it needs no calibration, so a base is the same wherever it is
loaded.

Blocks have 64 inputs: an outlier goes into a 64th of the summed dimension or less, and the matrix's entries,
one eighth or its negative, are exact in every dtype. It is symmetric, so it undoes itself. An odd width has
smaller blocks, the largest power of two that divides it.

On a GPU rotation and rounding are one pass over the activations, a row held in registers: 3 bytes a value
where the compiler's rounding without rotation reads them twice. An input gradient is rotated back before the
product is written. Triton has no tensor-core code for a T4, where each rotation is a small product apart.
"""

from __future__ import annotations

from functools import cache
from math import gcd

import torch
from torch import Tensor

from distill.kernels.operator import operator
from distill.kernels.scaled import by_torch, has_kernels, int8_product, quantise_rows, scaled_mm

BLOCK = 64
WIDEST = 32768
"""Values of a row that a program holds in registers."""


@cache
def hadamard(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The orthogonal Hadamard matrix of a power of two (Sylvester's construction)."""
    made = torch.ones(1, 1, dtype=torch.float64)
    while len(made) < size:
        made = torch.kron(made, torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64))
    return (made / size**0.5).to(device, dtype)


def rotated(x: Tensor) -> Tensor:
    """Rotate the blocks of the last dimension; once more undoes it."""
    size = gcd(x.shape[-1], BLOCK)
    return (x.reshape(-1, size) @ hadamard(size, x.device, x.dtype)).view(x.shape)


@operator("quantise_rotated")
def quantise_rotated(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate and round each row to int8 under a scale of its own: (m, k) int8 and (m, 1) float32."""
    fits = x.dtype.itemsize == 2 and x.shape[1] % BLOCK == 0 and x.shape[1] <= WIDEST
    if x.is_cuda and fits and has_kernels(x.device):
        from distill.kernels.rotation_triton import launch

        return launch(x.contiguous(), hadamard(BLOCK, x.device, x.dtype))
    return quantise_rows(rotated(x), torch.int8)


@torch.library.register_fake(quantise_rotated)
def _(x):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty((x.shape[0], 1), dtype=torch.float32)


def rotated_mm(x: Tensor, x_scale: Tensor, weight: Tensor, w_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Rotate an int8 product; parameters as :func:`distill.kernels.scaled.scaled_mm`."""
    fits = dtype.itemsize == 2 and len(weight) % BLOCK == 0 and x.shape[1] % 8 == 0
    if x.is_cuda and fits and int8_product(x.device) is not by_torch:
        from distill.kernels.scaled_triton import launch

        return launch(x, x_scale, weight, w_scale, dtype, hadamard(BLOCK, x.device, dtype))
    return rotated(scaled_mm(x, x_scale, weight, w_scale, dtype))
