"""Progress bars: what is being done, at what rate and for how long yet; silent off a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def is_terminal() -> bool:
    """Whether progress should be drawn: standard error is a terminal, and this is the first process."""
    return sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"


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

    yield from tqdm(items, desc=what, total=total, unit=unit, disable=not is_terminal(), leave=False)


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
    rows, started = 0, time.monotonic()
    with bar:
        for item, size in zip(items, tokens, strict=True):
            yield item
            rows += len(item)  # type: ignore[arg-type]
            bar.set_postfix_str(f"{rows / max(1e-9, time.monotonic() - started):.1f} rows/s", refresh=False)
            bar.update(size)
