"""What this Python lacks to run the commands, and which extra of the distribution brings a package."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

from data.errors import NO_LOCKS

DISTRIBUTION = "distillstack"
OURS = ("data", "ensemble", "distill")

NEEDED = ("numpy", "pyarrow", "fsspec")
"""What every command imports before it does anything."""
WHOLE = "all"
"""The extra that repeats others."""
DEVELOPERS = ("dev", "bench")
"""Extras that are named where no other brings a package."""
NEWEST_TOO_OLD = (3, 10)
_LINE = re.compile(r"([\w.-]+)(?:[^;]*>=\s*([\d.]+))?(?:.*extra == ['\"](\w+)['\"])?")
_ASKED = re.compile(r"pip install (?:-+\w+ )*['\"]?([\w-]+)")


def lacks() -> str:
    """Say what to do where this Python cannot run the commands; empty where it can."""
    if sys.version_info[:2] <= NEWEST_TOO_OLD:
        return other_python("is older than 3.11")
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


def requirements() -> list[tuple[str, str, str]]:
    """Module, lowest version and extra of each package that the distribution asks for.

    The version is empty where none is stated, the extra where the package always comes. Read from the
    sources where they are run without being installed.
    """
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        lines = _of_the_sources()
    found = (_LINE.match(line) for line in lines)
    return [(_module(m[1]), m[2] or "", m[3] or "") for m in found if m and m[3] != WHOLE]


def _of_the_sources() -> list[str]:
    """The requirements of ``pyproject.toml``, as an installed distribution states them."""
    import tomllib

    file = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if not file.is_file():
        return []
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].items()
    return project["dependencies"] + [f"{line}; extra == '{name}'" for name, all_ in extras for line in all_]


def _module(name: str) -> str:
    return name.lower().replace("-", "_")


def extra_of(module: str) -> str:
    """The extra that brings a module; empty where none does."""
    extras = [extra for name, _, extra in requirements() if extra and name == _module(module)]
    return min(extras, key=lambda extra: extra in DEVELOPERS, default="")


def require(*modules: str) -> None:
    """Refuse to begin what would end for want of a package.

    Raises
    ------
    ModuleNotFoundError
        One is not there; :func:`wanting` says what brings it.
    """
    for name in modules:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def wanting(error: BaseException) -> str:
    """Say for want of which package an error was raised, and what brings it; empty where for none.

    Libraries tell it by a :class:`ModuleNotFoundError`, by one that is another error's cause, or in words,
    ``pip install accelerate``; a package that is older than is asked for lacks a name.
    """
    cause: BaseException | None = error
    while isinstance(cause, ImportError):
        root = (cause.name or "").split(".")[0]
        if root in OURS:
            return ""
        if root and isinstance(cause, ModuleNotFoundError):
            return _brought(str(cause.name), extra_of(root))
        if root and (old := _too_old(root)):
            return old
        cause = cause.__cause__
    for name in _ASKED.findall(str(error)):
        if (extra := extra_of(name)) and find_spec(_module(name)) is None:
            return _brought(name, extra)
    return ""


def _brought(what: str, extra: str) -> str:
    if not extra:
        return other_python(f"lacks {what}")
    return f"needs {what}, which the extra {extra} brings: pip install '{DISTRIBUTION}[{extra}]'"


def _too_old(module: str) -> str:
    """Say that an installed package is older than the distribution asks for; empty where it is not."""
    from importlib.metadata import PackageNotFoundError, version

    for name, least, extra in requirements():
        if name != _module(module) or not least:
            continue
        try:
            found = version(module)
        except PackageNotFoundError:
            continue
        if _numbers(found) < _numbers(least):
            asked = f"{DISTRIBUTION}[{extra}]" if extra else DISTRIBUTION
            return f"needs {module} {least} or later, and {found} is installed: pip install '{asked}'"
    return ""


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]
