"""Time the ``lmsys`` recipe's teachers at full size on one GPU: ``python benchmarks/gpu_recipes.py ROWS``.

ROWS is prepared LMSYS data (``python -m data.prepare``). Weights are random, of the true shape, made here:
speed and memory do not depend on their values. Prints tokens a second (padding not counted), peak memory
and what the whole training set would take.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from data.command import format_table
from data.dataset import load_prepared
from distill.backbone import add_adapters, load_base
from distill.config import TinyConfig, load_recipe
from distill.crossfit import plan_run
from distill.losses import cross_entropy
from distill.tiny import train_tokenizer
from distill.trainer import predict_logits, train

FULL_ROWS, FULL_FOLDS = 57_477, 5
SHAPES = {
    "llama31-8b": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131072,
    ),
    "gemma2-9b": Gemma2Config(
        vocab_size=256000, hidden_size=3584, intermediate_size=14336, num_hidden_layers=42,
        num_attention_heads=16, num_key_value_heads=8, head_dim=256, query_pre_attn_scalar=256,
    ),
}  # fmt: skip


def make_checkpoint(name: str, texts: list[str], out: Path) -> None:
    """Write a random bf16 checkpoint of the true shape, with a tokenizer trained on the rows."""
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(SHAPES[name])
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(out)
    train_tokenizer(
        TinyConfig(family="gemma2" if "gemma" in name else "llama").family, texts, 32000
    ).save_pretrained(out)


def measure(name: str, rows_dir: Path, scratch: Path, steps: int) -> list[str]:
    """Train some steps and predict some rows; return one table line."""
    rows, folds = load_prepared(rows_dir)
    checkpoint = scratch / name
    texts = [
        " ".join(r) for c in ("prompt", "response_a", "response_b") for r in rows.table.column(c).to_pylist()
    ]
    make_checkpoint(name, texts, checkpoint)
    torch.cuda.empty_cache()
    config = load_recipe("lmsys").teachers[name]
    config = replace(config, backbone=replace(config.backbone, path=str(checkpoint)))
    config = replace(config, train=replace(config.train, checkpoint_steps=0))
    run = plan_run("teacher", name, config, rows, folds, rows_dir, scratch / "runs" / name, loss=None)  # type: ignore[arg-type]
    load_started = time.perf_counter()
    classifier = add_adapters(
        load_base(config.backbone, run.backbone, rows.classes.n),
        config.lora,
        0,
        config.train.gradient_checkpointing,
    )
    loading = time.perf_counter() - load_started
    torch.cuda.reset_peak_memory_stats()
    marks: list[tuple[float, float]] = []

    def loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        torch.cuda.synchronize()
        marks.append((time.perf_counter(), float(batch["attention_mask"].sum())))
        return cross_entropy(logits, batch["targets"])

    some = np.random.default_rng(0).choice(len(rows), size=steps * config.train.rows_per_step, replace=False)
    train(classifier, run.examples, some, config.train, loss, scratch / "runs" / name, name)
    warm = len(marks) // 4
    training = sum(tokens for _, tokens in marks[warm:-1]) / (marks[-1][0] - marks[warm][0])
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.synchronize()
    started = time.perf_counter()
    predict_logits(classifier, run.examples, some[:100], config.train.predict_rows, name)
    lengths = run.examples.encoded.lengths
    predicted = sum(int(lengths[2 * i] + lengths[2 * i + 1]) for i in some[:100])
    inference = predicted / (time.perf_counter() - started)
    tokens = FULL_ROWS * lengths.mean() * 2
    hours = (tokens * (FULL_FOLDS - 1) / training + tokens / inference) / 3600
    shutil.rmtree(checkpoint)
    return [
        name, f"{lengths.mean():.0f}", f"{loading:.0f}", f"{training:,.0f}", f"{peak:.1f}", f"{inference:,.0f}", f"{hours:.0f}",
    ]  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path, help="prepared LMSYS rows")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/distillstack-gpu"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", nargs="+", default=list(SHAPES))
    args = parser.parse_args()
    lines = [measure(name, args.rows, args.scratch, args.steps) for name in args.only]
    header = [
        "teacher",
        "tokens a row",
        "load s",
        "train tok/s",
        "peak GiB",
        "predict tok/s",
        "hours, 57k rows, 5 folds",
    ]
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    print(format_table(header, lines))


if __name__ == "__main__":
    main()
