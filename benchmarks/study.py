"""Questions that only real models on real rows settle: ``python -m benchmarks.study --out DIR --parts ...``.

UKPConvArg1 (Habernal and Gurevych, ACL 2016, CC-BY 4.0) and the models of :mod:`benchmarks.pretrained`; what
is trained stands in :mod:`benchmarks.study_plan`. Trainings run beside each other in processes that share the
card, by the project's own trainer, losses, encoder and prediction. Each leaves its logits and a line in
``results.jsonl``; the same command goes on with what is left, and ``python -m benchmarks.study_report DIR``
writes the tables.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import time
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cards import take_card
from benchmarks.pretrained_data import ukp_rows
from benchmarks.study_plan import (
    FOLDS,
    LABELLERS,
    LAYERS,
    PARTS,
    RATES,
    Size,
    jobs_of,
    rate_losses,
    teachers,
    uses,
)
from benchmarks.trainings import GRACE, Job, Queue, save

TOKENS = 512
PACKS = 16384


class Bench:
    """What every worker holds: rows, encoded once a model, and the places of results."""

    def __init__(self, shared: Path, models: Path, out: Path, size: Size, most: int = 0) -> None:
        from data.folds import make_folds

        self.models, self.out, self.size = models, out, size
        self.rows, self.strict = ukp_rows(shared)
        votes = ukp_rows(shared, votes=True)[0]
        if most:
            some = np.sort(np.random.default_rng(1).choice(len(self.rows), most, replace=False))
            self.rows, self.strict, votes = self.rows.take(some), self.strict[some], votes.take(some)
        self.votes = votes.targets
        folds = make_folds(self.rows, FOLDS, seed=0)
        self.fold, self.groups = folds.fold, np.array(folds.group_ids)

    @cache  # noqa: B019
    def examples(self, model: str, template: str = "pair") -> tuple[Any, int]:
        """All rows, encoded for a model, and its start token."""
        from data.encoding.encode import Encoded, Encoder, Truncation, pad_token_id
        from data.encoding.template import Template
        from data.encoding.tokenizer import load_tokenizer
        from distill.packing.examples import Examples

        tokenizer = load_tokenizer(str(self.models / model))
        file = self.out / "scratch" / f"{model}-{template}.npz"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            made = Encoder(tokenizer, Template(template), Truncation(TOKENS)).encode(self.rows)
            np.savez(file, ids=made.ids, offsets=made.offsets)
        with np.load(file) as found:
            encoded = Encoded(found["ids"], found["offsets"], 2, 0)
        permutation = self.rows.classes.permutation
        examples = Examples(encoded, self.rows.targets, permutation, pad_token_id(tokenizer))
        return examples, tokenizer.bos_token_id

    def subset(self, rows: int) -> np.ndarray:
        """Which rows are trained on and scored, shape (n,), bool; all for 0."""
        inside = np.ones(len(self.rows), dtype=bool)
        if rows:
            inside[np.random.default_rng(0).permutation(len(inside))[rows:]] = False
        return inside

    def logits(self, key: str) -> np.ndarray:
        """What a training left, averaged over the two orders, (n, K); NaN where it did not predict."""
        return np.load(self.out / "logits" / f"{key}.npy")

    def labels(self, model: str, kind: str, held: int, rows: int, epochs: float) -> np.ndarray:
        """A teacher's logits for the student scored on a fold, (n, K); zeros on the fold itself."""
        found = teachers(replace(self.size, epochs=epochs), model, rows)
        used = {w: self.logits(job.key) for w, job in found.items() if uses(kind, held, w)}
        if kind in {"apart", "fold_mean"}:
            return np.nan_to_num(np.mean(list(used.values()), axis=0))
        labels = np.zeros((len(self.rows), self.rows.classes.n), dtype=np.float32)
        for without, logits in used.items():
            (j,) = [f for f in without if f != held]
            labels[self.fold == j] = logits[self.fold == j]
        return np.nan_to_num(labels)


_bench: Bench | None = None


def start_worker(*options: Any) -> None:
    """Load what all trainings share, on one GPU of those that the processes share."""
    global _bench
    take_card()
    import torch

    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    _bench = Bench(*options)


def backbone(path: str | Path, named: str, head: str = "score") -> Any:
    """A base in a precision, ``nf4 fp8`` being NF4 with FP8 products."""
    import torch

    from distill.config import BackboneConfig

    compiled = "true" if torch.cuda.is_available() else "false"
    precision, *compute = named.split()
    return BackboneConfig(
        path=str(path),
        precision=precision,
        compute=compute[0] if compute else "auto",
        compile=compiled,
        head=head,
    )


def taught(bench: Bench, spec: dict[str, Any], examples: Any) -> tuple[Any, Any]:
    """Examples with a student's lessons, and the loss on them; a teacher's are its labels."""
    from distill.config import DistillConfig
    from distill.losses import label_loss
    from distill.teaching.lessons import StudentLoss, row_weights

    if spec.get("votes"):
        examples = replace(examples, targets=bench.votes)
    names = spec.get("teachers", [])
    if not names and not spec.get("distill"):
        return examples, label_loss
    config = DistillConfig(**spec.get("distill", {}))
    if names:
        (held,) = spec["without"]
        kind, rows, epochs = spec["labels"], spec["rows"], spec["epochs"]
        labels = [bench.labels(name, kind, held, rows, epochs) for name in names]
        logits = np.stack(labels, axis=1).astype(np.float32)
        if spec.get("calibrated"):
            names, logits = ["mean"], calibrated_mean(bench, logits, held)[:, None]
        weights = row_weights(config, names, logits, examples.targets, bench.fold != held)
        examples = replace(examples, teacher_logits=logits, teacher_weights=weights.astype(np.float32))
    return examples, StudentLoss(config)


def calibrated_mean(bench: Bench, logits: np.ndarray, held: int) -> np.ndarray:
    """Teachers' mean at one temperature, fitted for each fold on the others: logits (n, K)."""
    from data.softmax import softmax
    from ensemble.methods.temperature import TemperatureScaling
    from ensemble.solvers.numbers import log_probs

    mean, targets = softmax(logits).mean(axis=1), bench.rows.targets
    found = np.zeros_like(mean)
    for fold in set(range(FOLDS)) - {held}:
        others = (bench.fold != held) & (bench.fold != fold)
        scaling = TemperatureScaling().fit_on(mean[others], targets[others])
        found[bench.fold == fold] = log_probs(scaling.predict_on(mean[bench.fold == fold]))
    return found.astype(np.float32)


def pseudo_labelled(bench: Bench, spec: dict[str, Any], examples: Any) -> tuple[Any, np.ndarray]:
    """Examples whose third fold the teachers without it have labelled, and which rows they are sure of."""
    from data.softmax import softmax

    (held,), third = spec["without"], spec["third"]
    both = (min(held, third), max(held, third))
    jobs = [teachers(bench.size, model)[both] for model in LABELLERS]
    inside = bench.fold == third
    mean = np.mean([softmax(bench.logits(job.key)[inside]) for job in jobs], axis=0)
    targets = examples.targets.copy()
    targets[inside] = mean
    sure = np.ones(len(targets), dtype=bool)
    sure[inside] = mean.max(axis=1) >= np.quantile(mean.max(axis=1), 1 - spec["pseudo"])
    return replace(examples, targets=targets), sure


def with_fault(name: str, examples: Any, bos: int) -> tuple[Any, Any]:
    """Examples to train on and to predict, with a fault of the doctor's list in them."""
    from distill.doctor.cost import edited
    from distill.doctor.faults import FAULT_ARMS

    (arm,) = [fault.arm for fault in FAULT_ARMS if fault.name == name]
    edits = {edit for edit in (arm.train_edit, arm.predict_edit) if edit is not None}
    faulty = {edit: replace(examples, encoded=edited(examples.encoded, edit, bos)) for edit in edits}
    return faulty.get(arm.train_edit, examples), faulty.get(arm.predict_edit, examples)


def run_fit(job: Job) -> dict[str, Any]:
    """Train a model as its job says, predict, keep the logits; return a line of the results."""
    import torch

    from data.softmax import softmax
    from distill.model.backbone import load_trained
    from distill.model.shallow import shallow_copy
    from distill.runs.averaged import write_mean
    from distill.training.trainer import predict_logits
    from ensemble.solvers.numbers import cross_entropy

    gc.freeze()  # every training collects garbage; what all share need not be looked at again
    begun = time.monotonic()
    bench, spec = _bench, job.spec
    assert bench is not None
    inside = bench.subset(spec["rows"])
    learning = inside & ~np.isin(bench.fold, spec["without"])
    held = np.flatnonzero(inside & np.isin(bench.fold, spec.get("scored", spec["without"])))
    examples, bos = bench.examples(spec["model"], spec.get("template", "pair"))
    shown = examples
    if "third" in spec:
        examples, sure = pseudo_labelled(bench, spec, examples)
        learning &= sure
    examples, loss = taught(bench, spec, examples)
    if "fault" in spec:
        examples, shown = with_fault(spec["fault"], examples, bos)

    path = bench.models / spec["model"]
    if spec.get("layers"):
        path = shallow_copy(str(path), spec["layers"], bench.out / "scratch")
    place = bench.out / "scratch" / job.key.replace("/", "_").replace(" ", "_")
    targets = bench.rows.targets
    found: dict[str, Any] = {"loading": 0.0, "training": 0.0}

    def score(model: Any, name: str, key: str, rows: np.ndarray) -> None:
        logits = predict_logits(model, shown, rows, 0, "predicting", PACKS).mean(axis=1)
        losses = cross_entropy(softmax(logits), targets[rows])
        found[name] = float(losses[np.isin(rows, held)].mean())
        kept = np.full(targets.shape, np.nan, dtype=np.float32)
        kept[rows] = logits
        save(bench.out / "logits" / f"{key}.npy", kept)

    def fit(seed: int) -> Any:
        return fitted(spec, seed, str(path), (examples, np.flatnonzero(learning), loss), place, found)

    if spec.get("average"):
        parts = [place / f"adapter-{seed}" for seed in range(spec["average"])]
        for seed, part in enumerate(parts):
            model = fit(seed)
            score(model, f"seed {seed}", f"{job.key} seed {seed}", held)
            model.save(part)
        write_mean(parts, place / "mean")
        model = load_trained(backbone(path, spec["precision"]), str(path), place / "mean", True, 3)
    else:
        model = fit(job.seed)
    score(model, "log_loss", job.key, np.flatnonzero(inside) if spec.get("everywhere") else held)
    if spec.get("moved"):
        model.save(place / "adapter")
        for other in spec["moved"]:
            moved = load_trained(backbone(path, other), str(path), place / "adapter", True, 3)
            score(moved, f"on {other}", f"{job.key} on {other}", held)
    shutil.rmtree(place, ignore_errors=True)
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return {**asdict(job), **found, "memory": memory, "seconds": round(time.monotonic() - begun, 2)}


def fitted(
    spec: dict[str, Any],
    seed: int,
    path: str,
    lessons: tuple[Any, np.ndarray, Any],
    place: Path,
    found: dict[str, Any],
) -> Any:
    """A trained model; adds its seconds to what was found."""
    from benchmarks.study_tricks import (
        Adversarial,
        Averaged,
        adapters_by,
        noisy_embeddings,
        start_as_words,
    )
    from distill.config import LoraConfig, TrainConfig
    from distill.model.backbone import add_adapters, load_base
    from distill.quiet import quiet_transformers
    from distill.training.trainer import train

    begun = time.monotonic()
    settings = {"lr": spec["lr"], "epochs": spec["epochs"], "rows_per_step": spec.get("step", 16)}
    settings |= {"gradient_checkpointing": "false", "log_steps": 100000, "pack_tokens": PACKS, "seed": seed}
    settings |= {"head_lr": spec["head"] * spec["lr"]} if "head" in spec else {}
    config = TrainConfig(**(settings | spec.get("train", {})))
    lora = LoraConfig(**({"r": 32, "alpha": 64.0} | spec.get("lora", {})))
    base = backbone(path, f"{spec['precision']} {spec.get('compute', '')}", spec.get("head_of", "score"))
    with quiet_transformers(), adapters_by(spec.get("peft", {})):
        model = add_adapters(load_base(base, path, 3), lora, seed)
        if spec.get("start") == "words":
            start_as_words(model, path)
    ready = time.monotonic()
    tricks: list[Any] = [Averaged(model.trained, spec["ema"])] if spec.get("ema") else []
    tricks += [Adversarial(model.trained, spec["adversarial"])] if spec.get("adversarial") else []
    examples, learning, loss = lessons
    with quiet_transformers(), noisy_embeddings(model, spec.get("noise", 0.0)):
        train(model, examples, learning, config, loss, place / f"s{seed}", place.name, callbacks=tricks)
    found["loading"] += ready - begun
    found["training"] += time.monotonic() - ready
    return model


def tuned(size: Size, results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Everyone's learning rate of the least log-loss over the folds that all its rates were scored on."""
    chosen = {}
    for who in RATES:
        found = rate_losses(size, who, {key: result["log_loss"] for key, result in results.items()})
        means = {lr: float(np.mean(losses)) for lr, losses in found.items() if losses}
        chosen[who] = min(means, key=lambda lr: means[lr]) if means else RATES[who][0]
    return chosen


def main() -> None:
    """Train what time allows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--shared", type=Path, required=True, help="directory of the data")
    add("--models", type=Path, required=True, help="parent of the models' directories")
    add("--out", type=Path, required=True, help="gets results and logits, and goes on with those there")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="questions to answer, in this order")
    add("--seeds", type=int, default=5)
    add("--layers", type=int, default=LAYERS, help="of the student")
    add("--minutes", type=float, default=600.0, help="to be ready by then")
    add("--workers", type=int, default=12, help="processes that share the GPUs")
    add("--rows", type=int, default=0, help="as many rows only, for a trial")
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "chosen.json"
    size = Size(args.seeds, {who: rates[0] for who, rates in RATES.items()}, args.layers)

    def do(parts: list[str], size: Size) -> Queue:
        start = (args.shared, args.models, args.out, size, args.rows)
        queue = Queue(args.out, run_fit, (start_worker, start), args.workers, deadline)
        queue.run(list(jobs_of(parts, size).values()), reserve=GRACE)
        queue.close()
        return queue

    bench = Bench(args.shared, args.models, args.out, size, args.rows)
    planned = jobs_of(args.parts, size).values()
    for model, template in sorted({(j.spec["model"], j.spec.get("template", "pair")) for j in planned}):
        bench.examples(model, template)
    np.savez(
        args.out / "rows.npz",
        fold=bench.fold,
        groups=bench.groups,
        strict=bench.strict,
        targets=bench.rows.targets,
        votes=bench.votes,
    )
    if "tune" in args.parts:
        queue = do(["tune"], size)
        path.write_text(json.dumps(tuned(size, queue.results)))
        print(path.read_text(), flush=True)
    if not path.exists():  # the report has to know the rates of what was not tuned, too
        path.write_text(json.dumps(size.chosen))
    else:
        size = replace(size, chosen=json.loads(path.read_text()))
    do([part for part in args.parts if part != "tune"], size)


if __name__ == "__main__":
    main()
