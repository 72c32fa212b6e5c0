"""A trained run read back from its directory: predict new rows with what was trained, as it was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.encoding.encode import Encoder, Truncation, pad_token_id, tokenizer_hash
from data.encoding.template import Template
from data.errors import UserError, listing
from data.files import read_json, sha256_files, sha256_text
from data.schema import Classes, Rows
from data.softlabels import MANIFEST, read_manifest
from data.sources.read import SourceOptions, read_source
from distill.config import CONFIG, BackboneConfig, EncodeConfig, LoraConfig, ModelConfig, StudentConfig
from distill.model.backbone import load_tokenizer, load_trained, weight_hash
from distill.model.classifier import Classifier
from distill.packing.examples import Examples
from distill.recipe import read_config
from distill.runs.run_directory import FINAL, RunDirectory
from distill.teaching.trust import check_manifest, check_weights
from distill.training.trainer import predict_logits

NEEDED = ("classes", "template", "truncation", "tokenizer_hash")
"""What prediction needs of a manifest, or of an exported model's settings."""
KINDS = {"teacher": ModelConfig, "student": StudentConfig}
EXPORTED = "distillstack.json"
"""In a directory of :mod:`distill.export`: what a plain checkpoint has no place for."""


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
    """

    path: Path
    manifest: dict[str, Any]
    model: ModelConfig
    weights: list[Path]

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
        swap = self.manifest.get("swap")
        return Classes(tuple(self.manifest["classes"]), None if swap is None else tuple(swap))


def read_saved(path: Path) -> SavedModel:
    """Read a finished run's directory, or a model that ``distill.export`` made of one.

    Raises
    ------
    UserError
        Neither, unfinished, or its configuration is damaged.
    """
    if (path / EXPORTED).exists():
        return _read_exported(path)
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
        check_manifest(trained, manifest, path / MANIFEST)
    config = read_config(path / CONFIG, kind)
    for name, given in (("truncation", config.encode), ("lora", config.lora)):
        if manifest.get(name) != asdict(given):
            raise UserError(
                f"{path}: config.yaml and {MANIFEST} disagree on {name}; restore the one that was changed"
            )
    return SavedModel(path, manifest, config, weights)


def _require(manifest: Any, where: Path, names: Sequence[str]) -> None:
    """Refuse a manifest that lacks what prediction needs."""
    missing = [name for name in names if not isinstance(manifest, dict) or not manifest.get(name)]
    if missing:
        raise UserError(f"{where}: says nothing of {listing(missing)}; it is damaged, restore it")


def _read_exported(path: Path) -> SavedModel:
    settings = read_json(path / EXPORTED, "exported model's settings")
    config = read_json(path / "config.json", "model configuration")
    _require(settings, path / EXPORTED, (*NEEDED, "temperature"))
    _require(config, path / "config.json", ("id2label",))
    temperature = settings["temperature"]
    if not isinstance(temperature, float | int) or not 0 < temperature < np.inf:
        raise UserError(f"{path / EXPORTED}: the temperature is {temperature!r}, no number above 0")
    if list(config["id2label"].values()) != settings["classes"]:
        raise UserError(f"{path}: config.json and {EXPORTED} name other classes; restore the one changed")
    stated = settings.get("weights_hash")
    if stated is not None and stated != sha256_files(sorted(path.glob("*.safetensors"))):
        raise UserError(f"{path}: its weights were changed or damaged after the export; export it again")
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    precision = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(dtype)
    if precision is None:
        raise UserError(f"{path / 'config.json'}: dtype is {dtype!r}, which no export leaves")
    try:
        model = ModelConfig(
            backbone=BackboneConfig(path=str(path), precision=precision),
            lora=LoraConfig(enabled=False),
            encode=EncodeConfig(**settings["truncation"]),
        )
        return SavedModel(path, {**settings, "backbone_path": str(path)}, model, [path])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path / EXPORTED}: not the settings of an exported model ({error})") from error


def checked_tokenizer(saved: SavedModel) -> Any:
    """Return the tokenizer of a run, if it and the backbone are those of the training."""
    manifest, config = saved.manifest, saved.model.backbone
    backbone = manifest["backbone_path"]
    if not saved.exported and weight_hash(backbone, config.revision) != manifest["backbone"]["weight_hash"]:
        raise UserError(f"{backbone}: these are not the weights that {saved.path} was trained from")
    tokenizer = load_tokenizer(config, backbone)
    if tokenizer_hash(tokenizer) != manifest["tokenizer_hash"]:
        raise UserError(f"{backbone}: this is not the tokenizer that {saved.path} was trained with")
    return tokenizer


def predict_rows(saved: SavedModel, rows: Rows, waiting: Path | None = None) -> np.ndarray:
    """Predict rows in all their orders; fold models are averaged in logits.

    Adapters are served one after another from one loaded base.

    Parameters
    ----------
    waiting : Path, optional
        Directory in which what is predicted is kept until the caller deletes it: a call that was killed goes
        on from there, if model and rows are the same.

    Returns
    -------
    ndarray of shape (n, orders, K)
        Logits in each row's own class order.

    Raises
    ------
    UserError
        The rows' classes, the backbone or the tokenizer are not those of the training.
    """
    return Loaded(saved).predict(rows, saved.name, waiting)


class Loaded:
    """A finished run in memory, for prediction after prediction.

    Parameters
    ----------
    saved : SavedModel

    Raises
    ------
    UserError
        The backbone or the tokenizer are not those of the training.
    """

    def __init__(self, saved: SavedModel) -> None:
        self.saved = saved
        self.tokenizer = checked_tokenizer(saved)
        self._classifier: Classifier | None = None
        self._weights: Path | None = None

    def predict(self, rows: Rows, what: str, waiting: Path | None = None) -> np.ndarray:
        """Predict rows in all their orders, averaged over the run's models; see :func:`predict_rows`."""
        saved, train = self.saved, self.saved.model.train
        examples = examples_of(saved, rows, self.tokenizer)
        everything = np.arange(len(rows))
        total = np.zeros((len(rows), examples.encoded.orders, rows.classes.n))
        for number, weights in enumerate(saved.weights, start=1):
            name = f"{what} predicts ({number}/{len(saved.weights)})"
            place = None
            if waiting is not None:
                made_by = sha256_files(sorted(weights.glob("*.safetensors")))
                place = waiting / sha256_text(made_by, rows.content_hash)[:16]
            total += predict_logits(
                self._with(weights), examples, everything, train.predict_rows, name, train.pack_tokens, place
            )
        return total / len(saved.weights)

    def _with(self, weights: Path) -> Classifier:
        """The classifier with these weights: of a base loaded once the adapter is changed in place."""
        model = self.saved.model
        if self._weights != weights:
            check_weights(weights)
        if self._classifier is None or not (model.lora.enabled or self._weights == weights):
            backbone, n = self.saved.manifest["backbone_path"], self.saved.classes.n
            self._classifier = load_trained(model.backbone, backbone, weights, model.lora.enabled, n)
        elif self._weights != weights:
            self._classifier.load(weights)
        self._weights = weights
        return self._classifier


def rows_for(saved: SavedModel, source: str, columns: Mapping[str, str] | None = None) -> Rows:
    """Read rows to predict: a plain table that does not name its classes has those of the model.

    Parameters
    ----------
    saved : SavedModel
    source : str
    columns : mapping of str to str, optional
        Field to column, as in :class:`data.sources.read.SourceOptions`.

    Raises
    ------
    UserError
        As :func:`data.sources.read.read_source`.
    """
    plain = mistake = None
    try:
        plain, _ = read_source(source, SourceOptions(columns=columns or {}))
        if plain.classes == saved.classes:
            return plain
    except UserError as error:
        mistake = error
    try:
        own = SourceOptions(classes=saved.classes.names, swap=saved.classes.swap, columns=columns or {})
        return read_source(source, own)[0]
    except UserError as error:
        if plain is not None:
            return plain  # rows of other classes, which the model refuses by name
        # What naming the classes would mend is told as it stands now that they are named.
        if mistake is None or "--classes" in str(mistake):
            raise
        raise mistake from error


def examples_of(saved: SavedModel, rows: Rows, tokenizer: Any = None) -> Examples:
    """Encode rows as the model was trained to read them; errors as in :func:`predict_rows`."""
    if rows.classes != saved.classes:
        raise UserError(
            f"{saved.path}: was trained on classes {', '.join(saved.classes.names)}; "
            f"the rows have {', '.join(rows.classes.names)}"
        )
    manifest, model = saved.manifest, saved.model
    tokenizer = tokenizer or checked_tokenizer(saved)
    encoder = Encoder(tokenizer, Template(**manifest["template"]), Truncation(**asdict(model.encode)))
    return Examples(encoder.encode(rows), rows.targets, rows.classes.permutation, pad_token_id(tokenizer))
