"""FlashAttention packages newer than torch's own kernels: taken where installed and where they are right.

Torch's ``varlen_attn`` is FlashAttention-2; the packages of versions 3 and 4 are faster on Hopper and later.
They are optional and come in many builds, so one is taken only after it has given, on this very device, the
outputs and gradients of attention written out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import import_utils

from distill.kernels.attention import eager, sdpa, varlen
from distill.kernels.flash4 import flash4
from distill.kernels.flex import block_masks, flex, flex_tiles

log = logging.getLogger(__name__)

PACKAGES = {
    "flash_attention_3": "is_flash_attn_3_available",
    "fa4": "is_flash_attn_4_available",
}
"""The implementations, the preferred first, and how the library tells that their packages are there."""
CAP_SOFTLY = ("fa4",)
"""Of the packages those that soft-cap within the one operator that compiled layers call."""
LENGTHS = (70, 1, 129)
WINDOW = 32
"""Of the probe, in place of a model's own, which its documents would not reach."""
LIMIT = 0.04
"""Gap to the formula that a package may have: rounding is up to .005 without a cap and .017 where one is
felt; a lost cap is .6, an unseen bound of a document more."""
IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "varlen": varlen,
    "fa4": flash4,
    "flex": flex,
    "sdpa": sdpa,
    "eager": eager,
}
"""Ours, by our names; none holds the word flash, by which the library takes an implementation for its own."""


@dataclass(frozen=True)
class Heads:
    """What a kernel is made for: numbers of query heads and of key heads, their size, soft cap and window."""

    queries: int = 8
    keys: int = 2
    size: int = 64
    cap: float | None = None
    window: int | None = None

    @classmethod
    def of(cls, config: Any) -> Heads:
        """A decoder's, by its configuration; of a window only that there is one."""
        queries = config.num_attention_heads
        return cls(
            queries,
            getattr(config, "num_key_value_heads", None) or queries,
            getattr(config, "head_dim", None) or config.hidden_size // queries,
            getattr(config, "attn_logit_softcapping", None),
            WINDOW if getattr(config, "sliding_window", None) else None,
        )


@cache
def flash_package(heads: Heads) -> str | None:
    """Return the implementation to take for such heads instead of torch's own, if any.

    Kernels are made for a size of head, a cap and a window, and a package may be right in some and lack
    others; layers without a window are tried too, as a model may have both.
    """
    kinds = {heads, replace(heads, window=None)}
    for name, available in PACKAGES.items():
        if (heads.cap and name not in CAP_SOFTLY) or not getattr(import_utils, available, bool)():
            continue
        if all(agrees(name, torch.device("cuda"), torch.bfloat16, kind) for kind in kinds):
            return name
        log.warning("%s is installed but does not compute attention over packs here; it is left out", name)
    return None


class _Probe(nn.Module):
    """What an implementation reads of a layer."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation=name)
        self.is_causal, self.layer_idx = True, 0


@cache
def shares_prefixes(name: str, device: torch.device, heads: Heads) -> bool:
    """Whether a package's implementation attends to prefixes that documents share, as the formula does."""
    return agrees(name, device, torch.bfloat16, heads, shared=True)


def agrees(
    name: str, device: torch.device, dtype: torch.dtype, heads: Heads | None = None, shared: bool = False
) -> bool:
    """Whether an implementation gives the formula's outputs and gradients on packs, caps felt."""
    heads = heads or Heads()
    try:
        gaps = gaps_to_formula(name, device, dtype, heads, sharpness=heads.cap or 1.0, shared=shared)
        log.info("%s, %s: %s from the formula", name, heads, gaps)
        return max(gaps) < LIMIT
    except Exception as error:  # whatever a build may raise that was made for another device or torch
        log.info("%s: %s", name, error)
        return False


def gaps_to_formula(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    heads: Heads,
    sharpness: float = 1.0,
    shared: bool = False,
) -> list[float]:
    """How far an implementation is from attention written out, on one pack of random tokens.

    Parameters
    ----------
    name : str
        Of ours for packs, or of the library.
    sharpness : float
        Size of the attention logits: a cap is felt only by large ones.
    shared : bool
        The first document is a prefix that the others continue.

    Returns
    -------
    list of float
        Norm of the difference over the formula's norm: of the output and of the gradients of query, key
        and value.
    """
    generator = torch.Generator(device).manual_seed(0)
    total = sum(LENGTHS)
    # The end is repeated, as in a static pack with fewer documents than it has room for.
    bounds = torch.tensor([0, *LENGTHS, 0], device=device).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(n, device=device) for n in LENGTHS])
    longest = max(LENGTHS) + (LENGTHS[0] if shared else 0)

    def drawn(*shape: int, size: float = 1.0) -> Tensor:
        return size * torch.randn(shape, device=device, dtype=dtype, generator=generator)

    sizes = ((heads.queries, sharpness), (heads.keys, 1.0), (heads.keys, 1.0))
    query, key, value = tensors = [drawn(1, n, total, heads.size, size=s).requires_grad_() for n, s in sizes]
    weights = drawn(1, total, heads.queries, heads.size)
    options: dict[str, Any] = _shared_keys(device) if shared else {}
    options |= {
        "scaling": heads.size**-0.5,
        "softcap": heads.cap,
        "sliding_window": heads.window,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": options.get("cu_seq_lens_k", bounds),
        "max_length_q": longest,
        "max_length_k": longest,
        "position_ids": positions[None],
    }
    if name == "flex":
        documents = torch.repeat_interleave(torch.arange(len(bounds) - 1, device=device), bounds.diff())
        masks = block_masks(positions, documents, heads.window, longest)
        options |= {"block_mask": masks[heads.window is not None]}
        options |= {"kernel_options": flex_tiles(heads.size, dtype)}
    results: list[list[Tensor]] = []
    for run in (eager, IMPLEMENTATIONS.get(name) or ALL_ATTENTION_FUNCTIONS[name]):
        out = run(_Probe(name), query, key, value, None, **options)[0]
        results.append([out.detach(), *torch.autograd.grad(out, tensors, weights)])
    return [float((b - a).float().norm() / a.float().norm()) for a, b in zip(*results, strict=True)]


def _shared_keys(device: torch.device) -> dict[str, Tensor]:
    """The keys of a pack whose first document is a prefix of the others; -1 and an empty one at the end."""
    first, *others = np.split(np.arange(sum(LENGTHS)), np.cumsum(LENGTHS)[:-1])
    seen = [first, *(np.concatenate([first, tokens]) for tokens in others)]
    bounds = np.cumsum([0, *map(len, seen), 0])
    filled = np.concatenate([*seen, [-1, -1]])
    return {
        "key_tokens": torch.tensor(filled, device=device),
        "cu_seq_lens_k": torch.tensor(bounds, device=device, dtype=torch.int32),
    }
