"""Any classifier of the library behind the names of :mod:`distill.model.classifier`, in padded batches.

Encoders (BERT, RoBERTa, ELECTRA, DeBERTa-v2/v3, ModernBERT families) are read by the head that their own
class has, over [CLS] or the mean as suits the model, so that what is trained is what
``AutoModelForSequenceClassification`` loads. Decoders go this way with ``packed: false``: in float32 on a
GPU, which the packed attention kernels do not take, and where the packed path does not know a model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UserError
from distill.architectures import HEADS, architecture
from distill.model.classifier import Classifier
from distill.model.verdict import VerdictClassifier
from distill.packing.pack import Pack


def head_of(model: Any) -> tuple[str, nn.Linear]:
    """Return the name of a classifier's head and its last linear layer."""
    for name in HEADS:
        head = getattr(model, name, None)
        if head is not None:
            return name, [m for m in head.modules() if isinstance(m, nn.Linear)][-1]
    raise UserError(f"{type(model).__name__} has no head named {' or '.join(HEADS)}; take another backbone")


def poolers_of(model: Any) -> list[str]:
    """Names of an encoder's pooling modules."""
    found = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    return sorted(found.intersection(architecture(model.config.model_type).poolers))


def blocks_of(model: Any) -> tuple[nn.ModuleList, str]:
    """Return a model's layers, and the name of the list in its class: what PEFT calls the pattern."""
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    known = [n for n in lists if n.rsplit(".", 1)[-1] in {"layer", "layers"}]
    if not known:
        raise UserError(f"{type(model).__name__} has no list of layers of that name; take another backbone")
    name = max(known, key=lambda n: len(lists[n]))
    return lists[name], name.rsplit(".", 1)[-1]


def unpack(pack: Pack, pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lay a pack's rows out as a padded batch: ids, mask, index of each row's last token."""
    bounds = pack.cu_seqlens[: pack.rows + 1].long()
    lengths = bounds.diff()
    places = torch.arange(pack.max_length, device=bounds.device)
    mask = places < lengths[:, None]
    index = (bounds[:-1, None] + places).clamp_max(pack.input_ids.shape[1] - 1)
    ids = torch.where(mask, pack.input_ids[0][index], pad_id)
    return ids, mask.long(), lengths - 1


class PaddedClassifier(Classifier):
    """A classifier whose packs are laid out as padded batches.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.plan.compiled = self.plan.graphs = False
        self.encoder = architecture(self.inner.config.model_type).encoder
        self.recomputes = False

    @property
    def _compute(self) -> torch.dtype | None:
        """The library's own forward pass keeps residuals as it does."""
        return None

    @property
    def sharded(self) -> bool:
        """Never: only packed decoders are cut over processes."""
        return False

    @property
    def shares(self) -> bool:
        """Never: padded batches have a sequence a line."""
        return False

    @property
    def head_name(self) -> str:
        """Name of the head's module."""
        return head_of(self.inner)[0]

    @property
    def base_dtype(self) -> torch.dtype:
        """What the base computes in."""
        return next(self.inner.base_model.parameters()).dtype

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        last: Tensor | None = None,
        pack: Pack | None = None,
    ) -> Tensor:
        """Return float32 logits of shape (sequences, K); see :meth:`Classifier.forward`."""
        if pack is not None:
            pad_id = self.inner.config.pad_token_id or 0
            input_ids, attention_mask, last = unpack(pack, pad_id)
        if self.plan.checkpoint == "all" and not self.recomputes:
            self.inner.gradient_checkpointing_enable()
            self.recomputes = True
        if not self.encoder:
            return super().forward(input_ids, attention_mask, last)
        return self.inner(input_ids=input_ids, attention_mask=attention_mask).logits.float()


def wrap(model: Any) -> Classifier:
    """Return the classifier around a loaded model: packed where its loader said so."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    if getattr(inner, "padded", False):
        return PaddedClassifier(model)
    return VerdictClassifier(model) if hasattr(inner, "verdict_ids") else Classifier(model)
