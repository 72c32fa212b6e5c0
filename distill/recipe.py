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

from data.console.remote_code import OPTION
from data.console.settings import load_yaml, refuse_resolvers
from data.errors import UserError, brief, listing
from data.files import write_text
from distill.architectures import architecture
from distill.config import EIGHT_BITS, QUANTISED, SWITCHES, ModelConfig, Recipe, StudentConfig, TinyConfig
from distill.losses import LOSSES
from distill.own_loss import is_own, use_own

RECIPES = Path(__file__).parent / "recipes"
NF4_BLOCK = 64
"""Weights that share one NF4 scale; bitsandbytes' CPU kernels want rows of whole blocks."""
TEACHER_NAME = re.compile(r"\w[\w .+-]{0,99}")
TAKEN = ("student", "backbones", "units", "race", "stack", "rows.parquet", "folds.parquet", "manifest.json")
"""What else lies in the directory of the teachers' stores."""
FORMER_KEY = "trust_remote_code"
"""What recipes of an earlier version could ask for."""
FURTHER = ("-in_sample", "-fold_mean")
"""How the stores of a teacher's further labels are named."""
OF_A_LOSS = ("weight", "temperature", "smoothing")
"""Numbers that some losses read and others do not."""


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
    where = str(path)
    try:
        given = load_yaml(path, "recipe")
        if not isinstance(given, DictConfig):
            raise UserError(f"{path}: bad recipe: a list where data, teachers and student were expected")
        refuse_permissions(given, str(path))
        merged = OmegaConf.merge(OmegaConf.structured(Recipe), given)
        known = list(merged.teachers)
        where = "command line"
        typed = OmegaConf.from_dotlist(list(overrides))
        refuse_resolvers(typed, where)
        refuse_permissions(typed, where)
        merged = OmegaConf.merge(merged, typed)
        added = [name for name in merged.teachers if name not in known]
        if added:
            raise UserError(
                f"command line: recipe {name_or_file} has no teacher {listing(added)}; "
                f"it has {listing(known) or 'none'}"
            )
        where = f"{path} with the command line" if overrides else str(path)
        recipe = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError, OSError, RecursionError) as error:
        key = getattr(error, "full_key", None)
        at = f" at {key}" if key else ""
        raise UserError(f"{where}: bad recipe{at}: {_reason(error)}") from error
    assert isinstance(recipe, Recipe)
    if recipe.student is not None:
        _permit_loss(recipe.student.distill.loss, OmegaConf.select(typed, "student.distill.loss"), where)
    check_recipe(recipe)
    refuse_unread(recipe, typed_keys(overrides))
    return recipe


def _permit_loss(loss: str, typed: object, where: str) -> None:
    """Load a loss of the user's own if the command line names it; in a file it is no permission."""
    if not is_own(loss):
        return
    if loss != typed:
        raise UserError(
            f"{where}: student.distill.loss {brief(loss)} is code, which no file may have executed; name it "
            f"on the command line, too: student.distill.loss={brief(loss)}"
        )
    use_own(loss)


def typed_keys(overrides: Sequence[str]) -> list[str]:
    """The dotted keys of the command line's overrides."""
    return [override.partition("=")[0] for override in overrides]


def refuse_unread(recipe: Recipe, keys: Sequence[str]) -> None:
    """Refuse a typed key that the chosen loss does not read: it would be recorded, and mean nothing.

    Raises
    ------
    UserError
        Names the key, and what the loss does read.
    """
    if recipe.student is None:
        return
    loss = recipe.student.distill.loss
    needs = LOSSES[loss].needs
    of_teachers = () if LOSSES[loss].taught else ("mixing", "weighting", "teacher_weights", "pseudo_labels")
    for key in keys:
        name = key.removeprefix("student.distill.").split(".")[0]
        if not key.startswith("student.distill.") or name not in {*OF_A_LOSS, *of_teachers} - {*needs}:
            continue
        reads = listing(need for need in needs if need in OF_A_LOSS) or "none of these numbers"
        alone = "" if LOSSES[loss].taught else " and has no teacher"
        raise UserError(
            f"command line: {key} means nothing to the loss {brief(loss)}, which reads {reads}{alone}"
        )


def _reason(error: Exception) -> str:
    """What went wrong in a recipe's file, with the line where the library knows it."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', None) or error}"


def refuse_permissions(given: Any, where: str) -> None:
    """Refuse a configuration that would allow a checkpoint's code to run; drop the key where it does not.

    Files of an earlier version hold ``trust_remote_code: false``.

    Raises
    ------
    UserError
        Its key is true somewhere: permission comes from the command line alone
        (:mod:`data.console.remote_code`).
    """
    from omegaconf import DictConfig, ListConfig

    if isinstance(given, DictConfig):
        wanted = given._get_node(FORMER_KEY)
        if wanted is not None:
            if str(wanted).lower() not in {"false", "none", "0", "no", "off"}:
                raise UserError(
                    f"{where}: {FORMER_KEY} is {brief(wanted, 40)}; a file gives no permission to run a "
                    f"checkpoint's own code: take the key out, and give the command {OPTION} if you trust "
                    "the checkpoint's authors"
                )
            del given[FORMER_KEY]
        for key in list(given):
            refuse_permissions(given._get_node(key), where)
    elif isinstance(given, ListConfig):
        for i in range(len(given)):
            refuse_permissions(given._get_node(i), where)


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
        given = load_yaml(path, "configuration")
        refuse_permissions(given, str(path))
        merged = OmegaConf.merge(OmegaConf.structured(kind), given)
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError, OSError, RecursionError) as error:
        raise UserError(f"{path}: not a saved configuration ({_reason(error)})") from error
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
    if distill.loss not in LOSSES:
        raise UserError(
            f"recipe: student.distill.loss is {brief(distill.loss, 60)!r}; it is one of "
            f"{listing(LOSSES, len(LOSSES))}, or file.py:function on the command line"
        )
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
    eight_bits = EIGHT_BITS.get(backbone.compute)
    if eight_bits and (backbone.precision not in eight_bits or not backbone.packed or backbone.shard):
        raise UserError(
            f"recipe: {name}.backbone.compute {backbone.compute} is for precision {' or '.join(eight_bits)} "
            "in packs, and not for a sharded base; precision fp8 computes in FP8 by itself"
        )
    if not lora.enabled and backbone.precision in {*QUANTISED, "fp16"}:
        raise UserError(
            f"recipe: {name} trains full weights, which {backbone.precision} cannot; use bf16 or fp32"
        )
    if lora.enabled and not lora.targets:
        raise UserError(f"recipe: {name}.lora.targets names no layers; [all-linear] takes all")
    if backbone.head == "tokens" and not (lora.enabled and backbone.packed):
        raise UserError(f"recipe: {name}.backbone.head tokens needs adapters and packs: lora.enabled, packed")
    if backbone.verdicts and backbone.head != "tokens":
        raise UserError(
            f"recipe: {name}.backbone.verdicts are words of head tokens; the head is {backbone.head}"
        )
    if backbone.shard and not (lora.enabled and backbone.packed):
        raise UserError(f"recipe: {name}.backbone.shard is for frozen, packed bases: lora.enabled and packed")


def _check_tiny(name: str, tiny: TinyConfig, precision: str) -> None:
    if precision == "nf4":
        for key in ("hidden_size", "intermediate_size"):
            if getattr(tiny, key) % NF4_BLOCK:
                raise UserError(f"recipe: {name}.{key} must be a multiple of {NF4_BLOCK} for nf4")
    # Rotary positions turn a head's dimensions in pairs.
    encoder = architecture(tiny.family).encoder
    paired = 1 if encoder else 2
    if tiny.hidden_size % (paired * tiny.heads):
        raise UserError(
            f"recipe: {name}.hidden_size is {tiny.hidden_size}, which {tiny.heads} heads cannot share"
            + (" evenly in pairs" if paired == 2 else "")
        )
    if not encoder and tiny.heads % tiny.kv_heads:
        raise UserError(f"recipe: {name}.heads is {tiny.heads}, no multiple of kv_heads, {tiny.kv_heads}")
