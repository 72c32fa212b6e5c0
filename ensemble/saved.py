"""A stack on disk: ``stack.json`` and LightGBM's own text files, enough to predict in a new process.

Trees are kept in files named by the hash of what they hold, so that a stack never refers to trees that
another run wrote over, and damage is noticed. ``stack.json`` holds the hash of its own content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from data.errors import UserError, listing
from data.files import read_json, sha256_text, write_json, write_text
from data.schema import Classes
from ensemble.methods import catalogue  # noqa: F401 (a stack may hold any of its kinds)
from ensemble.methods.base import Blender, from_dict

STACK = "stack.json"
FORMAT = 2
HASH = "content_hash"
_TREES = "trees_"
_TREE_FILE = re.compile(r"lightgbm-[0-9a-f]{16}\.txt")
_KEYS = ("classes", "members", "chosen", "fitted")


def _map_trees(state: Any, change: Callable[[str], str]) -> Any:
    """Return ``state`` with every tree text (or file name) changed."""
    if isinstance(state, list):
        return [_map_trees(item, change) for item in state]
    if not isinstance(state, dict):
        return state
    return {
        key: {track: [change(text) for text in texts] for track, texts in value.items()}
        if key == _TREES
        else _map_trees(value, change)
        for key, value in state.items()
    }


def save_stack(out: Path, content: dict[str, Any], method: Blender) -> None:
    """Write ``content`` and the fitted method into ``out``; ``stack.json`` last."""
    names: set[str] = set()

    def put(text: str) -> str:
        name = f"lightgbm-{sha256_text(text)[:16]}.txt"
        write_text(out / name, text)
        names.add(name)
        return name

    fitted = _map_trees(method.to_dict(), put)
    whole = {**content, "fitted": fitted}
    write_json(out / STACK, {**whole, HASH: _hash(whole)})
    for old in out.glob("lightgbm-*.txt"):
        if _TREE_FILE.fullmatch(old.name) and old.name not in names:  # others are not ours
            old.unlink(missing_ok=True)


def _hash(content: dict[str, Any]) -> str:
    return sha256_text(json.dumps(content, sort_keys=True))


def load_stack(path: Path) -> tuple[dict[str, Any], Blender]:
    """Read a stack's directory; returns what ``stack.json`` says and the fitted method.

    Raises
    ------
    UserError
        Not a stack, or a missing or damaged file.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such stack (a directory with {STACK}); make one with ensemble.stack")
    content = read_json(path / STACK, "stack")
    missing = [key for key in _KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(f"{path / STACK}: has no {listing(missing)}; is it a stack?")
    if content.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"{path / STACK}: has format {content['format']}, and this version reads {FORMAT}; make the "
            "stack again"
        )
    stated = content.pop(HASH, None)  # stacks made before there was one are taken as they are
    if stated is not None and stated != _hash(content):
        raise UserError(f"{path / STACK}: was changed after it was written; make the stack again")

    def get(name: str) -> str:
        file = path / str(name)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read ({error}); make the stack again") from error
        if file.name != f"lightgbm-{sha256_text(text)[:16]}.txt":
            raise UserError(f"{file}: does not hold what was written to it; make the stack again")
        return text

    try:
        method = from_dict(_map_trees(content["fitted"], get))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path / STACK}: holds no method that can be rebuilt ({error!r})") from error
    return content, method


def refuse_overwriting(target: Path, inputs: Iterable[Path]) -> None:
    """Refuse to write a file over one that was read."""
    for path in inputs:
        if target.exists() and path.exists() and target.samefile(path):
            raise UserError(f"{target}: is read as {path}, and would be written over; choose another --out")


def classes_of(content: dict[str, Any]) -> Classes:
    """The classes that a stack was fitted for."""
    swap = content.get("swap")
    return Classes(tuple(content["classes"]), None if swap is None else tuple(swap))
