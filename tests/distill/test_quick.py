"""What a command imports it imports once, without the compiler, and nobody looks for garbage among it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from recipes import ROOT

from distill.quick import compiled_when_called

COMMANDS = {
    "teacher_oof": "distill.cluster.launch",
    "doctor": "distill.runs.saved, distill.doctor.examine",
}
CHECK = """
import gc, sys, {imports}
assert gc.isenabled()
assert gc.get_freeze_count() > 100_000
assert "bitsandbytes" in sys.modules
assert "torch._inductor.compile_fx" not in sys.modules
import torch
assert torch.compile.__module__ == "torch"
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_starts_without_the_compiler(command: str) -> None:
    code = CHECK.format(imports=COMMANDS[command])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_model_made_before_is_collected() -> None:
    code = "import gc, torch, distill.quick; assert not gc.get_freeze_count(); assert gc.isenabled()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_kernel_is_compiled_when_it_is_called_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_now(function, **options):
        compiled.append(options)
        return lambda x: 10 * function(x)

    monkeypatch.setattr("torch.compile", compile_now)

    @compiled_when_called(dynamic=True)
    def plus_one(x: int) -> int:
        return x + 1

    @compiled_when_called
    def plus_two(x: int) -> int:
        return x + 2

    assert not compiled
    assert [plus_one(1), plus_one(2), plus_two(1)] == [20, 30, 30]
    assert compiled == [{"dynamic": True}, {}]
