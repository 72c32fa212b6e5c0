"""Any source as plain columns, a batch of rows at a time: files, local data sets, hub names.

Values come as the source has them; of a CSV, where all is text, as text, so that an id such as ``007``
stays what it is. What the columns mean is the business of :mod:`data.sources`. No source but a single
JSON document is ever held in memory whole.
"""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data.errors import UserError, brief, listing
from data.files import require_file
from data.progress import is_terminal

Columns = dict[str, list]

BATCH_ROWS = 8192
CSV_BLOCK = 16 << 20
MAX_EXPANSION = 100
"""A gzip file may hold this many times its own size; beyond that it is taken for a bomb."""

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
    try:
        is_dir, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # a name too long, a NUL, a directory that may not be entered
        raise UserError(f"{brief(source)}: cannot be opened ({error})") from error
    if is_dir:
        saved = any((path / mark).exists() for mark in _SAVED_DATASET)
        return _open_dataset(source, split, saved, streaming)
    if exists or name.endswith(_SUFFIXES + _PACKED) or not _DATASET_NAME.fullmatch(source):
        return _open_file(require_file(path, "source file"))
    return _open_dataset(source, split, False, streaming)


def _open_file(path: Path) -> Table:
    name = path.name.lower()
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: is empty; was it cut off, or never written?")
        if name.endswith(".gz"):
            _refuse_bomb(path)
        if name.endswith((".parquet", ".pq")):
            return _open_parquet(path)
        suffix = name.removesuffix(".gz").rpartition(".")[2]
        if suffix in {"csv", "tsv"}:
            return _open_csv(path, "\t" if suffix == "tsv" else ",")
        if suffix == "json":
            return _open_json(path)
        if suffix in {"jsonl", "ndjson"}:
            return _open_json_lines(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    raise UserError(f"{path}: unknown kind of file; give one of {listing(_SUFFIXES + _PACKED, 12)}")


def _unpacked(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def _refuse_bomb(path: Path) -> None:
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
                        "mistake, "
                        "unpack it yourself and give the file"
                    )
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be unpacked as gzip ({error}); is it damaged or cut off?") from error


def _open_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def damaged(error: Exception) -> UserError:
        return UserError(
            f"{path}: not a readable Parquet file ({brief(error)}); it may be truncated, make it again"
        )

    def batches() -> Iterator[Columns]:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH_ROWS):
                    yield batch.to_pydict()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise damaged(error) from error

    try:
        with pq.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
    except (pa.ArrowException, OSError) as error:
        raise damaged(error) from error
    return Table(_distinct(names, path), batches)


def _open_csv(path: Path, delimiter: str) -> Table:
    import pyarrow as pa
    from pyarrow import csv

    parse = csv.ParseOptions(newlines_in_values=True, delimiter=delimiter)
    read = csv.ReadOptions(block_size=CSV_BLOCK)

    def reader(convert: csv.ConvertOptions | None = None) -> csv.CSVStreamingReader:
        return csv.open_csv(_unpacked(path), read, parse, convert)

    def damaged(error: Exception) -> UserError:
        return UserError(f"{path}: cannot be read as CSV ({brief(error)})")

    try:
        with reader() as opened:
            names = opened.schema.names
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise damaged(error) from error
    as_text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))

    def batches() -> Iterator[Columns]:
        try:
            with reader(as_text) as opened:
                for block in opened:
                    for start in range(0, block.num_rows, BATCH_ROWS):
                        yield block.slice(start, BATCH_ROWS).to_pydict()
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise damaged(error) from error

    return Table(_distinct(names, path), batches)


def _open_json(path: Path) -> Table:
    with _unpacked(path) as handle:
        records = _parse_json(handle.read(), str(path))
    if isinstance(records, dict) or not isinstance(records, list):
        raise UserError(f"{path}: expected a list of objects, one a row")
    names = _names(_objects(records, str(path)))
    return Table(names, lambda: _from_records(records, names, str(path)))


def _open_json_lines(path: Path) -> Table:
    def records() -> Iterator[Any]:
        with _unpacked(path) as handle:
            for number, line in enumerate(handle, start=1):
                if line.strip():
                    yield _parse_json(line, f"{path}: line {number}")

    names = _names(_objects(records(), str(path)))  # a column may first appear in the last line
    return Table(names, lambda: _from_records(records(), names, str(path)))


def _parse_json(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{where}: not valid JSON ({brief(error)}); is the file damaged or cut off?"
        ) from error
    except RecursionError as error:
        raise UserError(f"{where}: JSON nested too deep to be a row; give one object a row") from error
    except ValueError as error:  # a number of more digits than Python converts
        raise UserError(f"{where}: not valid JSON ({brief(error)})") from error


def _objects(records: Iterable[Any], where: str) -> Iterator[dict[str, Any]]:
    for record in records:
        if not isinstance(record, dict):
            raise UserError(f"{where}: expected a list of objects, one a row, and found {brief(record)!r}")
        yield record


def _names(records: Iterable[dict[str, Any]]) -> list[str]:
    names: dict[str, None] = {}
    for record in records:
        if not record.keys() <= names.keys():
            names.update(dict.fromkeys(record))
    return list(names)


def _from_records(records: Iterable[Any], names: list[str], where: str) -> Iterator[Columns]:
    iterator = _objects(records, where)
    while chunk := list(itertools.islice(iterator, BATCH_ROWS)):
        yield {name: [record.get(name) for record in chunk] for name in names}


def _distinct(names: list[str], path: Path) -> list[str]:
    if len(set(names)) < len(names):
        raise UserError(f"{path}: a column name appears twice: {listing(names, 12)}")
    return names


def _open_dataset(source: str, split: str, saved: bool, streaming: bool) -> Table:
    import datasets

    logging.getLogger("huggingface_hub").setLevel(
        logging.ERROR
    )  # its retries; what failed is said once, below
    if not is_terminal():
        datasets.disable_progress_bars()
    try:
        if saved:
            found: Any = datasets.load_from_disk(source)
            if isinstance(found, datasets.DatasetDict):
                if split not in found:
                    raise UserError(
                        f"{source}: no split {split}; it has {listing(found)}, choose with --split"
                    )
                found = found[split]
        else:
            found = datasets.load_dataset(source, split=split, streaming=streaming)
        names = list(found.column_names or next(iter(found), {}))
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(source, split, error) from error
    classes = {
        name: feature.names
        for name, feature in (found.features or {}).items()
        if isinstance(feature, datasets.ClassLabel)  # an index means nothing without its names
    }

    def batches() -> Iterator[Columns]:
        try:
            for batch in found.iter(BATCH_ROWS):
                for name, labels in classes.items():
                    batch[name] = [labels[i] if i is not None and i >= 0 else None for i in batch[name]]
                yield batch
        except Exception as error:
            raise _unreadable(source, split, error) from error

    return Table(names, batches)


def _unreadable(source: str, split: str, error: Exception) -> UserError:
    """Every backend (network, cache, parser) raises its own kind."""
    what = (
        "this directory cannot be read as a data set"
        if Path(source).is_dir()
        else "no such file, and no data set of that name could be loaded"
    )
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return UserError(
        f"{source}: {what} (split {split}): {brief(reason)}; check the name and the network connection"
    )
