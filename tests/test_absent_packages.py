"""A command or script for which a package is missing says which and what brings it, and writes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from absent import without

TRAIN = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "tokenizers"}


def said(command: list[str], packages: set[str], place: Path) -> str:
    """Run a command that must fail for want of a package; return its one line."""
    environment = without(packages, place / "absent")
    (place / "here").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=place / "here",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert not list((place / "here").iterdir())
    return done.stderr


@pytest.mark.parametrize("script", ["gpu_training", "second_stage", "doctor", "study_report"])
def test_a_script_that_imports_it_first_names_the_extra(script, tmp_path):
    """Whether torch is imported by the script itself, by another script, or through a package's face."""
    assert "pip install 'distillstack[train]'" in said([f"benchmarks.{script}", "--help"], TRAIN, tmp_path)


@pytest.mark.parametrize(
    ("missing", "extra"), [("accelerate", "train"), ("gguf", "bench"), ("transformers", "train")]
)
def test_models_are_not_fetched_for_want_of_what_opens_them(missing, extra, tmp_path):
    command = ["benchmarks.pretrained", "get", "--out", "models", "--only", "smollm2-135m"]
    line = said(command, {missing}, tmp_path)
    assert line.startswith(f"error: needs {missing}, ")
    assert f"'distillstack[{extra}]'" in line


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("accelerate", "distill.predict --model {run} --data {rows} --out new.csv"),
        ("accelerate", "distill.export --model {run} --out export"),
        ("accelerate", "distill.student --data {data} --dry-run"),
        ("peft", "distill.predict --model {run} --data {rows} --out new.csv"),
        ("torch", "distill.race --backbones a b"),
        ("onnxscript", "distill.export --model {run} --out export --onnx"),
        ("ray", "distill.predict --model {run} --data {rows} --out parts --launcher ray"),
        ("datasets", "data.prepare --source some/dataset --out prepared"),
    ],
)
def test_a_command_names_the_extra(missing, command, trained, tmp_path):
    places = {"run": trained / "student", "rows": trained / "rows.parquet", "data": trained}
    line = said([word.format(**places) for word in command.split()], {missing}, tmp_path)
    extra = {"onnxscript": "onnx", "ray": "ray", "datasets": "hub"}.get(missing, "train")
    assert f"pip install 'distillstack[{extra}]'" in line
