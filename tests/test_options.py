"""Every option that a message recommends exists, in the command that shows it or in the one it names."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from recipes import ROOT

from data.console.command import CommandParser

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
MODULES = {
    "data.prepare": "data.prepare",
    "distill.teacher_oof": "distill.teacher_oof",
    "distill.student": "distill.student",
    "distill.predict": "distill.predict",
    "distill.export": "distill.export",
    "distill.average": "distill.average",
    "distill.doctor": "distill.doctor.__main__",
    "distill.race": "distill.race.__main__",
    "ensemble.stack": "ensemble.stack",
    "ensemble.predict": "ensemble.predict",
    "ensemble.route": "ensemble.route",
}
TRAINING = ("distill.teacher_oof", "distill.student")
SHOWN_BY = {
    "data": ("data.prepare",),
    "ensemble": ("ensemble.stack", "ensemble.predict"),
    "ensemble/routing": ("ensemble.route",),
    "distill": tuple(name for name in MODULES if name.startswith("distill.")),
    "distill/race": ("distill.race",),
    "distill/doctor": ("distill.doctor",),
    "distill/prediction": ("distill.predict", "distill.export"),
    "distill/teaching": TRAINING,
    "distill/cluster": (*TRAINING, "distill.predict"),
    "distill/runs": (*TRAINING, "distill.race", "distill.predict", "distill.export", "distill.average"),
}
"""Whose messages a room's are, unless one names the command itself."""


class Found(Exception):
    pass


@pytest.fixture(scope="module")
def options():
    """The options of every command."""
    found = {}

    def spy(parser, *_):
        raise Found(parser.options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CommandParser, "parse_known_args", spy)
        for command, module in MODULES.items():
            with pytest.raises(Found) as caught:
                importlib.import_module(module).main([])
            (found[command],) = caught.value.args
    return found


def texts(file: Path):
    """The texts of a file, those in several pieces as one, without docstrings and option names alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inner = {id(n) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for n in ast.walk(node)}
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner | docs:
            yield node.lineno, node.value


def unknown(file: Path, options: dict[str, set[str]]) -> list[str]:
    """Options that a file's texts name and no command that they are about has."""
    name = file.relative_to(ROOT).as_posix()
    own = [command for command, module in MODULES.items() if module == name[:-3].replace("/", ".")]
    room = max((key for key in SHOWN_BY if name.startswith(f"{key}/")), key=len)
    found = []
    for line, text in texts(file):
        for mark in OPTION.finditer(text):
            before = text[: mark.start()]
            named = [c for c in MODULES if c in before or c.split(".")[1] in before.split()]
            about = {*(own or SHOWN_BY[room]), *named}
            if mark[0] != text and not any(mark[0] in options[command] | {"--help"} for command in about):
                found.append(f"{name}:{line}: {mark[0]}")
    return found


@pytest.mark.parametrize("package", ["data", "ensemble", "distill"])
def test_messages_recommend_options_that_exist(package, options):
    wrong = [w for file in sorted((ROOT / package).rglob("*.py")) for w in unknown(file, options)]
    assert not wrong, wrong


def test_an_option_that_no_command_has_would_be_found(options, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "ensemble").mkdir()
    file = tmp_path / "ensemble" / "stack.py"
    file.write_text('x = 1\nraise ValueError(f"{x}: give --average-folds")\n')
    assert unknown(file, options) == ["ensemble/stack.py:2: --average-folds"]
    file.write_text('raise ValueError("use ensemble.predict --average-folds")\n')
    assert not unknown(file, options)


def test_what_reading_rows_recommends_is_said_to_be_data_prepare_s(tmp_path):
    """``distill.predict`` reads as ``data.prepare`` does, without all of its options."""
    code = (
        "from data.console.command import parser_of, run\n"
        "from data.sources.plan import read_column_map\n"
        "def main(argv):\n"
        "    parser_of('distill.export', 'x', 'x').parse_args(argv)\n"
        "    read_column_map(['prompt'])\n"
        "run(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--columns prompt: give field=column" in done.stderr
    assert "(--columns: of python -m data.prepare; prepare the rows with it first)" in done.stderr
