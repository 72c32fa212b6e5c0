"""What a recipe may hold, for the terminal: every key with its meaning, default and range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from textwrap import fill
from typing import Any, get_args, get_type_hints

from distill.config import DataConfig, DistillConfig, ModelConfig

WIDTH = 100
MODELS = "teachers.NAME.* and student.*"


def recipe_keys() -> str:
    """Return the keys of a :class:`distill.config.Recipe`, section by section."""
    lines = [
        "A recipe is a YAML file of these keys, nested at the dots; on the command line they keep their",
        "dots, KEY=VALUE. teachers holds models by names of your choice; student is one more.",
    ]
    for prefix, kind in (("data", DataConfig), (MODELS, ModelConfig), ("student.distill", DistillConfig)):
        lines += ["", f"{prefix}:"]
        for key, field in keys_of(kind, "" if prefix == MODELS else prefix):
            lines += [
                f"  {key}",
                fill(_meaning(field), WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6),
            ]
    return "\n".join(lines)


def keys_of(kind: type, prefix: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """Every settable key of a configuration with its field, those of nested ones dotted.

    Parameters
    ----------
    kind : type
        A dataclass of :mod:`distill.config`.
    """
    hints = get_type_hints(kind)
    assert is_dataclass(kind)
    for field in fields(kind):
        key = f"{prefix}.{field.name}".lstrip(".")
        nested = [t for t in (hints[field.name], *get_args(hints[field.name])) if is_dataclass(t)]
        if not nested:
            yield key, field
        for inner in nested:
            assert isinstance(inner, type)
            yield from keys_of(inner, key)


def _meaning(field: Field[Any]) -> str:
    """A field's meaning, default and range in one sentence each."""
    parts = [field.metadata.get("help", ""), f"default {default_of(field)}"]
    return "; ".join(part for part in (*parts, range_of(field.metadata)) if part)


def default_of(field: Field[Any]) -> str:
    """A field's default as YAML has it."""
    made = field.default_factory
    return _shown(made() if made is not MISSING else field.default)


def _shown(value: object) -> str:
    """A value as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return repr(value) if isinstance(value, str) and value != value.strip() else str(value) or "empty"


def range_of(limits: Mapping[str, Any]) -> str:
    """The limits beside a field, in words."""
    found = []
    if limits.get("choices"):
        found.append(f"one of {', '.join(limits['choices'])}")
    if limits.get("above") is not None:
        found.append(f"above {limits['above']:g}")
    if limits.get("least") is not None:
        found.append(f"at least {limits['least']:g}")
    if limits.get("between"):
        low, high = limits["between"]
        found.append(f"from {low:,} to {high:,}")
    return ", ".join(found)
