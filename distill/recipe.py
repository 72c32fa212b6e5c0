"""What a recipe's types cannot say: which values can work at all, checked before anything is read or made.

Every number has a range here, so that a slip ends in one message and not in a library's traceback an hour
into a run, nor, worse, in a training that quietly means something else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from data.errors import UserError, brief, listing
from distill.config import QUANTISED, DistillConfig, ModelConfig, Recipe, StudentConfig, TinyConfig

PRECISIONS = (*QUANTISED, "bf16", "fp16", "fp32")
COMPUTES = ("auto", "bf16", "fp16", "fp32", "fp8")
HEADS = ("score", "tokens")
SWITCHES = ("auto", "true", "false")
FAMILIES = ("llama", "gemma2", "bert")
LOSS_NAMES = ("kl", "blackpearl", "wsdm1", "wsdm3", "mse", "smoothing", "hard")
"""The keys of :data:`distill.teaching.losses.LOSSES`, which is not imported here to spare commands torch."""
LABELS = ("oof", "in_sample", "fold_mean", "human")
LEAKAGES = ("standard", "apart", "strict")
WEIGHTINGS = ("equal", "fitted", "confidence")
MIXINGS = ("separate", "probability", "log")
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
NF4_BLOCK = 64
"""Weights that share one NF4 scale; bitsandbytes' CPU kernels want rows of whole blocks."""
MOST_EPOCHS = 1000
MOST_SEED = 4_000_000
"""A model's seed is a thousand times this and its fold's number, and NumPy's end at 2 ** 32."""
TEACHER_NAME = re.compile(r"\w[\w .+-]{0,99}")
TAKEN = ("student", "backbones", "units", "race", "stack", "rows.parquet", "folds.parquet", "manifest.json")
"""What else lies in the directory of the teachers' stores."""
DERIVED = ("-in_sample", "-fold_mean")
"""How the stores of a teacher's further labels are named."""


def check_recipe(recipe: Recipe) -> None:
    """Raise :class:`UserError` naming the first value of a recipe that cannot work."""
    for key, value in _numbers(recipe):
        if not math.isfinite(value):
            raise UserError(f"recipe: {key} is {value}; it must be a finite number")
    _in_range("data.seed", recipe.data.seed, 0, MOST_SEED)
    for name, model in recipe.teachers.items():
        _check_name(name)
        _check_model(f"teachers.{name}", model)
    if recipe.student is not None:
        _check_distill(recipe.student)
        _check_model("student", recipe.student)


def _numbers(value: object, at: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a configuration, by its dotted key."""
    if isinstance(value, int | float):
        yield at, value
        return
    if is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
    else:
        parts = value if isinstance(value, dict) else {}
    for key, part in parts.items():
        yield from _numbers(part, f"{at}.{key}" if at else str(key))


def _check_name(name: str) -> None:
    """A teacher's name is that of its store's directory."""
    if not TEACHER_NAME.fullmatch(name):
        raise UserError(
            f"recipe: teachers.{brief(name, 60)}: the name is that of a directory; take up to 100 letters, "
            "digits, dots, hyphens and spaces, the first a letter or digit"
        )
    if name in TAKEN or name.endswith(DERIVED):
        raise UserError(
            f"recipe: teachers.{name}: something else is kept under that name beside the teachers' stores; "
            "choose another"
        )


def _check_distill(student: StudentConfig) -> None:
    distill: DistillConfig = student.distill
    for key, known in (
        ("loss", LOSS_NAMES),
        ("labels", LABELS),
        ("leakage", LEAKAGES),
        ("weighting", WEIGHTINGS),
        ("mixing", MIXINGS),
    ):
        _one_of(f"student.distill.{key}", getattr(distill, key), known)
    for key in ("weight", "smoothing"):
        _in_range(f"student.distill.{key}", getattr(distill, key), 0, 1)
    _positive("student.distill.temperature", distill.temperature)
    _not_negative("student.distill.consistency", distill.consistency)
    if distill.pseudo_labels is not None:
        _in_range("student.distill.pseudo_labels", distill.pseudo_labels, 0, 1)
    if distill.consistency and not student.train.both_orders:
        raise UserError("recipe: student.distill.consistency needs both orders in a step: train.both_orders")
    if distill.teacher_weights and distill.weighting != "equal":
        raise UserError(
            f"recipe: student.distill has teacher_weights and weighting {distill.weighting}; keep one of them"
        )


def _check_model(name: str, model: ModelConfig) -> None:
    _check_backbone(name, model)
    _check_lora(name, model)
    _check_train(name, model)
    for key in ("processes", "cpus", "memory_gb", "tokens_per_second"):
        if (value := getattr(model.resources, key)) is not None:
            _positive(f"{name}.resources.{key}", value)
    _not_negative(f"{name}.resources.gpus", model.resources.gpus or 0)


def _check_backbone(name: str, model: ModelConfig) -> None:
    backbone, lora = model.backbone, model.lora
    if bool(backbone.path) == (backbone.tiny is not None):
        raise UserError(f"recipe: {name}.backbone needs either a path or tiny, and not both")
    if backbone.tiny is not None:
        _check_tiny(f"{name}.backbone.tiny", backbone.tiny, backbone.precision)
    if backbone.first_layers is not None:
        _positive(f"{name}.backbone.first_layers", backbone.first_layers)
    _one_of(f"{name}.backbone.precision", backbone.precision, PRECISIONS)
    _one_of(f"{name}.backbone.compute", backbone.compute, COMPUTES)
    _one_of(f"{name}.backbone.head", backbone.head, HEADS)
    _one_of(f"{name}.backbone.compile", backbone.compile.lower(), SWITCHES)
    if backbone.compute == "fp8" and (backbone.precision != "nf4" or not backbone.packed or backbone.shard):
        raise UserError(
            f"recipe: {name}.backbone.compute fp8 is for precision nf4 in packs, and not for a sharded base; "
            "precision fp8 computes in FP8 by itself"
        )
    if not lora.enabled and backbone.precision in {*QUANTISED, "fp16"}:
        raise UserError(
            f"recipe: {name} trains full weights, which {backbone.precision} cannot; use bf16 or fp32"
        )
    if backbone.head == "tokens" and not (lora.enabled and backbone.packed):
        raise UserError(f"recipe: {name}.backbone.head tokens needs adapters and packs: lora.enabled, packed")
    if backbone.shard and not (lora.enabled and backbone.packed):
        raise UserError(f"recipe: {name}.backbone.shard is for frozen, packed bases: lora.enabled and packed")


def _check_tiny(name: str, tiny: TinyConfig, precision: str) -> None:
    _one_of(f"{name}.family", tiny.family, FAMILIES)
    for key in ("hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "vocab_size"):
        _positive(f"{name}.{key}", getattr(tiny, key))
    _not_negative(f"{name}.pretrain_steps", tiny.pretrain_steps)
    _positive(f"{name}.pretrain_lr", tiny.pretrain_lr)
    if precision == "nf4":
        for key in ("hidden_size", "intermediate_size"):
            if getattr(tiny, key) % NF4_BLOCK:
                raise UserError(f"recipe: {name}.{key} must be a multiple of {NF4_BLOCK} for nf4")
    # Rotary positions turn a head's dimensions in pairs.
    paired = 1 if tiny.family == "bert" else 2
    if tiny.hidden_size % (paired * tiny.heads):
        raise UserError(
            f"recipe: {name}.hidden_size is {tiny.hidden_size}, which {tiny.heads} heads cannot share"
            + (" evenly in pairs" if paired == 2 else "")
        )
    if tiny.family != "bert" and tiny.heads % tiny.kv_heads:
        raise UserError(f"recipe: {name}.heads is {tiny.heads}, no multiple of kv_heads, {tiny.kv_heads}")


def _check_lora(name: str, model: ModelConfig) -> None:
    lora = model.lora
    _in_range(f"{name}.lora.first_layer", lora.first_layer, 0, 0.999)
    if not lora.enabled:
        return
    _positive(f"{name}.lora.r", lora.r)
    _positive(f"{name}.lora.alpha", lora.alpha)
    _in_range(f"{name}.lora.dropout", lora.dropout, 0, 0.999)
    if not lora.targets:
        raise UserError(f"recipe: {name}.lora.targets names no layers; [all-linear] takes all")


def _check_train(name: str, model: ModelConfig) -> None:
    train = model.train
    for key in ("epochs", "lr", "rows_per_step", "pack_tokens", "log_steps"):
        _positive(f"{name}.train.{key}", getattr(train, key))
    _in_range(f"{name}.train.epochs", train.epochs, 0, MOST_EPOCHS)
    if train.head_lr is not None:
        _positive(f"{name}.train.head_lr", train.head_lr)
    for key in (
        "micro_rows", "predict_rows", "weight_decay", "max_grad_norm", "checkpoint_steps", "select_steps",
        "patience",
    ):  # fmt: skip
        _not_negative(f"{name}.train.{key}", getattr(train, key))
    _in_range(f"{name}.train.warmup", train.warmup, 0, 1)
    _in_range(f"{name}.train.select_share", train.select_share, 0, 0.9)
    _in_range(f"{name}.train.seed", train.seed, 0, MOST_SEED)
    _one_of(f"{name}.train.schedule", train.schedule, SCHEDULES)
    _one_of(f"{name}.train.optimizer", train.optimizer, OPTIMIZERS)
    _one_of(f"{name}.train.gradient_checkpointing", train.gradient_checkpointing.lower(), SWITCHES)


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"recipe: {key} is {brief(value, 60)!r}; it is one of {listing(known, len(known))}")


def _positive(key: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"recipe: {key} is {value}; it must be above 0")


def _not_negative(key: str, value: float) -> None:
    if value < 0:
        raise UserError(f"recipe: {key} is {value}; it must not be below 0")


def _in_range(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"recipe: {key} is {value}; it must lie between {low} and {high}")
