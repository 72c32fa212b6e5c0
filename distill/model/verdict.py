"""A classifier without a head of its own: the language model's logits of the tokens that name the classes.

What QLoRA with supervised fine-tuning trains: after the template's last words the model says ``A``, ``B`` or
``C``. Only those tokens' rows of the vocabulary are computed and compared, in float32. The adapter is a plain
``CAUSAL_LM`` adapter; ``AutoModelForCausalLM`` and ``peft`` load it, and read the same logits.
"""

from __future__ import annotations

from string import ascii_uppercase
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from data.errors import UserError, listing
from distill.model.classifier import Classifier


def verdict_ids(tokenizer: Any, words: list[str], n_classes: int) -> list[int]:
    """Return the token that stands for each class, in class order.

    Parameters
    ----------
    words : list of str
        One a class; empty for the letters A, B, C and so on. They are taken with a space before them where
        that makes single tokens, as after a colon.

    Raises
    ------
    UserError
        Too few or too many words, or words that are not single, distinct tokens.
    """
    words = words or list(ascii_uppercase[:n_classes])
    if len(words) != n_classes:
        raise UserError(f"recipe: backbone.verdicts names {listing(words, 9)}; there are {n_classes} classes")
    for before in (" ", ""):
        ids = [tokenizer.encode(before + word, add_special_tokens=False) for word in words]
        if all(len(tokens) == 1 for tokens in ids) and len({tokens[0] for tokens in ids}) == n_classes:
            return [tokens[0] for tokens in ids]
    raise UserError(
        f"recipe: backbone.verdicts must be single, distinct tokens, which of {listing(words, 9)} some are "
        "not in this tokenizer; choose other words"
    )


class VerdictClassifier(Classifier):
    """Wraps a ``*ForCausalLM`` model that carries its ``verdict_ids``, or the PEFT model around one."""

    ids: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        ids = torch.tensor(self.inner.verdict_ids, device=self.device)
        self.register_buffer("ids", ids, persistent=False)

    @property
    def head_name(self) -> str:
        """Name of the head's module, which stays frozen."""
        return "lm_head"

    def read(self, pooled: Tensor) -> Tensor:
        """Return the verdict tokens' logits of shape (sequences, K), soft-capped as the model's own are."""
        rows: Any = self.inner.lm_head.weight
        logits = F.linear(pooled.float(), rows[self.ids].float())
        cap = getattr(self.inner.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def as_score(self, vocabulary: Tensor) -> Tensor:
        """Return the verdict tokens' rows of the head: the ``score`` of the classifier that this equals.

        Raises
        ------
        UserError
            The model soft-caps its logits, which a plain classifier does not.
        """
        if getattr(self.inner.config, "final_logit_softcapping", None) is not None:
            raise UserError(
                f"{self.inner.config.model_type} soft-caps its tokens' logits, a plain classifier does not: "
                "a model with head tokens cannot be exported as one"
            )
        return vocabulary[self.ids.to(vocabulary.device)].clone()
