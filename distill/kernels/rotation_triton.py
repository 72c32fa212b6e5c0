"""The kernel of :mod:`distill.kernels.rotation`, apart because Triton comes with CUDA builds alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _quantise(x, matrix, out, scale, width, BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    inner = tl.arange(0, 64)
    places = tl.arange(0, BLOCKS)[:, None] * 64 + inner[None, :]
    values = tl.load(x + row * width + places, mask=places < width, other=0.0)
    turned = tl.dot(values, tl.load(matrix + inner[:, None] * 64 + inner[None, :]))
    size = tl.maximum(tl.max(tl.max(tl.abs(turned), axis=1), axis=0) / 127.0, 1e-12)
    tl.store(scale + row, size)
    tl.store(out + row * width + places, tl.floor(turned / size + 0.5).to(tl.int8), mask=places < width)


def launch(x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Run the kernel, a program a row; a width of whole blocks of 64."""
    rows, width = x.shape
    out = torch.empty_like(x, dtype=torch.int8)
    scale = x.new_empty((rows, 1), dtype=torch.float32)
    blocks = max(16, triton.next_power_of_2(width // 64))
    _quantise[(rows,)](x, matrix, out, scale, width, BLOCKS=blocks, num_warps=4 if blocks <= 64 else 16)
    return out, scale
