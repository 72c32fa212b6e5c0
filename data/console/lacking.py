"""What this Python lacks to run the commands, and which extra of the distribution brings a package."""

from __future__ import annotations

import re
import sys

from data.errors import NO_LOCKS

NEEDED = ("numpy", "pyarrow", "fsspec")
"""What every command imports before it does anything."""
WHOLE = ("all", "dev", "bench")
"""Extras that are not for one purpose."""
NEWEST_TOO_OLD = (3, 10)


def lacks() -> str:
    """Say what to do where this Python cannot run the commands; empty where it can."""
    if sys.version_info[:2] <= NEWEST_TOO_OLD:
        return other_python("is older than 3.11")
    from importlib.util import find_spec

    if find_spec("fcntl") is None:
        return NO_LOCKS
    missing = [name for name in NEEDED if find_spec(name) is None]
    return other_python(f"lacks {', '.join(missing)}") if missing else ""


def other_python(why: str) -> str:
    """Name this Python, what is wrong with it, and how to come to another."""
    version = ".".join(map(str, sys.version_info[:3]))
    return (
        f"{sys.executable or 'this Python'} (Python {version}) {why}: run make demo once and then "
        ".venv/bin/python, or pip install -e . in an environment of your own (Python 3.11 or newer)"
    )


def extra_of(module: str) -> str:
    """The extra of the installed distribution that brings a module; empty where none does."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires("distillstack") or []
    except PackageNotFoundError:  # run from the sources
        return ""
    for line in lines:
        found = re.match(r"([\w.-]+).*extra == ['\"](\w+)['\"]", line)
        if found and found[1].lower().replace("-", "_") == module.lower() and found[2] not in WHOLE:
            return found[2]
    return ""
