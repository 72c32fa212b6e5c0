"""Ways of training that a recipe does not offer, to be measured before they are built.

Some are settings by another name. Under Adam without weight decay the update of a factor does not change with
the scale of its gradient, so a learning rate n times as high for B alone (LoRA+, arXiv 2402.12354) is
``lora.alpha`` times n, and rank-stabilised scaling (rsLoRA, arXiv 2312.03732) is ``lora.alpha`` times the
root of the rank: both are measured through ``lora.alpha``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from transformers import TrainerCallback

TYPICAL = 160
"""Tokens of a row of arguments."""


class Averaged(TrainerCallback):
    """Keeps an exponential moving average of what is trained, and leaves it in the model at the end.

    Parameters
    ----------
    parameters : list of Parameter
    decay : float
        Of a step; less at the start, (1 + t) / (10 + t) after t steps.
    """

    def __init__(self, parameters: list[Any], decay: float) -> None:
        self.parameters, self.decay, self.steps = parameters, decay, 0
        self.mean = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take a step into the average."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the average into the model."""
        for parameter, mean in zip(self.parameters, self.mean, strict=True):
            parameter.copy_(mean)


class Adversarial(TrainerCallback):
    """Takes each step's gradient where the weights have been moved up the last steps' momentum.

    Adversarial weight perturbation (arXiv 2004.05884) without its second pass: sharpness-aware minimisation
    by the momentum (arXiv 2401.12033), scaled to each tensor's norm.

    Parameters
    ----------
    parameters : list of Parameter
    size : float
        How far, as a share of a tensor's norm.
    """

    def __init__(self, parameters: list[Any], size: float) -> None:
        self.parameters, self.size = parameters, size
        self.kept: list[torch.Tensor] = []

    @torch.no_grad()
    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Move up the momentum."""
        moments = [optimizer.state[p].get("exp_avg") for p in self.parameters]
        if any(moment is None for moment in moments):  # the first step
            return
        self.kept = [p.detach().clone() for p in self.parameters]
        for p, moment in zip(self.parameters, moments, strict=True):
            p.add_(moment * (self.size * p.norm() / (moment.norm() + 1e-12)))

    @torch.no_grad()
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move back."""
        for p, kept in zip(self.parameters, self.kept, strict=False):
            p.copy_(kept)


@contextmanager
def adapters_by(options: dict[str, Any]) -> Iterator[None]:
    """Have PEFT make its adapters with further options, such as ``use_dora``."""
    import peft

    with ExitStack() as stack:
        if options:
            stack.enter_context(patch.object(peft, "LoraConfig", partial(peft.LoraConfig, **options)))
        yield


@contextmanager
def noisy_embeddings(model: Any, alpha: float) -> Iterator[None]:
    """Add uniform noise to the embeddings in training (NEFTune, arXiv 2310.05914).

    Of size alpha over the root of a row's tokens times width; :data:`TYPICAL` stands for every row's tokens.
    """
    if not alpha:
        yield
        return
    model.plan.graphs = False  # noise is drawn anew each time

    def add(module: Any, _: Any, output: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return output
        size = alpha / (TYPICAL * output.shape[-1]) ** 0.5
        return output + torch.empty_like(output).uniform_(-size, size)

    hook = model.model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def start_as_words(model: Any, path: str) -> None:
    """Let a fresh head begin as the language model's rows of the verdicts A, B and C (tied embeddings)."""
    from data.encoding.tokenizer import load_tokenizer
    from distill.model.verdict import verdict_ids

    head = next(p for name, p in model.named_parameters() if p.requires_grad and "score" in name)
    embeddings = model.model.get_input_embeddings().weight
    head.copy_(embeddings[verdict_ids(load_tokenizer(path), [], len(head))])
