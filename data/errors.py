"""The one exception that stands for a user's mistake.

Libraries raise it with a message that names the file, the row or the field and says what to do;
:func:`data.console.command.run` turns it into one line on standard error and exit status 2.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable

_USER = re.compile(r"://[^/\s@]*@")
_SPACED = re.compile(r"[\s,;]")
_QUERY = re.compile(r"(://[^\s?]*)\?[^\s]*")

NO_LOCKS = (
    "this system has no file locks (Python's fcntl), by which two commands stay out of each other's files: "
    "Windows is not supported; use Linux, macOS or the Windows Subsystem for Linux"
)


class UserError(Exception):
    """A mistake in what the user gave: a file, a column, a value, an option."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space on the disk, or none that this user may fill, or a file longer than allowed."""

TORCH_CANNOT_WRITE = ("PytorchStreamWriter failed writing file", "inline_container.cc:", "unexpected pos")
"""What ``torch.save`` says instead of the system's words: the first, or both of the others."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that no more could be written.

    Libraries that write in C++ or Rust (torch, safetensors) raise kinds of their own, whose text ends in
    the system's words.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL:
            return True
        text = str(cause)
        if any(os.strerror(number) in text for number in FULL):
            return True
        if TORCH_CANNOT_WRITE[0] in text or all(words in text for words in TORCH_CANNOT_WRITE[1:]):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def listing(items: Iterable[object], limit: int = 5, names: bool = True) -> str:
    """Join ``items`` for a message, naming at most ``limit`` of them and counting the rest.

    ``names`` are shown as :func:`named` shows them; phrases are left as they are.
    """
    values = [named(str(item)) if names else printable(str(item)) for item in items]
    shown = ", ".join(values[:limit])
    rest = len(values) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown


def named(name: str) -> str:
    """Return a name for a message: in quotes where a reader could not tell where it begins and ends."""
    text = printable(name)
    return text if text and not _SPACED.search(text) else repr(text)


def printable(text: str) -> str:
    """Return ``text`` as it may be shown: without what commands a terminal, and without secrets."""
    text = without_credentials(text)
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def without_credentials(text: str) -> str:
    """Return ``text`` without the users, passwords and queries of the addresses in it, chained ones too."""
    if "://" not in text:
        return text
    return _QUERY.sub(r"\1?…", _USER.sub("://…@", text))


def brief(value: object, limit: int = 200) -> str:
    """Return ``value`` as one line of text that is short enough for a message."""
    text = printable(" ".join(str(value)[: 4 * limit].split()))
    return text if len(text) <= limit else text[: limit - 3] + "..."
