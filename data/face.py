"""A package's public face: names that are imported when they are first asked for.

The names stand once, as imports in the ``__init__.pyi`` beside the package's ``__init__.py``, where type
checkers and editors read them; at run time this does. So ``import ensemble`` costs nothing, and
``from ensemble import blend`` what blending needs.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def face(package: str, file: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__all__``, ``__getattr__`` and ``__dir__``.

    Parameters
    ----------
    package, file : str
        Its ``__name__`` and ``__file__``.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    places = {
        alias.name: str(node.module)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def attribute(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(import_module(places[name]), name)
        setattr(sys.modules[package], name, found)
        return found

    return sorted(places), attribute, lambda: sorted({*vars(sys.modules[package]), *places})
