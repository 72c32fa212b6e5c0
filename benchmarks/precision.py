"""What precisions and shortcuts cost in accuracy: ``python -m benchmarks.precision [--full] --out DIR``.

A tiny Llama-3.1 is trained in float32 on the simulated arena; its held-out rows are then predicted by the
same adapter on the base in every precision, and by every shortcut, and compared with the plain library in
float32; the log-loss is that expected under the arena's true class probabilities. Below, models trained on
the base in each precision, for that is how one is used. ``--full`` compares the shape of Llama-3.1-8B with
random weights instead, on a GPU, where there is no log-loss to speak of: mean KL stands in for it.
``--pretrained MODEL --source ROWS`` compares a real model's next-token loss on real text, its hidden states
and the gradient at its embeddings, which has come through every layer.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks import gpu_model as one
from data.arena import ArenaConfig, simulate_arena
from data.console.command import format_table
from data.encoding.encode import Encoder, Truncation, pad_token_id
from data.encoding.template import Template
from data.folds import make_folds
from data.softmax import softmax
from data.sources.read import read_source
from distill.config import BackboneConfig, LoraConfig, TinyConfig, TrainConfig
from distill.kernels import rotation
from distill.kernels.linear import fuse, merge_adapters
from distill.losses import label_loss
from distill.model.backbone import add_adapters, load_base, load_tokenizer, load_trained
from distill.model.tiny import tiny_backbone
from distill.packing.examples import Examples
from distill.training.predict import predict_logits
from distill.training.trainer import train
from ensemble.solvers.numbers import log_loss

PRECISIONS = ("bf16", "int8", "fp8", "nf4")
HELD = ("fp32", "bf16", "int8", "fp8", "int8 int8", "int8 int8 unrotated", "nf4", "nf4 fp8", "nf4 int8")
"""Precision, and what it computes in where that is not told by it; unrotated on a CPU alone."""
UNROTATED = " unrotated"
KL_EVERY = 4
"""Tokens of which one has its whole distribution compared."""
ALLOWED = 0.0005
TRAINING = TrainConfig(epochs=5, lr=2e-3, rows_per_step=16)


def compared(logits: np.ndarray, wanted: np.ndarray, targets: np.ndarray | None) -> dict[str, float]:
    """Differences of logits (n, orders, K), and what they mean for the log-loss, with its standard error."""
    gap = np.abs(logits - wanted)
    found = {"max": float(gap.max()), "mean": float(gap.mean())}
    ours, theirs = softmax(logits.mean(axis=1)), softmax(wanted.mean(axis=1))
    found["kl"] = float((theirs * (np.log(theirs) - np.log(ours))).sum(axis=1).mean())
    if targets is not None:
        paired = log_loss(ours, targets) - log_loss(theirs, targets)
        found |= {"log_loss": float(paired.mean()), "error": float(paired.std() / len(paired) ** 0.5)}
    return found


def small(out: Path, n_rows: int, seeds: int) -> list[dict[str, Any]]:
    """Compare everything on a tiny model that has learnt something."""
    rows = simulate_arena(ArenaConfig(n_rows=n_rows, seed=0))
    fold = make_folds(rows, 5, 0).fold
    inside, others = np.flatnonzero(fold > 0), np.flatnonzero(fold == 0)
    shape = TinyConfig("llama", 64, 128, layers=2, vocab_size=1024, pretrain_steps=300, pretrain_lr=1e-2)
    path = str(tiny_backbone(shape, rows, Template(), 0, out))
    plain = BackboneConfig(path=path, precision="fp32", packed=False, compile="false")
    tokenizer = load_tokenizer(plain, path)
    encoded = Encoder(tokenizer, Template(), Truncation(256)).encode(rows)
    examples = Examples(encoded, rows.targets, rows.classes.permutation, pad_token_id(tokenizer))
    # Expected log-loss under the arena's own probabilities: labels' noise does not hide small differences.
    targets = np.array(rows.table.column("true_probs").to_pylist())[inside]

    def fitted(backbone: BackboneConfig, name: str, seed: int = 0) -> Path:
        base = load_base(backbone, path, rows.classes.n)
        classifier = add_adapters(base, LoraConfig(r=16, alpha=32), seed)
        train(classifier, examples, others, replace(TRAINING, seed=seed), label_loss, out / name, name)
        classifier.save(out / name / "adapter")
        return out / name / "adapter"

    def predicted(backbone: BackboneConfig, adapter: Path, change: Any = None) -> np.ndarray:
        classifier = load_trained(backbone, path, adapter, True, rows.classes.n)
        if change is not None:
            change(classifier)
        return predict_logits(classifier, examples, inside, 0, "predict")

    packed = replace(plain, packed=True)
    adapter = fitted(packed, "fp32")
    wanted = predicted(plain, adapter)
    base_loss = float(log_loss(softmax(wanted.mean(axis=1)), targets).mean())
    shortcuts = {
        "fp32, packed": (packed, None),
        "fp32, packed, whole last layer": (packed, lambda c: setattr(c.plan, "prune", False)),
        "fp32, packed, adapters merged": (packed, merge_adapters),
        **{f"{p}, packed": (replace(packed, precision=p), None) for p in PRECISIONS},
        "nf4, double quantisation": (replace(packed, precision="nf4", double_quant=True), None),
        "bf16, adapters merged": (replace(packed, precision="bf16"), merge_adapters),
        "fp8, adapters merged": (replace(packed, precision="fp8"), merge_adapters),
    }
    lines = [{"what": "plain library, fp32", "log_loss_itself": base_loss}]
    for name, (backbone, change) in shortcuts.items():
        lines.append({"what": name, **compared(predicted(backbone, adapter, change), wanted, targets)})
        print(json.dumps(lines[-1]), flush=True)
    # A training goes its own way from the first rounding on, so only the mean over seeds says anything.
    losses: dict[str, list[float]] = {}
    for precision in ("fp32", *PRECISIONS):
        for seed in range(seeds):
            backbone = replace(packed, precision=precision)
            logits = predicted(backbone, fitted(backbone, f"{precision}-{seed}", seed))
            losses.setdefault(precision, []).append(
                float(log_loss(softmax(logits.mean(axis=1)), targets).mean())
            )
        gaps = np.array(losses[precision]) - np.array(losses["fp32"])
        found = {"itself": float(np.mean(losses[precision])), "log_loss": float(gaps.mean())}
        found["error"] = float(gaps.std(ddof=1) / seeds**0.5) if seeds > 1 else float("nan")
        lines.append({"what": f"trained in {precision}, {seeds} seeds", **found})
        print(json.dumps(lines[-1]), flush=True)
    return lines


def full(lengths: Path | None) -> list[dict[str, Any]]:
    """Compare the precisions on the full shape, random weights, random adapters of a usual size."""
    examples = one.make_examples(48 if one.CUDA else 8, lengths, one.config_of("llama").vocab_size)
    rows = np.arange(len(examples.targets))

    def predicted(precision: str, merge: bool = False) -> np.ndarray:
        # The kernels for packs take no float32; the reference goes document by document.
        attention = "sdpa" if precision == "fp32" else "auto"
        classifier = one.make_classifier("llama", precision, compiled=False, attention=attention)
        if merge:
            merge_adapters(classifier)
        logits = predict_logits(classifier, examples, rows, 0, "predict")
        del classifier
        gc.collect()
        one.reset()
        return logits

    wanted = predicted("fp32")
    lines: list[dict[str, Any]] = [{"what": "fp32", "spread": float(wanted.std())}]
    for precision, merge in [*((p, False) for p in PRECISIONS), ("bf16", True), ("fp8", True)]:
        name = f"{precision}, adapters merged" if merge else precision
        lines.append({"what": name, **compared(predicted(precision, merge), wanted, None)})
        print(json.dumps(lines[-1]), flush=True)
    return lines


def documents(path: str, source: str, n: int, length: int) -> torch.Tensor:
    """The first tokens of conversations that are long enough, (n, length)."""
    rows, _ = read_source(source)
    tokenizer = load_tokenizer(BackboneConfig(path=path), path)
    found, columns = [], (rows.table.column(name).to_pylist() for name in ("prompt", "response_a"))
    for prompt, response in zip(*columns, strict=True):
        turns = [turn for pair in zip(prompt, response, strict=False) for turn in pair if turn]
        ids = tokenizer("\n".join(turns))["input_ids"][:length]
        found += [ids] if len(ids) == length else []
        if len(found) == n:
            return torch.tensor(found)
    raise SystemExit(f"{source}: has {len(found)} texts of {length} tokens, not {n}")


def pretrained(path: str, source: str, n: int, length: int) -> list[dict[str, Any]]:
    """Compare what the frozen base is held and multiplied in, on a real model's own task."""
    ids = documents(path, source, n, length).to(one.DEVICE)

    def seen(held: str) -> dict[str, torch.Tensor]:
        precision, *compute = held.removesuffix(UNROTATED).split()
        config = BackboneConfig(
            path=path, precision=precision, compute=compute[0] if compute else "auto", head="tokens"
        )
        model = load_base(config, path, 3)
        fuse(model)
        parts: dict[str, list[torch.Tensor]] = {}
        for document in ids.split(1):
            embedded = model.get_input_embeddings()(document).detach().requires_grad_()
            out = model(inputs_embeds=embedded, output_hidden_states=True, use_cache=False)
            logs = out.logits[0, :-1].float().log_softmax(-1)
            losses = -logs.gather(-1, document[0, 1:, None])[:, 0]
            (gradient,) = torch.autograd.grad(losses.mean(), embedded)
            noted = {"losses": losses, "logs": logs[::KL_EVERY], "hidden": out.hidden_states[-1][0]}
            for name, value in {**noted, "gradient": gradient[0]}.items():
                parts.setdefault(name, []).append(value.detach().float().cpu())
        return {name: torch.stack(values) for name, values in parts.items()}

    wanted = seen("fp32")
    lines: list[dict[str, Any]] = []
    for held in HELD:
        if one.CUDA and held.endswith(UNROTATED):
            continue
        # Blocks of one input are not rotated.
        with patch.object(rotation, "BLOCK", 1 if held.endswith(UNROTATED) else rotation.BLOCK):
            found = wanted if held == "fp32" else seen(held)
        gaps = (found["losses"] - wanted["losses"]).mean(1)
        line: dict[str, Any] = {"what": held, "itself": float(found["losses"].mean())}
        line |= {"log_loss": float(gaps.mean()), "error": float(gaps.std() / n**0.5)}
        line["kl"] = float((wanted["logs"].exp() * (wanted["logs"] - found["logs"])).sum(-1).mean())
        for name in ("hidden", "gradient"):
            line[name] = float((found[name] - wanted[name]).norm() / wanted[name].norm())
        lines.append(line)
        print(json.dumps(line), flush=True)
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    """Lay out the comparisons."""
    further = [name for name in ("hidden", "gradient") if name in lines[-1]]
    body = []
    for line in lines[1:]:
        loss = f"{line['log_loss']:+.5f} ± {line['error']:.5f}" if "log_loss" in line else ""
        gaps = [f"{line[name]:.1e}" if name in line else "" for name in ("max", "mean", "kl", *further)]
        body.append([line["what"], *gaps, loss])
    return format_table(["", "largest", "mean", "mean KL", *further, "log-loss"], body)


def main() -> None:
    """Compare, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--rows", type=int, default=5000, help="of the simulated arena; a fifth trains")
    parser.add_argument("--seeds", type=int, default=6, help="trainings in each precision")
    parser.add_argument("--full", action="store_true", help="the shape of Llama-3.1-8B, on a GPU")
    parser.add_argument("--lengths", type=Path, help="JSON list of real row lengths in tokens")
    parser.add_argument("--pretrained", help="a real decoder's directory")
    parser.add_argument("--source", help="rows whose conversations it reads, as data.prepare takes them")
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--length", type=int, default=256, help="tokens of a document")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kind = "_full" if args.full else ""
    if args.pretrained:
        lines = pretrained(args.pretrained, args.source, args.documents, args.length)
        kind = f"_{Path(args.pretrained).name}"
    elif args.full:
        lines = full(args.lengths)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            lines = small(Path(scratch), args.rows, args.seeds)
    (args.out / f"precision{kind}.json").write_text(json.dumps(lines, indent=1))
    print(json.dumps(lines[0]))
    print(table(lines))


if __name__ == "__main__":
    main()
