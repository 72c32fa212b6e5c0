"""``distill.predict`` from command to file, by a run of true shape: ``python -m benchmarks.gpu_predict``.

Writes a random checkpoint of Llama-3.1-8B's shape, a run on it that has a random adapter, and a CSV file of
rows of the real length mix; then runs the command on them, in the run's own bf16 with the adapter merged and
with ``--precision fp8``, or as ``--precisions`` asks. A line says how long the command took, and what of it
went into which step:

- ``checked``: hashes of the checkpoint, adapter and tokenizer, that they are those of the training;
- ``read`` and ``encoded``: the CSV file, its texts to tokens in both orders;
- ``loaded`` and ``served``: the checkpoint onto the card; adapters merged, layers held in FP8;
- ``predicted``: all passes, with what they compile; ``steady_tok_s`` is the rate after the first packs;
- ``written``: the predictions.

Other libraries on rows of such lengths: ``llama-grouped:predict`` and ``llama-unsloth:predict`` of
:mod:`benchmarks.gpu_training`. On a CPU the same runs with a tiny shape.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.gpu_checkpoint import WORDS, random_checkpoint
from benchmarks.gpu_model import CUDA, MAX_LENGTH, config_of, peak, row_lengths, say
from data.prepare import prepare_rows
from distill.config import CONFIG, BackboneConfig, EncodeConfig, LoraConfig, ModelConfig
from distill.losses import label_loss
from distill.model.backbone import add_adapters, prepared
from distill.model.quantised import build
from distill.runs.run import plan_run
from distill.runs.run_directory import FINAL
from distill.teaching.trust import write_trained_on

TRAINED_ROWS = 60
PROMPT_SHARE = 0.13
"""Of a row's tokens, as in the real rows that the lengths are of."""
SKIPPED = 3
"""Packs before the steady rate: they wait for compilation."""


def write_rows(path: Path, lengths: np.ndarray, labelled: bool) -> None:
    """Rows of the competition's form: lists of turns as JSON, of about so many tokens a row in all."""
    drawn = random.Random(len(lengths))

    def turns(n: int) -> str:
        return json.dumps([" ".join(drawn.choices(WORDS, k=max(1, n)))])

    winners = ["winner_model_a", "winner_model_b", "winner_tie"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prompt", "response_a", "response_b", *(winners if labelled else [])])
        for row, length in enumerate(lengths.tolist()):
            prompt = round(PROMPT_SHARE * length)
            first = round((length - prompt) * drawn.uniform(0.3, 0.7))
            texts = [turns(prompt), turns(first), turns(length - prompt - first)]
            label = [int(row % 3 == k) for k in range(3)] if labelled else []
            writer.writerow([row, *texts, *label])


def make_run(home: Path, checkpoint: Path, family: str, folds: int) -> Path:
    """A finished run whose adapters are random: of all rows, or with ``folds`` one a fold."""
    prepared_at, out = home / "data", home / (f"folds-{folds}" if folds else "run")
    if (out / CONFIG).exists():
        return out
    write_rows(home / "train.csv", row_lengths(TRAINED_ROWS, None) // 4, labelled=True)
    rows, dealt = prepare_rows(home / "train.csv", prepared_at, folds=max(2, folds))
    backbone = BackboneConfig(path=str(checkpoint), precision="bf16" if CUDA else "fp32")
    model = ModelConfig(
        backbone=backbone,
        lora=LoraConfig(r=16, alpha=32),
        encode=EncodeConfig(max_length=MAX_LENGTH),
    )
    run = plan_run("teacher", "random", model, rows, dealt, prepared_at, out, label_loss)
    run.claim()
    # Its own base on the meta device: an adapter's shapes need no weights.
    config = config_of(family)
    base = build(config, Shapes(), backbone.precision, torch.float32, "eager", torch.device("meta"))
    classifier = add_adapters(prepared(base, backbone), model.lora, 0)
    names = [FINAL] if not folds else [f"fold-{k}" for k in range(folds)]
    for number, name in enumerate(names):
        torch.manual_seed(number)
        materialise(classifier)
        part = run.directory.part(name)

        def save(directory: Path, place: Path = part.path) -> None:
            classifier.save(directory)
            write_trained_on(place, rows.row_ids, directory, run.manifest, out / CONFIG)

        part.path.mkdir(parents=True, exist_ok=True)
        part.keep(save)
    return out


class Shapes:
    """Weights without values."""

    def __contains__(self, name: str) -> bool:
        return not name.startswith("score.")

    def get(self, name: str, shape: torch.Size, device: torch.device) -> torch.Tensor:
        """An empty tensor."""
        return torch.empty(shape, device=device)


def materialise(classifier: nn.Module) -> None:
    """Give what is trained random values, on the CPU."""
    for module in classifier.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                made = torch.empty(parameter.shape).normal_(std=0.01)
                setattr(module, name, nn.Parameter(made))


class Watch:
    """Seconds spent in functions that it stands in for, and when packs were sent off."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self.packs: list[tuple[float, int]] = []

    def over(self, module: Any, name: str, step: str) -> None:
        """Time a module's function under the name of a step."""
        function: Callable[..., Any] = getattr(module, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                if CUDA:
                    torch.cuda.synchronize()
                self.spent[step] = self.spent.get(step, 0.0) + time.perf_counter() - started

        setattr(module, name, timed)

    def over_packs(self, module: Any) -> None:
        """Note the time and the tokens of every pack."""
        function = module.pack

        def noted(encoded: Any, sequences: np.ndarray, *rest: Any) -> Any:
            self.packs.append((time.perf_counter(), int(encoded.lengths[sequences].sum())))
            return function(encoded, sequences, *rest)

        module.pack = noted

    def steady(self) -> int:
        """Tokens a second between the packs that waited for compilation and the last."""
        if len(self.packs) < SKIPPED + 2:
            return 0
        begun, ended = self.packs[SKIPPED][0], self.packs[-1][0]
        return round(sum(n for _, n in self.packs[SKIPPED:-1]) / (ended - begun))


def inside(args: argparse.Namespace) -> None:
    """The command itself, its steps timed."""
    import distill.predict
    import distill.runs.loaded as loaded
    import distill.runs.saved as saved
    import distill.training.predict as passes
    import ensemble.predict

    watch = Watch()
    for module, name, step in (
        (saved, "read_saved", "checked"),
        (loaded, "checked_tokenizer", "checked"),
        (loaded, "check_weights", "checked"),
        (loaded, "rows_for", "read"),
        (loaded, "examples_of", "encoded"),
        (loaded, "load_trained", "loaded"),
        (loaded, "serve", "served"),
        (loaded, "predict_logits", "predicted"),
        (ensemble.predict, "write_for", "written"),
    ):
        watch.over(module, name, step)
    watch.over_packs(passes)
    precision, _, compute = args.precision.partition(":")
    options = ["--precision", precision] if precision else []
    options += ["--compute", compute] if compute else []
    argv = ["--model", str(args.run), "--data", str(args.data), "--out", str(args.predictions)]
    distill.predict.main([*argv, *options])
    tokens = sum(n for _, n in watch.packs)
    report = {
        "steps_s": {step: round(seconds, 1) for step, seconds in watch.spent.items()},
        "tokens": tokens,
        "predicted_tok_s": round(tokens / watch.spent["predicted"]),
        "steady_tok_s": watch.steady(),
        "peak_gib": round(peak(), 1),
    }
    args.report.write_text(json.dumps(report))


def command(args: argparse.Namespace, run: Path, rows: Path, precision: str) -> None:
    """Run the command in a process of its own, and say what it took."""
    out, report = (
        args.home / f"predictions-{precision.replace(':', '-') or 'own'}.csv",
        args.home / "report.json",
    )
    report.unlink(missing_ok=True)
    own = ["--inside", "--run", run, "--data", rows, "--predictions", out, "--report", report]
    given = ["--precision", precision] if precision else []
    started = time.perf_counter()
    line: dict[str, Any] = {"measure": "command", "run": run.name, "precision": precision or "own"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu_predict", *map(str, own), *given],
            timeout=args.seconds,
            check=False,
        )
        seconds = time.perf_counter() - started
        if done.returncode or not report.exists():
            say(args.out, **line, error=f"ended with {done.returncode}")
            return
    except subprocess.TimeoutExpired:
        say(args.out, **line, error=f"did not end within {args.seconds:.0f} s")
        return
    found = json.loads(report.read_text())
    written = len(out.read_text(encoding="utf-8").splitlines()) - 1
    say(
        args.out,
        **line,
        rows=written,
        command_s=round(seconds, 1),
        rows_s=round(written / seconds, 1),
        tok_s=round(found["tokens"] / seconds),
        predicted_rows_s=round(written / found["steps_s"]["predicted"], 1),
        **found,
    )


def main() -> None:
    """Make what is not there, then run the command in each precision."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--home", type=Path, help="what is made is kept there and found again")
    parser.add_argument("--checkpoint", type=Path, help="of the shape; made there if there is none")
    parser.add_argument("--family", default="llama")
    parser.add_argument("--lengths", type=Path, help="JSON list of real row lengths in tokens")
    parser.add_argument("--rows", type=int, default=2400 if CUDA else 24)
    parser.add_argument("--folds", type=int, default=0, help="also a run of so many fold models")
    parser.add_argument(
        "--precisions",
        nargs="*",
        default=["fp8", ""] if CUDA else [""],
        help="such as fp8, or int8:int8 with --compute int8; empty for the run's own",
    )
    parser.add_argument("--seconds", type=float, default=240.0, help="after which a command is stopped")
    parser.add_argument("--out", type=Path, default=Path("gpu_predict.jsonl"))
    for name in ("--run", "--data", "--predictions", "--report"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="", help=argparse.SUPPRESS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        inside(args)
        return
    with tempfile.TemporaryDirectory() as scratch:
        args.home = args.home or Path(scratch)
        args.home.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        checkpoint = random_checkpoint(args.family, args.checkpoint or args.home / "backbone")
        made = time.perf_counter()
        rows = args.home / "rows.csv"
        write_rows(rows, row_lengths(args.rows, args.lengths), labelled=False)
        counts = [0, args.folds] if args.folds else [0]
        runs = [make_run(args.home, checkpoint.resolve(), args.family, n) for n in counts]
        seconds = {"checkpoint_s": made - started, "run_s": time.perf_counter() - made}
        say(args.out, measure="made", **{name: round(s, 1) for name, s in seconds.items()})
        for precision in args.precisions:
            command(args, runs[0], rows, precision)
        for run in runs[1:]:
            command(args, run, rows, "")


if __name__ == "__main__":
    main()
