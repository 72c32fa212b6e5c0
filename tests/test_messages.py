"""Every option that a message recommends exists in the command that it is said by, or names its command."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = {
    "data": ["data.prepare"],
    "ensemble/reading": ["ensemble.stack"],
}
"""Whose messages are said by which commands."""
ELSEWHERE = re.compile(r"(?:python -m )?((?:data|ensemble|distill)\.\w+):? [^;,]*$")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def options_of(command: str) -> set[str]:
    """Options as the command's own file states them."""
    module = Path(*command.split("."))
    file = ROOT / module.with_suffix(".py")
    texts = [node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)]
    return {text for text in texts if isinstance(text, str) and OPTION.fullmatch(text)}


def messages(file: Path) -> list[str]:
    """Text literals of a file, f-strings joined, docstrings left out."""
    tree = ast.parse(file.read_text())
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and isinstance(node.body[0], ast.Expr)
    }
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
            found.append("".join(map(str, parts)))
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in inside | documents
        ):
            found.append(node.value)
    return found


@pytest.mark.parametrize("room", COMMANDS)
def test_options_that_messages_name_exist(room: str) -> None:
    known = set().union(*(options_of(command) for command in COMMANDS[room]))
    assert len(known) > 5
    seen = 0
    for file in sorted((ROOT / room).rglob("*.py")):
        for message in messages(file):
            for option in OPTION.finditer(message):
                before = ELSEWHERE.search(message[: option.start()])
                there = options_of(before[1]) if before else known
                assert option[0] in there, f"{file.relative_to(ROOT)}: {message!r} names {option[0]}"
                seen += 1
    assert seen > 5


def test_commands_are_there() -> None:
    for command in {name for names in COMMANDS.values() for name in names}:
        importlib.import_module(command)
