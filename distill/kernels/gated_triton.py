"""The kernel of :mod:`distill.kernels.gated`, apart because Triton comes with CUDA builds alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 16


@triton.jit
def _gated(gate, up, out, scale, width, GELU: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    g = tl.load(gate + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        # Half of 1 + tanh(z) is the sigmoid of 2 z.
        acted = g * tl.sigmoid(1.5957691216057308 * (g + 0.044715 * g * g * g))
    else:
        acted = g * tl.sigmoid(g)
    value = acted * u
    size = tl.maximum(tl.max(tl.abs(value), axis=0) / 448.0, 1e-12)
    tl.store(scale + row, size)
    tl.store(out + row * width + columns, (value / size).to(tl.float8e4nv), mask=inside)


def launch(gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Run the kernel, a program a row."""
    rows, width = gate.shape
    out = torch.empty_like(gate, dtype=torch.float8_e4m3fn)
    scale = gate.new_empty((rows, 1), dtype=torch.float32)
    _gated[(rows,)](
        gate, up, out, scale, width,
        GELU=activation == "gelu", BLOCK=triton.next_power_of_2(width), num_warps=WARPS,
    )  # fmt: skip
    return out, scale
