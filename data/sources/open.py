"""Any source as plain columns, a batch of rows at a time: files, local data sets, hub names.

Values come as the source has them; of a CSV, where all is text, as text. What the columns mean is the
business of :mod:`data.sources.read`. No source is ever held in memory whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import UserError, brief, listing
from data.files import readable_parquet, refuse_bomb, require_file
from data.sources.text_files import (
    BATCH_ROWS,
    Columns,
    Opened,
    distinct,
    open_csv,
    open_json,
    open_json_lines,
)

if TYPE_CHECKING:
    import pyarrow as pa

_DATASET_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SAVED_DATASET = ("dataset_info.json", "dataset_dict.json", "state.json")
_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq", ".json", ".jsonl", ".ndjson")
_PACKED = tuple(f"{suffix}.gz" for suffix in (".csv", ".tsv", ".json", ".jsonl", ".ndjson"))


@dataclass(frozen=True)
class Table:
    """A source that can be read again and again, batch by batch.

    Attributes
    ----------
    names : list of str
        Its columns.
    batches : callable
        Returns a fresh iterator over batches of at most ``BATCH_ROWS`` rows; each holds every column.
    """

    names: list[str]
    batches: Callable[[], Iterator[Columns]]


def open_table(source: str, split: str = "train", streaming: bool = False) -> Table:
    """Open ``source``: a file, a directory or the name of a data set.

    Parameters
    ----------
    source : str
        A file with one of the usual suffixes, of text formats also packed (``.csv.gz``); a directory
        written by ``Dataset.save_to_disk`` or one of data files; or a name on the Hugging Face hub.
    split : str
        The split to read of a data set.
    streaming : bool
        Stream a data set instead of preparing it in the library's cache first.

    Raises
    ------
    UserError
        No such file or data set, a damaged file, an unknown split.
    """
    path = Path(source)
    name = path.name.lower()
    if not source.strip() or "://" in source:
        raise UserError(
            f"source {brief(source)!r}: give a file, a directory, or the name of a data set on the hub such "
            "as lmsys/lmsys-arena-human-preference-55k; an address is fetched first"
        )
    try:
        is_dir, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # a name too long, a NUL, a directory that may not be entered
        raise UserError(f"{brief(source)}: cannot be opened ({error})") from error
    if is_dir:
        return _open_dataset(source, split, any((path / mark).exists() for mark in _SAVED_DATASET), streaming)
    if exists or name.endswith(_SUFFIXES + _PACKED) or not _DATASET_NAME.fullmatch(source):
        if split != "train" or streaming:
            raise UserError(
                f"{source}: is a file, where --split and --streaming have no meaning; leave them out"
            )
        return _open_file(require_file(path, "source file"))
    return _open_dataset(source, split, False, streaming)


def _open_dataset(source: str, split: str, saved: bool, streaming: bool) -> Table:
    from data.sources.hub import open_dataset

    return Table(*open_dataset(source, split, saved, streaming, _open_text))


def _open_file(path: Path) -> Table:
    try:
        if path.name.lower().endswith((".parquet", ".pq")) and path.stat().st_size:
            return _open_parquet(path)
        text = _open_text(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if text is None:
        raise UserError(f"{path}: unknown kind of file; give one of {listing(_SUFFIXES + _PACKED, 12)}")
    return Table(*text)


def _open_text(path: Path) -> Opened | None:
    name = path.name.lower()
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty; was it cut off, or never written?")
    suffix = name.removesuffix(".gz").rpartition(".")[2]
    if suffix not in {"csv", "tsv", "json", "jsonl", "ndjson"}:
        return None
    if name.endswith(".gz"):
        refuse_bomb(path)
    if suffix in {"csv", "tsv"}:
        return open_csv(path, "\t" if suffix == "tsv" else ",")
    return open_json(path) if suffix == "json" else open_json_lines(path)


def _open_parquet(path: Path) -> Table:
    import pyarrow.parquet as pq

    def batches() -> Iterator[Columns]:
        with readable_parquet(path), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield {name: _values(batch.column(name), name, path) for name in names}

    with readable_parquet(path), pq.ParquetFile(path) as file:
        names = list(file.schema_arrow.names)
    return Table(distinct(names, path), batches)


def _values(column: pa.Array, name: str, path: Path) -> list:
    """Return a column's values; those that Python has no type for, such as the year 10000, as text."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: column {name} is not UTF-8 text ({brief(error)}); make it again") from error
    except (ValueError, OverflowError):
        return column.cast(pa.string()).to_pylist()
