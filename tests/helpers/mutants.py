"""Files changed at random: bytes, lines, values of JSON and YAML, tables, headers of tensors, whole files."""

from __future__ import annotations

import json
import random
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

VALUES = [
    None, True, False, -1, 0, 1, 10**9, 2**70, 1e308, -1e-9, 0.5, float("nan"), "", "x", "0", "../x",
    "a\x00b", "\x1b[31m", "${oc.env:HOME}", [], {}, [None], [[[]]], {"": None}, [1, "a"], "x" * 5000,
]  # fmt: skip
CELLS = [
    "",
    "nan",
    "inf",
    "-1",
    "1e400",
    "0",
    "2",
    "x",
    '"',
    "a,b",
    "=1+1",
    "é",
    "\x00",
    "9" * 40,
    " ",
    "null",
]


def mutate(path: Path, rng: random.Random, others: list[Path]) -> str:
    """Change a file, in a way that suits its kind as often as not; return what was done.

    Parameters
    ----------
    others : list of Path
        Files that may take its place.
    """
    kinds = list(_ANY)
    suits = _SUITS.get("".join(path.suffixes[-1:]), [])
    kind = rng.choice(suits) if suits and rng.random() < 0.6 else rng.choice(kinds)
    before = path.read_bytes()
    try:
        told = kind(path, rng, others)
    except Exception as error:  # a file that its own kind of change cannot read, such as an empty one
        path.unlink(missing_ok=True)
        path.write_bytes(before)
        told = f"{_flip(path, rng, others)} ({kind.__name__.strip('_')}: {type(error).__name__})"
    return told


def _flip(path: Path, rng: random.Random, _: list[Path]) -> str:
    data = bytearray(path.read_bytes() or b"\0")
    at, bit = rng.randrange(len(data)), rng.randrange(8)
    data[at] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {at} flipped"


def _bytes(path: Path, rng: random.Random, _: list[Path]) -> str:
    data = bytearray(path.read_bytes())
    at, n = rng.randrange(len(data) + 1), rng.choice([1, 4, 64])
    data[at : at + n] = rng.randbytes(n)
    path.write_bytes(data)
    return f"{n} bytes at {at} overwritten"


def _cut(path: Path, rng: random.Random, _: list[Path]) -> str:
    data = path.read_bytes()
    at = rng.randrange(len(data) + 1)
    path.write_bytes(data[:at])
    return f"cut to {at} bytes"


def _taken_out(path: Path, rng: random.Random, _: list[Path]) -> str:
    data = path.read_bytes()
    at, n = rng.randrange(len(data) + 1), rng.choice([1, 16, 256])
    path.write_bytes(data[:at] + data[at + n :])
    return f"{n} bytes at {at} taken out"


def _doubled(path: Path, rng: random.Random, _: list[Path]) -> str:
    data = path.read_bytes()
    at, n = rng.randrange(len(data) + 1), rng.choice([1, 16, 256])
    path.write_bytes(data[: at + n] + data[at:])
    return f"{n} bytes at {at} doubled"


def _zeros(path: Path, rng: random.Random, _: list[Path]) -> str:
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data) + 1)
    n = min(512, len(data) - at)
    data[at : at + n] = bytes(n)
    path.write_bytes(data)
    return f"{n} bytes at {at} are zero"


def _empty(path: Path, *_: Any) -> str:
    path.write_bytes(b"")
    return "empty"


def _gone(path: Path, *_: Any) -> str:
    path.unlink()
    return "gone"


def _directory(path: Path, *_: Any) -> str:
    path.unlink()
    path.mkdir()
    return "a directory"


def _other(path: Path, rng: random.Random, others: list[Path]) -> str:
    alike = [p for p in others if p.suffix == path.suffix and p != path]
    other = rng.choice(alike or others)
    shutil.copyfile(other, path)
    return f"replaced by {other.parent.name}/{other.name}"


def _link(path: Path, rng: random.Random, _: list[Path]) -> str:
    path.unlink()
    path.symlink_to(rng.choice([path.name, "/dev/null", "/nowhere"]))
    return f"a link to {path.readlink()}"


def _lines(path: Path, rng: random.Random, _: list[Path]) -> str:
    lines = path.read_bytes().splitlines(keepends=True)
    at = rng.randrange(len(lines))
    how = rng.choice(["dropped", "doubled", "moved to the end", "cut", "without end"])
    line = lines.pop(at)
    if how == "doubled":
        lines[at:at] = [line, line]
    elif how == "moved to the end":
        lines.append(line)
    elif how == "cut":
        lines.insert(at, line[: len(line) // 2] + b"\n")
    elif how == "without end":
        lines.insert(at, line.rstrip(b"\r\n"))
    path.write_bytes(b"".join(lines))
    return f"line {at} {how}"


def change_value(value: Any, rng: random.Random) -> tuple[Any, str]:
    """Return nested lists and dictionaries with one place changed, and what was done."""
    places: list[tuple[Any, Any, str]] = []

    def walk(node: Any, name: str) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
        for key in keys:
            places.append((node, key, f"{name}.{key}"))
            walk(node[key], f"{name}.{key}")

    walk(value, "")
    if not places or rng.random() < 0.02:
        return rng.choice(VALUES), "the whole of it is another"
    node, key, name = rng.choice(places)
    how = rng.random()
    old = node[key]
    if how < 0.15:
        del node[key]
        return value, f"{name} taken out"
    if how < 0.25 and isinstance(node, dict):
        node[f"{key}x"] = node.pop(key)
        return value, f"{name} renamed"
    if how < 0.3:
        deep: Any = old
        for _ in range(rng.choice([3, 200, 3000])):
            deep = [deep]
        node[key] = deep
        return value, f"{name} nested deep"
    if how < 0.55 and isinstance(old, int | float) and not isinstance(old, bool):
        node[key] = rng.choice([-old, old + 1, old * 1.001, old * 1000, str(old), [old], -1e300, 0])
    elif how < 0.55 and isinstance(old, str):
        node[key] = rng.choice([old + "x", old[:-1], old.upper(), [old], "/" + old, "../" + old])
    else:
        node[key] = rng.choice(VALUES)
    return value, f"{name}: {str(old)[:40]!r} became {str(node[key])[:40]!r}"


def _dumped(value: Any, **options: Any) -> str:
    """JSON of whatever depth."""
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    try:
        return json.dumps(value, **options)
    finally:
        sys.setrecursionlimit(usual)


def _json(path: Path, rng: random.Random, _: list[Path]) -> str:
    value, told = change_value(json.loads(path.read_text(encoding="utf-8")), rng)
    path.write_text(_dumped(value, indent=2), encoding="utf-8")
    return told


def _json_line(path: Path, rng: random.Random, _: list[Path]) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    at = rng.randrange(len(lines))
    value, told = change_value(json.loads(lines[at]), rng)
    lines[at] = _dumped(value)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"line {at}: {told}"


def _yaml(path: Path, rng: random.Random, _: list[Path]) -> str:
    import yaml

    value, told = change_value(json.loads(json.dumps(yaml.safe_load(path.read_text()))), rng)
    deep = told.endswith("nested deep")  # JSON is YAML, and has a writer for that
    path.write_text(_dumped(value) if deep else yaml.safe_dump(value), encoding="utf-8")
    return told


def _yaml_words(path: Path, rng: random.Random, _: list[Path]) -> str:
    lines = path.read_text().splitlines()
    at = rng.randrange(len(lines))
    word = rng.choice(
        ["- - -", "&a [*a]", "<<: *x", "!!python/object:os.system x", "? {", "\t x: 1", "%", "a: b: c"]
    )
    lines.insert(at, word)
    path.write_text("\n".join(lines) + "\n")
    return f"line {at} is {word!r}"


def _csv(path: Path, rng: random.Random, _: list[Path]) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    at = rng.randrange(len(lines))
    cells = lines[at].split(",")
    column = rng.randrange(len(cells))
    cells[column] = rng.choice(CELLS)
    lines[at] = ",".join(cells)
    if rng.random() < 0.1:
        lines = [",".join(line.split(",")[::-1]) for line in lines]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"line {at}, cell {column}: {cells[column]!r}"


def _table(path: Path, rng: random.Random, _: list[Path]) -> str:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    how = rng.choice(["column", "rename", "drop", "double", "order", "null", "type", "value", "none", "meta"])
    column = rng.randrange(table.num_columns)
    name, values = table.column_names[column], table.column(column).to_pylist()
    at = rng.randrange(len(values))
    if how == "column":
        table = table.remove_column(column)
    elif how == "rename":
        table = table.rename_columns([n + "x" if n == name else n for n in table.column_names])
    elif how == "drop":
        table = table.filter(pa.array(np.arange(len(values)) != at))
    elif how == "double":
        table = pa.concat_tables([table, table.slice(at, 1)])
    elif how == "order":
        table = table.take(pa.array(np.arange(len(values))[::-1].copy()))
    elif how == "none":
        table = table.slice(0, 0)
    elif how == "meta":
        table = table.replace_schema_metadata({b"classes": b"[[", b"distillstack.key": b"x"})
    else:
        old = values[at]
        other = values[at - 1]
        if isinstance(old, float):
            other = rng.choice([float("nan"), float("inf"), -old, old + 0.5, 1e30])
        kind = table.schema.field(column).type
        if how == "type":
            values, kind = [str(v) for v in values], pa.string()
        else:
            values[at] = None if how == "null" else other
        table = table.set_column(column, pa.field(name, kind), pa.array(values, kind))
    pq.write_table(table, path)
    return f"table: {how}, column {name}, row {at}"


def _tensors(path: Path, rng: random.Random, _: list[Path]) -> str:
    data = path.read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    header, told = change_value(json.loads(data[8 : 8 + n]), rng)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", rng.choice([len(text)] * 9 + [2**62])) + text + data[8 + n :])
    return f"header: {told}"


def _numbers(path: Path, rng: random.Random, _: list[Path]) -> str:
    lines = path.read_text().splitlines()
    at = rng.choice([i for i, line in enumerate(lines) if "=" in line])
    key, _, rest = lines[at].partition("=")
    words = rest.split(" ")
    which = rng.randrange(len(words))
    words[which] = rng.choice(["-1", "0", "1", "999999999", "nan", "inf", "1e400", "x", "", "-5", "0.5"])
    lines[at] = f"{key}={' '.join(words)}"
    path.write_text("\n".join(lines) + "\n")
    return f"{key}, number {which}: {words[which]!r}"


def _signed_again(path: Path, rng: random.Random, _: list[Path]) -> str:
    """As one who changes a stack and puts its hash right; whoever can write the record can."""
    from data.files import sha256_text

    content = json.loads(path.read_text())
    content.pop("content_hash")
    content, told = change_value(content, rng)
    if isinstance(content, dict):
        content["content_hash"] = sha256_text(_dumped(content, sort_keys=True))
    path.write_text(_dumped(content))
    return f"signed again: {told}"


SIGNED = "signed again"
_ANY: list[Callable[..., str]] = [
    _flip, _flip, _bytes, _cut, _taken_out, _doubled, _zeros, _empty, _gone, _directory, _other, _link,
]  # fmt: skip
_SUITS: dict[str, list[Callable[..., str]]] = {
    ".json": [_json, _json, _json, _lines],
    ".jsonl": [_json_line, _lines],
    ".yaml": [_yaml, _yaml, _yaml, _yaml_words, _lines],
    ".csv": [_csv, _csv, _lines],
    ".parquet": [_table],
    ".safetensors": [_tensors],
    ".txt": [_numbers, _numbers, _lines],
    ".jinja": [_lines],
}


def mutate_stack(path: Path, rng: random.Random, others: list[Path]) -> str:
    """As :func:`mutate`, for ``stack.json``: at times with its hash put right."""
    return _signed_again(path, rng, others) if rng.random() < 0.5 else mutate(path, rng, others)
