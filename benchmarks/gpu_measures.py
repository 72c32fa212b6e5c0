"""What is measured of a model on one GPU: training, prediction, where a pack's time goes, and the ceiling.

:mod:`benchmarks.gpu_training` and :mod:`benchmarks.gpu_engine` say of which models, and in which order.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import distill.training.predict
from benchmarks.gpu_model import (
    CUDA,
    DEVICE,
    MAX_LENGTH,
    PACK_TOKENS,
    SHAPES,
    WARM,
    Clock,
    config_of,
    make_examples,
    peak,
    repeat,
    reset,
    speed,
)
from distill.config import TrainConfig
from distill.kernels.linear import merge_adapters
from distill.losses import label_loss
from distill.packing.cutting import Cutter, Static, static_shape
from distill.packing.examples import Examples
from distill.packing.pack import pack
from distill.packing.steps import Step, plan_steps, targets_of
from distill.training.predict import predict_logits
from distill.training.trainer import train

ROWS_PER_STEP = 12


def compiled_graphs() -> dict[str, Any]:
    """How many graphs were compiled so far, and where that time went, in seconds."""
    from torch._dynamo.utils import calculate_time_spent, counters

    spent = {name: round(seconds, 1) for name, seconds in calculate_time_spent().items() if seconds >= 0.5}
    return {"graphs": counters["stats"].get("unique_graphs", 0), "compile_s": spent}


def measure_training(
    classifier: Any,
    family: str,
    lengths: Path | None,
    measure: str,
    n_timed: int,
    pack_tokens: int,
    rows_per_step: int = ROWS_PER_STEP,
) -> dict[str, Any]:
    """Train some steps through the engine's own ``train``; time all but the first few."""
    config = config_of(family)
    measure, _, asked = measure.partition("@")
    tokens = MAX_LENGTH if measure == "row" else int(asked or pack_tokens)
    rows = 1 if measure == "row" else rows_per_step
    n_steps = WARM + n_timed
    examples = make_examples(n_steps * rows, lengths, config.vocab_size)
    settings = TrainConfig(
        lr=1e-5,
        rows_per_step=rows,
        pack_tokens=tokens,
        gradient_checkpointing="true" if measure in {"checkpoint", "row"} else "auto",
        log_steps=10,
    )
    everything = np.arange(n_steps * rows)
    own = examples.encoded.lengths[::2]
    steps = plan_steps(
        everything, own, epochs=1, rows_per_step=rows, orders=2, both_orders=True, seed=settings.seed
    )
    reset()
    clock = Clock()

    with tempfile.TemporaryDirectory() as out:
        train(classifier, examples, everything, settings, label_loss, Path(out), measure, callbacks=[clock])
        logged = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    seconds = clock.seconds(WARM - 1, n_steps - 1)
    timed = np.concatenate([examples.encoded.lengths[s.sequences(2)] for s in steps[WARM:]])
    plan = classifier.plan
    return {
        **speed(config, timed, seconds, True),
        "peak_gib": round(peak(), 1),
        "first_step_s": round(clock.first, 1),
        "steps_s": [round(clock.seconds(n, n + 1), 2) for n in range(WARM - 1, n_steps - 1)],
        "host_share": round(host_seconds(examples, steps[WARM:], tokens) * n_timed / seconds, 5),
        **compiled_graphs(),
        "kept_layers": plan.kept if plan.checkpoint == "auto" else plan.checkpoint,
        "loss": next((line["loss"] for line in reversed(logged) if "loss" in line), None),
        "attention": plan.attention,
    }


def host_seconds(examples: Examples, steps: list[Step], pack_tokens: int) -> float:
    """Seconds of the CPU's own work for a step: cutting it, laying out its packs and their targets."""
    lengths = examples.encoded.lengths
    cutter = Cutter(pack_tokens)
    packs = [
        p for s in steps for own in [lengths[s.sequences(2)]] for p in (own[c] for c in cutter.packs(own)[0])
    ]
    static = static_shape(packs, MAX_LENGTH)
    started = time.perf_counter()
    for step in steps:
        sequences = step.sequences(2)
        for chosen in cutter.packs(lengths[sequences])[0]:
            pack(examples.encoded, sequences[chosen], 2, static)
            targets_of(examples, step.take(chosen))
    return (time.perf_counter() - started) / len(steps)


def measure_prediction(classifier: Any, family: str, lengths: Path | None, merge: bool) -> dict[str, Any]:
    """Predict through the engine's own ``predict_logits``; the second of two runs is timed."""
    config = config_of(family)
    if merge:
        merge_adapters(classifier)
    distill.training.predict.WORTH_COMPILING = 0
    examples = make_examples(480 if CUDA else 32, lengths, config.vocab_size)
    rows = np.arange(len(examples.targets))
    reset()
    times = []
    for _ in range(2):
        started = time.perf_counter()
        predict_logits(classifier, examples, rows, 0, "predict", PACK_TOKENS)
        times.append(time.perf_counter() - started)
    return {
        **speed(config, examples.encoded.lengths, times[1], False),
        "peak_gib": round(peak(), 1),
        "first_run_s": round(times[0], 1),
        "attention": classifier.plan.attention,
    }


def profile(classifier: Any, family: str, lengths: Path | None, training: bool) -> dict[str, Any]:
    """Where the time of one pack goes, by kernel."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    config = config_of(family)
    examples = make_examples(ROWS_PER_STEP, lengths, config.vocab_size)
    size = -(-int(examples.encoded.lengths.sum()) // 128) * 128
    one = pack(examples.encoded, np.arange(2 * ROWS_PER_STEP), 2, Static(size, 64, MAX_LENGTH)).to(DEVICE)

    def run() -> None:
        with torch.set_grad_enabled(training):
            out = classifier(pack=one).sum()
            if training:
                out.backward()

    classifier.train(training)
    run()
    with profiler(activities=[ProfilerActivity.CUDA if CUDA else ProfilerActivity.CPU]) as record:
        run()
        if CUDA:
            torch.cuda.synchronize()
    own = "self_device_time_total" if CUDA else "self_cpu_time_total"
    events = [(e.key, getattr(e, own) / 1e3, e.count) for e in record.key_averages()]
    events.sort(key=lambda event: -event[1])
    return {
        "tokens": size,
        "total_ms": round(sum(event[1] for event in events), 1),
        "top": [(name[:90], round(ms, 1), count) for name, ms, count in events[:16]],
    }


def measure_ceiling() -> dict[str, Any]:
    """Matrix products of the true shapes in bf16 and FP8: what no step can exceed."""
    from distill.kernels.scaled import quantise_rows, scaled_mm

    m = PACK_TOKENS
    found: dict[str, Any] = {}
    for family in SHAPES:
        c = config_of(family)
        qkv = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
        shapes = [(qkv, c.hidden_size), (c.hidden_size, c.num_attention_heads * c.head_dim)]
        shapes += [(2 * c.intermediate_size, c.hidden_size), (c.hidden_size, c.intermediate_size)]
        total, times = 0, {"bf16": 0.0, "fp8": 0.0}
        for n, k in shapes:
            for out, into in ((n, k), (k, n)):
                x = torch.randn(m, into, device=DEVICE, dtype=torch.bfloat16)
                w = torch.randn(out, into, device=DEVICE, dtype=torch.bfloat16)
                times["bf16"] += repeat(lambda x=x, w=w: x @ w.t())
                xq, xs = quantise_rows(x)
                wq, ws = quantise_rows(w)
                times["fp8"] += repeat(
                    lambda xq=xq, xs=xs, wq=wq, ws=ws: scaled_mm(xq, xs, wq, ws, torch.bfloat16)
                )
                total += 2 * m * out * into
        found |= {f"{family}_{kind}_tflops": round(total / t / 1e12, 1) for kind, t in times.items()}
    return found
