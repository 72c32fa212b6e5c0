"""Recipes: what to train on what, as dataclasses filled from YAML and dotted overrides.

OmegaConf checks types and unknown keys against these classes; :meth:`Recipe.check` checks what types
cannot say. The resolved recipe is saved beside every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.errors import UserError, listing

RECIPES = Path(__file__).parent / "recipes"
PRECISIONS = ("nf4", "bf16", "fp16", "fp32")
FAMILIES = ("llama", "gemma2")
NF4_BLOCK = 64
"""Weights that share one NF4 scale; bitsandbytes' CPU kernels want rows of whole blocks."""


@dataclass
class TinyConfig:
    """A small model of a true architecture, made locally instead of downloaded.

    ``pretrain_steps`` steps of next-token training on the rows' text (never their labels) stand in for
    pretraining; the result is cached.
    """

    family: str = "llama"
    hidden_size: int = 96
    intermediate_size: int = 256
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    vocab_size: int = 1024
    pretrain_steps: int = 200
    pretrain_lr: float = 3e-3


@dataclass
class BackboneConfig:
    """Which pretrained model, and how it is loaded.

    ``path`` is a Hugging Face name or a local checkpoint; ``tiny`` makes one instead. ``precision`` of
    the frozen base: nf4 (QLoRA), bf16, fp16 or fp32. ``compute`` is the matmul dtype under nf4:
    ``auto`` is bfloat16 on cards that have it, float16 on those that do not, float32 on the CPU.
    ``attention``: auto, eager, sdpa, flex_attention or flash_attention_2.
    """

    path: str = ""
    revision: str | None = None
    tiny: TinyConfig | None = None
    precision: str = "nf4"
    double_quant: bool = False
    compute: str = "auto"
    attention: str = "auto"
    trust_remote_code: bool = False


@dataclass
class LoraConfig:
    """Adapters; ``enabled: false`` trains the full weights (needs bf16 or fp32).

    ``targets`` names linear layers, or is ``[all-linear]``. Layers below the fraction ``first_layer``
    of the depth stay frozen: a fraction, because a fixed index freezes 38 % of one backbone and 50 % of
    another.
    """

    enabled: bool = True
    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: ["all-linear"])
    first_layer: float = 0.0


@dataclass
class EncodeConfig:
    """Truncation: see :class:`data.truncate.Truncation`."""

    max_length: int = 1024
    prompt_share: float = 0.25
    side: str = "middle"
    turns: bool = True
    marker: str = " […] "


@dataclass
class TrainConfig:
    """Optimisation.

    ``rows_per_step`` rows make one optimiser step, in micro-batches of ``micro_rows``; with
    ``both_orders`` each row of a pair is in its step twice, once in each order. ``checkpoint_steps`` is
    how often a resumable checkpoint is written (0: never).
    """

    epochs: float = 1.0
    lr: float = 2e-4
    head_lr: float | None = None
    rows_per_step: int = 16
    micro_rows: int = 16
    predict_rows: int = 64
    both_orders: bool = True
    warmup: float = 0.05
    schedule: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optimizer: str = "adamw_torch"
    gradient_checkpointing: bool = False
    checkpoint_steps: int = 0
    log_steps: int = 10
    seed: int = 0


@dataclass
class DistillConfig:
    """The student's loss, ``(1 - weight) * CE + weight * T**2 * KL``, see :mod:`distill.losses`.

    ``teacher_weights`` maps a teacher's name to its weight; empty means equal weights.
    """

    weight: float = 0.7
    temperature: float = 1.0
    teacher_weights: dict[str, float] = field(default_factory=dict)


@dataclass
class ModelConfig:
    """One model: backbone, adapters, input and optimisation.

    ``template`` is the name of a template of :mod:`data.template` or a ``.jinja`` file.
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    template: str = "pair"
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class StudentConfig(ModelConfig):
    """The student: a model and its distillation loss."""

    distill: DistillConfig = field(default_factory=DistillConfig)


@dataclass
class DataConfig:
    """The embedded simulated arena, used when no ``--data`` is given."""

    rows: int = 1500
    folds: int = 3
    seed: int = 0


@dataclass
class Recipe:
    """A whole recipe: teachers by name, and the student they teach."""

    data: DataConfig = field(default_factory=DataConfig)
    teachers: dict[str, ModelConfig] = field(default_factory=dict)
    student: StudentConfig | None = None

    def check(self) -> None:
        """Raise :class:`UserError` naming the first value that cannot work."""
        models: list[tuple[str, ModelConfig]] = [(f"teachers.{n}", m) for n, m in self.teachers.items()]
        if self.student is not None:
            models.append(("student", self.student))
            _in_range("student.distill.weight", self.student.distill.weight, 0, 1)
            _positive("student.distill.temperature", self.student.distill.temperature)
        for name, model in models:
            _check_model(name, model)


def _check_model(name: str, model: ModelConfig) -> None:
    backbone, lora, train = model.backbone, model.lora, model.train
    if bool(backbone.path) == (backbone.tiny is not None):
        raise UserError(f"recipe: {name}.backbone needs either a path or tiny, and not both")
    if backbone.tiny is not None and backbone.tiny.family not in FAMILIES:
        raise UserError(
            f"recipe: {name}.backbone.tiny.family is {backbone.tiny.family!r}, not one of {listing(FAMILIES)}"
        )
    if backbone.tiny is not None and backbone.precision == "nf4":
        for key in ("hidden_size", "intermediate_size"):
            if getattr(backbone.tiny, key) % NF4_BLOCK:
                raise UserError(
                    f"recipe: {name}.backbone.tiny.{key} must be a multiple of {NF4_BLOCK} for nf4"
                )
    if backbone.precision not in PRECISIONS:
        raise UserError(
            f"recipe: {name}.backbone.precision is {backbone.precision!r}; it is one of {listing(PRECISIONS)}"
        )
    if not lora.enabled and backbone.precision in {"nf4", "fp16"}:
        raise UserError(
            f"recipe: {name} trains full weights, which {backbone.precision} cannot; use bf16 or fp32"
        )
    _in_range(f"{name}.lora.first_layer", lora.first_layer, 0, 0.999)
    for key in ("epochs", "lr", "rows_per_step", "micro_rows", "predict_rows", "log_steps"):
        _positive(f"{name}.train.{key}", getattr(train, key))
    if lora.enabled:
        _positive(f"{name}.lora.r", lora.r)
    if train.rows_per_step % train.micro_rows:
        raise UserError(
            f"recipe: {name}.train.rows_per_step ({train.rows_per_step}) must be a multiple of "
            f"micro_rows ({train.micro_rows})"
        )


def _positive(key: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"recipe: {key} is {value}; it must be above 0")


def _in_range(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"recipe: {key} is {value}; it must lie between {low} and {high}")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_file: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by its name or file and apply ``key.sub=value`` overrides.

    Raises
    ------
    UserError
        No such recipe, an unknown key, a value of the wrong type, or one that cannot work.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = Path(name_or_file)
    if path.suffix not in {".yaml", ".yml"}:
        path = RECIPES / f"{name_or_file}.yaml"
    if not path.exists():
        raise UserError(
            f"{name_or_file}: no such recipe; give a .yaml file or one of {listing(recipe_names(), 20)}"
        )
    for override in overrides:
        if "=" not in override or override.startswith("-"):
            raise UserError(f"{override}: not understood; an override reads key.sub=value")
    where = str(path)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Recipe), OmegaConf.load(path))
        where = "command line"
        merged = OmegaConf.merge(merged, OmegaConf.from_dotlist(list(overrides)))
        recipe = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        key = getattr(error, "full_key", None)
        at = f" at {key}" if key else ""
        raise UserError(f"{where}: bad recipe{at}: {reason}") from error
    assert isinstance(recipe, Recipe)
    recipe.check()
    return recipe


def save_resolved(path: Path, config: object) -> None:
    """Write a resolved configuration as YAML, atomically."""
    from omegaconf import OmegaConf

    from data.files import write_text

    write_text(path, OmegaConf.to_yaml(OmegaConf.structured(config)))


def as_plain(config: Any) -> dict[str, Any]:
    """Return a configuration dataclass as plain JSON-ready values."""
    return asdict(config)
