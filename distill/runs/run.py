"""One model's run: what is trained on what, resolved and described before anything is spent."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from data.candidates import CANDIDATES
from data.encoding.encode import Encoder, Truncation, pad_token_id, tokenizer_hash
from data.encoding.template import Template, read_template
from data.encoding.tokens import find_tokens
from data.errors import UserError
from data.files import read_json
from data.folds import Folds
from data.ids import align
from data.schema import Rows
from data.softlabels import read_logits, write_logits
from data.sources.misconceptions import sets_of
from distill.config import ModelConfig
from distill.model.backbone import (
    add_adapters,
    attention_name,
    check_vocabulary,
    load_base,
    load_tokenizer,
    model_type,
    refuse_unreachable,
    tell_replaced_head,
    weight_hash,
)
from distill.model.classifier import Classifier
from distill.model.files import opened_hashes
from distill.model.held import compute_dtype
from distill.model.shallow import CUT_FROM, shallow_copy
from distill.model.tiny import tiny_backbone
from distill.packing.examples import Examples
from distill.processes import on_first
from distill.runs.run_directory import BACKBONES, BESIDE, RunDirectory
from distill.training.trainer import Loss

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
    pretraining : callable or None
        Plans the stage whose changes every training starts from (:mod:`distill.runs.pretraining`).
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
    pretraining: Callable[[], Run] | None = None

    def examples_for(self, number: int) -> Examples:
        """The examples as the model of fold ``number``, or of all rows, is to learn them."""
        return self.examples if self.lessons is None else replace(self.examples, **self.lessons(number))

    @property
    def directory(self) -> RunDirectory:
        """Where everything of the run lies."""
        return RunDirectory(self.out)

    def untrained(self, seed: int) -> Classifier:
        """The loaded backbone with a fresh head and adapters, drawn by ``seed``."""
        config, outputs = self.model.backbone, self.rows.classes.outputs
        base = load_base(config, self.backbone, outputs)
        if config.head == "score":
            called = self.manifest.get("backbone_source", self.backbone)
            tell_replaced_head(self.backbone, config.revision, called, outputs)
        return add_adapters(base, self.model.lora, seed, self.model.train.gradient_checkpointing)

    def claim(self) -> None:
        """Make the directory this run's, or see that it is; errors as :meth:`RunDirectory.claim`."""
        on_first(lambda: self.directory.claim(self.manifest, self.model))

    def write(
        self,
        path: Path,
        rows: np.ndarray,
        by: np.ndarray,
        logits: np.ndarray,
        manifest: Mapping[str, Any] | None = None,
    ) -> None:
        """Write predictions of some of the rows, on the first process alone.

        Parameters
        ----------
        rows, by : ndarray of shape (m,)
            Positions of the rows, and the number of the fold to name beside each.
        logits : ndarray of shape (m, orders, K)
        manifest : mapping, optional
            Of the store that the file belongs to, where it is not this run's.
        """
        ids, classes = [self.rows.row_ids[i] for i in rows], self.rows.classes
        sets = [self.rows.candidates[i] for i in rows] if classes.candidates else None
        on_first(lambda: write_logits(path, ids, by, logits, classes, manifest or self.manifest, sets))

    def read(self, paths: Sequence[Path]) -> np.ndarray:
        """Join predictions by row id: (n, orders, K), NaN where no file has the row."""
        classes = self.rows.classes
        logits = np.full((len(self.rows), len(classes.orders), classes.n), np.nan, dtype=np.float32)
        for path in paths:
            ids, _, values = read_logits(path, classes, self.manifest)
            logits[align(ids, self.rows.row_ids, str(self.out))] = values
        return logits


def versions() -> dict[str, str]:
    """Versions of the libraries that numbers depend on."""
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
    described = {
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
        **candidate_details(rows),
    }
    on_first(lambda: RunDirectory(out).refuse_other({**described, "seed": model.train.seed}, model))
    template = read_template(model.template)
    backbone = resolve_backbone(model, rows, template, out.parent)
    tokenizer = load_tokenizer(model.backbone, backbone)
    encoder = Encoder(tokenizer, template, Truncation(**asdict(model.encode)))
    kept = None if rows.classes.candidates else find_tokens(rows, encoder, data_dir)
    encoded = encoder.encode(rows, kept)
    check_vocabulary(model.backbone, backbone, int(encoded.ids.max()))
    examples = Examples(
        encoded,
        rows.targets,
        rows.classes.permutation,
        pad_token_id(tokenizer),
        row_ids=rows.row_ids,
        shared_prefix=model.train.shared_prefix,
    )
    training = asdict(model.train)
    training.pop("predict_rows")
    if model.train.shared_prefix.lower() == "false":
        training.pop("shared_prefix")
    manifest = {
        **described,
        "backbone_path": backbone,
        **place_beside(backbone, out),
        "backbone": {
            "weight_hash": on_first(lambda: weight_hash(backbone, model.backbone.revision)),
            "files": opened_hashes(Path(backbone)),
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


def candidate_details(rows: Rows) -> dict[str, Any]:
    """Manifest fields of rows with candidates: how many there are and, of questions known by name, which.

    So a file of new rows that names its questions alone can be predicted.
    """
    if rows.sizes is None:
        return {}
    sizes = {"least": int(rows.sizes.min()), "most": int(rows.sizes.max())}
    return {CANDIDATES: sizes, "sets": {name: list(found) for name, found in sets_of(rows).items()}}


def place_beside(backbone: str, out: Path) -> dict[str, str]:
    """Manifest field of a backbone that lies beside the run and moves with it: the way there from the run."""
    if Path(backbone).is_dir() and Path(backbone).is_relative_to(out.parent.resolve()):
        return {BESIDE: os.path.relpath(backbone, out.resolve())}
    return {}


def head_details(model: ModelConfig) -> dict[str, Any]:
    """Manifest fields of a head that is not the usual one."""
    if model.backbone.head == "score":
        return {}
    return {"head": model.backbone.head, "verdicts": list(model.backbone.verdicts)}


def resolve_backbone(model: ModelConfig, rows: Rows, template: Template, home: Path) -> str:
    """Return the checkpoint's location: made or cut locally, a local directory, or a hub name."""
    cache, revision = home / BACKBONES, model.backbone.revision
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
        on_first(lambda: refuse_unreachable(whole, revision))
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
