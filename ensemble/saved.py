"""A stack on disk: ``stack.json`` and LightGBM's own text files, enough to predict in a new process.

Trees are kept in files named by the hash of what they hold, so that a stack never refers to trees that
another run wrote over, and damage is noticed. ``stack.json`` holds the hash of its own content.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data.classes import Classes
from data.errors import UserError, brief, listing
from data.files import read_json, sha256_files, sha256_text, write_json, write_text
from data.schema import Rows
from ensemble.methods import catalogue  # noqa: F401 (a stack may hold any of its kinds)
from ensemble.methods.base import Blender, from_dict
from ensemble.methods.model_text import checked_model
from ensemble.reading.features import row_features
from ensemble.reading.fresh import Fresh
from ensemble.reading.maps import JudgeMap
from ensemble.records import BOUND, HASH, STACK, hash_of
from ensemble.scoring.draws import interval
from ensemble.scoring.draws import maps_of as draw_maps

FORMAT = 2
_TREES = "trees_"
_TREE_FILE = re.compile(r"lightgbm-[0-9a-f]{16}\.txt")
_KEYS = ("classes", "members", "chosen", "fitted")


def _names(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(name, str) for name in value)
        and len(set(value)) == len(value)
    )


_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "classes": (_names, "a list of distinct names"),
    "members": (_names, "a list of distinct names"),
    "chosen": (lambda value: isinstance(value, str), "a name"),
    "fitted": (lambda value: isinstance(value, dict), "a fitted method"),
    "files": (lambda value: isinstance(value, dict), "hashes of files"),
    "maps": (lambda value: isinstance(value, dict), "maps of judges"),
    "draws": (lambda value: isinstance(value, list), "a list of draws"),
    "swap": (
        lambda value: value is None or (isinstance(value, list) and all(type(k) is int for k in value)),
        "a list of class numbers",
    ),
}


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
    write_json(out / STACK, {**whole, HASH: hash_of(whole)})
    for old in out.glob("lightgbm-*.txt"):
        if _TREE_FILE.fullmatch(old.name) and old.name not in names:  # others are not ours
            old.unlink(missing_ok=True)


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
    if stated is not None and stated != hash_of(content):
        raise UserError(f"{path / STACK}: was changed after it was written; make the stack again")

    for key, (fits, kind) in _TYPES.items():
        if key in content and not fits(content[key]):
            raise UserError(
                f"{path / STACK}: {key} is {brief(repr(content[key]))}, not {kind}; make the stack again"
            )
    _refuse_mixture(path, content.get("files") or {})

    def get(name: str) -> str:
        if not isinstance(name, str) or not _TREE_FILE.fullmatch(name):
            raise UserError(
                f"{path / STACK}: names {brief(repr(name))} as a file of trees; make the stack again"
            )
        file = path / name
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read ({error}); make the stack again") from error
        if file.name != f"lightgbm-{sha256_text(text)[:16]}.txt":
            raise UserError(f"{file}: does not hold what was written to it; make the stack again")
        try:
            return checked_model(text)
        except ValueError as error:
            raise UserError(f"{file}: is no model of trees ({error}); make the stack again") from error

    try:
        method = from_dict(_map_trees(content["fitted"], get))
        if not isinstance(method, Blender):
            raise TypeError(f"{type(method).__name__} is no method")
    except UserError:
        raise
    except (ArithmeticError, LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path / STACK}: holds no method that can be rebuilt ({brief(repr(error))}); make the stack "
            "again"
        ) from error
    try:
        classes_of(content)
    except UserError as mistake:
        raise UserError(f"{path / STACK}: {mistake}; make the stack again") from mistake
    return content, method


def maps_of(path: Path, content: dict[str, Any]) -> dict[str, JudgeMap]:
    """What a stack learnt of its judges, by their name.

    Raises
    ------
    UserError
        They are damaged.
    """
    try:
        found = {name: JudgeMap.from_dict(state) for name, state in content.get("maps", {}).items()}
        for judge_map in found.values():
            judge_map(np.full((1, 2), np.nan))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path / STACK}: holds no map of a judge that can be rebuilt ({brief(repr(error))}); make the "
            "stack again"
        ) from error
    return found


def interval_of(
    path: Path, content: dict[str, Any], fresh: Fresh, probs: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ends (n, K) of 95 % around a stack's probabilities of fresh rows, ``at`` their places.

    Raises
    ------
    UserError
        The stack's draws are damaged.
    """
    try:
        draws, drawn_from = content["draws"], from_dict(content["drawn_from"])
        known = drawn_from.predict_proba(fresh.seen(maps_of(path, content))[at])
        return interval(probs, known, draws, [fresh.seen(draw_maps(draw))[at] for draw in draws])
    except (ArithmeticError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path / STACK}: holds no draws that can be rebuilt ({brief(repr(error))}); make the stack again"
        ) from error


def _refuse_mixture(path: Path, files: Any) -> None:
    """Refuse files that stand beside ``stack.json`` and are not those it was written with.

    A command killed between its files leaves new ones with an old ``stack.json``. One that is missing was
    perhaps not copied, and is not needed to predict.
    """
    for name, digest in files.items():
        if name in BOUND and (path / name).is_file() and sha256_files([path / name]) != digest:
            raise UserError(
                f"{path / name}: was not written with the {STACK} beside it, by a command that was killed "
                "or a change since; make the stack again"
            )


def apply_stack(path: Path, method: Blender, P: np.ndarray, rows: Rows | None) -> np.ndarray:
    """Predict probabilities (n, K) from members' predictions (n, members, K) and, where it needs them, rows.

    Raises
    ------
    UserError
        The method needs rows and there are none, or what it holds does not fit together.
    """
    try:
        needs_rows = method.needs_rows
        if needs_rows and rows is None:
            raise UserError(
                f"{path}: looks at the rows themselves too; give the file that distill.predict was given, "
                "with --data FILE"
            )
        X = row_features(rows) if needs_rows and rows is not None else None
        with np.errstate(all="ignore"):
            probs = np.asarray(method.predict_known(P, X), dtype=np.float64)
            sound = probs.shape == (len(P), P.shape[2]) and bool(
                (probs >= 0).all() and np.allclose(probs.sum(axis=1), 1, atol=1e-6)
            )
    except UserError:
        raise
    except Exception as error:  # a stack.json may hold any JSON, and what it leads to is anybody's guess
        raise UserError(
            f"{path / STACK}: cannot predict ({brief(repr(error))}); make the stack again"
        ) from error
    if not sound:
        raise UserError(f"{path / STACK}: gives no probabilities; make the stack again")
    return probs


def classes_of(content: dict[str, Any]) -> Classes:
    """The classes that a stack was fitted for."""
    swap = content.get("swap")
    return Classes(tuple(content["classes"]), None if swap is None else tuple(swap))
