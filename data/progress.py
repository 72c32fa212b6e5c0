"""Progress bars: what is being done, at what rate and for how long yet; silent off a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def is_terminal() -> bool:
    """Whether progress should be drawn: standard error is a terminal, and this is the first process."""
    return sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"


def progress(items: Iterable[Item], what: str, total: int | None = None, unit: str = "it") -> Iterator[Item]:
    """Iterate over ``items`` behind a progress bar named ``what``."""
    from tqdm import tqdm

    yield from tqdm(items, desc=what, total=total, unit=unit, disable=not is_terminal(), leave=False)
