"""The floors: imports run downward only, without cycles, and the lower two need no torch."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"data": 1, "ensemble": 2, "distill": 3}

BLOCK_TORCH = """
import importlib, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "peft", "bitsandbytes", "accelerate"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
for name in sys.argv[1:]:
    importlib.import_module(name)
assert "torch" not in sys.modules
"""


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(file: Path, everywhere: bool) -> set[str]:
    """Names of our modules that a file imports: everywhere in it, or only when it is itself imported."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if not everywhere:
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                    continue
                if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                    continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}: relative import"
                base = child.module or ""
                found.add(base)
                found.update(f"{base}.{alias.name}" for alias in child.names)
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return {name for name in found if name.split(".")[0] in FLOORS}


@pytest.mark.parametrize("package", FLOORS)
def test_imports_run_downward(package: str) -> None:
    for file in modules(package):
        for name in imported(file, everywhere=True):
            assert FLOORS[name.split(".")[0]] <= FLOORS[package], f"{file} imports {name}"


def test_no_module_is_part_of_an_import_cycle() -> None:
    names = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for package in FLOORS
        for file in modules(package)
    }
    graph = {name: imported(file, everywhere=False) & set(names) - {name} for name, file in names.items()}
    while graph:
        leaves = [name for name, needs in graph.items() if not needs & set(graph)]
        assert leaves, f"cycle among {sorted(graph)}"
        for name in leaves:
            del graph[name]


@pytest.mark.parametrize("package", ["data", "ensemble"])
def test_imports_without_torch(package: str) -> None:
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in modules(package)]
    command = [sys.executable, "-c", BLOCK_TORCH, *[name.removesuffix(".__init__") for name in names]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["ensemble.stack", "ensemble.predict"])
def test_help_answers_at_once(command: str) -> None:
    def once() -> float:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", command, "--help"], cwd=ROOT, capture_output=True, check=False
        )
        assert done.returncode == 0
        return time.perf_counter() - start

    allowed = 0.5 * (1 + os.getloadavg()[0] / (os.cpu_count() or 1))  # a busy machine is slower
    assert min(once() for _ in range(3)) < allowed


def test_no_pickle_anywhere() -> None:
    for package in FLOORS:
        for file in modules(package):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    assert not {alias.name for alias in node.names} & {"pickle", "joblib", "dill"}, file
                if isinstance(node, ast.ImportFrom):
                    assert node.module not in {"pickle", "joblib", "dill"}, file
