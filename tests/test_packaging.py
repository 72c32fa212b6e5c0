"""An archive of the sources makes a wheel that, installed elsewhere, has every file and runs the demo."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
from absent import without
from recipes import ROOT

SMALL = ["data.rows=60", "data.folds=2"]
SHORT = [
    f"{model}.{key}"
    for model in ("teachers.llama", "teachers.gemma2", "student")
    for key in ("backbone.tiny.pretrain_steps=2", "train.epochs=0.2", "encode.max_length=96")
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a wheel of these sources' archive was installed, apart from them."""
    source, wheels, site = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "site"))
    for name in ("data", "ensemble", "distill"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "distillstack.py"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--no-input"]
    archive = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", wheels]
    subprocess.run(archive, cwd=source, check=True, capture_output=True)
    (packed,) = wheels.glob("*.tar.gz")
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", wheels, packed],
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


def test_what_is_installed_with_it_is_what_data_and_ensemble_need(installed: Path) -> None:
    (found,) = distributions(path=[str(installed)], name="distillstack")
    needed = {re.split(r"[^\w-]", line)[0] for line in found.requires or [] if "extra ==" not in line}
    assert {"numpy", "lightgbm", "pyarrow"} <= needed
    assert not {"torch", "transformers", "peft", "datasets"} & needed
    extras = {line.split("extra == ")[1].strip("'\"") for line in found.requires or [] if "extra ==" in line}
    assert {"train", "hub", "onnx", "ray", "s3", "all"} <= extras
    assert {entry.name for entry in found.entry_points if entry.group == "console_scripts"} == {
        "distillstack"
    }


def test_a_command_whose_extra_is_not_there_names_it(installed: Path, tmp_path: Path) -> None:
    environment = without({"torch", "transformers", "datasets"}, tmp_path, installed)
    words = [sys.executable, "-m", "distill.teacher_oof"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'distillstack[train]'" in done.stderr
    assert done.stderr.count("\n") == 1
    words[1:] = ["-c", "from distill import load_run"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: needs t")
    assert "distillstack[train]" in done.stderr.splitlines()[-1]


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
    assert "teacher-oof" in run("distillstack", "--help")
    run("distill.teacher_oof", *SMALL, *SHORT)
    run("distill.student", *SMALL, *SHORT)
    assert "chosen" in run("ensemble.stack")
    assert (tmp_path / "runs" / "demo" / "stack" / "report.html").exists()
