"""CSV, JSON and JSON-lines files, plain or packed by gzip, as batches of columns.

Read strictly: a quote left open, a row of too few cells or a key given twice is refused with its line, for
a lenient parser swallows rows or picks a value in silence. Values of a CSV stay the text they are, so that
an id such as ``007`` and an answer such as ``NA`` survive. No file is ever held in memory whole.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from data.errors import UserError, brief, listing

Columns = dict[str, list]
Opened = tuple[list[str], Callable[[], Iterator[Columns]]]
"""A file's column names, and what returns a fresh iterator over its batches."""

BATCH_ROWS = 8192
MAX_EXPANSION = 100
"""A gzip file may hold this many times its own size; beyond that it is taken for a bomb."""
MAX_FIELD = 64 << 20
"""Longest cell of a CSV, and longest object of a JSON list, in characters: where a missing quote ends."""

_JSON_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


def unpacked(path: Path) -> IO[bytes]:
    """Open a file of bytes, through gzip where its name says so."""
    return gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def refuse_bomb(path: Path) -> None:
    """Unpack to nowhere first: a file that would fill the memory is refused before anything is read."""
    limit = MAX_EXPANSION * max(path.stat().st_size, 1 << 16)
    size = 0
    try:
        with gzip.open(path) as handle:
            while chunk := handle.read(1 << 20):
                size += len(chunk)
                if size > limit:
                    raise UserError(
                        f"{path}: unpacks to more than {MAX_EXPANSION} times its size; if that is no "
                        "mistake, unpack it yourself and give the file"
                    )
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be unpacked as gzip ({error}); is it damaged or cut off?") from error


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
    """Yield the elements of the list that a JSON file holds, one at a time in memory."""
    with unpacked(path) as raw:
        encoding = json.detect_encoding(raw.peek(4)[:4])  # type: ignore[attr-defined]
        elements = _Elements(io.TextIOWrapper(raw, encoding, errors="surrogatepass", newline=""))
        for number in itertools.count():
            try:
                if not elements.go_on(first=number == 0):
                    return
                element = elements.next()
            except _NotAList as error:
                raise UserError(
                    f"{path}: expected a list of objects, one a row, or one object a line"
                ) from error
            except (ValueError, RecursionError) as error:
                raise _bad_json(f"{path}: row {number} (counted from 0)", error) from error
            yield element


class _Elements:
    """Parses a JSON list element by element; as strict as the whole would be parsed."""

    def __init__(self, text: IO[str]) -> None:
        self.text = text
        self.buffer = ""
        self.at = 0

    def go_on(self, first: bool) -> bool:
        """Pass the list's opening, or the comma before another element; False at its end."""
        if first:
            if self._ahead() != "[":
                raise _NotAList
            self.at += 1
            if self._ahead() != "]":
                return True
        elif self._ahead() == ",":
            self.at += 1
            return True
        if self._ahead() != "]":
            raise ValueError("a comma or the list's end is missing before it")
        self.at += 1
        if self._ahead():
            raise ValueError("text follows the list's end")
        return False

    def next(self) -> Any:
        """Parse the element ahead, reading on until it is whole."""
        self._ahead()
        while True:
            try:
                element, end = _DECODER.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                if len(self.buffer) - self.at > MAX_FIELD or not self._more():
                    raise ValueError(error.msg) from error  # its position is one in the buffer
                continue
            if end == len(self.buffer) and self._more():
                continue  # a number may go on
            self.at = end
            return element

    def _ahead(self) -> str:
        """Skip white space; return the next character, none at the end of the file."""
        while True:
            match = _SPACE.match(self.buffer, self.at)
            assert match is not None
            self.at = match.end()
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        rest = self.buffer[self.at :]
        piece = self.text.read(max(_JSON_CHUNK, len(rest)))  # twice as much each time: linear in all
        self.buffer, self.at = rest + piece, 0
        return bool(piece)


class _NotAList(ValueError):
    """The file holds something else than a list."""


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
