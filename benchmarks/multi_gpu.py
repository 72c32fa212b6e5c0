"""Training and prediction on several GPUs of one host: ``python -m benchmarks.multi_gpu --gpus 2 --out DIR``.

Llama-3.1-8B as a 3-class LoRA classifier, NF4 with FP8 products and bf16, on one GPU and on several: the same
rows in the same steps (12 rows a GPU and step, both orders, real length mix), so that the losses must agree.
Then the shape of Llama-3.1-70B in NF4, cut over the GPUs (:mod:`distill.model.sharding`). Only real tokens
count. The single-GPU runs of both precisions go on two cards at the same time, so that the host is as busy as
it is with several. Every line is written as it is measured; ``--tiny`` runs tiny models on CPUs, to check the
script itself.
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

import distill.training.predict
import distill.training.trainer
from benchmarks import gpu_model as one
from data.console.command import format_table
from distill.config import TrainConfig
from distill.kernels.linear import merge_adapters
from distill.losses import label_loss
from distill.packing.cutting import Cutter, cost, cut
from distill.packing.steps import plan_steps
from distill.processes import gathered, join_others, process
from distill.training.predict import predict_logits
from distill.training.trainer import train

CUDA = one.CUDA
WARM, TIMED = (4, 12) if CUDA else (1, 3)
ROWS_A_GPU = 12
UNEVEN_ROWS = 18
"""Rows a GPU and step with which packs dealt in turn leave a GPU waiting: three packs for two."""
SHARDED_ROWS, SHARDED_STEPS = 6, 3
PREDICTED = 640 if CUDA else 24
WANTED = {2: 0.93, 4: 0.9, 8: 0.88}
FILE = "multi_gpu.jsonl"


class Watch(one.Clock):
    """Marks where each step starts, where its gradients are summed, and where it ends."""

    def __init__(self, warm: int) -> None:
        super().__init__()
        self.warm = warm
        self.begins: list[Any] = []
        self.sums: list[tuple[Any, Any]] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Mark."""
        self.begins.append(one.mark())

    def sum_gradients(self, parameters: Any) -> None:
        """Sum, between two marks."""
        before = one.mark()
        original_sum(parameters)
        self.sums.append((before, one.mark()))

    def busy(self) -> list[float]:
        """Seconds of every timed step that this process computed, before it met the others."""
        pairs = list(zip(self.begins, self.sums, strict=True))[self.warm :]
        return [one.between(begin, before) for begin, (before, _) in pairs]

    def summing(self) -> float:
        """Seconds of a timed step, in the mean, from then to the sum of gradients."""
        return float(np.mean([one.between(before, after) for before, after in self.sums[self.warm :]]))


original_sum = distill.training.trainer.sum_gradients


def measure_training(
    classifier: Any, family: str, rows: int, timed: int, lengths: Path | None, warm: int = WARM
) -> dict[str, Any]:
    """Train some steps of so many rows through the engine's own ``train``."""
    config, n_steps = one.config_of(family), warm + timed
    examples = one.make_examples(n_steps * rows, lengths, config.vocab_size)
    settings = TrainConfig(lr=1e-4, rows_per_step=rows, pack_tokens=one.PACK_TOKENS, log_steps=n_steps // 2)
    everything = np.arange(n_steps * rows)
    own = examples.encoded.lengths
    steps = plan_steps(
        everything, own[::2], epochs=1, rows_per_step=rows, orders=2, both_orders=True, seed=settings.seed
    )
    one.reset()
    watch = Watch(warm)
    distill.training.trainer.sum_gradients = watch.sum_gradients

    with tempfile.TemporaryDirectory() as out:
        train(classifier, examples, everything, settings, label_loss, Path(out), "train", callbacks=[watch])
        file = Path(out) / "metrics.jsonl"
        logged = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    distill.training.trainer.sum_gradients = original_sum
    seconds = watch.seconds(warm - 1, n_steps - 1)
    tokens = np.concatenate([own[s.sequences(2)] for s in steps[warm:]])
    busy = np.array(gathered(watch.busy()))
    peaks = gathered(one.peak())
    plan = classifier.plan
    return {
        **one.speed(config, tokens, seconds, True),
        "step_s": round(seconds / timed, 3),
        "peak_gib": round(max(peaks), 1),
        "first_step_s": round(watch.first, 1),
        "kept_layers": plan.kept if plan.checkpoint == "auto" else plan.checkpoint,
        "losses": [line["loss"] for line in logged if "loss" in line],
        "summing_share": round(watch.summing() * timed / seconds, 4),
        "spread": round(float(((busy.max(axis=0) - busy.min(axis=0)) / busy.mean(axis=0)).mean()), 4),
        **exchange(classifier, seconds / timed),
    }


def exchange(classifier: Any, step: float) -> dict[str, Any]:
    """Time of the exchange of gradients alone, when no process has to be waited for."""
    if process()[1] == 1:
        return {}
    learnt = [p for p in classifier.parameters() if p.requires_grad]
    for parameter in learnt:
        parameter.grad = torch.zeros_like(parameter)
    seconds = one.repeat(lambda: original_sum(learnt))
    for parameter in learnt:
        parameter.grad = None
    size = sum(p.numel() * p.element_size() for p in learnt)
    return {
        "exchange_ms": round(1000 * seconds, 2),
        "exchange_mib": round(size / 2**20),
        "exchange_share": round(seconds / step, 4),
    }


def gathering(classifier: Any, step: float) -> dict[str, Any]:
    """Time to gather a layer, and all of them twice as a share of the step that they are gathered beside."""
    shards = classifier.inner.get_decoder().cut_layers

    def gather() -> None:
        shards.held = [-1, -1]
        shards.bring(classifier.inner.get_decoder().layers[0])

    seconds = one.repeat(gather) / 2  # this layer's, and the next one's
    return {
        "gather_ms": round(1000 * seconds, 2),
        "gather_share": round(2 * len(shards.layers) * seconds / step, 4),
    }


def measure_prediction(classifier: Any, family: str, lengths: Path | None) -> dict[str, Any]:
    """Predict through the engine's own ``predict_logits``; the second of two runs is timed."""
    config = one.config_of(family)
    merge_adapters(classifier)
    distill.training.predict.WORTH_COMPILING = 0
    examples = one.make_examples(PREDICTED, lengths, config.vocab_size)
    rows = np.arange(PREDICTED)
    one.reset()
    predict_logits(classifier, examples, rows, 0, "warm up", one.PACK_TOKENS)
    seen: list[int] = []
    packed = distill.training.predict.pack

    def counting(encoded: Any, sequences: np.ndarray, *rest: Any) -> Any:
        seen.extend(sequences.tolist())
        return packed(encoded, sequences, *rest)

    distill.training.predict.pack = counting
    gathered(None)
    started = time.perf_counter()
    logits = predict_logits(classifier, examples, rows, 0, "predict", one.PACK_TOKENS)
    seconds = time.perf_counter() - started
    distill.training.predict.pack = packed
    by_all = sorted(s for share in gathered(seen) for s in share)
    return {
        **one.speed(config, examples.encoded.lengths, seconds, False),
        "peak_gib": round(max(gathered(one.peak())), 1),
        "every_row_once": by_all == list(range(2 * PREDICTED)) and bool(np.isfinite(logits).all()),
        "logits_sum": round(float(np.abs(logits).sum()), 3),
    }


class InTurn(Cutter):
    """Packs as they were before: cut first, then dealt to the processes in turn."""

    def packs(self, lengths: np.ndarray) -> list[list[np.ndarray]]:
        """Each process's packs of a step."""
        packs = cut(lengths, self.budget, self.most)
        return [packs[number :: self.processes] for number in range(self.processes)]


def planned_spread(lengths: Path | None) -> list[dict[str, Any]]:
    """By cost, how much longer than the mean the slowest process takes: packs in turn, or equal shares."""
    found = []
    for processes in (2, 4, 8):
        for rows_a_gpu in (ROWS_A_GPU, UNEVEN_ROWS):
            rows = rows_a_gpu * processes
            examples = one.make_examples(40 * rows, lengths, 300)
            own = examples.encoded.lengths
            steps = plan_steps(
                np.arange(40 * rows),
                own[::2],
                epochs=1,
                rows_per_step=rows,
                orders=2,
                both_orders=True,
                seed=0,
            )
            waits: dict[str, float] = {}
            for name, cutter in (("in_turn", InTurn), ("shared", Cutter)):
                loads = [
                    [
                        sum(cost(own[s][p]).sum() for p in share)
                        for share in cutter(one.PACK_TOKENS, 0, processes).packs(own[s])
                    ]
                    for s in (step.sequences(2) for step in steps)
                ]
                waits[name] = round(float(np.mean([max(load) / np.mean(load) - 1 for load in loads])), 4)
            found.append({"processes": processes, "rows_a_gpu": rows_a_gpu, **waits})
    return found


def run_phase(phase: str, args: argparse.Namespace) -> None:
    """Measure one phase in this process, together with those started with it."""
    join_others()
    rank, world = process()
    if CUDA:
        torch.cuda.set_device(one.DEVICE)

    def say(**line: Any) -> None:
        if rank == 0:
            one.say(args.out / FILE, phase=phase, gpus=world, **line)

    say(device=torch.cuda.get_device_name() if CUDA else "cpu", torch=torch.__version__)
    precision, *measures = phase.split("+")
    family = "llama70" if "sharded" in measures else "llama"
    started = time.perf_counter()
    classifier = one.make_classifier(family, precision, shard=family == "llama70")
    say(built_s=round(time.perf_counter() - started, 1), build_peak_gib=round(one.peak(), 1),
        loaded_gib=round(torch.cuda.memory_allocated() / one.GIB, 1) if CUDA else 0.0)  # fmt: skip
    for measure in measures:
        try:
            if measure == "train":
                found = measure_training(classifier, family, ROWS_A_GPU * args.gpus, TIMED, args.lengths)
            elif measure == "predict":
                found = measure_prediction(classifier, family, args.lengths)
            elif measure == "sharded":
                rows = SHARDED_ROWS * args.gpus
                found = measure_training(classifier, family, rows, SHARDED_STEPS, args.lengths, warm=2)
                found |= gathering(classifier, found["step_s"])
            else:
                distill.training.trainer.Cutter = {"uneven": Cutter, "in_turn": InTurn}[measure]
                found = measure_training(classifier, family, UNEVEN_ROWS * args.gpus, 4, args.lengths)
                distill.training.trainer.Cutter = Cutter
            say(measure=measure, **found)
        except Exception as error:
            traceback.print_exc()
            say(measure=measure, error=f"{type(error).__name__}: {str(error)[:400]}")
            raise SystemExit(1) from error


def start(phase: str, args: argparse.Namespace, card: int | None = None) -> subprocess.Popen[bytes]:
    """Start a phase: on one card, or on all."""
    # Multicast over NVLink is off: where a virtual machine does not have it, communicators fail to start.
    environment = {**os.environ, "NCCL_NVLS_ENABLE": "0", "TOKENIZERS_PARALLELISM": "false"}
    environment.setdefault("OMP_NUM_THREADS", "4" if CUDA else "1")
    inside = [
        "-m",
        "benchmarks.multi_gpu",
        "--inside",
        phase,
        "--out",
        str(args.out),
        "--gpus",
        str(args.gpus),
    ]
    inside += ["--lengths", str(args.lengths)] if args.lengths else []
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={args.gpus}"]
    if card is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(card)
        launcher = []
    return subprocess.Popen([sys.executable, *launcher, *inside], env=environment, start_new_session=True)


def wait(started: list[subprocess.Popen[bytes]], deadline: float, args: argparse.Namespace) -> None:
    """Wait for phases, and stop those that the time runs out on."""
    for child in started:
        try:
            status = child.wait(max(1.0, deadline - time.monotonic()))
            if status:
                one.say(args.out / FILE, error=f"a phase ended with {status}")
        except subprocess.TimeoutExpired:
            one.say(args.out / FILE, error="out of time")
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, 9)


def table(out: Path) -> str:
    """The measured lines as a table, several GPUs beside one."""
    lines = [json.loads(line) for line in (out / FILE).read_text(encoding="utf-8").splitlines()]
    alone = {
        (n["phase"].split("+")[0], n["measure"]): n for n in lines if n.get("gpus") == 1 and "tok_s" in n
    }
    body = []
    for line in lines:
        if "tok_s" not in line:
            continue
        precision, measure, gpus = line["phase"].split("+")[0], line["measure"], line["gpus"]
        single = alone.get((precision, measure))
        rate = "" if single is None or gpus == 1 else f"{line['tok_s'] / single['tok_s'] / gpus:.1%}"
        gap = ""
        if rate and measure == "train" and line["losses"] and single["losses"]:
            gap = f"{max(abs(a - b) for a, b in zip(line['losses'], single['losses'], strict=True)):.1e}"
        if measure == "predict":
            gap = "every row once" if line["every_row_once"] else "ROWS MISSING OR TWICE"
        share = f"{line['exchange_share']:.1%}" if "exchange_share" in line else ""
        spread = f"{line['spread']:.1%}" if gpus > 1 and "spread" in line else ""
        body.append([f"{precision} {measure}", str(gpus), f"{line['tok_s']:,}", f"{line['tok_s'] // gpus:,}",
                     rate, str(line["peak_gib"]), share, spread, gap])  # fmt: skip
    header = ["", "GPUs", "tokens/s", "a GPU", "efficiency", "peak GiB", "exchange", "spread", "loss gap"]
    return format_table(header, body)


def main() -> None:
    """Run all phases, each in processes of its own, within the asked minutes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=8.0, help="stop after this long")
    parser.add_argument("--lengths", type=Path, help="JSON list of real row lengths in tokens")
    parser.add_argument("--only", nargs="+", metavar="PHASE", help="only these phases")
    parser.add_argument("--tiny", action="store_true", help="tiny models on CPUs")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not CUDA and not args.tiny and not args.inside:
        parser.error("there is no CUDA device; --tiny checks the script on CPUs")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.inside:
        run_phase(args.inside, args)
        return
    deadline = time.monotonic() + 60 * args.minutes
    for line in planned_spread(args.lengths):
        one.say(args.out / FILE, planned=line)
    together = [["nf4fp8+train"], ["bf16+train+predict"]]
    several = ["nf4fp8+train+uneven+in_turn", "bf16+train+predict"]
    if args.gpus > 1:
        several.append("nf4+sharded")
    if args.only:
        together = [p for p in together if p[0] in args.only]
        several = [p for p in several if p in args.only]
    wait([start(p[0], args, card % args.gpus) for card, p in enumerate(together)], deadline, args)
    print(table(args.out), flush=True)
    for phase in several:
        if deadline - time.monotonic() > 30:
            wait([start(phase, args)], deadline, args)
            print(table(args.out), flush=True)
        else:
            one.say(args.out / FILE, phase=phase, skipped="no time left")
    (args.out / "multi_gpu.txt").write_text(table(args.out) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
