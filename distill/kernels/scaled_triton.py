"""The int8 kernels of :mod:`distill.kernels.scaled`, apart because Triton comes with CUDA builds alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILES = (
    (128, 256, 128, 8, 3),
    (128, 256, 64, 8, 4),
    (256, 128, 64, 8, 3),
    (128, 128, 128, 8, 3),
    (128, 128, 64, 4, 4),
    (64, 128, 64, 4, 4),
)
"""Rows, columns and depth of a program's tile, its warps, and how many tiles are on their way; the quickest
on the card at hand is taken for each shape of a weight. They need 36 to 96 KiB of a multiprocessor's memory
on Ampere, where the smallest has 99, and up to 144 on Hopper."""
NEIGHBOURS = 8
"""Tiles of rows that are worked on side by side, so that a tile of the weight is read from the cache."""

SIDE = 128
"""Rows and columns that a program turns."""


@triton.jit
def _multiply(  # type: ignore[no-untyped-def]
    x, x_scale, weight, w_scale, rotation, out, m, n, k,
    ROTATED: tl.constexpr, EVEN: tl.constexpr, NEIGHBOURS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(n, COLUMNS)
    group = tl.program_id(0) // (NEIGHBOURS * across)
    inside = tl.program_id(0) % (NEIGHBOURS * across)
    height = tl.minimum(tl.cdiv(m, ROWS) - group * NEIGHBOURS, NEIGHBOURS)
    rows = (group * NEIGHBOURS + inside % height) * ROWS + tl.arange(0, ROWS)
    columns = (inside // height) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    # Beyond the edge the first rows are read again, and not written: loads need no mask there.
    x_at = x + (rows % m).to(tl.int64)[:, None] * k + depth[None, :]
    w_at = weight + (columns % n).to(tl.int64)[None, :] * k + depth[:, None]
    sums = tl.zeros((ROWS, COLUMNS), dtype=tl.int32)
    for step in range(0, tl.cdiv(k, DEPTH)):
        if EVEN:
            left, right = tl.load(x_at), tl.load(w_at)
        else:
            here = depth < k - step * DEPTH
            left = tl.load(x_at, mask=here[None, :], other=0)
            right = tl.load(w_at, mask=here[:, None], other=0)
        sums = tl.dot(left, right, acc=sums, out_dtype=tl.int32)
        x_at += DEPTH
        w_at += DEPTH
    of_columns = tl.load(w_scale + columns, mask=columns < n, other=0.0)
    of_rows = tl.load(x_scale + rows, mask=rows < m, other=0.0)
    values = sums.to(tl.float32) * of_columns[None, :] * of_rows[:, None]
    values = values.to(out.dtype.element_ty)
    if ROTATED:
        inner = tl.arange(0, 64)
        matrix = tl.load(rotation + inner[:, None] * 64 + inner[None, :])
        turned = tl.dot(values.reshape(ROWS * COLUMNS // 64, 64), matrix)
        values = turned.to(out.dtype.element_ty).reshape(ROWS, COLUMNS)
    written = (rows < m)[:, None] & (columns < n)[None, :]
    at = out + rows.to(tl.int64)[:, None] * n + columns[None, :]
    tl.store(at, values, mask=written)


_even = triton.heuristics({"EVEN": lambda given: given["k"] % given["DEPTH"] == 0})
_configs = [
    triton.Config(
        {"ROWS": rows, "COLUMNS": columns, "DEPTH": depth, "NEIGHBOURS": NEIGHBOURS},
        num_warps=warps,
        num_stages=stages,
    )
    for rows, columns, depth, warps, stages in TILES
]
_quickest = triton.autotune(_configs, key=["n", "k", "ROTATED"])(_even(_multiply))


@triton.jit
def _turn(weight, out, n_out, n_in, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    rows = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    columns = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    inside = (rows < n_out)[:, None] & (columns < n_in)[None, :]
    values = tl.load(weight + rows[:, None] * n_in + columns[None, :], mask=inside, other=0)
    inside = (columns < n_in)[:, None] & (rows < n_out)[None, :]
    tl.store(out + columns[:, None] * n_out + rows[None, :], values.trans(), mask=inside)


def turn(weight: Tensor) -> Tensor:
    """Lay an int8 weight (out, in) out as (in, out)."""
    n_out, n_in = weight.shape
    out = weight.new_empty((n_in, n_out))
    _turn[(triton.cdiv(n_out, SIDE), triton.cdiv(n_in, SIDE))](weight, out, n_out, n_in, SIDE=SIDE)
    return out


def launch(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    dtype: torch.dtype,
    rotation: Tensor | None = None,
) -> Tensor:
    """Multiply on the GPU; parameters as :func:`distill.kernels.scaled.scaled_mm`.

    Parameters
    ----------
    rotation : Tensor of shape (64, 64), optional
        In the product's 16-bit dtype: what each block of 64 outputs, whole ones, is multiplied by in the end.
    """
    (m, k), n = x.shape, len(weight)
    out = x.new_empty((m, n), dtype=dtype)

    def grid(given: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(m, given["ROWS"]) * triton.cdiv(n, given["COLUMNS"]),)

    _quickest[grid](
        *(tensor.contiguous() for tensor in (x, x_scale, weight, w_scale)),
        x_scale if rotation is None else rotation, out, m, n, k, ROTATED=rotation is not None,
    )  # fmt: skip
    return out
