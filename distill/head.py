"""The classifier: a decoder read at each row's last token by a float32 linear head.

``*ForSequenceClassification`` guesses the last token from the pad id, which mis-pools when a text
really ends in that id (transformers #35352). Here the index is given.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Classifier(nn.Module):
    """Wraps a ``*ForSequenceClassification`` model, or the PEFT model around one.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def inner(self) -> Any:
        """The ``*ForSequenceClassification`` model inside any PEFT wrapping."""
        return self.model.get_base_model() if self.is_peft else self.model

    @property
    def is_peft(self) -> bool:
        """Whether adapters are trained, not full weights."""
        return hasattr(self.model, "peft_config")

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.parameters()).device

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, last: torch.Tensor
    ) -> torch.Tensor:
        """Return float32 logits of shape (sequences, K).

        Parameters
        ----------
        input_ids, attention_mask : int tensors of shape (sequences, length), padded on the right
        last : int tensor of shape (sequences,)
            Index of each sequence's last real token.
        """
        inner = self.inner
        hidden = inner.get_decoder()(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        pooled = hidden[torch.arange(len(last), device=hidden.device), last]
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            return inner.score(pooled.float()).float()

    def save(self, directory: Path) -> None:
        """Write adapter and head in PEFT's format, or a full checkpoint where there is no adapter."""
        self.model.save_pretrained(directory)
        card = directory / "README.md"
        card.unlink(missing_ok=True)

    def load(self, directory: Path, trainable: bool = False) -> None:
        """Load what :meth:`save` wrote into this model."""
        if self.is_peft:
            from peft import load_peft_weights, set_peft_model_state_dict

            set_peft_model_state_dict(self.model, load_peft_weights(str(directory), device=str(self.device)))
        elif (directory / "adapter_config.json").exists():
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, str(directory), is_trainable=trainable)
        else:
            self._load_full(directory)
        if not trainable:
            self.eval()

    def _load_full(self, directory: Path) -> None:
        from safetensors.torch import load_file

        index = directory / "model.safetensors.index.json"
        if index.exists():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            names = ["model.safetensors"]
        state: dict[str, torch.Tensor] = {}
        for name in names:
            state |= load_file(directory / name)
        self.model.load_state_dict(state)
