"""Faults that can be trained with: where each enters a training, and the check that finds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from distill.config import BackboneConfig, EncodeConfig, LoraConfig, ModelConfig, TrainConfig
from distill.model.classifier import Classifier

Edit = Callable[[np.ndarray, "Marks"], np.ndarray]
"""Maps a sequence's ids to those that a faulty pipeline would feed."""


def _nothing(_: Any) -> None:
    return None


@dataclass(frozen=True)
class Marks:
    """Ids that edits need: the tokenizer's BOS, and the sequence that stands before in a pack."""

    bos: int
    before: np.ndarray


@dataclass(frozen=True)
class Arm:
    """One way to train: the recipe, and where a fault enters.

    Attributes
    ----------
    family : str
        Tiny backbone to train.
    train_edit, predict_edit : callable, optional
        Change the token ids of training and of prediction.
    prepare : callable
        Changes the loaded base.
    adapt : callable
        Changes the classifier before training.
    after : callable
        Changes the classifier between training and prediction.
    config : ModelConfig
    both_orders : bool
        Average both orders in prediction.
    """

    family: str = "llama"
    config: ModelConfig = field(default_factory=lambda: base_config())
    train_edit: Edit | None = None
    predict_edit: Edit | None = None
    prepare: Callable[[Any], None] = _nothing
    adapt: Callable[[Any], None] = _nothing
    after: Callable[[Any], None] = _nothing
    both_orders: bool = True


def base_config() -> ModelConfig:
    """The demo's recipe on an unquantised base."""
    return ModelConfig(
        backbone=BackboneConfig(precision="fp32"),
        lora=LoraConfig(r=16, alpha=32),
        encode=EncodeConfig(max_length=256),
        train=TrainConfig(epochs=3, lr=3e-3, rows_per_step=16, micro_rows=16, log_steps=1000),
    )


@dataclass(frozen=True)
class Fault:
    """A fault that can be trained with: its name, the check that finds it, the faulty arm."""

    name: str
    check: str
    arm: Arm


def _config(**changes: Any) -> ModelConfig:
    config = base_config()
    for key, value in changes.items():
        part, name = key.split("__")
        setattr(getattr(config, part), name, value)
    return config


def _no_bos(ids: np.ndarray, marks: Marks) -> np.ndarray:
    return ids[1:]


def _two_bos(ids: np.ndarray, marks: Marks) -> np.ndarray:
    return np.concatenate([[marks.bos], ids])


def _bos_inside(ids: np.ndarray, marks: Marks) -> np.ndarray:
    thirds = np.array_split(ids, 3)
    return np.concatenate([thirds[0], [marks.bos], thirds[1], [marks.bos], thirds[2]])


def _cut_right(ids: np.ndarray, marks: Marks) -> np.ndarray:
    return ids[:64]


def _pool_early(ids: np.ndarray, marks: Marks) -> np.ndarray:
    return ids[: max(2, len(ids) // 2)]


def _neighbour_in_sight(ids: np.ndarray, marks: Marks) -> np.ndarray:
    return np.concatenate([marks.before, ids])


def _uncap(base: Any) -> None:
    for layer in base.get_decoder().layers:
        layer.self_attn.attn_logit_softcapping = None


def _narrow_window(base: Any) -> None:
    base.config.sliding_window = 16
    for layer in base.get_decoder().layers:
        if getattr(layer.self_attn, "sliding_window", None):
            layer.self_attn.sliding_window = 16


def _plain_rope(base: Any) -> None:
    rotary = base.get_decoder().rotary_emb
    n = len(rotary.inv_freq)
    theta = base.config.rope_parameters["rope_theta"]
    rotary.inv_freq.copy_(rotary.inv_freq.new_tensor([theta ** (-i / n) for i in range(n)]))


def _random_head(classifier: Classifier) -> None:
    for name, parameter in classifier.named_parameters():
        if "score" in name and "original" not in name:
            torch.nn.init.normal_(parameter.data, std=0.02)


def _large_head(classifier: Classifier) -> None:
    for name, parameter in classifier.named_parameters():
        if "score" in name and parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=2.0)


def _frozen_head(classifier: Classifier) -> None:
    for name, parameter in classifier.named_parameters():
        if "score" in name:
            parameter.requires_grad_(False)
    _random_head(classifier)


def _head_only(classifier: Classifier) -> None:
    for name, parameter in classifier.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(False)


def _both(edit: Edit, family: str = "llama") -> Arm:
    """The same edit in training and prediction."""
    return Arm(family, train_edit=edit, predict_edit=edit)


FAULT_ARMS: list[Fault] = [
    Fault("no BOS", "one_start_token", _both(_no_bos)),
    Fault("no BOS (Gemma-2)", "one_start_token", _both(_no_bos, "gemma2")),
    Fault("two BOS", "chat_template_start", _both(_two_bos)),
    Fault("BOS in mid-text", "start_token_on_training_path", _both(_bos_inside)),
    Fault("no BOS, predicting", "training_and_prediction_alike", Arm(predict_edit=_no_bos)),
    Fault("cut on the right at 64 tokens", "verdict_cue_kept", _both(_cut_right)),
    Fault("pooled in mid-text, predicting", "pooled_at_last_token", Arm(predict_edit=_pool_early)),
    Fault("neighbour in sight, predicting", "packed_rows_are_apart", Arm(predict_edit=_neighbour_in_sight)),
    Fault("soft-capping dropped (Gemma-2)", "attention_backend", Arm("gemma2", prepare=_uncap)),
    Fault("window of 16 tokens (Gemma-2)", "sliding_window", Arm("gemma2", prepare=_narrow_window)),
    Fault("rope scaling dropped", "rope_scaling", Arm(prepare=_plain_rope)),
    Fault("head frozen at random", "everything_trains", Arm(adapt=_frozen_head)),
    Fault("adapters detached", "everything_trains", Arm(adapt=_head_only)),
    Fault("head starts large", "first_loss_is_uniform", Arm(adapt=_large_head)),
    Fault("optimizer's default rate", "learning_rates_as_asked", Arm(config=_config(train__lr=1e-3))),
    Fault("rate ten times too small", "effective_adapter_rate", Arm(config=_config(train__lr=3e-4))),
    Fault("half of the depth frozen", "depth_frozen", Arm(config=_config(lora__first_layer=0.5))),
    Fault("head random after reload", "head_is_saved", Arm(after=_random_head)),
    Fault("4-bit base", "head_stays_float32", Arm(config=_config(backbone__precision="nf4"))),
    Fault(
        "one order only",
        "order_symmetry",
        Arm(config=_config(train__both_orders=False), both_orders=False),
    ),
]  # fmt: skip
FAULTS = {fault.name: fault.check for fault in FAULT_ARMS}
