"""What the doctor looks at: a checkpoint, an adapter, a recipe's model, a run or a data directory.

Parts are loaded on first use. Checks that need a model get a copy of few layers and the same
configuration (``small``), with the checkpoint's own weights where there are any.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoModelForSequenceClassification

from data.classes import PREFERENCE, Classes
from data.console.remote_code import in_words, refused, remote_code_allowed
from data.dataset import load_prepared
from data.encoding.tokenizer import load_tokenizer
from data.errors import UserError, listing
from data.files import read_json, read_parquet
from data.folds import Folds
from data.schema import Rows, read_rows
from data.softlabels import SoftLabels, classes_of, is_store, read_manifest, read_store
from distill.architectures import Architecture, architecture
from distill.config import ModelConfig, StudentConfig
from distill.quiet import quiet_transformers
from distill.recipe import load_recipe, read_config, recipe_names
from distill.runs.saved import backbone_place

SMALL_LAYERS = 2
SMALL_WIDTH = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
"""Of a copy that has no weights to take: random ones tell no more at full width."""
SMALL_VOCABULARY = 512
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id")


@dataclass
class Subject:
    """One thing to examine, and how.

    Attributes
    ----------
    name : str
        As the user named it.
    scratch : Path
        Where copies and rehearsals may be written.
    checkpoint : str, optional
        Directory or hub name of the pretrained model.
    model : ModelConfig
        The recipe's or the run's; the defaults where there is neither.
    declared : bool
        Whether ``model`` was given and not just the defaults.
    adapter : Path, optional
        Directory of trained adapters.
    run, data : Path, optional
    deep : bool
        Use every layer, and run the slow checks.
    plain : bool
        Judge what plain transformers code gets by its defaults, and not what this toolkit does.
    ids, predict_ids : Path, optional
        Token ids of another pipeline's training and prediction, JSON lines.
    backbone : str, optional
        Where the checkpoint of a run or adapter is, if it has moved.
    """

    name: str
    scratch: Path
    checkpoint: str | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    declared: ModelConfig | None = None
    adapter: Path | None = None
    run: Path | None = None
    data: Path | None = None
    deep: bool = False
    plain: bool = False
    ids: Path | None = None
    predict_ids: Path | None = None
    backbone: str | None = None

    @cached_property
    def config(self) -> Any:
        """The checkpoint's configuration, or None where it has none."""
        if self.checkpoint is None:
            return None
        local = Path(self.checkpoint)
        if local.is_dir() and not (local / "config.json").exists():
            return None
        try:
            found = AutoConfig.from_pretrained(
                self.checkpoint, local_files_only=True, trust_remote_code=remote_code_allowed()
            )
            return found.get_text_config()
        except (OSError, ValueError) as error:
            if refused(error):
                raise UserError(in_words(self.checkpoint)) from error
            raise UserError(f"{self.checkpoint}: cannot be read ({str(error).splitlines()[0]})") from error

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer, or None where it has none."""
        if self.checkpoint is None:
            return None
        local = Path(self.checkpoint)
        if local.is_dir() and not any(
            (local / n).exists() for n in ("tokenizer.json", "tokenizer.model", "vocab.txt")
        ):
            return None
        return load_tokenizer(str(self.checkpoint), local_files_only=True)

    @property
    def raw_config(self) -> dict[str, Any]:
        """The checkpoint's ``config.json`` as written, before a library fills in its defaults."""
        return self._raw("config.json")

    @property
    def raw_tokenizer_config(self) -> dict[str, Any]:
        """The checkpoint's ``tokenizer_config.json`` as written: what it declares, honoured or not."""
        return self._raw("tokenizer_config.json")

    def _raw(self, name: str) -> dict[str, Any]:
        if self.checkpoint is None:
            return {}
        path = Path(self.checkpoint) / name
        if not Path(self.checkpoint).is_dir():
            path = Path(str(try_to_load_from_cache(self.checkpoint, name)))
        return read_json(path, "configuration") if path.exists() else {}

    @property
    def family(self) -> Architecture:
        """What is known of the checkpoint's family."""
        return architecture("" if self.config is None else self.config.model_type)

    @property
    def is_encoder(self) -> bool:
        """Whether the backbone is a bidirectional encoder, pooled at its first token."""
        return self.family.encoder

    @property
    def decoder(self) -> Any:
        """The configuration, if it is a decoder's: what most model checks need."""
        return None if self.config is None or self.is_encoder else self.config

    @cached_property
    def small(self) -> str:
        """A directory with a shallow copy of the checkpoint; the checkpoint itself under ``deep``."""
        assert self.checkpoint is not None
        has_weights = _has_weights(self.checkpoint)
        if self.deep and has_weights:
            return self.checkpoint
        out = self.scratch / f"small-{abs(hash(self.checkpoint)):x}"
        make_small(self.config, self.checkpoint if has_weights else None, out)
        return str(out)

    @cached_property
    def has_weights(self) -> bool:
        """Whether the checkpoint's own weights are at hand."""
        return self.checkpoint is not None and _has_weights(self.checkpoint)

    @cached_property
    def manifest(self) -> dict[str, Any] | None:
        """The run's manifest."""
        return read_json(self.run / "manifest.json", "manifest") if self.run else None

    @cached_property
    def store(self) -> SoftLabels | None:
        """The run's soft labels, where it has finished."""
        return read_store(self.run) if self.run and is_store(self.run) else None

    @cached_property
    def data_dir(self) -> Path | None:
        """Directory of the rows: the one given, or the run's own."""
        if self.data is not None:
            return self.data
        if self.run is None or self.manifest is None:
            return None
        path = (self.run / self.manifest.get("data", ".")).resolve()
        return path if (path / "rows.parquet").exists() else None

    @cached_property
    def row_table(self) -> Any:
        """The row table as it stands in the file, unvalidated: its faults are what is looked for."""
        return None if self.data_dir is None else read_parquet(self.data_dir / "rows.parquet", "row table")

    @cached_property
    def fold_table(self) -> Any:
        """The fold file as it stands."""
        if self.data_dir is None or not (self.data_dir / "folds.parquet").exists():
            return None
        return read_parquet(self.data_dir / "folds.parquet", "fold file")

    @cached_property
    def rows(self) -> Rows | None:
        """The validated rows, or None where they are absent or break the contract."""
        if self.data_dir is None:
            return None
        try:
            return read_rows(self.data_dir)
        except UserError:
            return None

    @property
    def classes(self) -> Classes:
        """Those of the rows, else of the run, else a preference's."""
        if self.rows is not None:
            return self.rows.classes
        return classes_of(self.manifest, Path(self.name)) if self.manifest else PREFERENCE

    @cached_property
    def folds(self) -> Folds | None:
        """The validated folds of :attr:`rows`."""
        try:
            return None if self.data_dir is None else load_prepared(self.data_dir)[1]
        except UserError:
            return None


def _has_weights(checkpoint: str) -> bool:
    path = Path(checkpoint)
    if path.is_dir():
        return any(path.glob("*.safetensors"))
    names = ("model.safetensors", "model.safetensors.index.json")
    return any(isinstance(try_to_load_from_cache(checkpoint, name), str) for name in names)


def make_small(config: Any, weights: str | None, out: Path, seed: int = 0) -> None:
    """Write a shallow copy of a model: two layers, the same configuration otherwise.

    Parameters
    ----------
    config : PretrainedConfig
    weights : str or None
        The checkpoint whose first layers to take; None makes random weights of small width.
    out : Path
    """
    small = copy.deepcopy(config)
    small.num_labels = 3
    small.num_hidden_layers = min(SMALL_LAYERS, config.num_hidden_layers)
    if getattr(small, "layer_types", None):
        small.layer_types = list(config.layer_types)[: small.num_hidden_layers]
    if hasattr(small, "quantization_config"):
        del small.quantization_config
    torch.manual_seed(seed)
    with quiet_transformers():
        if weights is not None:
            model = AutoModelForSequenceClassification.from_pretrained(
                weights,
                config=small,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                trust_remote_code=remote_code_allowed(),
            )
        else:
            shrink(small)
            model = AutoModelForSequenceClassification.from_config(
                small,
                dtype=torch.float32,
                attn_implementation="eager",
                trust_remote_code=remote_code_allowed(),
            )
        model.save_pretrained(out)


def shrink(config: Any) -> None:
    """Make a configuration narrow in place: few heads, small vocabulary, ids moved inside it."""
    ratio = max(1, config.num_attention_heads // (getattr(config, "num_key_value_heads", None) or 1))
    for key, width in SMALL_WIDTH.items():
        if hasattr(config, key):  # the library's DistilBERT calls one of them otherwise
            setattr(config, key, min(width, getattr(config, key)))
    if getattr(config, "num_key_value_heads", None):
        config.num_key_value_heads = max(1, config.num_attention_heads // ratio)
    if getattr(config, "head_dim", None):
        config.head_dim = config.hidden_size // config.num_attention_heads
    config.vocab_size = min(SMALL_VOCABULARY, config.vocab_size)
    for key in SPECIAL_IDS:
        value: Any = getattr(config, key, None)
        if isinstance(value, list):
            value = value[0] if value else None
        if value is not None:
            setattr(config, key, value % config.vocab_size)


def open_subjects(name: str, scratch: Path, **options: Any) -> list[Subject]:
    """Find out what the user named, and return the subjects in it.

    Raises
    ------
    UserError
        It is none of the things the doctor can look at.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or (name in recipe_names() and not path.exists()):
        return _of_recipe(name, scratch, options)
    if not path.exists():
        if not _cached(name):
            raise UserError(
                f"{name}: no such directory, no recipe of that name ({listing(recipe_names(), 20)}), and not "
                "in the local hub cache; download it, or give its directory"
            )
        return [Subject(name, scratch, checkpoint=name, **options)]
    if not path.is_dir():
        raise UserError(f"{name}: is a file; give a checkpoint, a run or a data directory, or a recipe")
    if (path / "manifest.json").exists() and (path / "config.yaml").exists():
        return [_of_run(name, path, scratch, options)]
    if (path / "rows.parquet").exists():
        return [Subject(name, scratch, **{**options, "data": path})]
    if (path / "adapter_config.json").exists():
        base = options.get("backbone") or read_json(path / "adapter_config.json", "adapter").get(
            "base_model_name_or_path"
        )
        return [Subject(name, scratch, checkpoint=_at_hand(base), adapter=path, **options)]
    if any((path / n).exists() for n in ("config.json", "tokenizer.json", "tokenizer.model", "vocab.txt")):
        return [Subject(name, scratch, checkpoint=str(path), **options)]
    raise UserError(
        f"{name}: is no checkpoint (config.json), adapter (adapter_config.json), run (manifest.json and "
        "config.yaml) or data directory (rows.parquet)"
    )


def _cached(name: str) -> bool:
    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # not a hub name at all
        return False


def _at_hand(name: str | None) -> str | None:
    """The checkpoint's name if it is a directory, or in the local cache of the hub."""
    return name if name and (Path(name).is_dir() or _cached(name)) else None


def _of_recipe(name: str, scratch: Path, options: dict[str, Any]) -> list[Subject]:
    recipe = load_recipe(name)
    models: dict[str, ModelConfig] = dict(recipe.teachers)
    if recipe.student is not None:
        models["student"] = recipe.student
    return [
        Subject(
            f"{name}:{key}",
            scratch / key,
            checkpoint=_at_hand(model.backbone.path),
            model=model,
            declared=model,
            **options,
        )
        for key, model in models.items()
    ]


def _of_run(name: str, path: Path, scratch: Path, options: dict[str, Any]) -> Subject:
    manifest = read_manifest(path)
    model = read_config(
        path / "config.yaml", StudentConfig if manifest.get("kind") == "student" else ModelConfig
    )
    backbone = options.get("backbone")
    if backbone is None and manifest.get("backbone_path"):
        backbone = backbone_place(path, manifest)
    adapters = sorted(path.glob("fold-*/adapter")) + sorted(path.glob("final/adapter"))
    return Subject(
        name,
        scratch,
        checkpoint=_at_hand(backbone),
        model=model,
        declared=model,
        adapter=adapters[0] if adapters else None,
        run=path,
        **options,
    )


def read_ids(path: Path) -> list[list[int]]:
    """Read token ids, one JSON list a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read as JSON lines of token ids ({error})") from error
    if not rows or not all(isinstance(r, list) and r and all(isinstance(t, int) for t in r) for r in rows):
        raise UserError(f"{path}: every line must be a non-empty list of token ids, such as [1, 29, 5]")
    return rows
