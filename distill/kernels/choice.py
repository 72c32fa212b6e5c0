"""Which attention a backbone gets, and under which name the library knows it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.utils.import_utils import is_flash_attn_4_available

from data.errors import UserError, listing
from distill.architectures import architecture
from distill.kernels.agreement import IMPLEMENTATIONS, Heads, flash_package

REGISTERED = {name: f"packed_{name}" for name in IMPLEMENTATIONS}
LIBRARY = ("flash_attention_2", "flash_attention_3")
"""The library's own bindings to FlashAttention packages; they read packed lengths by themselves."""
ALIASES = {"flex_attention": "flex", "flash_attention_4": "fa4"}
CANNOT_CAP = {"varlen", "sdpa"}


def attention_for(config: Any, wanted: str) -> str:
    """Return the attention implementation; soft-capped models never get one that drops the cap.

    transformers 5.17 gives Gemma-2 ``sdpa``, which ignores ``attn_logit_softcapping`` without a word.

    Parameters
    ----------
    config : PretrainedConfig
        Of the decoder.
    wanted : str
        The recipe's ``attention``.
    """
    chosen = declared(config.model_type, wanted)
    if chosen != "auto":
        return chosen
    capped = architecture(config.model_type).capped
    if torch.cuda.is_available():
        return flash_package(Heads.of(config)) or ("flex" if capped else "varlen")
    return "eager" if capped else "sdpa"


def declared(model_type: str, wanted: str) -> str:
    """Return our name for what a recipe asks for, ``auto`` as it stands.

    Raises
    ------
    UserError
        There is no such attention, it would drop the architecture's cap, or it cannot run here.
    """
    chosen = ALIASES.get(wanted, wanted)
    if chosen not in REGISTERED and chosen not in LIBRARY and chosen != "auto":
        raise UserError(
            f"recipe: attention is {wanted!r}; it is auto or one of "
            f"{listing([*REGISTERED, *LIBRARY, *ALIASES], 12)}"
        )
    if chosen in CANNOT_CAP and architecture(model_type).capped:
        raise UserError(
            f"recipe: attention {wanted} drops the soft-capping of {model_type}; use eager, flex_attention "
            "or flash_attention_2"
        )
    if chosen == "fa4" and not is_flash_attn_4_available():
        raise UserError(
            f"recipe: attention {wanted} needs the package flash-attn-4 and a CUDA device; use auto"
        )
    if chosen in {"varlen", "flex"} and not torch.cuda.is_available():
        raise UserError(f"recipe: attention {wanted} needs a CUDA device; use auto, eager or sdpa")
    return chosen


def registered(name: str) -> str:
    """Return the name under which ``transformers`` knows an implementation, registering ours."""
    for own, known in REGISTERED.items():
        AttentionInterface.register(known, IMPLEMENTATIONS[own])
        AttentionMaskInterface.register(known, eager_mask if own in {"eager", "flex"} else sdpa_mask)
    return REGISTERED.get(name, name)
