"""Recipes: read from YAML with dotted overrides, checked before anything is read or made, and saved.

OmegaConf checks types and unknown keys; the limits that stand beside each field of :mod:`distill.config` are
checked here by one walk over all of them, and what fields mean for each other by a function each. So a slip
ends in one message and not in a library's traceback an hour into a run, nor, worse, in a training that
quietly means something else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError, brief, listing
from data.files import require_file, write_text
from distill.config import QUANTISED, SWITCHES, ModelConfig, Recipe, StudentConfig, TinyConfig

RECIPES = Path(__file__).parent / "recipes"
NF4_BLOCK = 64
"""Weights that share one NF4 scale; bitsandbytes' CPU kernels want rows of whole blocks."""
TEACHER_NAME = re.compile(r"\w[\w .+-]{0,99}")
TAKEN = ("student", "backbones", "units", "race", "stack", "rows.parquet", "folds.parquet", "manifest.json")
"""What else lies in the directory of the teachers' stores."""
FURTHER = ("-in_sample", "-fold_mean")
"""How the stores of a teacher's further labels are named."""


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

    write_text(path, OmegaConf.to_yaml(OmegaConf.structured(config)))


def read_config(path: Path, kind: type[ModelConfig]) -> ModelConfig:
    """Read the resolved configuration saved with a run."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(kind), OmegaConf.load(require_file(path, "configuration"))
        )
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError, OSError) as error:
        raise UserError(f"{path}: not a saved configuration ({str(error).splitlines()[0]})") from error
    assert isinstance(config, ModelConfig)
    return config


def check_recipe(recipe: Recipe) -> None:
    """Raise :class:`UserError` naming the first value of a recipe that cannot work."""
    for name in recipe.teachers:
        _check_name(name)
    for key, value, limits in settings_of(recipe):
        if why := refusal(value, limits):
            raise UserError(f"recipe: {key} is {why}")
    for name, model in recipe.teachers.items():
        _check_model(f"teachers.{name}", model)
    if recipe.student is not None:
        _check_distill(recipe.student)
        _check_model("student", recipe.student)


def settings_of(
    value: object, at: str = "", limits: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, object, Mapping[str, Any]]]:
    """Every value in a configuration that is set: its dotted key, itself, and the limits beside its field."""
    if is_dataclass(value):
        for field in fields(value):
            needed = field.metadata.get("only_if")
            asked = field.metadata if not needed or getattr(value, needed) else {}
            yield from settings_of(getattr(value, field.name), f"{at}.{field.name}".lstrip("."), asked)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from settings_of(part, f"{at}.{key}")
    elif value is not None:
        yield at, value, limits or {}


def refusal(value: object, limits: Mapping[str, Any]) -> str:
    """Why a value is outside the limits of :func:`distill.config.setting`; empty where it is within them."""
    if isinstance(value, int | float):
        above, least, between = (limits.get(name) for name in ("above", "least", "between"))
        if not math.isfinite(value):
            return f"{value}; it must be a finite number"
        if above is not None and not value > above:
            return f"{value}; it must be above {above}"
        if least is not None and value < least:
            return f"{value}; it must not be below {least}"
        if between is not None and not between[0] <= value <= between[1]:
            return f"{value}; it must lie between {between[0]} and {between[1]}"
    elif isinstance(value, str) and (choices := limits.get("choices")):
        word = value.lower() if choices == SWITCHES else value
        if word not in choices:
            return f"{brief(word, 60)!r}; it is one of {listing(choices, len(choices))}"
    return ""


def _check_name(name: str) -> None:
    """A teacher's name is that of its store's directory."""
    if not TEACHER_NAME.fullmatch(name):
        raise UserError(
            f"recipe: teachers.{brief(name, 60)}: the name is that of a directory; take up to 100 letters, "
            "digits, dots, hyphens and spaces, the first a letter or digit"
        )
    if name in TAKEN or name.endswith(FURTHER):
        raise UserError(
            f"recipe: teachers.{name}: something else is kept under that name beside the teachers' stores; "
            "choose another"
        )


def _check_distill(student: StudentConfig) -> None:
    distill = student.distill
    if distill.consistency and not student.train.both_orders:
        raise UserError("recipe: student.distill.consistency needs both orders in a step: train.both_orders")
    if distill.teacher_weights and distill.weighting != "equal":
        raise UserError(
            f"recipe: student.distill has teacher_weights and weighting {distill.weighting}; keep one of them"
        )


def _check_model(name: str, model: ModelConfig) -> None:
    backbone, lora = model.backbone, model.lora
    if bool(backbone.path) == (backbone.tiny is not None):
        raise UserError(f"recipe: {name}.backbone needs either a path or tiny, and not both")
    if backbone.tiny is not None:
        _check_tiny(f"{name}.backbone.tiny", backbone.tiny, backbone.precision)
    if backbone.compute == "fp8" and (backbone.precision != "nf4" or not backbone.packed or backbone.shard):
        raise UserError(
            f"recipe: {name}.backbone.compute fp8 is for precision nf4 in packs, and not for a sharded base; "
            "precision fp8 computes in FP8 by itself"
        )
    if not lora.enabled and backbone.precision in {*QUANTISED, "fp16"}:
        raise UserError(
            f"recipe: {name} trains full weights, which {backbone.precision} cannot; use bf16 or fp32"
        )
    if lora.enabled and not lora.targets:
        raise UserError(f"recipe: {name}.lora.targets names no layers; [all-linear] takes all")
    if backbone.head == "tokens" and not (lora.enabled and backbone.packed):
        raise UserError(f"recipe: {name}.backbone.head tokens needs adapters and packs: lora.enabled, packed")
    if backbone.shard and not (lora.enabled and backbone.packed):
        raise UserError(f"recipe: {name}.backbone.shard is for frozen, packed bases: lora.enabled and packed")


def _check_tiny(name: str, tiny: TinyConfig, precision: str) -> None:
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
