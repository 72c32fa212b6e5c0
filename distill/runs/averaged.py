"""Several runs as one: what each has changed of the same base, averaged, model by model.

Low-rank changes are averaged as the changes that they are, and never factor by factor: mean(B)·mean(A) is
another matrix than the mean of B·A. That mean is low-rank again, of the sum of the ranks: the factors A one
below another, the factors B side by side, each times its own scale over n. So an average is an adapter on
the very same base, which stays in four bits where it was; nothing is rounded or merged.

The models of fold k have none of them seen fold k, nor has their average, which so is scored out of fold as
any run is: beside the mean of the runs' predictions, which costs as many passes as there are runs (Wortsman
et al., arXiv 2203.05482).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import UserError, brief, listing
from data.files import read_json, sha256_files, write_json
from data.folds import Folds
from data.ids import refuse_repeated
from data.schema import Rows
from data.softlabels import MANIFEST, SoftLabels, read_store, run_hash
from distill.config import CONFIG, ModelConfig
from distill.losses import label_loss
from distill.model.files import weight_files
from distill.processes import on_first
from distill.runs.crossfit import fit_part, join_folds
from distill.runs.run import Run, plan_run
from distill.runs.run_directory import FINAL, RunDirectory
from distill.runs.saved import SavedModel, checked_tokenizer
from distill.teaching.trust import (
    check_made_from,
    check_manifest,
    check_settings,
    check_store,
    check_weights,
    write_trained_on,
)

ALIKE = (
    "kind", "classes", "swap", "rows_hash", "folds_hash", "n_folds", "template", "truncation",
    "tokenizer_hash", "teacher_label_kind", "leakage",
)  # fmt: skip
"""Manifest fields in which averaged runs agree."""
OF_THE_BASE = ("weight_hash", "files", "precision", "double_quant", "head", "verdicts")
"""Those of the field ``backbone``."""
CARRIED = (
    "distill", "loss_hash", "hard_labels_only", "teachers", "teacher_label_kind", "leakage", "cut_from",
    "backbone_source",
)  # fmt: skip
"""Fields that an average has from the first of its runs, if that has them."""
OWN = ("seed", "train", "lora", "distill", "teachers", "pretrain")
"""What is recorded of every averaged run."""
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
UNLIKE_LORA = ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias")
"""Settings of PEFT under which a change is not ``scale · B · A``."""


def check_alike(runs: Sequence[SavedModel]) -> None:
    """Refuse runs that cannot be averaged, naming two of them and the field in which they differ.

    Raises
    ------
    UserError
        Fewer than two; one given twice, or an export; other bases, rows, folds, classes or layouts; one that
        lacks the model of a fold.
    """
    if len(runs) < 2:
        raise UserError("--model: an average is of two runs or more; give their directories")
    refuse_repeated([str(run.path.resolve()) for run in runs], "--model", "runs")
    first = runs[0]
    for run in runs:
        if run.exported:
            raise UserError(
                f"{run.path}: is an export, merged with its base; average the runs, and export the average"
            )
        for field, wanted in _common(first).items():
            if (found := _common(run)[field]) != wanted:
                raise UserError(
                    f"{first.path} and {run.path} cannot be averaged: their manifests differ in {field} "
                    f"({brief(wanted, 60)} against {brief(found, 60)}); weights are averaged over runs of "
                    "one base on the same rows, as of several seeds"
                )
        if run.model.lora.enabled != first.model.lora.enabled:
            raise UserError(f"{first.path} and {run.path} cannot be averaged: only one of them has adapters")
        folds = RunDirectory(run.path).weights(average=True)
        if len(folds) != run.manifest["n_folds"]:
            raise UserError(
                f"{run.path}: has {len(folds)} of {run.manifest['n_folds']} fold models to average"
            )


def _common(run: SavedModel) -> dict[str, Any]:
    """What averaged runs must have in common, by the fields' names."""
    base = {f"backbone.{field}": run.manifest["backbone"].get(field) for field in OF_THE_BASE}
    return {field: run.manifest.get(field) for field in ALIKE} | base


def plan_average(runs: Sequence[SavedModel], rows: Rows, folds: Folds, home: Path, out: Path) -> Run:
    """Describe the average as a run of its own.

    Parameters
    ----------
    runs : sequence of SavedModel
        As :func:`check_alike` leaves them.
    home : Path
        Where rows and folds are.
    out : Path
        The average's directory.

    Raises
    ------
    UserError
        The rows or the base are no longer those of the training; a run's record contradicts its files.
    """
    first = runs[0]
    for run in runs:
        check_made_from(rows, folds, str(home), run.manifest, run.path)
        check_store(read_store(run.path), rows, folds)
        checked_tokenizer(run)
        _check_records(run)
    details = {field: first.manifest[field] for field in CARRIED if field in first.manifest}
    details["averaged"] = [_described(run) for run in runs]
    planned = plan_run(
        first.manifest["kind"],
        out.resolve().name,
        _settings(runs),
        rows,
        folds,
        home,
        out,
        loss=label_loss,
        details=details,
    )
    for field in ("template", "truncation"):
        if planned.manifest[field] != first.manifest[field]:
            raise UserError(f"{first.path}: its {field} is no longer that of its training; restore it")
    return planned


def _check_records(run: SavedModel) -> None:
    """Refuse weights that are not as they were written, or settings that are not theirs."""
    accepted = run.access.accept_changed
    for weights in _models(run):
        check_weights(weights, accepted)
        check_manifest(weights, run.manifest, run.path / MANIFEST, accepted)
        check_settings(weights, run.path / CONFIG, accepted)


def _models(run: SavedModel) -> list[Path]:
    """A run's trained weights: of its folds, and of all rows where there are such."""
    final = RunDirectory(run.path).part(FINAL).adapter
    return [*RunDirectory(run.path).weights(average=True), *([final] if final.exists() else [])]


def _described(run: SavedModel) -> dict[str, Any]:
    """What the average's manifest says of one of its runs."""
    return {
        "name": run.name,
        "run_hash": run_hash(run.manifest),
        "weights_hash": sha256_files([path for part in _models(run) for path in sorted(part.iterdir())]),
        **{field: run.manifest[field] for field in OWN if field in run.manifest},
    }


def _settings(runs: Sequence[SavedModel]) -> ModelConfig:
    """The first run's configuration, on the base that it was trained from, with an adapter of all ranks."""
    model = runs[0].model
    rank = sum(run.model.lora.r for run in runs)
    lora = replace(model.lora, r=rank, alpha=float(rank)) if model.lora.enabled else model.lora
    backbone = replace(model.backbone, path=runs[0].backbone, tiny=None, first_layers=None)
    return replace(model, backbone=backbone, lora=lora)


def fit_average(run: Run, runs: Sequence[SavedModel]) -> SoftLabels:
    """Average what is not averaged yet, predict every fold by its average, and return the joined store."""
    run.claim()
    names = [f"fold-{k}" for k in range(run.folds.n_folds)]
    if all(RunDirectory(saved.path).part(FINAL).adapter.exists() for saved in runs):
        names.append(FINAL)
    for name in names:
        if not run.directory.part(name).trained:
            _average_part(run, name, [RunDirectory(saved.path).part(name).adapter for saved in runs])
        fit_part(run, name)
    return join_folds(run)


def _average_part(run: Run, name: str, weights: Sequence[Path]) -> None:
    """Write one model of the average, with the record that a trained one has."""
    part = run.directory.part(name)
    seen = np.flatnonzero(run.rows.labelled & ~part.held_out(run.folds))

    def save(directory: Path) -> None:
        write_mean(weights, directory)
        ids = [run.rows.row_ids[i] for i in seen]
        write_trained_on(part.path, ids, directory, run.manifest, run.out / CONFIG)

    on_first(lambda: part.keep(save))


def write_mean(weights: Sequence[Path], out: Path) -> None:
    """Write the mean of trained weights, as :meth:`distill.model.classifier.Classifier.save` wrote each.

    Parameters
    ----------
    weights : sequence of Path
        Adapters of PEFT with the heads beside them, or whole checkpoints.
    out : Path
        Directory of the mean; an adapter's rank is the sum of the ranks.

    Raises
    ------
    UserError
        They adapt other layers, are of another kind than plain LoRA, or lie in other files.
    """
    out.mkdir(parents=True, exist_ok=True)
    if (weights[0] / SETTINGS).exists():
        _write_mean_adapter(weights, out)
    else:
        _write_mean_checkpoint(weights, out)


def _write_mean_adapter(weights: Sequence[Path], out: Path) -> None:
    from safetensors.torch import load_file, save_file

    settings = [read_json(path / SETTINGS, "adapter's configuration") for path in weights]
    states = [load_file(path / WEIGHTS) for path in weights]
    for path, state in zip(weights, states, strict=True):
        if state.keys() != states[0].keys():
            other = listing(sorted(state.keys() ^ states[0].keys()), 3)
            raise UserError(f"{weights[0]} and {path} adapt other layers, as {other}, and cannot be averaged")
    scales = [_scale(own, path) / len(weights) for own, path in zip(settings, weights, strict=True)]
    mean = {}
    for name in states[0]:
        own = [state[name] for state in states]
        if ".lora_A." in name:
            mean[name] = torch.cat(own, dim=0)
        elif ".lora_B." in name:
            mean[name] = torch.cat([scale * b for scale, b in zip(scales, own, strict=True)], dim=1)
        else:
            mean[name] = _mean(own)
    rank = sum(own["r"] for own in settings)
    save_file({name: t.contiguous() for name, t in mean.items()}, out / WEIGHTS, metadata={"format": "pt"})
    write_json(out / SETTINGS, {**settings[0], "r": rank, "lora_alpha": rank, "use_rslora": False})


def _scale(settings: dict[str, Any], path: Path) -> float:
    """How many times an adapter's product counts."""
    odd = [name for name in UNLIKE_LORA if settings.get(name)]
    if odd or settings.get("peft_type") != "LORA" or settings.get("bias", "none") != "none":
        what = listing(odd) or brief(settings.get("peft_type"))
        raise UserError(f"{path}: only plain LoRA adapters can be averaged; this one has {what}")
    rank = settings["r"]
    return float(settings["lora_alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank))


def _write_mean_checkpoint(weights: Sequence[Path], out: Path) -> None:
    from safetensors.torch import load_file, save_file

    files = weight_files(weights[0])
    for path in weights:
        if weight_files(path) != files:
            raise UserError(f"{weights[0]} and {path} lie in other files, and cannot be averaged")
    for file in sorted(weights[0].iterdir()):
        if file.is_file() and file.name not in files:
            shutil.copyfile(file, out / file.name)
    for name in files:
        states = [load_file(path / name) for path in weights]
        if any(state.keys() != states[0].keys() for state in states):
            raise UserError(f"{weights[0] / name} and those of the other runs hold other weights")
        mean = {key: _mean([state[key] for state in states]) for key in states[0]}
        save_file(mean, out / name, metadata={"format": "pt"})


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    """The mean, in the dtype that they have; summed in float32."""
    total = torch.stack([tensor.float() for tensor in tensors]).mean(dim=0)
    return total.to(tensors[0].dtype).contiguous()
