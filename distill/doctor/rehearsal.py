"""A rehearsal: a few real training steps on the shallow copy, by the path that trains the whole."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from data.encoding.encode import Encoded
from distill.config import BackboneConfig, LoraConfig, TrainConfig
from distill.doctor.small import LENGTHS
from distill.doctor.subject import Subject
from distill.losses import label_loss
from distill.model.backbone import add_adapters, load_base
from distill.model.classifier import Classifier
from distill.packing.examples import Examples
from distill.training.trainer import train

STEPS = 4
"""Before the last of them a zero head, then zero B matrices, have let gradient through to every adapter."""
ROWS_A_STEP = 4


@dataclass
class Rehearsal:
    """What a few real training steps on the shallow copy showed.

    Attributes
    ----------
    first_loss : float
    rates : list of float
        Every optimizer group's learning rate before the schedule.
    frozen : list of str
        Parameters that should be trained and are not trainable.
    unmoved : list of str
        Trainable parameters that the steps left as they were.
    trainable : int
        Parameters.
    """

    first_loss: float
    rates: list[float]
    frozen: list[str]
    unmoved: list[str]
    trainable: int


def lora_of(subject: Subject) -> LoraConfig:
    """The declared adapters, without dropout so that repeated passes compare."""
    return replace(subject.model.lora, dropout=0.0)


def few_examples(subject: Subject, n: int = STEPS * ROWS_A_STEP) -> Examples:
    """Random token rows inside the shallow copy's vocabulary: one order, three classes."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 24, size=n)
    top = min(2000, json.loads((Path(subject.small) / "config.json").read_text())["vocab_size"])
    ids = rng.integers(10, top, size=int(lengths.sum())).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    targets = np.eye(3)[rng.integers(3, size=n)]
    return Examples(Encoded(ids, offsets, 1, 0), targets, [0, 1, 2], 0)


def copy_of(subject: Subject) -> BackboneConfig:
    """The declared backbone, with the shallow copy in its place and a head of its own."""
    declared = subject.model.backbone
    return replace(declared, path=subject.small, tiny=None, revision=None, head="score", shard=False)


def small_classifier(subject: Subject) -> Classifier:
    """The shallow copy with the declared adapters and a zero head, in float32, whatever the declared head."""
    backbone = replace(copy_of(subject), precision="fp32", attention="auto", compile="auto")
    return add_adapters(load_base(backbone, subject.small, 3), lora_of(subject), 0)


def rehearse(subject: Subject) -> Rehearsal:
    """Train the shallow copy for a few steps, by the real path, and record what moved."""
    if hasattr(subject, "_rehearsal"):
        return subject._rehearsal
    classifier = small_classifier(subject)
    named = dict(classifier.named_parameters())
    wanted = {n for n in named if "lora_" in n or ("score" in n and "original" not in n)}
    if not subject.model.lora.enabled:
        wanted = set(named)
    before = {n: p.detach().clone() for n, p in named.items() if p.requires_grad}
    losses: list[float] = []
    rates: list[float] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            groups = kwargs["optimizer"].param_groups
            rates.extend(float(g.get("initial_lr", g["lr"])) for g in groups if len(g["params"]))

    def loss(logits: Any, batch: dict[str, Any]) -> Any:
        found = label_loss(logits, batch)
        losses.append(float(found.detach().mean()))
        return found

    config = replace(brief_config(), lr=subject.model.train.lr, head_lr=subject.model.train.head_lr)
    n = STEPS * ROWS_A_STEP
    out = subject.scratch / "rehearsal"
    train(
        classifier, few_examples(subject), np.arange(n), config, loss, out, "rehearsal", callbacks=[Watch()]
    )
    unmoved = [n for n, old in before.items() if torch.equal(old, named[n].detach())]
    found = Rehearsal(
        losses[0],
        rates,
        sorted(n for n in wanted if n in named and not named[n].requires_grad),
        unmoved,
        sum(p.numel() for p in named.values() if p.requires_grad),
    )
    subject._rehearsal = found  # type: ignore[attr-defined]
    return found


def brief_config() -> TrainConfig:
    """A training of one epoch, as plain as can be."""
    return TrainConfig(
        epochs=1, rows_per_step=ROWS_A_STEP, micro_rows=ROWS_A_STEP, both_orders=False, warmup=0,
        schedule="constant", log_steps=1, checkpoint_steps=0,
    )  # fmt: skip


def few_rows(subject: Subject) -> list[torch.Tensor]:
    """The ids of a few rows, one tensor each."""
    examples = few_examples(subject)
    return [torch.from_numpy(examples.encoded[i].astype("int64")) for i in range(len(LENGTHS))]


@torch.no_grad()
def logits_of(classifier: Classifier, subject: Subject) -> torch.Tensor:
    """Logits of a few rows, one by one, on the CPU."""
    rows = [row[None].to(classifier.device) for row in few_rows(subject)]
    ends = [torch.tensor([row.shape[1] - 1], device=row.device) for row in rows]
    found = [classifier(row, torch.ones_like(row), end)[0] for row, end in zip(rows, ends, strict=True)]
    return torch.stack(found).cpu()


def randomise(classifier: Classifier, adapters: float = 1.0) -> None:
    """Give the head, and the adapters on a scale, values of a trained size, so that losing them shows."""
    torch.manual_seed(1)
    for name, parameter in classifier.named_parameters():
        if parameter.requires_grad:
            scale = adapters if "lora_B" in name else 1.0
            torch.nn.init.normal_(parameter, std=scale * parameter.shape[-1] ** -0.5)
