"""One model's run: what is trained on what, resolved and described before anything is spent."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.encoding.encode import Encoder, Truncation, pad_token_id
from data.encoding.template import Template, read_template
from data.encoding.tokens import find_tokens
from data.errors import UserError
from data.folds import Folds
from data.ids import align
from data.schema import Rows
from data.softlabels import read_logits, write_logits
from distill.config import ModelConfig
from distill.model.backbone import (
    add_adapters,
    check_vocabulary,
    load_base,
    load_tokenizer,
    refuse_unreachable,
    tell_replaced_head,
)
from distill.model.classifier import Classifier
from distill.model.shallow import shallow_copy
from distill.model.tiny import tiny_backbone
from distill.packing.examples import Examples
from distill.processes import on_first
from distill.runs.described import of_backbone, of_data, of_recipe, place_beside, versions
from distill.runs.run_directory import BACKBONES, RunDirectory
from distill.training.trainer import Loss

LessonsFor = Callable[[int], dict[str, Any]]


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
    described = of_data(kind, name, rows, folds)
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
    manifest = {
        **described,
        "backbone_path": backbone,
        **place_beside(backbone, out),
        **of_backbone(model, backbone, tokenizer),
        **of_recipe(model, encoder.template, details),
        "truncated_share": encoded.truncated / max(1, len(encoded.lengths)),
        "data": os.path.relpath(data_dir, out),
        "versions": versions(),
    }
    return Run(name, out, model, backbone, rows, folds, examples, loss, manifest, lessons)


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
