"""The shallow copy as plain models, and rows to try it on: what checks of every group share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from data.console.remote_code import remote_code_allowed
from data.encoding.encode import pad_token_id
from distill.doctor.subject import SPECIAL_IDS, Subject
from distill.model.padded import head_of
from distill.quiet import quiet_transformers

TOLERANCE = 1e-3
"""On logits of order one, in float32; the faults are above 0.1."""
LENGTHS = (9, 17, 13)
TEXT = "The quick brown fox jumps over the lazy dog."


def plain_model(subject: Subject, attention: str | None = "eager") -> Any:
    """The small copy as plain ``*ForSequenceClassification`` in float32, its head random and large.

    ``attention`` None is the library's default.
    """
    options = {} if attention is None else {"attn_implementation": attention}
    torch.manual_seed(0)
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(
            subject.small,
            dtype=torch.float32,
            num_labels=3,
            trust_remote_code=remote_code_allowed(),
            **options,
        )
    head = head_of(model)[1]
    torch.nn.init.normal_(head.weight, std=head.in_features**-0.5)
    return model.eval()


def some_ids(subject: Subject, model: Any, seed: int = 0) -> list[np.ndarray]:
    """A few sequences of ordinary tokens, without special ones."""
    config = model.config
    special = {v for key in SPECIAL_IDS if isinstance(v := getattr(config, key, None), int)}
    generator = torch.Generator().manual_seed(seed)
    ordinary = torch.tensor([i for i in range(min(config.vocab_size, 2000)) if i not in special])
    return [ordinary[torch.randint(len(ordinary), (n,), generator=generator)].numpy() for n in LENGTHS]


def pad_of(subject: Subject, model: Any) -> int:
    """The pad id the toolkit would use, inside the small copy's vocabulary."""
    pad = pad_token_id(subject.tokenizer) if subject.tokenizer is not None else 0
    return pad % model.config.vocab_size
