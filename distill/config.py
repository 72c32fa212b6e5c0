"""Configuration: what to train on what, as dataclasses, each field with its meaning and limits beside it.

:mod:`distill.recipe` fills them from YAML and dotted overrides and checks them against these limits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from distill.architectures import TINY
from distill.losses import LOSSES

QUANTISED = ("nf4", "int8", "fp8")
EIGHT_BITS = {"fp8": ("nf4",), "int8": ("nf4", "int8")}
"""What ``compute`` calls products in 8 bits, and the precisions of a base that are so multiplied."""
CONFIG = "config.yaml"
"""In a run's directory: its model's resolved configuration."""
CHECKPOINTING = {"auto": "auto", "true": "all", "false": "none"}
SWITCHES = ("auto", "true", "false")
"""Choices in any case, since YAML's true arrives as True."""
SCHEDULES = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt",
)  # fmt: skip
"""Those of ``transformers`` that need no further arguments and no evaluation."""
OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit",
    "paged_adamw_32bit", "ademamix", "ademamix_8bit", "paged_ademamix_8bit", "paged_ademamix_32bit",
    "lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit", "adafactor", "adagrad", "rmsprop",
    "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "sgd",
)  # fmt: skip
"""Those of ``transformers`` that need no further package, and take groups of parameters as they are."""
MOST_EPOCHS = 1000
MOST_SEED = 4_000_000
"""A model's seed is a thousand times this and its fold's number, and NumPy's end at 2 ** 32."""


def setting(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    least: float | None = None,
    between: tuple[float, float] | None = None,
    choices: tuple[str, ...] = (),
    only_if: str = "",
) -> Any:
    """A field of a configuration, with its meaning and limits in its metadata.

    Parameters
    ----------
    default : Any
        Or a callable that makes one.
    above, least : float, optional
        What a number must exceed, or at least be.
    between : tuple of float and float, optional
        Both ends are allowed.
    choices : tuple of str
    only_if : str
        A field of the same class; where it is false, the limits do not matter.
    """
    limits = {"above": above, "least": least, "between": between, "choices": choices, "only_if": only_if}
    if callable(default):
        return field(default_factory=default, metadata={"help": help, **limits})
    return field(default=default, metadata={"help": help, **limits})


@dataclass
class TinyConfig:
    """A small model of a true architecture, made locally instead of downloaded, and cached."""

    family: str = setting("llama", "its architecture", choices=TINY)
    hidden_size: int = setting(96, "width of the layers", above=0)
    intermediate_size: int = setting(256, "width inside the feed-forward layers", above=0)
    layers: int = setting(3, "how many layers", above=0)
    heads: int = setting(4, "attention heads", above=0)
    kv_heads: int = setting(2, "heads of keys and values", above=0)
    vocab_size: int = setting(1024, "tokens of its own tokenizer", above=0)
    pretrain_steps: int = setting(
        200, "steps of next-token training on the rows' text, never their labels, as pretraining", least=0
    )
    pretrain_lr: float = setting(3e-3, "learning rate of that", above=0)


@dataclass
class BackboneConfig:
    """Which pretrained model, and how it is loaded: ``path``, or a ``tiny`` one made instead."""

    path: str = setting("", "a Hugging Face name or a local checkpoint")
    revision: str | None = setting(None, "of the Hugging Face name")
    tiny: TinyConfig | None = setting(None, "makes a small model instead")
    first_layers: int | None = setting(
        None, "takes a copy cut down to so many layers (distill.model.shallow)", above=0
    )
    precision: str = setting(
        "nf4",
        "of the frozen base: nf4 is QLoRA; fp8 is row-wise, its products in FP8 on Hopper and later",
        choices=(*QUANTISED, "bf16", "fp16", "fp32"),
    )
    double_quant: bool = setting(False, "quantise nf4's scales, too")
    compute: str = setting(
        "auto",
        "matmul dtype of a quantised base; auto is bfloat16 on cards that have it, float16 on those that do "
        "not, float32 on the CPU; fp8, with nf4 only, unpacks the base to FP8 and multiplies so "
        "(distill.kernels.unpack); int8, with int8 and nf4, does the same in int8, for cards "
        "without FP8 (distill.kernels.scaled)",
        choices=("auto", "bf16", "fp16", "fp32", "fp8", "int8"),
    )
    attention: str = setting(
        "auto",
        "auto, varlen, flex_attention, sdpa, eager or flash_attention_2/3/4 (distill.kernels.attention)",
    )
    compile: str = setting("auto", "compile the decoder layers; auto does on CUDA", choices=SWITCHES)
    packed: bool = setting(
        True,
        "false runs a decoder in padded batches through the library's own forward, as encoders always are "
        "(distill.model.padded)",
    )
    shard: bool = setting(
        False,
        "cut a frozen decoder over the GPUs of several processes, for bases that do not fit into one "
        "(distill.model.sharding)",
    )
    head: str = setting(
        "score",
        "score is a fresh linear layer over the last hidden state; tokens reads the language model's own "
        "logits of the verdicts (distill.model.verdict)",
        choices=("score", "tokens"),
    )
    verdicts: list[str] = setting(list, "words, one a class; A, B, C and so on where none are named")


@dataclass
class LoraConfig:
    """Adapters, or the full weights."""

    enabled: bool = setting(True, "false trains the full weights, which needs bf16 or fp32")
    r: int = setting(16, "rank", above=0, only_if="enabled")
    alpha: float = setting(32.0, "scale; the product counts alpha / r times", above=0, only_if="enabled")
    dropout: float = setting(0.0, "of the adapters' input", between=(0, 0.999), only_if="enabled")
    targets: list[str] = setting(lambda: ["all-linear"], "names of linear layers, or [all-linear]")
    first_layer: float = setting(
        0.0,
        "layers below this fraction of the depth stay frozen: a fraction, because a fixed index freezes 38 % "
        "of one backbone and 50 % of another",
        between=(0, 0.999),
    )


@dataclass
class EncodeConfig:
    """Truncation: see :class:`data.encoding.truncate.Truncation`."""

    max_length: int = setting(1024, "tokens of a row at most", least=16)
    prompt_share: float = setting(0.25, "of them for the prompt", between=(0, 1))
    side: str = setting("middle", "where longer turns are cut", choices=("left", "right", "middle"))
    turns: bool = setting(True, "cut turn by turn")
    marker: str = setting(" […] ", "stands where something was cut")


@dataclass
class TrainConfig:
    """Optimisation.

    A step is cut into packs. With ``select_share`` part of the training's prompt groups is held back to keep
    the moment of least log-loss after temperature scaling (:mod:`distill.training.keep_best`).
    """

    epochs: float = setting(1.0, "passes over the rows", above=0, between=(0, MOST_EPOCHS))
    lr: float = setting(2e-4, "learning rate", above=0)
    head_lr: float | None = setting(None, "learning rate of the head; null takes lr", above=0)
    rows_per_step: int = setting(16, "rows of one optimiser step", above=0)
    micro_rows: int = setting(0, "rows of a pack at most (0: any number)", least=0)
    pack_tokens: int = setting(16384, "tokens of a pack at most", above=0)
    shared_prefix: str = setting(
        "false",
        "lay out once, in training and prediction, what a row's two orders, or its candidates, begin with "
        "(distill.packing.sharing); auto: where that saves a tenth of the tokens. In packs alone, not with "
        "flash_attention_2/3",
        choices=SWITCHES,
    )
    predict_rows: int = setting(0, "sequences of a prediction's pack at most (0: any number)", least=0)
    both_orders: bool = setting(
        True, "each row of a pair is in its step twice, once in each order; false: once, in one order"
    )
    random_order: bool = setting(True, "that one order is drawn by lot each epoch; false: always as given")
    warmup: float = setting(0.05, "share of the steps", between=(0, 1))
    schedule: str = setting("cosine", "of the learning rate", choices=SCHEDULES)
    weight_decay: float = setting(0.0, "of the optimiser", least=0)
    max_grad_norm: float = setting(1.0, "longer gradients are shortened to it", least=0)
    optimizer: str = setting("adamw_torch", "as transformers names it", choices=OPTIMIZERS)
    gradient_checkpointing: str = setting(
        "auto",
        "compute activations again in the backward pass; auto: for as many layers as memory needs",
        choices=SWITCHES,
    )
    checkpoint_steps: int = setting(0, "how often a resumable checkpoint is written (0: never)", least=0)
    log_steps: int = setting(10, "how often the loss is logged", above=0)
    select_share: float = setting(0.0, "of the prompt groups, held back to select by", between=(0, 0.9))
    select_steps: int = setting(0, "how often they are looked at (0: ten times)", least=0)
    patience: int = setting(0, "looks without improvement that end the training (0: never)", least=0)
    seed: int = setting(0, "of head, adapters, order and dropout", between=(0, MOST_SEED))


@dataclass
class DistillConfig:
    """What the student learns from whom: its loss, its soft labels, and the weights of several teachers."""

    loss: str = setting(
        "kl",
        f"{', '.join(LOSSES)} (distill.losses), or file.py:function of your own, executed and so "
        "to be named on the command line (distill.own_loss)",
    )
    weight: float = setting(0.7, "share of the soft labels: (1 - weight) CE + weight T**2 KL", between=(0, 1))
    temperature: float = setting(1.0, "that T", above=0)
    smoothing: float = setting(0.1, "of label smoothing", between=(0, 1))
    labels: str = setting(
        "oof",
        "which soft labels; human are the rows' own label_probs",
        choices=("oof", "in_sample", "fold_mean", "human"),
    )
    leakage: str = setting(
        "standard",
        "whom a fold's student learns from, which decides what its score is worth. standard: the same labels "
        "as the final student, whose makers saw the scored fold; apart: the teachers' models of that fold, "
        "which did not; strict: models that saw neither that fold nor the rows they label",
        choices=("standard", "apart", "strict"),
    )
    pseudo_labels: float | None = setting(
        None,
        "also train on unlabelled rows whose teachers' mean gives one class at least this probability; null "
        "leaves them out",
        between=(0, 1),
    )
    weighting: str = setting(
        "equal",
        "of several teachers: fitted is the simplex blend on the student's training folds; by confidence a "
        "row's share falls with the teacher's entropy",
        choices=("equal", "fitted", "confidence"),
    )
    teacher_weights: dict[str, float] = setting(dict, "weights by the teachers' names, instead")
    mixing: str = setting(
        "separate",
        "separate is a term a teacher; probability and log one teacher, the mean of all",
        choices=("separate", "probability", "log"),
    )


@dataclass
class PretrainConfig:
    """A data set that a model is trained on first, and from whose weights all of its trainings start."""

    data: str | None = setting(
        None,
        "directory of data.prepare, of any classes: the head is discarded, and rows are left out whose "
        "prompts stand, equal or nearly so, among the model's own; null for no such stage",
    )
    epochs: float | None = setting(
        None, "passes over its rows; null takes train.epochs", above=0, between=(0, MOST_EPOCHS)
    )
    lr: float | None = setting(None, "learning rate there; null takes train.lr", above=0)
    template: str | None = setting(None, "of its rows; null takes the model's")
    seed: int | None = setting(
        None,
        "of the stage; null takes train.seed. Runs of several seeds with one seed here start from one place, "
        "as those do well to that are to be averaged",
        between=(0, MOST_SEED),
    )


@dataclass
class ResourcesConfig:
    """What one unit of this model, a fold or the final training, asks of a cluster (``--launcher ray``)."""

    processes: int = setting(
        1, "share a unit's steps, on one machine or several; the rest is what each of them asks for", above=0
    )
    gpus: float | None = setting(
        None,
        "1, or a fraction when units share a card; null asks for one where the cluster has any",
        least=0,
    )
    cpus: int | None = setting(
        None,
        "also the threads; null asks for four beside a GPU, else for as many as this process uses",
        above=0,
    )
    memory_gb: float | None = setting(None, "main memory; null reserves none", above=0)
    tokens_per_second: float | None = setting(
        None,
        "measured by you in training: what --dry-run reckons with instead of its own table",
        above=0,
    )


@dataclass
class ModelConfig:
    """One model: backbone, adapters, input and optimisation."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    template: str = setting("pair", "name of a template of data.encoding.template, or a .jinja file")
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)


@dataclass
class StudentConfig(ModelConfig):
    """The student: a model and its distillation loss."""

    distill: DistillConfig = field(default_factory=DistillConfig)


@dataclass
class DataConfig:
    """The embedded simulated arena, used when no ``--data`` is given."""

    rows: int = setting(1500, "rows of the arena", above=0)
    folds: int = setting(3, "folds of the arena", least=2)
    seed: int = setting(0, "of arena and folds", between=(0, MOST_SEED))


@dataclass
class Recipe:
    """A whole recipe: teachers by name, and the student they teach."""

    data: DataConfig = field(default_factory=DataConfig)
    teachers: dict[str, ModelConfig] = field(default_factory=dict)
    student: StudentConfig | None = None
