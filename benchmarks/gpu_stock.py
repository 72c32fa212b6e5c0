"""The stock libraries that the engine is measured beside: padded batches through PEFT's own model.

``padded`` is what a notebook does: batches of 8 padded to the longest, checkpointing. ``grouped`` is those
libraries at their best: rows sorted by length over 4,096, batches of as many tokens as our packs, and no
checkpointing where the card has the memory.
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


def padded_batches(n: int, grouped: bool, file: Path | None, vocab: int) -> tuple[Examples, list[np.ndarray]]:
    """Rows, and which of them make each batch: 8 as they come, or like lengths of ``PACK_TOKENS`` in all."""
    if not grouped:
        return make_examples(8 * n, file, vocab), list(np.arange(8 * n).reshape(n, 8))
    examples = make_examples(4096 if CUDA else 512, file, vocab)
    lengths = examples.encoded.lengths[::2]
    batches: list[list[int]] = [[]]
    for row in np.argsort(lengths, kind="stable"):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[row] > PACK_TOKENS:
            batches.append([])
        batches[-1].append(int(row))
    order = np.random.default_rng(0).permutation(len(batches))
    return examples, [np.array(batches[i]) for i in order[:n]]


def measure_padded(family: str, lengths: Path | None, grouped: bool, n_timed: int) -> dict[str, Any]:
    """The stock libraries: padded batches through PEFT's model under autocast."""
    from peft import LoraConfig as PeftLora
    from peft import get_peft_model

    config = config_of(family)
    attention = "sdpa" if family == "llama" else "eager"
    dtype = torch.bfloat16 if CUDA else torch.float32
    base = build(config, RandomWeights(family), "nf4", dtype, attention, DEVICE, True)
    base.config.use_cache = False
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, PeftLora(task_type="SEQ_CLS", r=16, lora_alpha=32, target_modules=targets))
    recompute = not grouped or (CUDA and torch.cuda.get_device_properties(0).total_memory < 130e9)
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    n_timed = min(n_timed, 12)
    examples, batches = padded_batches(WARM + n_timed, grouped, lengths, config.vocab_size)
    own = examples.encoded.lengths[::2]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    reset()
    clock = Clock()
    for rows in batches:
        batch = {name: t.to(DEVICE) for name, t in pad(examples.encoded, 2 * rows, 2).items()}
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=CUDA):
            out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = F.cross_entropy(out.float(), torch.from_numpy(examples.targets[rows].argmax(1)).to(DEVICE))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.on_step_end()
    seconds = clock.seconds(WARM - 1, len(batches) - 1)
    timed = np.concatenate([own[rows] for rows in batches[WARM:]])
    return {
        **speed(config, timed, seconds, True),
        "peak_gib": round(peak(), 1),
        "first_step_s": round(clock.first, 1),
        "steps": len(batches) - WARM,
        "kept_layers": "none" if recompute else "all",
        "attention": attention,
    }
