"""CSV, JSON and JSON-lines files, plain or packed by gzip, as batches of columns.

Read strictly: a quote left open, a row of too few cells or a key given twice is refused with its line, for
a lenient parser swallows rows or picks a value in silence. Values of a CSV stay the text they are, so that
an id such as ``007`` and an answer such as ``NA`` survive. A file is read in batches;
of a JSON list the text alone is held in memory whole.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data.errors import UserError, brief, listing
from data.files import unpacked

Columns = dict[str, list]
Opened = tuple[list[str], Callable[[], Iterator[Columns]]]
"""A file's column names, and what returns a fresh iterator over its batches."""

BATCH_ROWS = 8192
MAX_FIELD = 64 << 20
"""Longest cell of a CSV, in characters: where a missing quote ends."""

_SPACE = re.compile(r"[ \t\r\n]*")


def open_csv(path: Path, delimiter: str) -> Opened:
    """Open a CSV file with a header; every cell is text."""

    def records() -> Iterator[tuple[int, list[str]]]:
        csv.field_size_limit(MAX_FIELD)
        with unpacked(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            started = 1
            try:
                for cells in reader:
                    if cells:  # an empty line is no row
                        yield started, cells
                    started = reader.line_num + 1
            except csv.Error as error:
                raise UserError(
                    f"{path}: cannot be read as CSV (the row from line {started} on: {brief(error)}); is a "
                    "quote missing, or one inside a text not doubled?"
                ) from error
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}: cannot be read as CSV (not UTF-8 text soon after line {started}: "
                    f"{brief(error)}); save it as UTF-8"
                ) from error

    names = next(records(), (1, []))[1]
    if not names:
        raise UserError(f"{path}: holds no rows, only empty lines")
    distinct(names, path)
    if any("\x00" in name for name in names):
        raise UserError(f"{path}: cannot be read as CSV (NUL characters in its header); save it as UTF-8")

    def batches() -> Iterator[Columns]:
        rows = itertools.islice(records(), 1, None)
        while chunk := list(itertools.islice(rows, BATCH_ROWS)):
            for line, cells in chunk:
                if len(cells) != len(names):
                    raise UserError(
                        f"{path}: cannot be read as CSV (the row from line {line} on has {len(cells)} cells "
                        f"where the header names {len(names)} columns); is a quote or a delimiter missing?"
                    )
            columns = zip(*(cells for _, cells in chunk), strict=True)
            yield dict(zip(names, map(list, columns), strict=True))

    return names, batches


def open_json(path: Path) -> Opened:
    """Open a JSON file that holds one list of objects; or one a line, for many sets have that in a .json."""
    with unpacked(path) as raw:
        start = next((piece.lstrip() for piece in iter(lambda: raw.read(4096), b"") if piece.strip()), b"")
    if start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
        return open_json_lines(path)
    return _open_records(lambda: _list_of(path), path)


def open_json_lines(path: Path) -> Opened:
    """Open a file of one JSON object a line."""

    def records() -> Iterator[Any]:
        with unpacked(path) as handle:
            for number, line in enumerate(handle, start=1):
                if line.strip():
                    try:
                        record = _DECODER.decode(line.decode(json.detect_encoding(line), "surrogatepass"))
                    except (ValueError, RecursionError) as error:
                        raise _bad_json(f"{path}: line {number}", error) from error
                    yield record

    return _open_records(records, path)


def _list_of(path: Path) -> Iterator[Any]:
    """Yield the elements of the list that a JSON file holds, which is in memory as text, never as objects.

    Sets too large for that come as JSON lines or Parquet.
    """
    with unpacked(path) as raw:
        content = raw.read()
    try:
        text = content.decode(json.detect_encoding(content), "surrogatepass")
    except UnicodeDecodeError as error:
        raise _bad_json(str(path), error) from error
    del content
    if not text.startswith("[", _past_space(text, 0)):
        raise UserError(f"{path}: expected a list of objects, one a row, or one object a line")
    at = 0
    for number in itertools.count():
        try:
            start = _next_element(text, at, first=number == 0)
            if start is None:
                return
            element, at = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise _bad_json(f"{path}: row {number} (counted from 0)", ValueError(error.msg)) from error
        except (ValueError, RecursionError) as error:
            raise _bad_json(f"{path}: row {number} (counted from 0)", error) from error
        yield element


def _next_element(text: str, at: int, first: bool) -> int | None:
    """Pass the list's opening, or the comma before another element; None at its end."""
    at = _past_space(text, at)
    if text[at : at + 1] == ("[" if first else ","):
        at = _past_space(text, at + 1)
        if not first or text[at : at + 1] != "]":
            return at
    if text[at : at + 1] != "]":
        raise ValueError("a comma or the list's end is missing before it")
    if _past_space(text, at + 1) < len(text):
        raise ValueError("text follows the list's end")
    return None


def _past_space(text: str, at: int) -> int:
    """The next place that is no white space, the text's end where there is none."""
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _bad_json(where: str, error: ValueError | RecursionError) -> UserError:
    if isinstance(error, RecursionError):
        return UserError(f"{where}: JSON nested too deep to be a row; give one object a row")
    return UserError(f"{where}: not valid JSON ({brief(error)}); is the file damaged or cut off?")


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"an object has the key {twice} twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_distinct_keys)


def _open_records(records: Callable[[], Iterable[Any]], path: Path) -> Opened:
    names: dict[str, None] = {}
    for record in _objects(records(), path):  # all of them: a column may first appear in the last
        if not record.keys() <= names.keys():
            names.update(dict.fromkeys(record))

    def batches() -> Iterator[Columns]:
        rows = _objects(records(), path)
        while chunk := list(itertools.islice(rows, BATCH_ROWS)):
            yield {name: [row.get(name) for row in chunk] for name in names}

    return list(names), batches


def _objects(records: Iterable[Any], path: Path) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise UserError(
                f"{path}: expected a list of objects, one a row, and row {number} (counted from 0) is "
                f"{brief(record)!r}"
            )
        yield record


def distinct(names: list[str], path: Path) -> list[str]:
    """Return column names, or refuse one that appears twice."""
    if len(set(names)) < len(names):
        raise UserError(f"{path}: a column name appears twice: {listing(names, 12)}")
    return names
