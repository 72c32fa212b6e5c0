"""FlashAttention packages newer than torch's own kernels: taken where installed and where they are right.

Torch's ``varlen_attn`` is FlashAttention-2; the packages of versions 3 and 4 are faster on Hopper and later.
They are optional and come in many builds, so one is taken only after it has given, on this very device, the
outputs and gradients of attention written out.
"""

from __future__ import annotations

import logging
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

PACKAGES = {
    "flash_attention_3": "is_flash_attn_3_available",
    "flash_attention_4": "is_flash_attn_4_available",
}
"""The library's names of the implementations, the preferred first, and how it tells that they are there."""
LENGTHS = (70, 1, 129)


@cache
def flash_package() -> str | None:
    """Return the implementation to take instead of torch's own, if any."""
    from transformers.utils import import_utils

    for name, available in PACKAGES.items():
        if getattr(import_utils, available, bool)():
            if agrees(name, torch.device("cuda"), torch.bfloat16):
                return name
            log.warning(
                "%s is installed but does not compute attention over packs here; it is left out", name
            )
    return None


class _Probe(nn.Module):
    """What an implementation reads of a layer."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation=name)
        self.is_causal, self.layer_idx = True, 0


def agrees(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether an implementation of the library gives the formula's outputs and gradients on packs."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from distill.attention import eager

    generator = torch.Generator(device).manual_seed(0)
    total = sum(LENGTHS)
    bounds = torch.tensor([0, *LENGTHS], device=device).cumsum(0).to(torch.int32)
    tensors = [
        torch.randn(1, heads, total, 64, device=device, dtype=dtype, generator=generator).requires_grad_()
        for heads in (8, 2, 2)
    ]
    weights = torch.randn(1, total, 8, 64, device=device, dtype=dtype, generator=generator)
    options: dict[str, Any] = {
        "scaling": 0.125,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": max(LENGTHS),
        "max_length_k": max(LENGTHS),
        "position_ids": torch.cat([torch.arange(n, device=device) for n in LENGTHS])[None],
    }
    results: list[list[Tensor]] = []
    query, key, value = tensors
    try:
        for run in (eager, ALL_ATTENTION_FUNCTIONS[name]):
            out = run(_Probe(name), query, key, value, None, **options)[0]
            results.append([out.detach(), *torch.autograd.grad(out, tensors, weights)])
        wanted, found = results
        return all(
            bool((a - b).float().norm() < 0.02 * a.float().norm()) for a, b in zip(wanted, found, strict=True)
        )
    except Exception as error:  # whatever a build may raise that was made for another device or torch
        log.info("%s: %s", name, error)
        return False
