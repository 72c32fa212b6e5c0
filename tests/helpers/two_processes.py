"""What ``test_processes`` runs in one process and in two: train, and predict, and leave the evidence."""

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

# isort: off
import distill.quick  # noqa: F401 - before what it imports quicker

# isort: on
import torch
from transformers import TrainerCallback

from data.arena import ArenaConfig, simulate_arena
from data.encoding.encode import Encoder, Truncation, pad_token_id
from data.encoding.template import Template
from data.errors import UserError
from distill.config import BackboneConfig, LoraConfig, TinyConfig, TrainConfig
from distill.losses import cross_entropy, label_loss
from distill.model import sharding
from distill.model.backbone import add_adapters, load_base, load_tokenizer
from distill.model.tiny import tiny_backbone
from distill.packing.examples import Examples
from distill.processes import join_others, on_first, process
from distill.training import predict as inference
from distill.training import trainer
from distill.training.keep_best import KeepBest

CONFIG = TrainConfig(
    lr=0.2,
    rows_per_step=8,
    optimizer="sgd",
    log_steps=1,
    warmup=0,
    schedule="constant",
    max_grad_norm=0.0,
    pack_tokens=500,
    checkpoint_steps=2,
)
TARGETS = ["q_proj", "k_proj", "v_proj", "gate_proj", "down_proj"]
SHAPE = TinyConfig(hidden_size=64, intermediate_size=64, layers=3, vocab_size=300, pretrain_steps=0)


class PairLoss:
    """Sees that whole pairs are in a pack, as they are where they share a prefix."""

    def __call__(self, logits, batch):
        target = batch["targets"]
        assert torch.equal(target[::2], target[1::2][:, [1, 0, 2]])
        return cross_entropy(logits, target)


class Killed(TrainerCallback):
    """Ends a training after a step, in all processes."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def main(out: Path) -> None:
    join_others()
    rows = simulate_arena(ArenaConfig(n_rows=21, seed=5))
    path = str(on_first(lambda: tiny_backbone(SHAPE, rows, Template(), 0, out / "cache")))
    backbone = BackboneConfig(path=path, precision="fp32")
    tokenizer = load_tokenizer(backbone, path)
    encoded = Encoder(tokenizer, Template(), Truncation(192)).encode(rows)
    examples = Examples(encoded, rows.targets, [1, 0, 2], pad_token_id(tokenizer))
    everything = np.arange(len(rows))

    def mistaken():
        raise UserError("a mistake that only the first process sees")

    try:
        on_first(mistaken)
    except UserError as mistake:
        assert getattr(mistake, "told", False) == (process()[0] > 0)  # noqa: PT017
    else:
        raise AssertionError("a mistake of the first process is everyone's")

    def fit(name, loss=label_loss, config=CONFIG, killed_at=0, examples=examples, **base):
        base = replace(backbone, **base)
        classifier = add_adapters(load_base(base, path, 3), LoraConfig(r=4, targets=TARGETS), 0)
        keeper = KeepBest(classifier, examples, everything[:6], out / name, every=2)
        trainer.train(
            classifier,
            examples,
            everything[6:],
            config,
            loss,
            out / name,
            name,
            callbacks=[keeper, Killed(killed_at)],
        )
        weights = {n: p.detach().numpy() for n, p in classifier.named_parameters() if p.requires_grad}
        np.savez(out / f"{name}-{process()[0]}.npz", **weights)
        return classifier

    classifier = fit("plain")
    fit("pairs", PairLoss(), examples=replace(examples, shared_prefix="true"))
    fit("one-row-a-step", config=replace(CONFIG, lr=0.1, rows_per_step=1, both_orders=False, epochs=0.3))

    twice = replace(CONFIG, epochs=2)
    fit("whole", config=twice)
    with suppress(KeyboardInterrupt):
        fit("killed", config=twice, killed_at=3)
    assert (out / "killed" / "checkpoint-2").exists()
    fit("killed", config=twice)

    fit("sharded-uncut", shard=True)  # every tensor of this base is small enough to keep whole
    sharding.SMALLEST = 2**10
    for precision in ("fp32", "nf4"):
        sharded = fit(f"sharded-{precision}", precision=precision, shard=True)
        assert sharded.sharded == (process()[1] > 1)
        kept = sum(p.numel() for p in sharded.inner.get_decoder().layers.parameters() if not p.requires_grad)
        assert not sharded.sharded or kept == 2 * 3 * 64  # only norms

    original, calls = trainer.ClassifierTrainer._packed_step, []

    def failing(self, step):
        calls.append(self.budget)
        total = original(self, step)
        if process()[0] == process()[1] - 1 and len(calls) in (1, 2):
            raise torch.OutOfMemoryError("not enough memory for this test")
        return total

    trainer.ClassifierTrainer._packed_step = failing
    fit("out-of-memory")
    assert calls[0] == calls[1] == 500 > calls[2] == calls[-1], calls

    seen, by_pack = [], inference.pack
    inference.pack = lambda e, s, *rest: seen.extend(s.tolist()) or by_pack(e, s, *rest)
    logits = inference.predict_logits(classifier, examples, everything, 0, "test", 500, out / "shards")
    np.savez(out / f"predicted-{process()[0]}.npz", logits=logits, seen=seen)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
