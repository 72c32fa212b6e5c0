"""Speed and memory of the engine on one GPU: ``python -m benchmarks.gpu_training [PHASE[:MEASURE,...] ...]``.

Llama-3.1-8B and Gemma-2-9B as 3-class LoRA classifiers (r = 16, all linear layers) on a real length mix
capped at 2,048 tokens, both orders of a pair (:mod:`benchmarks.gpu_model`). Only real tokens count
(:mod:`benchmarks.gpu_measures`).
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
import time
import traceback
from pathlib import Path
from typing import Any

import torch

import distill.kernels.flex
from benchmarks.gpu_measures import measure_ceiling, measure_prediction, measure_training, profile
from benchmarks.gpu_model import CUDA, GIB, PACK_TOKENS, make_classifier, peak, say
from benchmarks.gpu_stock import measure_stock
from data.console.command import format_table

TIMED = 20
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
            if args.profile and (kind := measure.partition("@")[0]) in {"train", "checkpoint", "predict"}:
                found = profile(classifier, family, args.lengths, kind != "predict")
                say(args.out, phase=phase, measure=kind, profile=found)
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
