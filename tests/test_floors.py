"""The floors: imports run downward only, without cycles, and the lower two need no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from recipes import ROOT

from docs.map import PICTURE, circles, depths, draw, file_graph, imported, modules, room_graph

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


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", FLOORS)
def test_imports_run_downward(package: str) -> None:
    for file in files_of(package):
        for name in imported(file):
            floor = FLOORS.get(name.split(".")[0], 0)
            assert floor <= FLOORS[package], f"{file} imports {name}"


def test_no_import_runs_in_a_circle() -> None:
    """Neither among files nor among rooms; imports inside functions and for type checkers count."""
    assert not circles(file_graph())
    assert not circles(room_graph())


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}


def test_rooms_are_one_level_deep_and_no_chain_of_them_is_long() -> None:
    for name, file in modules().items():
        parts = len(name.split(".")) - (file.name != "__init__.py")
        assert parts <= 2, f"{file} lies deeper than a room"
    graph = {
        room: {need for need in needs if need.startswith("distill.")}
        for room, needs in room_graph().items()
        if room.startswith("distill.")
    }
    room, depth = max(depths(graph).items(), key=lambda item: item[1])
    assert depth <= 8, f"{room} stands {depth} rooms above the ground"


def test_the_map_shows_the_imports_of_today() -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw(), "python -m docs.map draws it anew"


@pytest.mark.parametrize("package", ["data", "ensemble"])
def test_imports_without_torch(package: str) -> None:
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files_of(package)]
    command = [sys.executable, "-c", BLOCK_TORCH, *[name.removesuffix(".__init__") for name in names]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_pickle_anywhere() -> None:
    for package in FLOORS:
        for file in files_of(package):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    assert not {alias.name for alias in node.names} & {"pickle", "joblib", "dill"}, file
                if isinstance(node, ast.ImportFrom):
                    assert node.module not in {"pickle", "joblib", "dill"}, file
