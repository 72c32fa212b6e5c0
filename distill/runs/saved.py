"""A trained run read back from its directory, and refused where it is not as it was trained."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.classes import Classes
from data.encoding.encode import tokenizer_hash
from data.errors import UserError, listing
from data.files import read_json, sha256_files, sha256_text
from data.softlabels import MANIFEST, classes_of, read_manifest, run_hash
from distill.config import (
    CONFIG,
    EIGHT_BITS,
    BackboneConfig,
    EncodeConfig,
    LoraConfig,
    ModelConfig,
    StudentConfig,
)
from distill.model.backbone import load_tokenizer, on_machine, weight_hash
from distill.model.files import opened_hashes
from distill.model.held import check_card
from distill.model.served import MERGED, check_fp8, check_own_head
from distill.recipe import read_config
from distill.runs.backbones import find_backbone
from distill.runs.run_directory import BESIDE, FINAL, RunDirectory
from distill.teaching.trust import check_manifest, check_settings, differs

NEEDED = ("classes", "template", "truncation", "tokenizer_hash")
"""What prediction needs of a manifest, or of an exported model's settings."""
KINDS = {"teacher": ModelConfig, "student": StudentConfig}
CARD = "README.md"
EXPORTED = "distillstack.json"
"""In a directory of :mod:`distill.export`: what a plain checkpoint has no place for."""
INSTEAD = (
    "predict with --compute auto, or with its distill.export",
    "distill.export it, and predict with that",
)
"""What to do with a run whose products the card lacks."""


@dataclass(frozen=True)
class Access:
    """What a command line says of how saved models are to be read.

    Attributes
    ----------
    backbone : str, optional
        The backbone's directory, where it is no longer where the run was trained from it, or one under which
        each run's is found (:mod:`distill.runs.backbones`).
    accept_changed : bool
        Take files that are not as they were recorded, with a warning each, instead of refusing them.
    precision : {"", "fp8", "fp16", "int8"}
        What the base is held in for prediction; empty for the run's own, which a quantised base keeps in any
        case but fp8, which it refuses.
    compute : {"", "auto", "bf16", "fp16", "fp32", "fp8", "int8"}
        What a quantised base is multiplied in for prediction, as ``backbone.compute`` is for training; empty
        for the run's own.
    merges : bool
        The weights are merged and nothing is predicted, which a card without the run's products can, too.
    """

    backbone: str | None = None
    accept_changed: bool = False
    precision: str = ""
    compute: str = ""
    merges: bool = False


@dataclass(frozen=True)
class SavedModel:
    """A finished run.

    Attributes
    ----------
    path : Path
        The run's directory.
    manifest : dict
    model : ModelConfig
    weights : list of Path
        The adapters to average: the final model's where there is one, else one a fold.
    access : Access
    """

    path: Path
    manifest: dict[str, Any]
    model: ModelConfig
    weights: list[Path]
    access: Access = Access()

    @property
    def backbone(self) -> str:
        """Where the checkpoint is that the run was trained from: a directory, or a hub name."""
        return self.access.backbone or backbone_place(self.path, self.manifest)

    @property
    def served(self) -> BackboneConfig:
        """What the base is held in and multiplied in for prediction."""
        own, access = self.model.backbone, self.access
        return replace(
            own, precision=access.precision or own.precision, compute=access.compute or own.compute
        )

    @property
    def name(self) -> str:
        """The run's directory name."""
        return self.path.resolve().name

    @property
    def exported(self) -> bool:
        """Whether this is a plain model that ``distill.export`` left."""
        return (self.path / EXPORTED).exists()

    @property
    def temperature(self) -> float:
        """What logits are divided by before they become probabilities; 1 but for exported models."""
        return float(self.manifest.get("temperature", 1.0))

    @property
    def classes(self) -> Classes:
        """The classes the model was trained on."""
        return classes_of(self.manifest, self.path / (EXPORTED if self.exported else MANIFEST))


def read_saved(path: Path, access: Access = Access()) -> SavedModel:
    """Read a finished run's directory, or a model that ``distill.export`` made of one.

    Parameters
    ----------
    path : Path
    access : Access, optional
        What the command line says of it.

    Raises
    ------
    UserError
        Neither, unfinished, its configuration is damaged, or a file is not as it was recorded.
    """
    if not path.exists():
        raise UserError(f"{path}: no such model; give the directory of a finished run or of an export")
    if (path / EXPORTED).exists():
        return _read_exported(path, access)
    if path.is_dir() and not (path / MANIFEST).exists():
        raise UserError(
            f"{path}: is neither a finished run ({MANIFEST}) nor a model of distill.export ({EXPORTED}); a "
            "plain checkpoint has not been trained on your classes"
        )
    manifest = read_manifest(path)
    if manifest.get("kind") not in KINDS:
        raise UserError(f"{path}: is not a run of distill.teacher_oof or distill.student")
    if "derived_from" in manifest:
        raise UserError(
            f"{path}: holds further labels of the run {path / manifest['derived_from']}, which has the models"
        )
    _require(manifest, path / MANIFEST, (*NEEDED, "backbone_path", "backbone", "n_folds"))
    kind = KINDS[manifest["kind"]]
    directory = RunDirectory(path)
    weights = directory.weights()
    expected = 1 if directory.part(FINAL).adapter.exists() else manifest.get("n_folds")
    if len(weights) != expected:
        raise UserError(
            f"{path}: has {len(weights)} of {expected} fold models; start its command again to finish it"
        )
    for trained in weights:
        check_manifest(trained, manifest, path / MANIFEST, access.accept_changed)
        check_settings(trained, path / CONFIG, access.accept_changed)
    if access.backbone:
        access = replace(access, backbone=find_backbone(Path(access.backbone), path, manifest))
    saved = SavedModel(path, manifest, read_config(path / CONFIG, kind), weights, access)
    _refuse_missing(saved)
    return _served(saved)


def _served(saved: SavedModel) -> SavedModel:
    """Refuse a precision of prediction that this model or this machine does not have."""
    wanted = saved.access.precision
    if wanted in {"fp16", "int8"} and saved.model.backbone.precision not in MERGED:
        wanted = ""
        saved = replace(saved, access=replace(saved.access, precision=""))
    if wanted == "fp8":
        check_fp8(saved.model.backbone, str(saved.path))
    served = saved.served
    bases = EIGHT_BITS.get(saved.access.compute)
    if bases and (served.precision not in bases or not served.packed or served.shard):
        raise UserError(
            f"{saved.path}: --compute {served.compute} is for a base in {' or '.join(bases)}, in packs and "
            f"not sharded; this one is in {served.precision}: --precision int8 holds one merged model so"
        )
    if not saved.access.merges:
        check_card(served, str(saved.path), INSTEAD)
    if wanted in {"fp8", "int8"}:
        check_own_head(saved.model.backbone, saved.backbone, str(saved.path), wanted)
    if wanted in {"fp8", "int8"} and len(saved.weights) > 1:
        raise UserError(
            f"{saved.path}: has {len(saved.weights)} fold models, and --precision {wanted} is of one merged "
            "model; export their mean with --average, and predict with that"
        )
    return saved


def backbone_place(path: Path, manifest: Mapping[str, Any]) -> str:
    """Return where a run's backbone is: beside it, where it was at the training, or on a hub by its name."""
    beside = os.path.normpath(path.resolve() / manifest.get(BESIDE, "."))
    return beside if BESIDE in manifest and Path(beside).is_dir() else str(manifest["backbone_path"])


def _refuse_missing(saved: SavedModel) -> None:
    """Refuse a backbone that is not on this machine, before anything asks a network for it."""
    if not on_machine(saved.backbone, saved.model.backbone.revision):
        raise UserError(
            f"{saved.backbone}: the backbone of {saved.path} is not there, nor in the local hub cache; "
            "give its directory with --backbone"
        )


def _require(manifest: Any, where: Path, names: Sequence[str]) -> None:
    """Refuse a manifest that lacks what prediction needs."""
    missing = [name for name in names if not isinstance(manifest, dict) or not manifest.get(name)]
    if missing:
        raise UserError(f"{where}: says nothing of {listing(missing)}; it is damaged, restore it")


def _read_exported(path: Path, access: Access) -> SavedModel:
    settings = read_json(path / EXPORTED, "exported model's settings")
    config = read_json(path / "config.json", "model configuration")
    _require(settings, path / EXPORTED, (*NEEDED, "temperature"))
    _require(config, path / "config.json", ("id2label",))
    temperature = settings["temperature"]
    if not isinstance(temperature, float | int) or not 0 < temperature < np.inf:
        raise UserError(f"{path / EXPORTED}: the temperature is {temperature!r}, no number above 0")
    named = config["id2label"]
    classes = classes_of(settings, path / EXPORTED)
    if not isinstance(named, dict) or tuple(named.values()) != output_names(classes):
        raise UserError(f"{path}: config.json and {EXPORTED} name other classes; restore the one changed")
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    precision = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(str(dtype))
    if precision is None:
        raise UserError(f"{path / 'config.json'}: dtype is {dtype!r}, which no export leaves")
    try:
        model = ModelConfig(
            backbone=BackboneConfig(path=str(path), precision=precision, packed=settings.get("packed", True)),
            lora=LoraConfig(enabled=False),
            encode=EncodeConfig(**settings["truncation"]),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path / EXPORTED}: not the settings of an exported model ({error})") from error
    _check_export(path, settings, access.accept_changed)
    if access.backbone and (Path(access.backbone) / "config.json").is_file():
        raise UserError(f"{path}: is an export, which needs no backbone; leave --backbone out")
    return _served(SavedModel(path, {**settings, "backbone_path": str(path)}, model, [path], access))


def output_names(classes: Classes) -> tuple[str, ...]:
    """What a plain model calls its outputs: the classes, or the one number of a candidate."""
    return ("candidate",) if classes.candidates else classes.names


def sealed(settings: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Return an export's settings with hashes of everything beside them, and of themselves."""
    whole = {**settings, "files": {path.name: sha256_files([path]) for path in _opened(directory)}}
    return {**whole, "settings_hash": _hash_of(whole)}


def _hash_of(settings: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in settings.items() if name != "settings_hash"}
    return sha256_text(json.dumps(kept, sort_keys=True))


def _opened(directory: Path) -> list[Path]:
    """The files of an export that a library may open: all but its settings and its card."""
    return sorted(
        path
        for path in directory.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.name not in {EXPORTED, CARD}
    )


def _check_export(path: Path, settings: Mapping[str, Any], accept: bool) -> None:
    """Refuse an export that is not as it was written, naming the file."""
    stated = settings.get("files")
    if not isinstance(stated, dict) or "settings_hash" not in settings:
        differs(f"{path}: was exported by an earlier version, without a record of its files", accept)
        return
    if settings["settings_hash"] != _hash_of(settings):
        differs(f"{path / EXPORTED}: was changed or damaged after the export", accept)
    found = {file.name: sha256_files([file]) for file in _opened(path)}
    for name in sorted({*stated, *found}):
        if name not in found:
            raise UserError(f"{path / name}: is missing; export the model again")
        if name not in stated:
            differs(f"{path / name}: was added after the export", accept)
        elif found[name] != stated[name]:
            differs(f"{path / name}: was changed or damaged after the export", accept)


def checked_tokenizer(saved: SavedModel) -> Any:
    """Return the tokenizer of a run, if it and the backbone are those of the training."""
    manifest, config = saved.manifest, saved.model.backbone
    backbone, accept = saved.backbone, saved.access.accept_changed
    if not saved.exported:
        if weight_hash(backbone, config.revision) != manifest["backbone"]["weight_hash"]:
            differs(f"{backbone}: these are not the weights that {saved.path} was trained from", accept)
        _check_opened(saved)
    tokenizer = load_tokenizer(config, backbone)
    if tokenizer_hash(tokenizer) != manifest["tokenizer_hash"]:
        differs(f"{backbone}: this is not the tokenizer that {saved.path} was trained with", accept)
    return tokenizer


def _check_opened(saved: SavedModel) -> None:
    """Refuse a backbone whose configuration is not that of the training, naming the file."""
    directory, accept = Path(saved.backbone), saved.access.accept_changed
    stated = saved.manifest["backbone"].get("files")
    if stated is None:
        differs(f"{saved.path}: was made by an earlier version, without a record of its backbone", accept)
    elif directory.is_dir():
        found = opened_hashes(directory)
        for name in sorted({*stated, *found}):
            if found.get(name) != stated.get(name):
                how = "is missing" if name not in found else "is not as it was"
                differs(f"{directory / name}: {how} when {saved.path} was trained", accept)


def identity(saved: SavedModel) -> str:
    """Return a hash of everything a model's predictions depend on."""
    weights = [path for directory in saved.weights for path in sorted(directory.glob("*.safetensors"))]
    settings = {**asdict(saved.model), "served": [saved.served.precision, saved.served.compute]}
    settings["accepted"] = saved.access.accept_changed and opened_hashes(Path(saved.backbone))
    return sha256_text(run_hash(saved.manifest), json.dumps(settings, sort_keys=True), sha256_files(weights))
