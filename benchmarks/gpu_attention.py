"""FlashAttention-4 beside the engine's own kernels: the part ``flash4`` of :mod:`benchmarks.gpu_engine`."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_model import CUDA, DEVICE, MAX_LENGTH, make_examples, repeat
from distill.kernels.agreement import IMPLEMENTATIONS, Heads, gaps_to_formula
from distill.kernels.flex import block_masks, flex_tiles
from distill.packing.pack import Static, pack

LAYERS = {
    "llama": Heads(32, 8, 128),
    "gemma": Heads(16, 8, 256, 50.0),
    "gemma, window of 50": Heads(16, 8, 256, 50.0, 50),
    "llama1b": Heads(32, 8, 64),
}
"""Rows of 2,048 tokens never reach Gemma-2's own window."""
PAIRS = 12


def compare(lengths: Path | None, tell: Callable[..., None]) -> None:
    """Agreement with attention written out, and a layer's milliseconds, of ours and of FlashAttention-4."""
    try:
        tell(package=version("flash-attn-4"))
    except PackageNotFoundError:
        tell(error="flash-attn-4 is not installed here")
        return
    dtype = torch.bfloat16 if CUDA else torch.float32
    for layer, heads in LAYERS.items():
        own = ("flex" if heads.cap else "varlen") if CUDA else "eager"
        for name in (own, "fa4"):
            started = time.perf_counter()
            try:
                gaps = gaps_to_formula(name, DEVICE, dtype, heads, 8.0 if heads.cap else 1.0)
                agreed = time.perf_counter() - started
                tell(
                    layer=layer,
                    attention=name,
                    gaps=[float(f"{gap:.2e}") for gap in gaps],
                    first_s=round(agreed, 1),
                    **milliseconds(name, heads, lengths),
                )
            except Exception as error:
                traceback.print_exc()
                tell(layer=layer, attention=name, error=f"{type(error).__name__}: {str(error)[:600]}")


def milliseconds(name: str, heads: Heads, lengths: Path | None) -> dict[str, Any]:
    """One layer's attention over a static pack of real lengths: forward alone, and with its backward pass."""
    encoded = make_examples(PAIRS, lengths, 300).encoded
    size = -(-int(encoded.lengths.sum()) // 128) * 128
    one = pack(encoded, np.arange(2 * PAIRS), 2, Static(size, 64, MAX_LENGTH)).to(DEVICE)
    dtype = torch.bfloat16 if CUDA else torch.float32
    tensors = [
        torch.randn(1, n, size, heads.size, device=DEVICE, dtype=dtype, requires_grad=True)
        for n in (heads.queries, heads.keys, heads.keys)
    ]
    options: dict[str, Any] = {"scaling": heads.size**-0.5, "softcap": heads.cap}
    options |= {"sliding_window": heads.window}
    if name == "flex":
        masks = block_masks(one.position_ids[0], one.documents, heads.window, one.max_length)
        options |= {"block_mask": masks[heads.window is not None]}
        options |= {"kernel_options": flex_tiles(heads.size, dtype)}
    else:
        options |= {"cu_seq_lens_q": one.cu_seqlens, "cu_seq_lens_k": one.cu_seqlens}
        options |= {"max_length_q": one.max_length, "max_length_k": one.max_length}

    def forward() -> torch.Tensor:
        return IMPLEMENTATIONS[name](torch.nn.Identity(), *tensors, None, **options)[0]

    grad = torch.randn(1, size, heads.queries, heads.size, device=DEVICE, dtype=dtype)
    with torch.no_grad():
        alone = repeat(forward)
    both = repeat(lambda: torch.autograd.grad(forward(), tensors, grad))
    return {"tokens": size, "forward_ms": round(1e3 * alone, 3), "both_ms": round(1e3 * both, 3)}
