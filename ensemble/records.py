"""What is common to the directories that commands leave: held while they are made, hashed, never mixed up."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import locked, sha256_text

HASH = "content_hash"
STACK = "stack.json"
BOUND = ("predictions.parquet", "report.html")
"""What a stack is written with: ``stack.json`` holds their hashes."""
_HEAD = 2048


@contextmanager
def held_for(
    what: str, out: Path, inputs: Iterable[Path], files: Mapping[str, Callable[[Path], bool]]
) -> Iterator[None]:
    """Hold a directory while its files are made: what cannot be written is refused before the work.

    Parameters
    ----------
    what : str
        That which is made, for messages.
    out : Path
    inputs : iterable of Path
        Files that are read, which must not be written over.
    files : mapping of str to callable
        Names of the files that are to be written, and whether one that is there is of our making.

    Raises
    ------
    UserError
        Another command is writing there, the directory cannot be written, or a file in it is an input or
        none of ours.
    """
    inputs = list(inputs)
    for name, is_ours in files.items():
        refuse_overwriting(out / name, inputs)
        if (out / name).exists() and not is_ours(out / name):
            raise UserError(f"{out / name}: was written by no {what}; move it away, or choose another --out")
    with locked(out):
        if not os.access(out, os.W_OK | os.X_OK):
            raise UserError(f"{out}: cannot be written; choose another --out")
        yield


def begins_with(mark: bytes) -> Callable[[Path], bool]:
    """Whether a file has ``mark`` in its beginning."""

    def found(path: Path) -> bool:
        try:
            with open(path, "rb") as handle:
                return mark in handle.read(_HEAD)
        except OSError:
            return False

    return found


def refuse_overwriting(target: Path, inputs: Iterable[Path]) -> None:
    """Refuse to write a file over one that was read."""
    for path in inputs:
        if target.exists() and path.exists() and target.samefile(path):
            raise UserError(f"{target}: is read as {path}, and would be written over; choose another --out")


def hash_of(content: dict[str, Any]) -> str:
    """The hash of a record's content, which stands in it as :data:`HASH`."""
    return sha256_text(json.dumps(content, sort_keys=True))


def versions(*names: str) -> dict[str, str | None]:
    """The versions of installed packages, by name."""

    def one(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {name: one(name) for name in names}
