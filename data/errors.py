"""The one exception that stands for a user's mistake.

Libraries raise it with a message that names the file, the row or the field and says what to do;
:func:`data.command.run` turns it into one line on standard error and exit status 2.
"""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave: a file, a column, a value, an option."""


def listing(items: Iterable[object], limit: int = 5) -> str:
    """Join ``items`` for a message, naming at most ``limit`` of them and counting the rest."""
    values = [str(item) for item in items]
    shown = ", ".join(values[:limit])
    rest = len(values) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown


def brief(value: object, limit: int = 200) -> str:
    """Return ``value`` as one line of text that is short enough for a message."""
    text = " ".join(str(value)[: 4 * limit].split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
