"""The kernel of :mod:`distill.kernels.unpack`, apart because Triton comes with CUDA builds alone."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
"""The 16 numbers of NF4 (Dettmers et al., arXiv 2305.14314, appendix E)."""
TILE = (64, 2, 4)
"""Rows and blocks of 64 columns that a program unpacks, and its warps."""


@triton.jit
def _unpack(  # type: ignore[no-untyped-def]
    packed, scale, absmax, code, outer, offset, table, rotation, out, n_out, n_in,
    NESTED: tl.constexpr, TURNED: tl.constexpr, ROTATED: tl.constexpr, ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    blocks = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    inside = (rows < n_out)[:, None] & (blocks < n_in // 64)[None, :]
    block = rows[:, None] * (n_in // 64) + blocks[None, :]
    if NESTED:
        level = tl.load(absmax + block, mask=inside, other=0).to(tl.int32)
        largest = tl.load(code + level) * tl.load(outer + block // 256, mask=inside, other=0.0)
        largest += tl.load(offset)
    else:
        largest = tl.load(absmax + block, mask=inside, other=0.0)
    factor = (largest / tl.load(scale + rows, mask=rows < n_out, other=1.0)[:, None])[:, :, None]
    places = block[:, :, None] * 32 + tl.arange(0, 32)[None, None, :]
    pairs = tl.load(packed + places, mask=inside[:, :, None], other=0).to(tl.int32)
    # The earlier of two neighbours is in the higher half of their byte.
    codes = tl.join(tl.load(table + (pairs >> 4)), tl.load(table + (pairs & 15)))
    if ROTATED:
        # A block has one scale, which is multiplied into what its codes are rotated to.
        inner = tl.arange(0, 64)
        matrix = tl.load(rotation + inner[:, None] * 64 + inner[None, :])
        whole = tl.dot(codes.reshape(ROWS * BLOCKS, 64).to(tl.float16), matrix)
        values = tl.floor(whole.reshape(ROWS, BLOCKS, 64) * factor + 0.5).to(tl.int8)
    else:
        values = (codes.reshape(ROWS, BLOCKS, 64) * factor).to(tl.float8e4nv)
    values = values.reshape(ROWS, BLOCKS * 64)
    columns = tl.program_id(1) * BLOCKS * 64 + tl.arange(0, BLOCKS * 64)
    if TURNED:
        inside = (columns < n_in)[:, None] & (rows < n_out)[None, :]
        tl.store(out + columns[:, None] * n_out + rows[None, :], values.trans(), mask=inside)
    else:
        inside = (rows < n_out)[:, None] & (columns < n_in)[None, :]
        tl.store(out + rows[:, None] * n_in + columns[None, :], values, mask=inside)


@cache
def _table(device: torch.device) -> Tensor:
    return torch.tensor(CODE, device=device)


def launch(
    packed: Tensor,
    scale: Tensor,
    absmax: Tensor,
    nested: list[Tensor],
    shape: list[int],
    rotation: Tensor | None,
    turned: bool,
) -> Tensor:
    """Unpack on the GPU to FP8, or to int8 where there is a rotation, (64, 64) in float16.

    ``shape`` is (out, in), with ``in`` a multiple of 64.
    """
    n_out, n_in = shape
    size = (n_in, n_out) if turned else (n_out, n_in)
    dtype = torch.float8_e4m3fn if rotation is None else torch.int8
    out = torch.empty(size, device=packed.device, dtype=dtype)
    rows, blocks, warps = TILE
    grid = (triton.cdiv(n_out, rows), triton.cdiv(n_in, 64 * blocks))
    code, outer, offset = nested or (scale, scale, scale)
    _unpack[grid](
        packed, scale, absmax, code, outer, offset, _table(packed.device),
        scale if rotation is None else rotation, out, n_out, n_in,
        NESTED=bool(nested), TURNED=turned, ROTATED=rotation is not None, ROWS=rows, BLOCKS=blocks,
        num_warps=warps,
    )  # fmt: skip
    return out
