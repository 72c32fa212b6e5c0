"""Speed and memory of the engine on one GPU: ``python -m benchmarks.gpu_training [PHASE[:MEASURE,...] ...]``.

Llama-3.1-8B and Gemma-2-9B as 3-class LoRA classifiers (r = 16, all linear layers) on a real length mix
capped at 2,048 tokens, both orders of a pair. Weights are random, of the true shape, made on the GPU: speed
and memory do not depend on their values. Only real tokens count. ``*-padded`` is what a notebook does with
the stock libraries: batches of 8 padded to the longest, checkpointing; ``*-grouped`` is those libraries at
their best: rows sorted by length over 4,096, batches of as many tokens as our packs, and no checkpointing
where the card has the memory. ``unmeasured`` stands for the phases that ``gpu_training.md`` has no figure of,
with their peers and a baseline; it takes about nine minutes.

Every phase is a process of its own and every line is written as it is measured, so a crash loses one. On a
CPU the same script runs tiny models, to check itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import Gemma2Config, LlamaConfig, TrainerCallback

import distill.attention
import distill.inference
from data.command import format_table
from data.encode import Encoded
from distill.attention import attention_for, registered
from distill.backbone import add_adapters, compute_dtype, prepared
from distill.batches import Examples, pad
from distill.config import BackboneConfig, LoraConfig, TrainConfig
from distill.inference import predict_logits
from distill.linear import merge_adapters
from distill.loading import build
from distill.losses import cross_entropy
from distill.packing import Cutter, Static, Step, pack, plan_steps, static_shape, targets_of
from distill.trainer import train

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if CUDA else torch.device("cpu")
GIB = 2**30
WARM, TIMED = 4, 20
MAX_LENGTH = 2048 if CUDA else 64
ROWS_PER_STEP = 12
PACK_TOKENS = 16384 if CUDA else 512
FIELD_CEILING = 790e12
QUANTILES = [
    (0, 40),
    (5, 93),
    (25, 254),
    (50, 527),
    (75, 900),
    (90, 1309),
    (95, 1755),
    (99, 3563),
    (100, 8634),
]
"""Tokens of prompt and both responses of real preference rows, by percentile."""

PHASES = {
    "ceiling": ["matmul"],
    "llama-nf4": ["train", "checkpoint"],
    "llama-bf16": ["train", "predict"],
    "llama-fp8": ["train", "predict"],
    "gemma-bf16": ["train", "predict"],
    "gemma-nf4": ["train", "checkpoint"],
    "gemma-fp8": ["train", "predict"],
    "llama-padded": ["train"],
    "llama-grouped": ["train"],
    "gemma-padded": ["train"],
    "llama1b-bf16": ["predict"],
    "gemma2b-bf16": ["predict"],
}
UNMEASURED = [
    "llama-fp8:predict",
    "gemma-nf4:train,checkpoint",
    "gemma-bf16:predict",
    "llama-nf4:train",
    "llama-bf16:train,predict",
    "llama-padded:train",
    "gemma-padded:train",
    "llama-grouped:train",
]
MEASURES = ("train", "checkpoint", "row", "predict", "unmerged", "eager", "matmul")
SHAPES: dict[str, Any] = {
    "llama": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, max_position_embeddings=131072,
        rms_norm_eps=1e-5, pad_token_id=2, bos_token_id=0, eos_token_id=1, num_labels=3,
    ),
    "gemma": Gemma2Config(
        vocab_size=256000, hidden_size=3584, intermediate_size=14336, num_hidden_layers=42,
        num_attention_heads=16, num_key_value_heads=8, head_dim=256, query_pre_attn_scalar=256,
        pad_token_id=0, bos_token_id=2, eos_token_id=1, num_labels=3,
    ),
    "llama1b": LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, max_position_embeddings=131072,
        rms_norm_eps=1e-5, pad_token_id=2, bos_token_id=0, eos_token_id=1, num_labels=3,
    ),
    "gemma2b": Gemma2Config(
        vocab_size=256000, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26,
        num_attention_heads=8, num_key_value_heads=4, head_dim=256, query_pre_attn_scalar=256,
        pad_token_id=0, bos_token_id=2, eos_token_id=1, num_labels=3,
    ),
}  # fmt: skip
"""The teachers' true shapes, and of the students that the recipes name."""
TINY = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


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


class RandomWeights:
    """Weights drawn on the device as they are asked for."""

    def __init__(self, family: str) -> None:
        self.norm = 0.0 if family.startswith("gemma") else 1.0
        self.generator = torch.Generator(DEVICE).manual_seed(0)

    def __contains__(self, name: str) -> bool:
        return not name.startswith("score.")

    def get(self, name: str, shape: torch.Size, device: torch.device) -> torch.Tensor:
        """Return norms that do nothing, and matrices of the usual scale."""
        empty = torch.empty(shape, device=device, dtype=torch.bfloat16 if CUDA else torch.float32)
        return empty.fill_(self.norm) if len(shape) == 1 else empty.normal_(0, 0.02, generator=self.generator)


def mark() -> Any:
    """A moment on the GPU's own clock, without stopping it."""
    if not CUDA:
        return time.perf_counter()
    event: Any = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(start: Any, end: Any) -> float:
    """Seconds between two marks."""
    if not CUDA:
        return end - start
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


class Clock(TrainerCallback):
    """Marks the end of every step."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.first = 0.0
        self.marks: list[Any] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Mark."""
        if not self.marks:
            if CUDA:
                torch.cuda.synchronize()
            self.first = time.perf_counter() - self.started
        self.marks.append(mark())

    def seconds(self, start: int, end: int) -> float:
        """Seconds between two marks."""
        return between(self.marks[start], self.marks[end])


def config_of(family: str) -> Any:
    """The true shape, or a tiny one on a CPU."""
    config = SHAPES[family]
    if not CUDA:
        config.update({**TINY, "query_pre_attn_scalar": 16} if family.startswith("gemma") else TINY)
    return config


def row_lengths(n: int, file: Path | None) -> np.ndarray:
    """Draw row lengths from a JSON list of real ones, or from the quantile table."""
    generator = np.random.default_rng(1)
    if file is not None:
        lengths = generator.choice(np.array(json.loads(file.read_text())), size=n)
    else:
        at, values = np.array(QUANTILES, dtype=float).T
        lengths = np.exp(np.interp(generator.uniform(0, 100, size=n), at, np.log(values)))
    scaled = np.minimum(lengths, 2048) * MAX_LENGTH / 2048
    return np.maximum(4, scaled.astype(np.int64))


def make_examples(n: int, file: Path | None, vocab: int) -> Examples:
    """Rows of random tokens and random labels, both orders of a row equally long."""
    lengths = np.repeat(row_lengths(n, file), 2)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    generator = np.random.default_rng(2)
    ids = generator.integers(5, vocab, size=int(offsets[-1]), dtype=np.int32)
    targets = np.eye(3)[generator.integers(3, size=n)]
    return Examples(Encoded(ids, offsets, 2, 0), targets, [1, 0, 2], pad_id=2)


def work(config: Any, lengths: np.ndarray, training: bool) -> float:
    """Floating-point operations that documents need: 4N + 3.5a a token in training, else 2N + a."""
    d = config.head_dim
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    layer = config.hidden_size * d * heads + 3 * config.hidden_size * config.intermediate_size
    linear = config.num_hidden_layers * layer
    attention = config.num_hidden_layers * 2 * lengths * config.num_attention_heads * d
    each = 4 * linear + 3.5 * attention if training else 2 * linear + attention
    return float((lengths * each).sum())


def make_classifier(
    family: str, precision: str, compiled: bool = True, shard: bool = False, attention: str = "auto"
) -> Any:
    """Build the classifier as the commands do, from random weights."""
    config = config_of(family)
    if precision == "bf16" and not CUDA:
        precision = "fp32"
    backbone = BackboneConfig(
        path="random", precision=precision, double_quant=True, compile="auto" if compiled else "false"
    )
    chosen = registered(attention_for(config.model_type, attention))
    weights, dtype = RandomWeights(family), compute_dtype(backbone)
    base = build(config, weights, precision, dtype, chosen, DEVICE, backbone.double_quant, shard)
    classifier = add_adapters(prepared(base, backbone), LoraConfig(r=16, alpha=32), 0)
    for name, parameter in classifier.named_parameters():
        if parameter.requires_grad and ("lora_B" in name or "score" in name):
            torch.nn.init.normal_(parameter, std=0.01)
    return classifier


def peak() -> float:
    """Peak memory in GiB since the last reset."""
    return torch.cuda.max_memory_allocated() / GIB if CUDA else 0.0


def reset() -> None:
    """Forget earlier memory."""
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def compiled_graphs() -> dict[str, Any]:
    """How many graphs were compiled so far, and where that time went, in seconds."""
    from torch._dynamo.utils import calculate_time_spent, counters

    spent = {name: round(seconds, 1) for name, seconds in calculate_time_spent().items() if seconds >= 0.5}
    return {"graphs": counters["stats"].get("unique_graphs", 0), "compile_s": spent}


def measure_training(
    classifier: Any, family: str, lengths: Path | None, measure: str, n_timed: int
) -> dict[str, Any]:
    """Train some steps through the engine's own ``train``; time all but the first few."""
    config = config_of(family)
    tokens = MAX_LENGTH if measure == "row" else PACK_TOKENS
    rows = 1 if measure == "row" else ROWS_PER_STEP
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

    def loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return cross_entropy(logits, batch["targets"])

    with tempfile.TemporaryDirectory() as out:
        train(classifier, examples, everything, settings, loss, Path(out), measure, callbacks=[clock])
        logged = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    seconds = clock.seconds(WARM - 1, n_steps - 1)
    timed = np.concatenate([examples.encoded.lengths[s.sequences(2)] for s in steps[WARM:]])
    plan = classifier.plan
    return {
        **speed(config, timed, seconds, True),
        "peak_gib": round(peak(), 1),
        "first_step_s": round(clock.first, 1),
        "steps": n_timed,
        "host_share": round(host_seconds(examples, steps[WARM:]) * n_timed / seconds, 5),
        **compiled_graphs(),
        "kept_layers": plan.kept if plan.checkpoint == "auto" else plan.checkpoint,
        "loss": next((line["loss"] for line in reversed(logged) if "loss" in line), None),
        "attention": plan.attention,
    }


def host_seconds(examples: Examples, steps: list[Step]) -> float:
    """Seconds of the CPU's own work for a step: cutting it, laying out its packs and their targets."""
    lengths = examples.encoded.lengths
    cutter = Cutter(PACK_TOKENS)
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


def speed(config: Any, lengths: np.ndarray, seconds: float, training: bool) -> dict[str, Any]:
    """Tokens a second, and the rate of useful work."""
    return {
        "tok_s": round(lengths.sum() / seconds),
        "tflops": round(work(config, lengths, training) / seconds / 1e12, 1 if CUDA else 6),
        "seconds": round(seconds, 2),
    }


def measure_prediction(classifier: Any, family: str, lengths: Path | None, merge: bool) -> dict[str, Any]:
    """Predict through the engine's own ``predict_logits``; the second of two runs is timed."""
    config = config_of(family)
    if merge:
        merge_adapters(classifier)
    distill.inference.WORTH_COMPILING = 0
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


def measure_ceiling() -> dict[str, Any]:
    """Matrix products of the true shapes in bf16 and FP8: what no step can exceed."""
    from distill.frozen import quantise_rows, scaled_mm

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


def repeat(what: Any, times: int = 10 if CUDA else 1) -> float:
    """Seconds one call takes."""
    for _ in range(3 if CUDA else 1):
        what()
    if CUDA:
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(times):
        what()
    if CUDA:
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / times


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
        found = measure_padded(family, args.lengths, precision == "grouped", args.steps)
        say(args.out, phase=phase, measure="train", **found)
        return
    started = time.perf_counter()
    classifier = make_classifier(family, precision, "eager" not in measures)
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
                found = measure_training(classifier, family, args.lengths, measure, args.steps)
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


def say(out: Path, **line: Any) -> None:
    """Print a line of JSON and keep it."""
    text = json.dumps(line)
    print(text, flush=True)
    with open(out, "a", encoding="utf-8") as file:
        file.write(text + "\n")


def table(out: Path) -> str:
    """The measured lines as a table."""
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    ceilings: dict[str, Any] = next((line for line in lines if "llama_bf16_tflops" in line), {})
    body = []
    for line in lines:
        if "tok_s" not in line and "error" not in line:
            continue
        family, precision = line["phase"].split("-")
        kind = "fp8" if precision == "fp8" else "bf16"
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
        "phases", nargs="*", help=f"unmeasured, or of {', '.join(PHASES)}; measures: {', '.join(MEASURES)}"
    )
    parser.add_argument("--lengths", type=Path, help="JSON list of real row lengths in tokens")
    parser.add_argument("--out", type=Path, default=Path("gpu_training.jsonl"))
    parser.add_argument("--minutes", type=float, default=8.0, help="stop starting phases after this long")
    parser.add_argument("--steps", type=int, default=TIMED, help="timed training steps")
    parser.add_argument("--flex", choices=FLEX, help="tiles of flex attention, instead of the engine's")
    parser.add_argument("--profile", action="store_true", help="also list the kernels of one pack")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    wanted = {}
    asked = args.phases or list(PHASES)
    for phase in UNMEASURED if asked == ["unmeasured"] else asked:
        name, _, measures = phase.partition(":")
        wanted[name] = measures.split(",") if measures else PHASES[name]
    if args.flex:
        tiles = dict(zip(FLEX_KEYS, FLEX[args.flex], strict=True))
        distill.attention.KERNELS.update(dict.fromkeys(distill.attention.KERNELS, tiles))
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
            "benchmarks.gpu_training",
            f"{name}:{','.join(measures)}",
            "--out",
            str(args.out),
            "--inside",
        ]
        command += ["--lengths", str(args.lengths)] if args.lengths else []
        command += ["--profile"] if args.profile else []
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
