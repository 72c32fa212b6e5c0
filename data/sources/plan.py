"""What to prepare: sources with their options, folds, near-duplicates, pins; from arguments or a YAML file.

A sources file is a list of sources, or a mapping with the list under ``sources`` and, beside it, what
holds for all: ``folds``, ``seed``, ``near``, ``repeats``, ``prefix_ids``. An argument given on the command
line wins over the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from data.console.settings import read_yaml
from data.errors import UserError, brief, listing
from data.sources.formats import SourceOptions
from data.sources.place import source_name

REPEATS = ("drop", "keep")
IDS = ("column", "row-number", "auto")
_SOURCE_KEYS = ("path", "pin", *(entry.name for entry in fields(SourceOptions) if entry.name != "sets"))


@dataclass(frozen=True)
class Source:
    """One source: where it is, how to read it, whether its rows are pinned to every training."""

    path: str
    options: SourceOptions = field(default_factory=SourceOptions)
    pin: bool = False

    @property
    def name(self) -> str:
        """What its rows' ``source`` says."""
        return self.options.name or source_name(self.path)


@dataclass(frozen=True)
class Plan:
    """Everything a preparation depends on.

    Attributes
    ----------
    sources : list of Source
    folds, seed : int
    near : float or None
        Similarity from which prompts are near-duplicates; None for exact groups only.
    pin : list of str
        Sources, by the name their rows have, pinned to every training.
    repeats : {"drop", "keep"}
        What happens to pairs that a later source repeats.
    prefix_ids : bool
        Whether row ids get their source's name.
    """

    sources: list[Source]
    folds: int = 5
    seed: int = 0
    near: float | None = 0.8
    pin: list[str] = field(default_factory=list)
    repeats: str = "drop"
    prefix_ids: bool = False


_PLAN_KEYS = tuple(entry.name for entry in fields(Plan) if entry.name != "pin")


def read_plan(sources: list[str], options: SourceOptions, given: dict[str, Any]) -> Plan:
    """Put a plan together.

    Parameters
    ----------
    sources : list of str
        Files, directories and names, all read by ``options``; or sources files (``.yaml``).
    options : SourceOptions
        From the command line.
    given : dict
        Fields of :class:`Plan` given on the command line.

    Raises
    ------
    UserError
        A sources file that is not one, an unknown key, a value of the wrong type.
    """
    plan = Plan([])
    found: list[Source] = []
    for source in sources:
        if not source.endswith((".yaml", ".yml")):
            found.append(Source(source, options))
            continue
        if options != SourceOptions():
            raise UserError(f"{source}: how its sources are read is said in the file, not by further options")
        path = Path(source)
        content = read_yaml(path, "sources file")
        if isinstance(content, list):
            content = {"sources": content}
        listed = content.get("sources") if isinstance(content, dict) else None
        if not isinstance(listed, list) or not listed:
            raise UserError(f"{path}: expected a list of sources, or a mapping with one under 'sources'")
        _known(content, _PLAN_KEYS, path)
        found += [_source(entry, path) for entry in content.pop("sources")]
        plan = replace(plan, **content)
    plan = replace(plan, **given, sources=found)
    plan.pin.extend(source.name for source in found if source.pin)
    return checked(plan, ", ".join(sources))


def _source(entry: Any, where: Path) -> Source:
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        raise UserError(f"{where}: a source is a path, or a mapping with one; found {brief(entry, 60)}")
    _known(entry, _SOURCE_KEYS, where)
    wanted = {
        "format": str, "columns": dict, "classes": list, "swap": list, "ids": str, "split": str, "limit": int,
        "streaming": bool, "margin": (int, float), "name": str, "pin": bool, "path": str,
    }  # fmt: skip
    for name, value in entry.items():
        if not isinstance(value, wanted[name]) or (isinstance(value, bool) and wanted[name] is not bool):  # type: ignore[arg-type]
            raise UserError(
                f"{where}: {name} of source {entry['path']} is {brief(value, 40)!r}, of the wrong type"
            )
    options = {name: value for name, value in entry.items() if name not in {"path", "pin"}}
    if "columns" in options:
        options["columns"] = column_map(options["columns"], where)
    for name in ("classes", "swap"):
        bad = [value for value in options.get(name, []) if isinstance(value, (bool, list, dict, type(None)))]
        if bad:
            raise UserError(
                f"{where}: {name} of source {entry['path']} holds {brief(bad[0], 40)}; write names, in "
                "quotes where YAML takes them for something else, and class indices for a swap"
            )
    if options.get("ids", "auto") not in IDS:
        raise UserError(f"{where}: ids of source {entry['path']} must be one of {listing(IDS)}")
    if "classes" in options:
        options["classes"] = tuple(str(value) for value in options["classes"])
    if "swap" in options:
        if not all(isinstance(value, int) for value in options["swap"]):
            raise UserError(
                f"{where}: swap of source {entry['path']} is {options['swap']}; give class indices"
            )
        options["swap"] = tuple(options["swap"])
    path = entry["path"]
    beside = where.parent / path
    if not Path(path).is_absolute() and beside.exists():
        path = str(beside)  # a file beside the sources file is named from there
    return Source(path, SourceOptions(**options), bool(entry.get("pin", False)))


def _known(mapping: dict, keys: tuple[str, ...], where: Path) -> None:
    unknown = [str(key) for key in mapping if key not in keys]
    if unknown:
        raise UserError(f"{where}: unknown key {listing(unknown)}; there are {listing(keys, 20)}")


def checked(plan: Plan, where: str) -> Plan:
    """Return a plan whose values are of their kind, or say which is not."""
    for name, kinds in (("folds", int), ("seed", int), ("prefix_ids", bool)):
        value = getattr(plan, name)
        if not isinstance(value, kinds) or (kinds is int and isinstance(value, bool)):
            raise UserError(f"{where}: {name} is {brief(value, 40)!r}, of the wrong type")
    if plan.seed < 0:
        raise UserError(f"{where}: a seed of {plan.seed} is negative; give 0 or more")
    if plan.repeats not in REPEATS:
        raise UserError(
            f"{where}: repeats is {brief(plan.repeats, 40)!r}; it must be one of {listing(REPEATS)}"
        )
    if plan.near is not None and (isinstance(plan.near, bool) or not isinstance(plan.near, (int, float))):
        if plan.near != "off":
            raise UserError(
                f"{where}: near is {brief(plan.near, 40)!r}; give a similarity such as 0.8, or off"
            )
        plan = replace(plan, near=None)
    return plan


def column_map(value: Any, where: Path | str) -> dict[str, str]:
    """Check a mapping of fields to columns; a list of columns is joined by commas."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected lines such as 'prompt: question'")
    columns = {}
    for name, column in value.items():
        names = column if isinstance(column, list) else [column]
        if not all(isinstance(entry, str) for entry in names):
            raise UserError(
                f"{where}: field {name!r} holds {brief(column, 60)}; give a column name, or a list of them"
            )
        columns[str(name)] = ",".join(names)
    return columns


def read_column_map(items: Sequence[str]) -> dict[str, str]:
    """Read a command line's ``field=column`` pairs and YAML files of such pairs; later ones win."""
    columns: dict[str, str] = {}
    for item in items:
        name, equals, column = item.partition("=")
        if equals and column and not Path(item).exists():
            columns[name] = column
        elif item.endswith((".yaml", ".yml")):
            columns.update(column_map(read_yaml(Path(item), "column map"), item))
        else:
            raise UserError(f"--columns {item}: give field=column, e.g. prompt=question, or a .yaml file")
    return columns
