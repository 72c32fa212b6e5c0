"""What is being done, how far it is and for how long yet: a bar on a terminal, a line a minute off it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ClassVar, TypeVar

Item = TypeVar("Item")


EVERY_S = 60.0
"""How often a line is written where no bar can be drawn."""
_stage: ContextVar[str] = ContextVar("stage", default="")


def is_terminal() -> bool:
    """Whether progress should be drawn: standard error is a terminal, and this is the first process."""
    return sys.stderr.isatty() and is_first()


def is_first() -> bool:
    """Whether this is the first of the command's processes, the one that tells."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Begin the lines of all progress inside with ``name``, such as "unit 2 of 4"."""
    token = _stage.set(name)
    try:
        yield
    finally:
        _stage.reset(token)


class Lines:
    """Lines on how far something is, for logs: one a minute, none on a terminal.

    The minute is the command's: many things that take less, one after another, are told of as well.

    Parameters
    ----------
    what : str
        What is being done.
    total : float or None
        All there is to do.
    unit : str
    done : float
        Of it, before this start.
    """

    _told: ClassVar[float | None] = None
    """When the last line was written; at first, when the first of these was made."""

    def __init__(self, what: str, total: float | None, unit: str, done: float = 0.0) -> None:
        self.what, self.total, self.unit, self._before = what, total, unit, done
        self._started = time.monotonic()
        if Lines._told is None:
            Lines._told = self._started
        self._quiet = sys.stderr.isatty() or not is_first()

    def tell(self, done: float, more: str = "") -> None:
        """Say that so much is done, if a minute has passed since the last line."""
        now = time.monotonic()
        if self._quiet or now - (Lines._told or 0.0) < EVERY_S:
            return
        Lines._told = now
        parts = [
            f"{done:,.0f} of {self.total:,.0f} {self.unit}" if self.total else f"{done:,.0f} {self.unit}"
        ]
        parts += [more] if more else []
        if self.total and done > self._before:
            left = (now - self._started) * (self.total - done) / (done - self._before)
            parts.append(f"{in_words(left)} left")
        head = f"{_stage.get()}: " if _stage.get() else ""
        print(f"{time.strftime('%H:%M')} {head}{self.what}: {', '.join(parts)}", file=sys.stderr, flush=True)


def in_words(seconds: float | None) -> str:
    """Return a duration as people say it."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def progress(items: Iterable[Item], what: str, total: int | None = None, unit: str = "it") -> Iterator[Item]:
    """Iterate over ``items`` behind a progress bar named ``what``."""
    from tqdm import tqdm

    if is_terminal():
        yield from tqdm(items, desc=what, total=total, unit=unit, leave=False)
        return
    plural = "" if unit.endswith("s") else "es" if unit.endswith("ch") else "s"
    many = "items" if unit == "it" else f"{unit}{plural}"
    lines = Lines(what, len(items) if total is None and isinstance(items, Sized) else total, many)
    for number, item in enumerate(items):
        lines.tell(number)
        yield item


def progress_of_tokens(items: Sequence[Item], what: str, tokens: Sequence[int]) -> Iterator[Item]:
    """Iterate behind a bar of tokens: tokens and rows a second, and the time left as tokens tell it.

    Parameters
    ----------
    items : sequence of sized
        Each as long as it has rows.
    tokens : sequence of int
        Tokens of each item.
    """
    from tqdm import tqdm

    bar = tqdm(
        desc=what, total=sum(tokens), unit="tok", unit_scale=True, disable=not is_terminal(), leave=False
    )
    rows, done, started = 0, 0, time.monotonic()
    lines = Lines(what, sum(tokens), "tokens")
    with bar:
        for item, size in zip(items, tokens, strict=True):
            yield item
            rows += len(item)  # type: ignore[arg-type]
            bar.set_postfix_str(f"{rows / max(1e-9, time.monotonic() - started):.1f} rows/s", refresh=False)
            bar.update(size)
            done += size
            lines.tell(done)
