"""The project's wheel, built from a copy of its sources."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from recipes import ROOT


def build_wheel(into: Path) -> Path:
    """Build the wheel into a directory, with nothing from a network."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        for name in ("data", "ensemble", "distill"):
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("distillstack.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source / name)
        done = subprocess.run(
            [*(sys.executable, "-m", "pip", "--no-input", "wheel", "--no-deps", "--no-index"),
             *("--no-build-isolation", "-w", str(into), folder)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return next(into.glob("distillstack-*.whl"))
