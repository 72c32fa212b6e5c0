"""Checks by a checkpoint's own next-token loss: what its weights were trained with, whatever files say."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from data.console.remote_code import remote_code_allowed
from distill.doctor.finding import REGISTRY, Finding, check, failed, passed
from distill.doctor.subject import Subject
from distill.quiet import quiet_transformers

TOKENS = 512
LARGEST = 300_000_000
"""Parameters that are read whole, in float32, without ``--deep``."""
BASES = (0.1, 10.0)
TELLING = 0.1
"""Nats by which another base must be better. On sound models of 135 to 500 million parameters it was .05 at
most, with a base ten times too small .12 to .19 on SmolLM2."""


@check("attention", "decoder", "tokenizer", unless=("rope_scaling",))
def rope_base(subject: Subject) -> Finding | None:
    """The weights read English best at about the rotary base that the configuration names.

    The text is these checks' own descriptions; the whole model is run, so a large one only with ``--deep``.

    Source: a configuration without ``rope_theta`` is read with the default of 10,000, without a word; pair i
    of d channels turns by ``theta ** (-2i / d)`` a token (Su et al. 2021, arXiv 2104.09864).
    """
    written = subject.raw_config.get("architectures") or [""]
    if not subject.has_weights or not written[0].endswith(("ForCausalLM", "ForConditionalGeneration")):
        return None
    ids = torch.tensor([subject.tokenizer(prose())["input_ids"][:TOKENS]])
    model = language_model(subject)
    if model is None:
        return None
    own = next_token_loss(model, ids)
    others = {factor: at_another_base(model, ids, factor) for factor in BASES}
    if not others or not math.isfinite(own):
        return None
    best = min(others, key=lambda factor: others[factor])
    seen = f"next-token loss {own:.3f}; at a rotary base {best:g} times as large {others[best]:.3f}"
    if own - others[best] < TELLING:
        return passed(seen)
    return failed(
        seen,
        "positions are read at frequencies that the weights were not trained with",
        "compare rope_theta (rope_parameters) with the published config.json",
    )


def prose() -> str:
    """English of a thousand words that is always at hand: what the checks say of themselves."""
    return "\n\n".join(known.function.__doc__ or "" for known in REGISTRY.values())


def language_model(subject: Subject) -> Any:
    """The whole checkpoint with its language model's head, in float32; None where it is too large."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    assert subject.checkpoint is not None
    remote = remote_code_allowed()
    with quiet_transformers():
        with init_empty_weights():
            empty = AutoModelForCausalLM.from_config(subject.config, trust_remote_code=remote)
        empty.tie_weights()  # a head that is the embedding counts once
        if not subject.deep and sum(p.numel() for p in empty.parameters()) > LARGEST:
            return None
        model = AutoModelForCausalLM.from_pretrained(
            subject.checkpoint, dtype=torch.float32, local_files_only=True, trust_remote_code=remote
        )
    return model.eval()


@torch.no_grad()
def next_token_loss(model: Any, ids: torch.Tensor) -> float:
    """Mean cross-entropy of the next token, ids (1, n), in nats."""
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return float(cross_entropy(logits.float(), ids[0, 1:]))


def at_another_base(model: Any, ids: torch.Tensor, factor: float) -> float:
    """The loss with every rotary base times a factor; the model is left as it was."""
    found = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name.endswith("inv_freq")
    ]
    for module, name, buffer in found:
        power = torch.arange(len(buffer), dtype=torch.float64) / len(buffer)
        setattr(module, name, (buffer.double() * factor**-power).to(buffer.dtype))
    try:
        return next_token_loss(model, ids)
    finally:
        for module, name, buffer in found:
            setattr(module, name, buffer)
