"""Recipes: what to train on what, as dataclasses filled from YAML and dotted overrides.

OmegaConf checks types and unknown keys against these classes; :mod:`distill.recipe` checks what types
cannot say. The resolved recipe is saved beside every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.errors import UserError, listing
from data.files import require_file

RECIPES = Path(__file__).parent / "recipes"
QUANTISED = ("nf4", "int8", "fp8")
CONFIG = "config.yaml"
"""In a run's directory: its model's resolved configuration."""
CHECKPOINTING = {"auto": "auto", "true": "all", "false": "none"}


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

    ``path`` is a Hugging Face name or a local checkpoint; ``tiny`` makes one instead. ``first_layers`` takes
    a copy of it cut down to so many layers (:mod:`distill.model.shallow`). ``precision`` of the frozen base:
    nf4 (QLoRA), int8, fp8 (row-wise, products in FP8 on Hopper and later), bf16, fp16 or fp32. ``compute``
    is the matmul dtype of a quantised base: ``auto`` is bfloat16 on cards that have it, float16 on those
    that do not, float32 on the CPU; with nf4 also fp8, which unpacks the base to FP8 and multiplies so
    (:mod:`distill.kernels.unpack`).
    ``attention``: auto, varlen, flex_attention, sdpa, eager or flash_attention_2/3/4; see
    :mod:`distill.kernels.attention`. ``packed: false`` runs a decoder in padded batches through the
    library's own forward, as encoders always are: see :mod:`distill.model.padded`. ``compile`` compiles the
    decoder layers: true, false, or auto, which does on CUDA. ``shard`` cuts a frozen decoder over the GPUs
    of several processes (:mod:`distill.model.sharding`), for bases that do not fit into one.

    ``head``: score is a fresh linear layer over the last hidden state; tokens reads the language model's own
    logits of the words ``verdicts``, one a class (A, B, C and so on where none are named):
    :mod:`distill.model.verdict`.
    """

    path: str = ""
    revision: str | None = None
    tiny: TinyConfig | None = None
    first_layers: int | None = None
    precision: str = "nf4"
    double_quant: bool = False
    compute: str = "auto"
    attention: str = "auto"
    compile: str = "auto"
    packed: bool = True
    shard: bool = False
    head: str = "score"
    verdicts: list[str] = field(default_factory=list)
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
    """Truncation: see :class:`data.encoding.truncate.Truncation`."""

    max_length: int = 1024
    prompt_share: float = 0.25
    side: str = "middle"
    turns: bool = True
    marker: str = " […] "


@dataclass
class TrainConfig:
    """Optimisation.

    ``rows_per_step`` rows make one optimiser step; with ``both_orders`` each row of a pair is in its step
    twice, once in each order; without, once, in an order drawn by lot each epoch or, with ``random_order``
    false, always as given. A step is cut into packs of at most ``pack_tokens`` tokens and ``micro_rows``
    rows (0: any number); prediction packs hold at most ``predict_rows`` sequences.
    ``gradient_checkpointing`` computes activations again in the backward pass: true, false, or auto, for as
    many layers as memory needs. ``checkpoint_steps`` is how often a resumable checkpoint is written
    (0: never).

    ``select_share`` of the training's prompt groups is held back to keep the moment of least log-loss after
    temperature scaling (:mod:`distill.training.keep_best`); it is looked at every ``select_steps`` (0: ten
    times), and the training stops after ``patience`` looks without improvement (0: never).
    """

    epochs: float = 1.0
    lr: float = 2e-4
    head_lr: float | None = None
    rows_per_step: int = 16
    micro_rows: int = 0
    pack_tokens: int = 16384
    predict_rows: int = 0
    both_orders: bool = True
    random_order: bool = True
    warmup: float = 0.05
    schedule: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optimizer: str = "adamw_torch"
    gradient_checkpointing: str = "auto"
    checkpoint_steps: int = 0
    log_steps: int = 10
    select_share: float = 0.0
    select_steps: int = 0
    patience: int = 0
    seed: int = 0


@dataclass
class DistillConfig:
    """What the student learns from whom.

    Loss: ``loss`` is one of :data:`distill.teaching.losses.LOSSES`; ``weight`` and ``temperature`` are those
    of ``(1 - weight) * CE + weight * T**2 * KL``, ``smoothing`` that of label smoothing. ``consistency``
    adds so much of the divergence between a pair's two orders; it needs ``train.both_orders``.

    Soft labels: ``labels`` is oof, in_sample, fold_mean, or human (the rows' own ``label_probs``).
    ``leakage`` says whom a fold's student learns from, which decides what its score is worth: standard, the
    same labels as the final student, whose makers saw the scored fold; apart, the teachers' models of that
    fold, which did not; strict, models that saw neither that fold nor the rows they label.
    ``pseudo_labels`` also trains on unlabelled rows whose teachers' mean gives one class at least this
    probability; null leaves them out.

    Several teachers: ``weighting`` is equal, fitted (simplex blend on the student's training folds), or
    confidence (a row's share falls with the teacher's entropy); ``teacher_weights`` maps names to weights
    instead. ``mixing`` is separate (a term a teacher), probability or log (one mixed teacher).
    """

    loss: str = "kl"
    weight: float = 0.7
    temperature: float = 1.0
    smoothing: float = 0.1
    consistency: float = 0.0
    labels: str = "oof"
    leakage: str = "standard"
    pseudo_labels: float | None = None
    weighting: str = "equal"
    teacher_weights: dict[str, float] = field(default_factory=dict)
    mixing: str = "separate"


@dataclass
class ResourcesConfig:
    """What one unit of this model, a fold or the final training, asks of a cluster (``--launcher ray``).

    ``processes`` above 1 share a unit's steps, on one machine or several; the rest is what each of them asks
    for. ``gpus`` is 1, or a fraction, when units share a card; null asks for one where the cluster has any.
    ``cpus`` are also the threads; null asks for four beside a GPU, else for as many as this process uses.
    ``memory_gb`` is main memory; null reserves none. ``tokens_per_second``, measured by you in training, is
    what ``--dry-run`` reckons with instead of its own table.
    """

    processes: int = 1
    gpus: float | None = None
    cpus: int | None = None
    memory_gb: float | None = None
    tokens_per_second: float | None = None


@dataclass
class ModelConfig:
    """One model: backbone, adapters, input and optimisation.

    ``template`` is the name of a template of :mod:`data.encoding.template` or a ``.jinja`` file.
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    template: str = "pair"
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)


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
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from distill.recipe import check_recipe

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
    where = str(require_file(path, "recipe"))
    try:
        given = OmegaConf.load(path)
        if not isinstance(given, DictConfig):
            raise UserError(f"{path}: bad recipe: a list where data, teachers and student were expected")
        merged = OmegaConf.merge(OmegaConf.structured(Recipe), given)
        known = list(merged.teachers)
        where = "command line"
        merged = OmegaConf.merge(merged, OmegaConf.from_dotlist(list(overrides)))
        added = [name for name in merged.teachers if name not in known]
        if added:
            raise UserError(
                f"command line: recipe {name_or_file} has no teacher {listing(added)}; "
                f"it has {listing(known) or 'none'}"
            )
        where = f"{path} with the command line" if overrides else str(path)
        recipe = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError, OSError) as error:
        key = getattr(error, "full_key", None)
        at = f" at {key}" if key else ""
        raise UserError(f"{where}: bad recipe{at}: {_reason(error)}") from error
    assert isinstance(recipe, Recipe)
    check_recipe(recipe)
    return recipe


def _reason(error: Exception) -> str:
    """What went wrong in a recipe's file, with the line where the library knows it."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return str(error).strip().splitlines()[0]
    return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', None) or error}"


def save_resolved(path: Path, config: object) -> None:
    """Write a resolved configuration as YAML, atomically."""
    from omegaconf import OmegaConf

    from data.files import write_text

    write_text(path, OmegaConf.to_yaml(OmegaConf.structured(config)))


def as_plain(config: Any) -> dict[str, Any]:
    """Return a configuration dataclass as plain JSON-ready values."""
    return asdict(config)
