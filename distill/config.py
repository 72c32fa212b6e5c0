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
PRECISIONS = ("nf4", "int8", "fp8", "bf16", "fp16", "fp32")
QUANTISED = ("nf4", "int8", "fp8")
HEADS = ("score", "tokens")
SWITCHES = ("auto", "true", "false")
CHECKPOINTING = {"auto": "auto", "true": "all", "false": "none"}
FAMILIES = ("llama", "gemma2", "bert")
LOSS_NAMES = ("kl", "blackpearl", "wsdm1", "wsdm3", "mse", "smoothing", "hard")
"""The keys of :data:`distill.losses.LOSSES`, which is not imported here to spare commands torch."""
LABELS = ("oof", "in_sample", "fold_mean", "human")
LEAKAGES = ("standard", "apart", "strict")
WEIGHTINGS = ("equal", "fitted", "confidence")
MIXINGS = ("separate", "probability", "log")
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

    ``path`` is a Hugging Face name or a local checkpoint; ``tiny`` makes one instead. ``first_layers`` takes
    a copy of it cut down to so many layers (:mod:`distill.shallow`). ``precision`` of the frozen base: nf4
    (QLoRA), int8, fp8 (row-wise, products in FP8 on Hopper and later), bf16, fp16 or fp32. ``compute`` is the
    matmul dtype of a quantised base: ``auto`` is bfloat16 on cards that have it, float16 on those that do
    not, float32 on the CPU.
    ``attention``: auto, varlen, flex_attention, sdpa, eager or flash_attention_2/3/4; see
    :mod:`distill.attention`. ``packed: false`` runs a decoder in padded batches through the library's own
    forward, as encoders always are: see :mod:`distill.padded`. ``compile`` compiles the decoder layers: true,
    false, or auto, which does on CUDA. ``shard`` cuts a frozen decoder over the GPUs of several processes
    (:mod:`distill.sharding`), for bases that do not fit into one.

    ``head``: score is a fresh linear layer over the last hidden state; tokens reads the language model's own
    logits of the words ``verdicts``, one a class (A, B, C and so on where none are named):
    :mod:`distill.verdict`.
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
    """Truncation: see :class:`data.truncate.Truncation`."""

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
    temperature scaling (:mod:`distill.select`); it is looked at every ``select_steps`` (0: ten times), and
    the training stops after ``patience`` looks without improvement (0: never).
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

    Loss: ``loss`` is one of :data:`distill.losses.LOSSES`; ``weight`` and ``temperature`` are those of
    ``(1 - weight) * CE + weight * T**2 * KL``, ``smoothing`` that of label smoothing. ``consistency`` adds so
    much of the divergence between a pair's two orders; it needs ``train.both_orders``.

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

    ``template`` is the name of a template of :mod:`data.template` or a ``.jinja`` file.
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

    def check(self) -> None:
        """Raise :class:`UserError` naming the first value that cannot work."""
        models: list[tuple[str, ModelConfig]] = [(f"teachers.{n}", m) for n, m in self.teachers.items()]
        if self.student is not None:
            models.append(("student", self.student))
            _check_distill(self.student)
        for name, model in models:
            _check_model(name, model)


def _check_distill(student: StudentConfig) -> None:
    distill = student.distill
    for key, known in (
        ("loss", LOSS_NAMES),
        ("labels", LABELS),
        ("leakage", LEAKAGES),
        ("weighting", WEIGHTINGS),
        ("mixing", MIXINGS),
    ):
        if getattr(distill, key) not in known:
            raise UserError(
                f"recipe: student.distill.{key} is {getattr(distill, key)!r}, not one of {listing(known, 9)}"
            )
    for key in ("weight", "smoothing"):
        _in_range(f"student.distill.{key}", getattr(distill, key), 0, 1)
    _positive("student.distill.temperature", distill.temperature)
    _in_range("student.distill.consistency", distill.consistency, 0, float("inf"))
    if distill.pseudo_labels is not None:
        _in_range("student.distill.pseudo_labels", distill.pseudo_labels, 0, 1)
    if distill.consistency and not student.train.both_orders:
        raise UserError("recipe: student.distill.consistency needs both orders in a step: train.both_orders")
    if distill.teacher_weights and distill.weighting != "equal":
        raise UserError(
            f"recipe: student.distill has teacher_weights and weighting {distill.weighting}; keep one of them"
        )


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
    if backbone.first_layers is not None:
        _positive(f"{name}.backbone.first_layers", backbone.first_layers)
    if backbone.precision not in PRECISIONS:
        raise UserError(
            f"recipe: {name}.backbone.precision is {backbone.precision!r}; it is one of {listing(PRECISIONS)}"
        )
    if not lora.enabled and backbone.precision in {*QUANTISED, "fp16"}:
        raise UserError(
            f"recipe: {name} trains full weights, which {backbone.precision} cannot; use bf16 or fp32"
        )
    if backbone.head not in HEADS:
        raise UserError(f"recipe: {name}.backbone.head is {backbone.head!r}; it is one of {listing(HEADS)}")
    if backbone.head == "tokens" and not (lora.enabled and backbone.packed):
        raise UserError(f"recipe: {name}.backbone.head tokens needs adapters and packs: lora.enabled, packed")
    if backbone.shard and not (lora.enabled and backbone.packed):
        raise UserError(f"recipe: {name}.backbone.shard is for frozen, packed bases: lora.enabled and packed")
    _in_range(f"{name}.lora.first_layer", lora.first_layer, 0, 0.999)
    for key in ("epochs", "lr", "rows_per_step", "pack_tokens", "log_steps"):
        _positive(f"{name}.train.{key}", getattr(train, key))
    _in_range(f"{name}.train.select_share", train.select_share, 0, 0.9)
    for key in ("micro_rows", "predict_rows", "select_steps", "patience"):
        _in_range(f"{name}.train.{key}", getattr(train, key), 0, float("inf"))
    for key, value in (
        ("train.gradient_checkpointing", train.gradient_checkpointing),
        ("backbone.compile", backbone.compile),
    ):
        if value.lower() not in SWITCHES:
            raise UserError(f"recipe: {name}.{key} is {value!r}; it is one of {listing(SWITCHES)}")
    for key in ("processes", "cpus", "memory_gb", "tokens_per_second"):
        if (value := getattr(model.resources, key)) is not None:
            _positive(f"{name}.resources.{key}", value)
    _in_range(f"{name}.resources.gpus", model.resources.gpus or 0, 0, float("inf"))
    if lora.enabled:
        _positive(f"{name}.lora.r", lora.r)


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
