"""An environment for subprocesses in which some packages are not there, as if they had not been installed."""

from __future__ import annotations

import os
from pathlib import Path

from recipes import ROOT

FINDER = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.split(".")[0] in {absent!r}
        return None if absent else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def without(packages: set[str], directory: Path, sources: Path = ROOT) -> dict[str, str]:
    """Variables of such an environment; ``directory`` takes what makes it so."""
    directory.mkdir(exist_ok=True)
    (directory / "sitecustomize.py").write_text(FINDER.replace("{absent!r}", repr(packages)))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(sources), str(directory)])}
