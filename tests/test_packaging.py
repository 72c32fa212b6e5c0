"""A wheel installed elsewhere holds every file that a command needs, and runs the demo."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from recipes import ROOT

SMALL = ["data.rows=60", "data.folds=2"]
SHORT = [
    f"{model}.{key}"
    for model in ("teachers.llama", "teachers.gemma2", "student")
    for key in ("backbone.tiny.pretrain_steps=2", "train.epochs=0.2", "encode.max_length=96")
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a wheel of these sources was installed, apart from them."""
    source, wheels, site = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "site"))
    for name in ("data", "ensemble", "distill"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "distillstack.py"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--no-input"]
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", wheels, source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert "Warning" not in built.stdout + built.stderr
    wheel = next(wheels.glob("*.whl"))
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", "--target", site, wheel], check=True)
    return site


def test_every_file_of_the_sources_is_there(installed: Path) -> None:
    def files(root: Path) -> set[Path]:
        found = (
            path.relative_to(root)
            for name in ("data", "ensemble", "distill")
            for path in (root / name).rglob("*")
        )
        return {path for path in found if path.suffix not in {"", ".pyc"}}

    assert files(installed) == files(ROOT)


def test_it_runs_the_demo(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import data, ensemble, distill; print(data.__file__, ensemble.__file__, distill.__file__)"
    shown = subprocess.check_output([sys.executable, "-c", where], cwd=tmp_path, env=environment, text=True)
    assert shown.count(str(installed)) == 3
    run("distill.teacher_oof", *SMALL, *SHORT)
    run("distill.student", *SMALL, *SHORT)
    assert "chosen" in run("ensemble.stack")
    assert (tmp_path / "runs" / "demo" / "stack" / "report.html").exists()
