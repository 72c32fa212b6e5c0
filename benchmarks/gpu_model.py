"""What the GPU benchmarks share: true shapes with random weights, rows of real lengths, a clock, a line kept.

Weights are random, of the true shape, made on the GPU: speed and memory do not depend on their values. On a
CPU the shapes are tiny, so that the scripts can check themselves.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Gemma2Config, LlamaConfig, TrainerCallback

from data.encoding.encode import Encoded
from distill.config import BackboneConfig, LoraConfig
from distill.kernels.choice import attention_for, registered
from distill.model.backbone import add_adapters, prepared
from distill.model.held import compute_dtype, held_in
from distill.model.quantised import build
from distill.packing.examples import Examples

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if CUDA else torch.device("cpu")
GIB = 2**30
WARM = 4
"""Training steps before the timed ones."""
MAX_LENGTH = 2048 if CUDA else 64
PACK_TOKENS = 16384 if CUDA else 512
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


def _llama(**shape: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128256, max_position_embeddings=131072, num_key_value_heads=8, rms_norm_eps=1e-5,
        pad_token_id=2, bos_token_id=0, eos_token_id=1, num_labels=3, **shape,
    )  # fmt: skip


def _gemma(**shape: int) -> Gemma2Config:
    return Gemma2Config(
        vocab_size=256000, head_dim=256, query_pre_attn_scalar=256,
        pad_token_id=0, bos_token_id=2, eos_token_id=1, num_labels=3, **shape,
    )  # fmt: skip


SHAPES: dict[str, Any] = {
    "llama": _llama(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, head_dim=128
    ),
    "gemma": _gemma(
        hidden_size=3584, intermediate_size=14336, num_hidden_layers=42, num_attention_heads=16,
        num_key_value_heads=8,
    ),
    "llama70": _llama(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, head_dim=128
    ),
    "llama1b": _llama(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, head_dim=64
    ),
    "smol": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, head_dim=64, rms_norm_eps=1e-5, pad_token_id=2,
        bos_token_id=0, eos_token_id=1, num_labels=3,
    ),
    "gemma2b": _gemma(
        hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8,
        num_key_value_heads=4,
    ),
}  # fmt: skip
"""The teachers' true shapes, and of the students that the recipes name."""
TINY = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


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
    family: str,
    precision: str,
    compiled: bool = True,
    shard: bool = False,
    attention: str = "auto",
    outputs: int = 3,
) -> Any:
    """Build the classifier as the commands do, from random weights; ``nf4fp8`` is NF4 times FP8."""
    config = config_of(family)
    config.num_labels = outputs
    compute = {"nf4fp8": "fp8", "nf4int8": "int8", "int8int8": "int8"}.get(precision, "auto")
    precision = precision if compute == "auto" else precision.removesuffix(compute)
    if precision == "bf16" and not CUDA:
        precision = "fp32"
    backbone = BackboneConfig(
        path="random", precision=precision, compute=compute, double_quant=True,
        compile="auto" if compiled else "false",
    )  # fmt: skip
    chosen = registered(attention_for(config, attention))
    weights, dtype = RandomWeights(family), compute_dtype(backbone)
    base = build(config, weights, held_in(backbone), dtype, chosen, DEVICE, backbone.double_quant, shard)
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


def speed(config: Any, lengths: np.ndarray, seconds: float, training: bool) -> dict[str, Any]:
    """Tokens a second, and the rate of useful work."""
    return {
        "tok_s": round(lengths.sum() / seconds),
        "tflops": round(work(config, lengths, training) / seconds / 1e12, 1 if CUDA else 6),
        "seconds": round(seconds, 2),
    }


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


def say(out: Path, **line: Any) -> None:
    """Print a line of JSON and keep it."""
    text = json.dumps(line)
    print(text, flush=True)
    with open(out, "a", encoding="utf-8") as file:
        file.write(text + "\n")
