"""Speed and memory of the engine on one GPU: ``python -m benchmarks.gpu_training [PHASE[:MEASURE,...] ...]``.

Llama-3.1-8B and Gemma-2-9B as 3-class LoRA classifiers (r = 16, all linear layers) on a real length mix
capped at 2,048 tokens, both orders of a pair (:mod:`benchmarks.gpu_model`). Only real tokens count.
``*-padded`` and ``*-grouped`` are the stock libraries (:mod:`benchmarks.gpu_stock`), ``llama-unsloth`` the
fastest of the others (:mod:`benchmarks.gpu_unsloth`); ``peers`` stands for ours and theirs on one card. A
training may name the tokens of its packs, as ``checkpoint@12288``.

Every phase is a process of its own and every line is written as it is measured, so a crash loses one. On a
CPU the same script runs tiny models, to check itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

import distill.kernels.flex
import distill.training.predict
from benchmarks.gpu_model import (
    CUDA,
    DEVICE,
    GIB,
    MAX_LENGTH,
    PACK_TOKENS,
    SHAPES,
    WARM,
    Clock,
    config_of,
    make_classifier,
    make_examples,
    peak,
    repeat,
    reset,
    say,
    speed,
)
from benchmarks.gpu_stock import measure_stock
from data.console.command import format_table
from distill.config import TrainConfig
from distill.kernels.linear import merge_adapters
from distill.losses import label_loss
from distill.packing.cutting import Cutter, Static, static_shape
from distill.packing.examples import Examples
from distill.packing.pack import pack
from distill.packing.steps import Step, plan_steps, targets_of
from distill.training.predict import predict_logits
from distill.training.trainer import train

TIMED = 20
ROWS_PER_STEP = 12
FIELD_CEILING = 790e12
PHASES = {
    "ceiling": ["matmul"],
    "llama-nf4": ["train", "checkpoint"],
    "llama-nf4fp8": ["train", "checkpoint"],
    "llama-bf16": ["train", "predict"],
    "llama-fp8": ["train", "predict"],
    "gemma-bf16": ["train", "predict"],
    "gemma-nf4": ["train", "checkpoint"],
    "gemma-nf4fp8": ["train", "checkpoint"],
    "gemma-fp8": ["train", "predict"],
    "llama-unsloth": ["train", "checkpoint", "predict"],
    "llama-padded": ["train"],
    "llama-grouped": ["train", "predict"],
    "gemma-padded": ["train"],
    "smol-padded": ["train"],
    "llama1b-nf4fp8": ["train"],
    "llama1b-fp8": ["train", "predict"],
    "llama1b-bf16": ["train", "predict"],
    "gemma2b-bf16": ["predict"],
}
PEERS = [
    "ceiling",
    "llama-nf4fp8:train,checkpoint@16384,checkpoint@14336,checkpoint@12288,checkpoint@8192",
    "llama-unsloth",
    "gemma-nf4fp8",
    "llama1b-nf4fp8",
    "llama1b-fp8",
    "llama1b-bf16",
    "llama-fp8:predict",
    "llama-bf16:predict",
    "llama-grouped",
]
MEASURES = ("train", "checkpoint", "row", "predict", "unmerged", "eager", "matmul")
FLEX: dict[str, list[int]] = {
    "mixed": [64, 32, 4, 3, 32, 64, 64, 64, 8, 2],
    "wide": [128, 64, 8, 2, 32, 64, 64, 64, 8, 2],
    "square": [128, 64, 8, 2, 32, 32, 32, 32, 8, 2],
    "eight": [128, 32, 8, 2, 64, 64, 64, 64, 8, 2],
    "library": [64, 32, 4, 3, 64, 64, 64, 64, 4, 2],
}
"""Tiles of flex attention to try with ``--flex``: block M and N, warps and stages forward; M1, N1, M2, N2,
warps and stages backward."""
FLEX_KEYS = [
    *("fwd_BLOCK_M", "fwd_BLOCK_N", "fwd_num_warps", "fwd_num_stages"),
    *("bwd_BLOCK_M1", "bwd_BLOCK_N1", "bwd_BLOCK_M2", "bwd_BLOCK_N2", "bwd_num_warps", "bwd_num_stages"),
]


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
        "steps": n_timed,
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


def run_phase(phase: str, measures: list[str], args: argparse.Namespace) -> None:
    """Measure one phase in this process, a line after each measure."""
    say(
        args.out,
        phase=phase,
        device=torch.cuda.get_device_name() if CUDA else "cpu",
        torch=torch.__version__,
        flex=args.flex,
    )
    if phase == "ceiling":
        say(args.out, phase=phase, measure="matmul", **measure_ceiling())
        return
    family, precision = phase.split("-")
    if precision in {"padded", "grouped"}:
        for measure in measures:
            found = measure_stock(family, args.lengths, precision == "grouped", args.steps, measure)
            say(args.out, phase=phase, measure=measure, **found)
        return
    started = time.perf_counter()
    classifier = make_classifier(family, precision, "eager" not in measures, attention=args.attention)
    if CUDA:
        torch.cuda.synchronize()
    loaded = torch.cuda.memory_allocated() / GIB if CUDA else 0.0
    say(args.out, phase=phase, built_s=round(time.perf_counter() - started, 1), loaded_gib=round(loaded, 1),
        build_peak_gib=round(peak(), 1))  # fmt: skip
    for measure in measures:
        try:
            if measure in {"predict", "unmerged"}:
                found = measure_prediction(classifier, family, args.lengths, measure == "predict")
            elif measure == "eager":
                continue
            else:
                found = measure_training(
                    classifier, family, args.lengths, measure, args.steps, args.pack_tokens
                )
            say(args.out, phase=phase, measure=measure, **found)
            if args.profile and measure in {"train", "predict"}:
                say(
                    args.out,
                    phase=phase,
                    profile=profile(classifier, family, args.lengths, measure == "train"),
                )
        except Exception as error:
            traceback.print_exc()
            say(args.out, phase=phase, measure=measure, error=f"{type(error).__name__}: {str(error)[:400]}")


def table(out: Path) -> str:
    """The measured lines as a table."""
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    ceilings: dict[str, Any] = next((line for line in lines if "llama_bf16_tflops" in line), {})
    body = []
    for line in lines:
        if "phase" not in line or ("tok_s" not in line and "error" not in line):
            continue
        family, precision = line["phase"].split("-")
        kind = "fp8" if precision.endswith("fp8") else "bf16"
        ceiling = ceilings.get(f"{family}_{kind}_tflops")
        share = "" if not ceiling or "tflops" not in line else f"{line['tflops'] / ceiling:.0%}"
        of_field = "" if "tflops" not in line else f"{line['tflops'] * 1e12 / FIELD_CEILING:.0%}"
        first = line.get("first_step_s", line.get("first_run_s", ""))
        values = [line["phase"], line.get("measure", ""), f"{line.get('tok_s', 0):,}", share, of_field]
        body.append([*values, str(line.get("peak_gib", "")), str(first), str(line.get("error", ""))[:60]])
    header = ["phase", "measure", "tokens/s", "of ceiling", "of 790", "peak GiB", "first s", ""]
    return format_table(header, body)


def main() -> None:
    """Run the asked phases, each in a process of its own, within the asked minutes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "phases", nargs="*", help=f"peers, or of {', '.join(PHASES)}; measures: {', '.join(MEASURES)}"
    )
    parser.add_argument("--lengths", type=Path, help="JSON list of real row lengths in tokens")
    parser.add_argument("--out", type=Path, default=Path("gpu_training.jsonl"))
    parser.add_argument("--checkpoint", type=Path, help="what unsloth loads; made there if there is none")
    parser.add_argument("--minutes", type=float, default=8.0, help="stop starting phases after this long")
    parser.add_argument("--steps", type=int, default=TIMED, help="timed training steps")
    parser.add_argument("--pack-tokens", type=int, default=PACK_TOKENS, help="tokens of a pack in training")
    parser.add_argument("--flex", choices=FLEX, help="tiles of flex attention, instead of the engine's")
    parser.add_argument("--attention", default="auto", help="as in a recipe")
    parser.add_argument("--profile", action="store_true", help="also list the kernels of one pack")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    wanted = {}
    asked = args.phases or list(PHASES)
    for phase in PEERS if asked == ["peers"] else asked:
        name, _, measures = phase.partition(":")
        wanted[name] = measures.split(",") if measures else PHASES[name]
    if args.flex:
        tiles = dict(zip(FLEX_KEYS, FLEX[args.flex], strict=True))
        distill.kernels.flex.KERNELS.update(dict.fromkeys(distill.kernels.flex.KERNELS, tiles))
    if args.inside:
        ((phase, measures),) = wanted.items()
        run_phase(phase, measures, args)
        return
    deadline = time.monotonic() + 60 * args.minutes
    for name, measures in wanted.items():
        left = deadline - time.monotonic()
        if left < 20:
            say(args.out, phase=name, skipped="no time left")
            continue
        command = [
            sys.executable,
            "-m",
            f"benchmarks.{'gpu_unsloth' if name.endswith('-unsloth') else 'gpu_training'}",
            f"{name}:{','.join(measures)}",
            "--out",
            str(args.out),
            "--inside",
        ]
        command += ["--lengths", str(args.lengths)] if args.lengths else []
        command += ["--checkpoint", str(args.checkpoint)] if args.checkpoint else []
        command += ["--profile"] if args.profile else []
        command += ["--pack-tokens", str(args.pack_tokens), "--attention", args.attention]
        command += ["--steps", str(args.steps), *(["--flex", args.flex] if args.flex else [])]
        try:
            done = subprocess.run(command, timeout=left, check=False)
            if done.returncode:
                say(args.out, phase=name, error=f"ended with {done.returncode}")
        except subprocess.TimeoutExpired:
            say(args.out, phase=name, error="out of time")
    print(table(args.out))


if __name__ == "__main__":
    main()
