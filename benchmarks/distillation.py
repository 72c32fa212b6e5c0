"""The ablation of distillation on the simulated arena: ``python -m benchmarks.distillation --out DIR``.

Trains tiny Llamas of the true architecture, fully and in float32, many at once in processes that share the
GPUs, by the project's own ``distill.training.trainer.train``, losses, encoder and prediction; only the
cross-fitting around them is laid out here, as jobs, so that a run cut short still leaves tables. Every seed
has rows, teachers and students of its own; all are scored on the same test rows, which share no prompt with
them.

Each result is appended to ``results.jsonl`` as it finishes, its test logits beside it;
``python -m benchmarks.distillation_report DIR`` writes the tables and pictures from them, at any time.
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
from benchmarks.distillation_plan import (
    FOLDS,
    FULL,
    PARTS,
    SMOKE,
    STUDENT,
    TEACHERS,
    Job,
    Scale,
    chosen_jobs,
    teacher_key,
)
from benchmarks.trainings import GRACE, Queue, save
from distill.losses import label_loss

# ---- the worker -----------------------------------------------------------------------------------------


class Bench:
    """What every worker holds: rows, encoded once a backbone, and the places of results."""

    def __init__(self, out: Path, scale: Scale) -> None:
        from data.arena import ArenaConfig, simulate_arena
        from data.schema import read_rows, write_rows

        self.out, self.scale, self.scratch = out, scale, out / "scratch"
        file = self.scratch / "rows.parquet"
        if not file.exists():
            blocks = scale.seeds * FOLDS + scale.test_blocks
            write_rows(file, simulate_arena(ArenaConfig(n_rows=blocks * scale.block, seed=7)))
        self.rows = read_rows(file)

    @cache  # noqa: B019
    def blocks(self) -> np.ndarray:
        """The block of every row; blocks share no prompt."""
        from data.folds import make_folds

        file = self.scratch / "blocks.npz"
        if not file.exists():
            folds = make_folds(self.rows, self.scale.seeds * FOLDS + self.scale.test_blocks, seed=0)
            groups = np.unique(folds.group_ids, return_inverse=True)[1]
            truth = np.array(self.rows.table.column("true_probs").to_pylist(), dtype=np.float64)
            np.savez(file, block=folds.fold, group=groups, truth=truth, label=self.rows.labels)
        with np.load(file) as found:
            return found["block"]

    def places(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of a seed, their folds, and the test rows."""
        block = self.blocks()
        mine = np.flatnonzero((block >= seed * FOLDS) & (block < (seed + 1) * FOLDS))
        return mine, block[mine] - seed * FOLDS, np.flatnonzero(block >= self.scale.seeds * FOLDS)

    @cache  # noqa: B019
    def backbone(self, name: str) -> Path:
        """The checkpoint of a model, made on first use from text of some training rows."""
        from data.encoding.template import Template
        from distill.config import TinyConfig
        from distill.model.tiny import tiny_backbone

        some = self.places(0)[0][: self.scale.pretrain_rows]
        tiny = TinyConfig(
            **self.scale.shapes[name], pretrain_steps=self.scale.pretrain_steps, pretrain_lr=2e-3
        )
        return tiny_backbone(tiny, self.rows.take(some), Template(), ord(name[0]), self.scratch / name)

    @cache  # noqa: B019
    def examples(self, name: str) -> Any:
        """All rows, encoded for a backbone."""
        from data.encoding.encode import Encoded, Encoder, Truncation, pad_token_id
        from data.encoding.template import Template
        from distill.model.backbone import load_tokenizer
        from distill.packing.examples import Examples

        path = self.backbone(name)
        tokenizer = load_tokenizer(backbone_config(path), str(path))
        file = self.scratch / f"encoded-{name}.npz"
        if not file.exists():
            made = Encoder(tokenizer, Template(), Truncation(256)).encode(self.rows)
            np.savez(file, ids=made.ids, offsets=made.offsets)
        with np.load(file) as found:
            encoded = Encoded(found["ids"], found["offsets"], 2, 0)
        return Examples(encoded, self.rows.targets, self.rows.classes.permutation, pad_token_id(tokenizer))

    def teacher(self, key: str) -> np.ndarray:
        """Order-averaged logits (all rows, K) of a teacher; NaN where it did not predict."""
        return np.load(self.scratch / f"{key}.npy")


_bench: Bench | None = None


def start_worker(out: Path, scale: Scale) -> None:
    """Load what all jobs share, on one GPU of those that the processes share."""
    global _bench
    take_card()
    import torch

    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    _bench = Bench(out, scale)


def backbone_config(path: Path) -> Any:
    """A full float32 model in padded batches: the attention kernels for packs want 16 bits."""
    from distill.config import BackboneConfig

    return BackboneConfig(path=str(path), precision="fp32", packed=False, compile="false")


def fit(
    bench: Bench,
    name: str,
    rows: np.ndarray,
    config: Any,
    loss: Any,
    lessons: dict[str, np.ndarray],
    what: str,
) -> Any:
    """Train a backbone on some rows by the project's own trainer."""
    from distill.config import LoraConfig
    from distill.model.backbone import add_adapters, load_base
    from distill.training.trainer import train

    path = bench.backbone(name)
    model = add_adapters(
        load_base(backbone_config(path), str(path), 3), LoraConfig(enabled=False), config.seed
    )
    place = bench.scratch / "training" / what.replace("/", "_")
    train(model, replace(bench.examples(name), **lessons), rows, config, loss, place, what)
    shutil.rmtree(place, ignore_errors=True)
    return model


def predict(bench: Bench, name: str, model: Any, rows: np.ndarray) -> np.ndarray:
    """Logits of rows, averaged over both orders, (len(rows), K)."""
    from distill.training.trainer import predict_logits

    return predict_logits(model, bench.examples(name), rows, 0, "predicting", 65536).mean(axis=1)


def train_config(bench: Bench, who: str, seed: int, rate: list[float] | None = None) -> Any:
    """The optimisation of teachers or students, tuned once on hard labels."""
    import torch

    from distill.config import TrainConfig

    lr, epochs = rate or json.loads((bench.scratch / "tuned.json").read_text())[who]
    return TrainConfig(
        lr=lr, epochs=epochs, rows_per_step=bench.scale.rows_per_step, pack_tokens=65536, warmup=0.1,
        weight_decay=0.01, gradient_checkpointing="false", log_steps=100000, seed=seed,
        optimizer="adamw_torch_fused" if torch.cuda.is_available() else "adamw_torch",
    )  # fmt: skip


def run_job(job: Job) -> dict[str, Any]:
    """Run one job in a worker; return its line of ``results.jsonl``."""
    gc.freeze()  # every training collects garbage; what all jobs share need not be looked at again
    assert _bench is not None
    started = time.monotonic()
    run = {
        "warm": run_warm,
        "backbone": run_backbone,
        "tune": run_tune,
        "teacher": run_teacher,
        "student": run_student,
        "speed": run_speed,
    }
    found = run[job.kind](_bench, job)
    return {**asdict(job), **found, "seconds": round(time.monotonic() - started, 2)}


def run_warm(bench: Bench, job: Job) -> dict[str, Any]:
    """Import what trainings need and wake the GPU, while others make the backbones."""
    import torch

    from distill.teaching.lessons import StudentLoss
    from distill.training.trainer import train

    assert StudentLoss
    assert train
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")
    return {}


def run_backbone(bench: Bench, job: Job) -> dict[str, Any]:
    """Make a checkpoint and encode all rows for it."""
    bench.examples(job.spec["name"])
    return {}


def run_tune(bench: Bench, job: Job) -> dict[str, Any]:
    """Log-loss on a seed's last fold of a model trained on the others, hard labels."""
    mine, fold, _ = bench.places(job.seed)
    name = "a" if job.spec["who"] == "teacher" else STUDENT
    config = train_config(bench, job.spec["who"], 1000, job.spec["rate"])
    inside = fold == FOLDS - 1
    model = fit(bench, name, mine[~inside], config, label_loss, {}, job.key)
    logits = predict(bench, name, model, mine[inside])
    return {"log_loss": float(row_losses(logits, bench.rows.targets[mine[inside]]).mean())}


def run_teacher(bench: Bench, job: Job) -> dict[str, Any]:
    """Train a teacher without some folds; keep its logits of the seed's rows and the test rows."""
    mine, fold, test = bench.places(job.seed)
    name = job.spec["teacher"]
    out = np.isin(fold, job.spec["without"])
    number = job.seed * 100 + sum(10 * f + 1 for f in job.spec["without"])
    model = fit(bench, name, mine[~out], train_config(bench, "teacher", number), label_loss, {}, job.key)
    logits = np.full((len(bench.rows), 3), np.nan, dtype=np.float32)
    whole = len(job.spec["without"]) == 1  # the strict part's teachers only label their seed's rows
    for part in (mine, test) if whole else (mine,):
        logits[part] = predict(bench, name, model, part)
    save(bench.scratch / f"{job.key}.npy", logits)
    targets = bench.rows.targets
    return {
        "own_fold": float(row_losses(logits[mine[out]], targets[mine[out]]).mean()),
        "trained_rows": float(row_losses(logits[mine[~out]], targets[mine[~out]]).mean()),
        "parameters": sum(p.numel() for p in model.parameters()),
    } | ({"test": float(row_losses(logits[test], targets[test]).mean())} if whole else {})


def soft_labels(bench: Bench, job: Job, name: str, fold: np.ndarray) -> np.ndarray:
    """A teacher's labels of all rows of a seed, by kind (n, K); ``fold`` is the rows' fold."""
    mine = bench.places(job.seed)[0]
    kind, held = job.spec.get("labels", "oof"), job.spec.get("held_out")
    if kind in {"oof", "in_sample", "fold_mean"}:
        used = range(FOLDS) if held is None else [f for f in range(FOLDS) if f != held]
        every = np.stack([bench.teacher(teacher_key(name, job.seed, (f,)))[mine] for f in used])
        if kind == "fold_mean":
            return every.mean(axis=0)
        # In-sample from one model of the same size too: it only differs in having seen the row.
        shift = 0 if kind == "oof" else 1
        index = np.searchsorted(list(used), np.clip((fold + shift) % FOLDS, min(used), None))
        return every[index, np.arange(len(mine))]
    labels = np.zeros((len(mine), 3), dtype=np.float32)
    for f in range(1, FOLDS):
        # Never saw the scored fold 0; or saw it, and left out another in its place.
        other = 0 if kind == "strict" else f % (FOLDS - 1) + 1
        pair = tuple(sorted((f, other)))
        labels[fold == f] = bench.teacher(teacher_key(name, job.seed, pair))[mine][fold == f]
    return labels


def run_student(bench: Bench, job: Job) -> dict[str, Any]:
    """Train a student on a seed's rows; keep its test logits."""
    from distill.config import DistillConfig
    from distill.teaching.lessons import StudentLoss, row_weights

    mine, fold, test = bench.places(job.seed)
    config = DistillConfig(**job.spec.get("distill", {}))
    lessons: dict[str, np.ndarray] = {}
    held = job.spec.get("held_out")
    learning = np.ones(len(mine), dtype=bool) if held is None else fold != held
    if job.spec["teachers"]:
        names = list(job.spec["teachers"])
        logits = np.stack([soft_labels(bench, job, t, fold) for t in names], axis=1)
        weights = row_weights(config, names, logits, bench.rows.targets[mine], learning)
        for key, values in (("teacher_logits", logits), ("teacher_weights", weights)):
            lessons[key] = np.zeros((len(bench.rows), *values.shape[1:]), dtype=np.float32)
            lessons[key][mine] = values
    train = train_config(bench, STUDENT, job.seed)
    epochs = train.epochs * job.spec.get("longer", 1)
    train = replace(train, epochs=epochs, **job.spec.get("train", {}))
    loss = StudentLoss(config)
    model = fit(bench, STUDENT, mine[learning], train, loss, lessons, job.key)
    logits = predict(bench, STUDENT, model, test)
    save(bench.out / "logits" / f"{job.key.replace('/', '_')}.npy", logits)
    found = {"test": float(row_losses(logits, bench.rows.targets[test]).mean())}
    found["parameters"] = sum(p.numel() for p in model.parameters())
    if held is not None:
        inside = mine[fold == held]
        logits = predict(bench, STUDENT, model, inside)
        save(bench.out / "logits" / f"{job.key.replace('/', '_')}-held-out.npy", logits)
        found["held_out"] = float(row_losses(logits, bench.rows.targets[inside]).mean())
    return found


def run_speed(bench: Bench, job: Job) -> dict[str, Any]:
    """Rows a second, both orders each, of every backbone, alone on the machine."""
    from distill.config import LoraConfig
    from distill.model.backbone import add_adapters, load_base

    test = bench.places(0)[2]
    found: dict[str, Any] = {}
    for name in job.spec["names"]:
        path = bench.backbone(name)
        model = add_adapters(load_base(backbone_config(path), str(path), 3), LoraConfig(enabled=False), 0)
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            predict(bench, name, model, test)
            times.append(time.perf_counter() - begin)
        found[name] = {
            "rows_per_second": round(len(test) / min(times)),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
    return {"speed": found}


def row_losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Cross-entropy a row, in nats."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return -(targets * (shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))).sum(axis=1)


# ---- the parent -----------------------------------------------------------------------------------------


def main() -> None:
    """Run what time allows, then write tables and pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/distillation"), help="an empty directory")
    parser.add_argument("--minutes", type=float, default=8.0, help="to be ready by then, report included")
    parser.add_argument("--workers", type=int, default=14, help="processes that share the GPUs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="questions to answer")
    parser.add_argument("--block", type=int, help=f"rows of a fold; a seed has {FOLDS} folds")
    parser.add_argument("--smoke", action="store_true", help="a size at which nothing is learnt")
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes - (0 if args.smoke else 25)
    scale = SMOKE if args.smoke else FULL
    if args.block:
        scale = replace(scale, block=args.block, test_blocks=max(4, 6000 // args.block))
    jobs = chosen_jobs(scale, args.parts)
    names = [STUDENT, *sorted({job.spec["teacher"] for job in jobs if job.kind == "teacher"})]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "scale.json").write_text(json.dumps(asdict(scale)))
    Bench(args.out, scale).blocks()  # before workers look for them
    shutil.copy(args.out / "scratch" / "blocks.npz", args.out / "blocks.npz")
    print(f"{deadline - time.monotonic():5.0f} s left; {len(jobs)} trainings to do", flush=True)
    queue = Queue(args.out, run_job, (start_worker, (args.out, scale)), args.workers, deadline)
    made = [Job(f"backbone/{name}", "backbone", spec={"name": name}) for name in names]
    queue.run([*made, *(Job(f"warm/{i}", "warm") for i in range(args.workers - len(made)))])
    tuning = [
        Job(f"tune/{who}/{lr:g}/{epochs:g}", "tune", spec={"who": who, "rate": [lr, epochs]})
        for who, rates in scale.tune.items()
        for lr, epochs in rates
    ]
    queue.run(tuning)
    tuned = {}
    for who in scale.tune:
        scores = [r for r in queue.results.values() if r["kind"] == "tune" and r["spec"]["who"] == who]
        if not scores:
            raise SystemExit("no training came to its end; see the failures above")
        tuned[who] = min(scores, key=lambda r: r["log_loss"])["spec"]["rate"]
    print("tuned (learning rate, epochs):", tuned, flush=True)
    (args.out / "scratch" / "tuned.json").write_text(json.dumps(tuned))
    queue.run(jobs, reserve=GRACE + 12)
    queue.run([Job("speed", "speed", spec={"names": names})])
    queue.close()
    keep_teachers(args.out, scale)
    shutil.rmtree(args.out / "scratch", ignore_errors=True)
    from benchmarks.distillation_report import write_report

    write_report([args.out], args.out)


def keep_teachers(out: Path, scale: Scale) -> None:
    """Keep the teachers' test logits, the mean of the fold models, for the report."""
    with np.load(out / "blocks.npz") as found:
        test = np.flatnonzero(found["block"] >= scale.seeds * FOLDS)
    for name in TEACHERS:
        for seed in range(scale.seeds):
            files = [out / "scratch" / f"{teacher_key(name, seed, (f,))}.npy" for f in range(FOLDS)]
            if all(file.exists() for file in files):
                mean = np.mean([np.load(file)[test] for file in files], axis=0)
                save(out / "logits" / f"teacher_{name}_s{seed}.npy", mean)


if __name__ == "__main__":
    main()
