"""How a unit ends that runs elsewhere, how often it may start, and where what it writes goes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data import storage
from data.errors import UserError
from data.files import make_directory

RETRIES = 8
"""Starts after the first one, each for a lost machine or process, never for an error of the unit's own."""
POLL_S = 1.0
"""How often it is looked at."""


@dataclass(frozen=True)
class Outcome:
    """How a unit ended: ``error`` is empty if it is finished."""

    unit: str
    error: str = ""


def told(error: Exception) -> str:
    """An error as text, so that only a lost process looks lost: a user's mistake as it is, others by kind."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Append everything that this process writes, libraries in C included, to a file."""
    make_directory(log.parent)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        storage.publish(log)
