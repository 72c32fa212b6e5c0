"""What a run's manifest says, told from rows, recipe and backbone; and what it would say of a run to come."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data.candidates import CANDIDATES
from data.encoding.encode import Truncation, tokenizer_hash
from data.encoding.template import Template, read_template
from data.files import read_json
from data.folds import Folds
from data.schema import Rows
from data.sources.misconceptions import sets_of
from distill.config import ModelConfig
from distill.model.backbone import (
    attention_name,
    load_tokenizer,
    on_machine,
    read_configuration,
    weight_hash,
)
from distill.model.files import opened_hashes
from distill.model.held import compute_dtype
from distill.model.shallow import CUT_FROM, copy_of
from distill.model.tiny import MADE, place_of
from distill.processes import on_first
from distill.runs.run_directory import BACKBONES, BESIDE, RunDirectory

FORMAT = 1
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers", "numpy")
LATER = ("backbone", "cut_from", "tokenizer_hash", "template")
"""Fields that need the backbone itself, or its tokenizer."""


def versions() -> dict[str, str]:
    """Versions of the libraries that numbers depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def of_data(kind: str, name: str, rows: Rows, folds: Folds) -> dict[str, Any]:
    """Manifest fields of what is trained, and on what."""
    return {
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


def of_backbone(model: ModelConfig, backbone: str, tokenizer: Any) -> dict[str, Any]:
    """Manifest fields of the checkpoint that is trained from."""
    text_config = read_configuration(backbone, model.backbone.revision).get_text_config()
    return {
        "backbone": {
            "weight_hash": on_first(lambda: weight_hash(backbone, model.backbone.revision)),
            "files": opened_hashes(Path(backbone)),
            "precision": model.backbone.precision,
            "double_quant": model.backbone.double_quant,
            "compute": str(compute_dtype(model.backbone)).removeprefix("torch."),
            "attention": attention_name(model.backbone, text_config),
            **head_details(model),
        },
        **_origin(model, backbone),
        "tokenizer_hash": tokenizer_hash(tokenizer),
    }


def of_recipe(model: ModelConfig, template: Template, details: Mapping[str, Any] | None) -> dict[str, Any]:
    """Manifest fields of how it is trained; the template may be bound to the backbone's tokenizer."""
    training = asdict(model.train)
    training.pop("predict_rows")
    if model.train.shared_prefix.lower() == "false":
        training.pop("shared_prefix")
    return {
        "template": asdict(template),
        "truncation": asdict(Truncation(**asdict(model.encode))),
        "lora": asdict(model.lora),
        "train": training,
        "seed": model.train.seed,
        **(details or {}),
    }


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


def _origin(model: ModelConfig, backbone: str) -> dict[str, Any]:
    """Manifest fields of a backbone cut from another: which, and how much of it."""
    if model.backbone.first_layers is None:
        return {}
    cut = read_json(Path(backbone) / CUT_FROM, "record of a cut checkpoint")
    return {"backbone_source": cut.pop("path"), "cut_from": cut}


def foresee(
    kind: str,
    name: str,
    model: ModelConfig,
    rows: Rows,
    folds: Folds,
    out: Path,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Refuse what :func:`distill.runs.run.plan_run` and :meth:`distill.runs.run.Run.claim` would, in ``out``.

    Nothing is made, encoded or downloaded for it: where the backbone would have to be, its part of the
    manifest is not compared, but for what it would be cut from.

    Raises
    ------
    UserError
        The directory holds another run.
    """
    directory, described = RunDirectory(out), of_data(kind, name, rows, folds)
    directory.refuse_other({**described, "seed": model.train.seed}, model)
    if not directory.begun:
        return
    template = read_template(model.template)
    backbone, origin = _standing(model, rows, template, out.parent)
    if backbone is None:
        known = {**described, **of_recipe(model, template, details), **origin}
        if template.uses_chat:
            del known["template"]  # which is the tokenizer's
        directory.refuse_another(known, unknown=LATER)
        return
    tokenizer = load_tokenizer(model.backbone, backbone)
    recipe = of_recipe(model, template.bound_to(tokenizer), details)
    directory.refuse_another({**described, **recipe, **of_backbone(model, backbone, tokenizer)})


def _standing(
    model: ModelConfig, rows: Rows, template: Template, home: Path
) -> tuple[str | None, dict[str, Any]]:
    """Return the checkpoint's location if nothing is left to make or fetch; and fields known in any case."""
    config, cache = model.backbone, home / BACKBONES
    if config.tiny is not None:
        place = place_of(config.tiny, rows, template, model.train.seed, cache)
        whole = str(place.resolve()) if (place / MADE).exists() else None
    elif Path(config.path).is_dir():
        whole = str(Path(config.path).resolve())
    else:
        whole = config.path if on_machine(config.path, config.revision) else None
    if config.first_layers is None or whole is None:
        return whole, {}
    if not Path(whole).is_dir():
        return None, {}
    origin, cut = copy_of(whole, config.first_layers, cache)
    del origin["path"]
    return (str(cut.resolve()) if (cut / CUT_FROM).exists() else None), {"cut_from": origin}
