"""Train one model a fold, predict each fold with the model that never saw it, and keep the evidence.

A run's directory is its own record: ``manifest.json`` says what it depends on and is compared before
anything continues; a fold is finished when its ``oof.parquet`` stands; the run, when all are joined.
Killed at any moment and started again, it goes on from the last finished fold or checkpoint.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.encoding.encode import Encoder, Truncation, pad_token_id, tokenizer_hash
from data.errors import UserError
from data.files import read_json, write_json
from data.folds import Folds
from data.schema import Rows
from data.softlabels import MANIFEST, OOF, SoftLabels, read_logits, read_manifest, read_store, write_logits
from data.encoding.template import Template, read_template
from data.encoding.tokens import find_tokens
from distill.model.backbone import (
    add_adapters,
    attention_name,
    check_vocabulary,
    compute_dtype,
    load_base,
    load_tokenizer,
    load_trained,
    model_type,
    weight_hash,
)
from distill.packing.examples import Examples
from distill.config import CONFIG, ModelConfig
from distill.recipe import save_resolved
from distill.model.classifier import Classifier
from distill.processes import on_first
from distill.teaching.trust import MAY_CHANGE, check_weights, write_trained_on
from distill.training.keep_best import KeepBest, held_back
from distill.model.shallow import CUT_FROM, shallow_copy
from distill.model.tiny import tiny_backbone
from distill.training.trainer import Loss, LossNotFinite, predict_logits, train

LessonsFor = Callable[[int], dict[str, Any]]
FORMAT = 1
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers", "numpy")


@dataclass(frozen=True)
class Run:
    """Everything one model's cross-fitting needs.

    Attributes
    ----------
    name : str
        The model's name in messages and tables.
    out : Path
        The store's directory.
    model : ModelConfig
    backbone : str
        Local directory or hub name of the checkpoint.
    rows, folds : Rows, Folds
        In the same order.
    examples : Examples
    loss : callable
        Logits and batch to a loss a sequence.
    manifest : dict
    lessons : callable or None
        From the number of a fold, or of all rows, to fields that replace those of ``examples``.
    """

    name: str
    out: Path
    model: ModelConfig
    backbone: str
    rows: Rows
    folds: Folds
    examples: Examples
    loss: Loss
    manifest: dict[str, Any]
    lessons: LessonsFor | None = None

    def examples_for(self, number: int) -> Examples:
        """The examples as the model of fold ``number``, or of all rows, is to learn them."""
        return self.examples if self.lessons is None else replace(self.examples, **self.lessons(number))


def versions() -> dict[str, str]:
    """Versions of the libraries that numbers depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def plan_run(
    kind: str,
    name: str,
    model: ModelConfig,
    rows: Rows,
    folds: Folds,
    data_dir: Path,
    out: Path,
    loss: Loss,
    lessons: LessonsFor | None = None,
    details: Mapping[str, Any] | None = None,
) -> Run:
    """Resolve backbone and tokenizer, encode the rows, and describe the run in a manifest.

    Parameters
    ----------
    kind : {"teacher", "student"}
    data_dir : Path
        Where rows and folds are; the run records the way there.
    lessons : callable, optional
        What each model learns, where that differs; see :class:`Run`.
    details : mapping, optional
        Further manifest fields, such as a student's teachers.
    """
    template = read_template(model.template)
    backbone = resolve_backbone(model, rows, template, out.parent)
    tokenizer = load_tokenizer(model.backbone, backbone)
    encoder = Encoder(tokenizer, template, Truncation(**asdict(model.encode)))
    encoded = encoder.encode(rows, find_tokens(rows, encoder, data_dir))
    check_vocabulary(model.backbone, backbone, int(encoded.ids.max()))
    examples = Examples(
        encoded,
        rows.targets,
        rows.classes.permutation,
        pad_token_id(tokenizer),
        row_ids=rows.row_ids,
    )
    training = asdict(model.train)
    training.pop("predict_rows")
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "name": name,
        "label_kind": "oof",
        "classes": list(rows.classes.names),
        "swap": None if rows.classes.swap is None else list(rows.classes.swap),
        "rows_hash": rows.content_hash,
        "folds_hash": folds.content_hash,
        "n_rows": len(rows),
        "n_folds": folds.n_folds,
        "backbone_path": backbone,
        "backbone": {
            "weight_hash": on_first(lambda: weight_hash(backbone, model.backbone.revision)),
            "precision": model.backbone.precision,
            "double_quant": model.backbone.double_quant,
            "compute": str(compute_dtype(model.backbone)).removeprefix("torch."),
            "attention": attention_name(model.backbone, model_type(model.backbone, backbone)),
            **head_details(model),
        },
        **_origin(model, backbone),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        **encoder.describe(),
        "truncated_share": encoded.truncated / max(1, len(encoded.lengths)),
        "lora": asdict(model.lora),
        "train": training,
        "seed": model.train.seed,
        **(details or {}),
        "data": os.path.relpath(data_dir, out),
        "versions": versions(),
    }
    return Run(name, out, model, backbone, rows, folds, examples, loss, manifest, lessons)


def head_details(model: ModelConfig) -> dict[str, Any]:
    """Manifest fields of a head that is not the usual one."""
    if model.backbone.head == "score":
        return {}
    return {"head": model.backbone.head, "verdicts": list(model.backbone.verdicts)}


def resolve_backbone(model: ModelConfig, rows: Rows, template: Template, home: Path) -> str:
    """Return the checkpoint's location: made or cut locally, a local directory, or a hub name."""
    cache, revision = home / "backbones", model.backbone.revision
    if model.backbone.tiny is not None:
        tiny, seed = model.backbone.tiny, model.train.seed
        whole = str(on_first(lambda: tiny_backbone(tiny, rows, template, seed, cache)).resolve())
    else:
        local = Path(model.backbone.path)
        if local.is_file():
            raise UserError(
                f"{local}: is a file; backbone.path is the directory of a checkpoint, or a hub name"
            )
        whole = str(local.resolve()) if local.is_dir() else model.backbone.path
    layers = model.backbone.first_layers
    if layers is None:
        return whole
    cut = on_first(lambda: shallow_copy(whole, layers, cache, revision))
    return str(cut.resolve())


def _origin(model: ModelConfig, backbone: str) -> dict[str, Any]:
    """Manifest fields of a backbone cut from another: which, and how much of it."""
    if model.backbone.first_layers is None:
        return {}
    cut = read_json(Path(backbone) / CUT_FROM, "record of a cut checkpoint")
    return {"backbone_source": cut.pop("path"), "cut_from": cut}


def open_run(run: Run) -> None:
    """Claim ``run.out``: write its manifest, or see that the one there is the same run's.

    Raises
    ------
    UserError
        The directory holds another run; the message names the first field that differs.
    """
    path = run.out / MANIFEST
    if path.exists() and _has_begun(run.out):
        found = read_manifest(run.out)
        for field in sorted(set(found) | set(run.manifest)):
            if field not in MAY_CHANGE and found.get(field) != run.manifest.get(field):
                difference = _difference(field, found, run.manifest)
                raise UserError(
                    f"{run.out}: holds another run: its manifest differs in {difference}; "
                    "choose another --out, or delete that directory to start over"
                )
        if not (run.out / CONFIG).exists():
            save_resolved(run.out / CONFIG, run.model)
        return
    if not path.exists() and run.out.exists() and any(p.name != CONFIG for p in run.out.iterdir()):
        raise UserError(f"{run.out}: is not empty and has no {MANIFEST}; choose another --out")
    save_resolved(run.out / CONFIG, run.model)
    write_json(path, run.manifest)


def _has_begun(out: Path) -> bool:
    """Whether a claimed directory holds anything that a training left; without, it may be claimed anew.

    A recipe's mistake that only the loaded backbone shows, or a loss that diverged, so costs no deletion.
    """
    return any(any(out.glob(part)) for part in ("*/adapter", "*/checkpoint-*", "*/best", "**/*.parquet"))


def _difference(field: str, found: Any, wanted: Any) -> str:
    """Name the first field, nested ones dotted, in which two manifests differ, with both values."""
    mine, theirs = found.get(field), wanted.get(field)
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in sorted(set(mine) | set(theirs)):
            if mine.get(key) != theirs.get(key):
                return f"{field}.{_difference(key, mine, theirs)}"
    return f"{field} ({mine} there, {theirs} asked for)"


def cross_fit(run: Run, report_to: str = "none") -> SoftLabels:
    """Train and predict every fold, join the folds, and return the store."""
    on_first(lambda: open_run(run))
    if not on_first((run.out / OOF).exists):
        for fold in range(run.folds.n_folds):
            fit_fold(run, fold, report_to)
        on_first(lambda: _join_folds(run))
    return read_store(run.out)


def fit_fold(run: Run, fold: int, report_to: str = "none") -> None:
    """Train on the other folds, save the adapter, predict this fold; do nothing if that is done."""
    directory = run.out / f"fold-{fold}"
    if on_first((directory / OOF).exists):
        return
    inside = run.folds.fold == fold
    classifier = trained(run, directory, ~inside, fold, report_to, f"fold {fold}")
    held_out = np.flatnonzero(inside)
    what = f"{run.name} predicts fold {fold}"
    shards = directory / "predicting"
    logits = predict_logits(
        classifier,
        run.examples,
        held_out,
        run.model.train.predict_rows,
        what,
        run.model.train.pack_tokens,
        shards,
    )
    if not np.isfinite(logits).all():
        raise UserError(
            f"{directory}: the model predicts logits that are not finite; lower the learning rate"
        )
    row_ids = [run.rows.row_ids[i] for i in held_out]
    numbers = np.full(len(held_out), fold)
    on_first(lambda: write_logits(directory / OOF, row_ids, numbers, logits, run.rows.classes))
    on_first(lambda: shutil.rmtree(shards, ignore_errors=True))


def fit_final(run: Run, report_to: str = "none") -> Path:
    """Train the deployable model on all labelled rows; return the directory of its weights."""
    directory = run.out / "final"
    if not on_first((directory / "adapter").exists):
        everything = np.ones(len(run.rows), dtype=bool)
        trained(run, directory, everything, run.folds.n_folds, report_to, "all rows")
    return directory / "adapter"


def trained(
    run: Run, directory: Path, allowed: np.ndarray, number: int, report_to: str, what: str
) -> Classifier:
    """Return the trained classifier of ``directory``, training it first if its weights are not there.

    Parameters
    ----------
    allowed : ndarray of bool, shape (n,)
        Rows that it may learn from; it does from those that have a target.
    number : int
        The fold's number, or the number of folds for all rows.
    """
    adapter = directory / "adapter"
    model = run.model
    if on_first(adapter.exists):
        on_first(lambda: check_weights(adapter))
        return load_trained(model.backbone, run.backbone, adapter, model.lora.enabled, run.rows.classes.n)
    examples = run.examples_for(number)
    train_rows = np.flatnonzero(allowed & examples.labelled)
    if not train_rows.size:
        raise UserError(f"{run.name}, {what}: there are no labelled rows to train on")
    seed = model.train.seed * 1000 + number
    base = load_base(model.backbone, run.backbone, run.rows.classes.n)
    classifier = add_adapters(base, model.lora, seed, model.train.gradient_checkpointing)
    config = replace(model.train, seed=seed)
    keeper = None
    if config.select_share:
        back = held_back(run.folds.group_ids, config.select_share, seed)[train_rows]
        if not back.any() or back.all():
            raise UserError(f"{run.name}, {what}: train.select_share {config.select_share} leaves no rows")
        keeper = KeepBest(
            classifier, examples, train_rows[back], directory, config.select_steps, config.patience
        )
        train_rows = train_rows[~back]
    try:
        train(
            classifier,
            examples,
            train_rows,
            config,
            run.loss,
            directory,
            f"{run.name}, {what}",
            report_to,
            [] if keeper is None else [keeper],
        )
    except LossNotFinite as error:
        cause = "lower train.lr, or use bf16 instead of fp16"
        if error.step == 1:
            cause = f"nothing was learnt before it, so look at the weights of {run.backbone}, or at fp16"
        raise UserError(f"{run.name}, {what}: {error}; {cause}") from error
    except torch.OutOfMemoryError as error:
        raise UserError(f"{run.name}, {what}: {error}") from error
    if keeper is not None:
        keeper.restore()
    seen = np.flatnonzero(allowed & examples.labelled)
    on_first(lambda: _keep(run, classifier, directory, [run.rows.row_ids[i] for i in seen]))
    return classifier


def _keep(run: Run, classifier: Classifier, directory: Path, seen: list[str]) -> None:
    """Save a trained classifier and what it has seen; drop its checkpoints."""
    unfinished = directory / ".adapter.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    classifier.save(unfinished)
    write_trained_on(directory, seen, unfinished, run.manifest)
    os.replace(unfinished, directory / "adapter")
    for checkpoint in directory.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def _join_folds(run: Run) -> None:
    """Join the folds' predictions into the store's ``oof.parquet``, in row order; pinned rows have none."""
    n, orders, k = len(run.rows), len(run.rows.classes.orders), run.rows.classes.n
    logits = np.full((n, orders, k), np.nan, dtype=np.float32)
    position = {row_id: i for i, row_id in enumerate(run.rows.row_ids)}
    for fold in range(run.folds.n_folds):
        ids, _, part = read_logits(run.out / f"fold-{fold}" / OOF, run.rows.classes)
        logits[[position[row_id] for row_id in ids]] = part
    held = np.flatnonzero(~run.folds.pinned)
    ids = [run.rows.row_ids[i] for i in held]
    write_logits(run.out / OOF, ids, run.folds.fold[held], logits[held], run.rows.classes)
