"""unsloth beside the engine, at its best for the card: ``llama-unsloth`` of ``benchmarks.gpu_training``.

Its own classifier of its own loader, in NF4 with LoRA; rows grouped by length over 4,096, as many tokens a
batch as our packs have. ``train`` keeps all activations, ``checkpoint`` is unsloth's own checkpointing, which
moves them to the CPU. ``predict`` gives no attention mask: batches are padded on the right, the attention is
causal and the head reads the last real token by itself, so none is needed and the fast kernels can run; what
a mask costs is said beside it. In training unsloth drops the mask by itself.

A process of its own, as unsloth wants to be imported before what it changes.
"""

from __future__ import annotations

import os
import tempfile

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    UNSLOTH_DISABLE_STATISTICS="1",
    UNSLOTH_COMPILE_LOCATION=os.path.join(tempfile.gettempdir(), "unsloth_compiled"),
)
try:
    import unsloth
except (ImportError, NotImplementedError) as failure:  # the latter where it finds no accelerator
    unsloth, missing = None, f"{type(failure).__name__}: {failure}"

import argparse
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.gpu_checkpoint import random_checkpoint
from benchmarks.gpu_model import (
    CUDA,
    DEVICE,
    GIB,
    MAX_LENGTH,
    WARM,
    Clock,
    config_of,
    peak,
    reset,
    say,
    speed,
)
from benchmarks.gpu_stock import TARGETS, padded_batches
from distill.packing.examples import Examples, pad

MEASURES = ("train", "checkpoint", "predict")


class Peer:
    """unsloth's classifier with its adapters.

    Parameters
    ----------
    checkpoint : Path
        A sequence classifier of three classes.
    pad_id : int
        The token that batches are padded with.
    """

    def __init__(self, checkpoint: Path, pad_id: int) -> None:
        from unsloth import FastLanguageModel

        recompute: Any = "unsloth" if CUDA else True
        model, _ = FastLanguageModel.from_pretrained(
            str(checkpoint),
            max_seq_length=MAX_LENGTH,
            num_labels=3,
            load_in_4bit=CUDA,
            dtype=torch.bfloat16 if CUDA else torch.float32,
            use_gradient_checkpointing=recompute,
        )
        # Without a task type: with one, it leaves its own fast path.
        self.model = FastLanguageModel.get_peft_model(
            model,
            r=16,
            lora_alpha=32,
            lora_dropout=0,
            bias="none",
            target_modules=TARGETS,
            use_gradient_checkpointing=recompute,
            max_seq_length=MAX_LENGTH,
            random_state=1,
        )
        kind = type(self.model.get_base_model()).__name__
        if not kind.endswith("ForSequenceClassification"):
            raise RuntimeError(f"unsloth made a {kind} of the classifier, as it does without a GPU")
        self.model.config.pad_token_id = pad_id
        marked = [m for m in self.model.modules() if hasattr(m, "gradient_checkpointing")]
        self.recomputing = [(m, m.gradient_checkpointing) for m in marked]
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.01)

    def paths(self) -> dict[str, Any]:
        """Which of its own functions run, so that a fall back to the stock ones shows."""
        layer = self.model.get_base_model().model.layers[0]
        attention, gate = layer.self_attn, layer.mlp.gate_proj
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return {
            "unsloth": unsloth.__version__,
            "class": type(self.model.get_base_model()).__name__,
            "attention": attention.forward.__qualname__,
            "qkv": getattr(getattr(attention, "apply_qkv", None), "__name__", "stock"),
            "mlp": layer.mlp.forward.__qualname__,
            "linear": type(getattr(gate, "base_layer", gate)).__name__,
            "trained": {
                str(kind): sum(p.numel() for p in trained if p.dtype == kind)
                for kind in {p.dtype for p in trained}
            },
        }

    def logits(self, batch: dict[str, torch.Tensor], masked: bool) -> torch.Tensor:
        """Logits of a padded batch, float32."""
        mask = batch["attention_mask"] if masked else None
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=CUDA):
            return self.model(input_ids=batch["input_ids"], attention_mask=mask).logits.float()

    def train(self, examples: Examples, batches: list[np.ndarray], recompute: bool) -> Clock:
        """A step a batch."""
        for module, kind in self.recomputing:
            module.gradient_checkpointing = kind if recompute else False
        self.model.train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=CUDA)
        clock = Clock()
        for rows in batches:
            targets = torch.from_numpy(examples.targets[rows].argmax(1)).to(DEVICE)
            F.cross_entropy(self.logits(sent(examples, rows), True), targets).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            clock.on_step_end()
        return clock

    @torch.inference_mode()
    def predict(self, examples: Examples, batches: list[np.ndarray], masked: bool) -> Clock:
        """A prediction a batch."""
        self.model.eval()
        clock = Clock()
        for rows in batches:
            self.logits(sent(examples, rows), masked)
            clock.on_step_end()
        return clock

    @torch.inference_mode()
    def mask_gap(self, examples: Examples, rows: np.ndarray) -> float:
        """By how much of its norm the logits differ without a mask: rounding, where none is needed."""
        self.model.eval()
        with_mask, without = (self.logits(sent(examples, rows), masked) for masked in (True, False))
        return float((with_mask - without).norm() / with_mask.norm())


def sent(examples: Examples, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """Rows as a padded batch on the card."""
    batch = pad(examples.encoded, 2 * rows, examples.pad_id)
    return {name: tensor.to(DEVICE, non_blocking=True) for name, tensor in batch.items()}


def measured(peer: Peer, measure: str, family: str, lengths: Path | None, n_timed: int) -> dict[str, Any]:
    """Tokens a second of one measure; padding does not count."""
    config = config_of(family)
    examples, batches = padded_batches(WARM + n_timed, True, lengths, config.vocab_size)
    own = examples.encoded.lengths[::2]
    batches = sorted(batches[:WARM], key=lambda rows: -own[rows].max()) + batches[WARM:]
    timed = np.concatenate([own[rows] for rows in batches[WARM:]])
    slots = sum(len(rows) * int(own[rows].max()) for rows in batches[WARM:])
    training = measure != "predict"
    reset()
    if training:
        clock = peer.train(examples, batches, measure == "checkpoint")
    else:
        clock = peer.predict(examples, batches, masked=False)
    found = {
        **speed(config, timed, clock.seconds(WARM - 1, len(batches) - 1), training),
        "peak_gib": round(peak(), 1),
        "first_step_s": round(clock.first, 1),
        "steps": len(batches) - WARM,
        "fill": round(timed.sum() / slots, 3),
    }
    if not training:
        with_mask = peer.predict(examples, batches, masked=True)
        seconds = with_mask.seconds(WARM - 1, len(batches) - 1)
        found["tok_s_with_mask"] = round(timed.sum() / seconds)
        found["mask_gap"] = float(f"{peer.mask_gap(examples, batches[0]):.2e}")
    return found


def main() -> int:
    """Measure what is asked for, a line after each measure; 2 where unsloth cannot be imported."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("phase", help="llama-unsloth:MEASURE,...")
    parser.add_argument("--lengths", type=Path)
    parser.add_argument("--out", type=Path, default=Path("gpu_training.jsonl"))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--checkpoint", type=Path, help="made here if there is none, and left")
    args, _ = parser.parse_known_args()
    phase, _, measures = args.phase.partition(":")
    family = phase.split("-")[0]
    if unsloth is None:
        say(args.out, phase=phase, error=f"unsloth cannot be imported here: {missing[:200]}")
        return 2
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        checkpoint = random_checkpoint(family, args.checkpoint or Path(directory))
        written = time.perf_counter()
        try:
            peer = Peer(checkpoint, config_of(family).pad_token_id)
        except Exception as error:
            traceback.print_exc()
            say(args.out, phase=phase, error=f"{type(error).__name__}: {str(error)[:400]}")
            return 1
        if CUDA:
            torch.cuda.synchronize()
        say(
            args.out,
            phase=phase,
            written_s=round(written - started, 1),
            built_s=round(time.perf_counter() - written, 1),
            loaded_gib=round(torch.cuda.memory_allocated() / GIB, 1) if CUDA else 0.0,
            **peer.paths(),
        )
        for measure in measures.split(",") if measures else MEASURES:
            try:
                found = measured(peer, measure, family, args.lengths, min(args.steps, 12))
                say(args.out, phase=phase, measure=measure, **found)
            except Exception as error:
                traceback.print_exc()
                say(
                    args.out,
                    phase=phase,
                    measure=measure,
                    error=f"{type(error).__name__}: {str(error)[:400]}",
                )
            for parameter in peer.model.parameters():
                parameter.grad = None
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
