"""The classifier: a decoder read at each row's last token by a float32 linear head.

``*ForSequenceClassification`` guesses the last token from the pad id, which mis-pools when a text
really ends in that id (transformers #35352). Here the index is given.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.kernels.agreement import Heads, shares_prefixes
from distill.kernels.choice import REGISTERED
from distill.kernels.linear import fuse
from distill.model.decoder import Plan, wide_residuals
from distill.model.files import refuse_modules, weight_files
from distill.model.graphs import Graphs, is_small
from distill.packing.pack import Pack


class Classifier(nn.Module):
    """Wraps a ``*ForSequenceClassification`` model, or the PEFT model around one.

    :class:`distill.model.verdict.VerdictClassifier` reads a language model's own head instead.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel

    Attributes
    ----------
    plan : Plan
        How packs are run; may be changed between calls.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        known = {name: own for own, name in REGISTERED.items()}
        attention = self.inner.config._attn_implementation
        compiled = getattr(self.inner, "compile_layers", False)
        self.plan = Plan(attention=known.get(attention, attention), compiled=compiled)
        self.plan.graphs = compiled and self._replayable
        self.graphs = Graphs()
        fuse(model, self._compute)

    @property
    def inner(self) -> Any:
        """The model inside any PEFT wrapping."""
        return self.model.get_base_model() if self.is_peft else self.model

    @property
    def is_peft(self) -> bool:
        """Whether adapters are trained, not full weights."""
        return hasattr(self.model, "peft_config")

    @property
    def _compute(self) -> torch.dtype | None:
        """What linear layers cast their input to, where residuals are kept in float32."""
        decoder = self.inner.get_decoder()
        return torch.float16 if wide_residuals(decoder, decoder.embed_tokens.weight.dtype) else None

    @property
    def _replayable(self) -> bool:
        """Whether passes over packs are worth recording, and can be."""
        if self.plan.attention not in {"varlen", "fa4"} or self.base_dtype != torch.bfloat16 or self.sharded:
            return False
        return is_small(self.inner.get_decoder())

    @property
    def sharded(self) -> bool:
        """Whether the base is cut over several processes, which then must run packs together."""
        return getattr(self.inner.get_decoder(), "cut_layers", None) is not None

    @property
    def shares(self) -> bool:
        """Whether packs may lay a row's prefix out once: by torch's own kernels, and those shown to do so."""
        attention = self.plan.attention
        if attention == "fa4":
            return shares_prefixes(attention, self.device, Heads.of(self.inner.config))
        return attention in {"eager", "sdpa", "varlen", "flex"}

    @property
    def head_name(self) -> str:
        """Name of the head's module."""
        return "score"

    @property
    def base_dtype(self) -> torch.dtype:
        """What the base computes in."""
        return self.inner.get_decoder().embed_tokens.weight.dtype

    @cached_property
    def trained(self) -> list[nn.Parameter]:
        """What is trained; kept, as a walk over a decoder's thousands of modules takes milliseconds."""
        return [p for p in self.parameters() if p.requires_grad]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients: only what is trained has any."""
        for parameter in self.trained:
            parameter.grad = None

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.parameters()).device

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        last: torch.Tensor | None = None,
        pack: Pack | None = None,
    ) -> torch.Tensor:
        """Return float32 logits of shape (sequences, K), of a pack or of a padded batch.

        Parameters
        ----------
        input_ids, attention_mask : int tensors of shape (sequences, length), padded
        last : int tensor of shape (sequences,)
            Index of each sequence's last real token.
        pack : Pack
            Instead of the three.
        """
        inner = self.inner
        if pack is not None:
            pooled = self.graphs.pooled(inner.get_decoder(), pack, self.plan)
        else:
            assert input_ids is not None
            assert last is not None
            hidden = inner.get_decoder()(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False
            ).last_hidden_state
            pooled = hidden[torch.arange(len(last), device=hidden.device), last]
        with torch.autocast(device_type=pooled.device.type, enabled=False):
            return self.read(pooled)

    def read(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (sequences, K) of the last tokens' hidden states (sequences, hidden)."""
        return self.inner.score(pooled.float()).float()

    def save(self, directory: Path) -> None:
        """Write adapter and head in PEFT's format, or a full checkpoint where there is no adapter."""
        if self.is_peft:
            self.model.create_or_update_model_card = lambda *_: None  # an export writes one of its own
        self.model.save_pretrained(directory)

    def load(self, directory: Path, trainable: bool = False) -> None:
        """Load what :meth:`save` wrote into this model."""
        if self.is_peft:
            from peft import load_peft_weights, set_peft_model_state_dict

            set_peft_model_state_dict(self.model, load_peft_weights(str(directory), device=str(self.device)))
        elif (directory / "adapter_config.json").exists():
            from peft import PeftModel

            refuse_modules(directory / "adapter_config.json")
            self.model = PeftModel.from_pretrained(self.model, str(directory), is_trainable=trainable)
            fuse(self.model, self._compute)
            self.graphs.forget()
            self.__dict__.pop("trained", None)
        else:
            self._load_full(directory)
        if not trainable:
            self.eval()

    def start_from(self, directory: Path) -> None:
        """Take the changes that :meth:`save` wrote of another training, and keep this model's own head."""
        from safetensors.torch import load_file

        if self.is_peft:
            from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

            state = self._without_head(load_peft_weights(str(directory), device=str(self.device)))
            # The library wants a head, too: this model's own.
            set_peft_model_state_dict(self.model, {**get_peft_model_state_dict(self.model), **state})
            return
        state = {}
        for name in weight_files(directory):
            state |= load_file(directory / name)
        self.model.load_state_dict(self._without_head(state), strict=False)

    def _without_head(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in state.items() if self.head_name not in name.split(".")}

    def _load_full(self, directory: Path) -> None:
        from safetensors.torch import load_file

        state: dict[str, torch.Tensor] = {}
        for name in weight_files(directory):
            state |= load_file(directory / name)
        self.model.load_state_dict(state)
