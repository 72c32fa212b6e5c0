"""``distillstack COMMAND``: one command beside ``python -m``, and packages of other projects noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from recipes import ROOT

import distillstack

COMMAND = [sys.executable, "-c", "import distillstack; distillstack.main()"]  # as the installed script does


def run(words: list[str], cwd: Path, front: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(place) for place in (front, ROOT) if place is not None)
    return subprocess.run(
        words, cwd=cwd, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


def test_every_command_is_listed_with_what_it_does(tmp_path: Path) -> None:
    shown = run([*COMMAND, "--help"], tmp_path).stdout
    for name, module in distillstack.COMMANDS.items():
        (line,) = (line for line in shown.splitlines() if line.split()[:1] == [name])
        assert len(line.split()) > 4, line
        assert hasattr(import_module(module), "main")
        assert module.removesuffix(".__main__") in shown


def test_help_imports_nothing_of_the_packages(tmp_path: Path) -> None:
    check = (
        "import sys, distillstack\nsys.argv = ['distillstack']\ndistillstack.main()\n"
        "assert not {'data', 'ensemble', 'distill', 'numpy'} & set(sys.modules)"
    )
    assert run([sys.executable, "-c", check], tmp_path).returncode == 0


def test_a_command_is_run_as_python_m_runs_it(tmp_path: Path) -> None:
    done = run([*COMMAND, "teacher_oof", "--recipe", "nonsense"], tmp_path)
    same = run([sys.executable, "-m", "distill.teacher_oof", "--recipe", "nonsense"], tmp_path)
    assert (done.returncode, done.stderr) == (same.returncode, same.stderr) == (2, same.stderr)
    assert "no such recipe" in done.stderr


@pytest.mark.parametrize(
    "words", [[*COMMAND, "stack-predict"], [sys.executable, "-m", "distillstack", "stack-predict"]]
)
def test_help_calls_a_command_as_it_was_called(words: list[str], tmp_path: Path) -> None:
    shown = run([*words, "--help"], tmp_path).stdout
    assert shown.startswith("usage: distillstack stack-predict ")
    assert "\n  distillstack stack-predict --" in shown
    assert "python -m ensemble.predict" not in shown
    plain = run([sys.executable, "-m", "ensemble.predict", "--help"], tmp_path).stdout
    assert plain.startswith("usage: python -m ensemble.predict ")


def test_an_unknown_command_is_one_line(tmp_path: Path) -> None:
    done = run([*COMMAND, "stac"], tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: distillstack stac: is no command; is it stack?\n"


@pytest.mark.parametrize("words", [[*COMMAND, "stack"], [sys.executable, "-m", "ensemble.stack"]])
def test_another_projects_package_in_front_is_named(words: list[str], tmp_path: Path) -> None:
    foreign = tmp_path / "data"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("")
    done = run(words, tmp_path, front=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: import data finds {foreign / '__init__.py'}, which is not")
    assert done.stderr.count("\n") == 1


def test_a_plain_directory_of_that_name_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert run([*COMMAND, "stack", "--version"], tmp_path, front=tmp_path).returncode == 0
