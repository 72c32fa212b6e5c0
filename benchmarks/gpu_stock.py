"""The stock libraries that the engine is measured beside: padded batches through PEFT's own model.

``padded`` is what a notebook does: batches of 8 padded to the longest, checkpointing. ``grouped`` is those
libraries at their best: rows sorted by length over 4,096, batches of as many tokens as our packs, and no
checkpointing where the card has the memory; in prediction the base in bf16 with the adapters merged. Small
models have their base in bf16, and batches of 32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.gpu_model import (
    CUDA,
    DEVICE,
    PACK_TOKENS,
    WARM,
    Clock,
    RandomWeights,
    config_of,
    make_examples,
    peak,
    reset,
    speed,
)
from distill.model.quantised import build
from distill.packing.examples import Examples, pad

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SMALL = {"smol": 32}
"""Sequences of a padded batch, for families that fit in bf16 with all their activations; others have 8."""


def padded_batches(
    n: int, grouped: bool, file: Path | None, vocab: int, size: int = 8
) -> tuple[Examples, list[np.ndarray]]:
    """Rows, and which make each batch: ``size`` as they come, or like lengths of ``PACK_TOKENS`` in all."""
    if not grouped:
        return make_examples(size * n, file, vocab), list(np.arange(size * n).reshape(n, size))
    examples = make_examples(4096 if CUDA else 512, file, vocab)
    lengths = examples.encoded.lengths[::2]
    batches: list[list[int]] = [[]]
    for row in np.argsort(lengths, kind="stable"):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[row] > PACK_TOKENS:
            batches.append([])
        batches[-1].append(int(row))
    order = np.random.default_rng(0).permutation(len(batches))
    return examples, [np.array(batches[i]) for i in order[:n]]


def stock_model(family: str, precision: str, recompute: bool) -> Any:
    """PEFT's model around the library's classifier, with random weights."""
    from peft import LoraConfig as PeftLora
    from peft import get_peft_model

    dtype = torch.bfloat16 if CUDA else torch.float32
    attention = "eager" if family.startswith("gemma") else "sdpa"
    base = build(config_of(family), RandomWeights(family), precision, dtype, attention, DEVICE, True)
    base.config.use_cache = False
    model = get_peft_model(base, PeftLora(task_type="SEQ_CLS", r=16, lora_alpha=32, target_modules=TARGETS))
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def measure_stock(
    family: str, lengths: Path | None, grouped: bool, n_timed: int, measure: str = "train"
) -> dict[str, Any]:
    """The stock libraries on padded batches, under autocast; ``train`` or ``predict``."""
    config, training = config_of(family), measure == "train"
    plain = "bf16" if CUDA else "fp32"
    precision = plain if family in SMALL or (grouped and not training) else "nf4"
    crowded = not grouped or (CUDA and torch.cuda.get_device_properties(0).total_memory < 130e9)
    recompute = training and crowded and family not in SMALL
    model = stock_model(family, precision, recompute)
    if not training and precision == plain:
        model.merge_adapter()
    model.train(training)
    n_timed = min(n_timed, 12)
    size = SMALL.get(family, 8)
    examples, batches = padded_batches(WARM + n_timed, grouped, lengths, config.vocab_size, size)
    own = examples.encoded.lengths[::2]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5) if training else None
    reset()
    clock = Clock()
    for rows in batches:
        batch = {name: t.to(DEVICE) for name, t in pad(examples.encoded, 2 * rows, 2).items()}
        autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=CUDA)
        with autocast, torch.set_grad_enabled(training):
            out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        if optimizer is not None:
            targets = torch.from_numpy(examples.targets[rows].argmax(1)).to(DEVICE)
            F.cross_entropy(out.float(), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        clock.on_step_end()
    seconds = clock.seconds(WARM - 1, len(batches) - 1)
    timed = np.concatenate([own[rows] for rows in batches[WARM:]])
    return {
        **speed(config, timed, seconds, training),
        "peak_gib": round(peak(), 1),
        "first_step_s": round(clock.first, 1),
        "steps": len(batches) - WARM,
        "precision": precision,
        "kept_layers": "none" if recompute else "all",
        "attention": model.config._attn_implementation,
    }
