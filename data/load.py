"""Any source as plain columns: a CSV, Parquet, JSON or JSON-lines file, or a Hugging Face data set.

Values come as the source has them; of a CSV, where all is text, as text, so that an id such as ``007``
stays what it is. What the columns mean is the business of :mod:`data.sources`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from data.errors import UserError, listing
from data.files import read_parquet, read_table, require_file
from data.progress import is_terminal

Columns = dict[str, list]

_DATASET_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SAVED_DATASET = ("dataset_info.json", "dataset_dict.json", "state.json")
_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq", ".json", ".jsonl", ".ndjson")


def load_columns(source: str, split: str = "train") -> Columns:
    """Read every column of ``source``, a file, a directory or the name of a data set.

    Parameters
    ----------
    source : str
        A file with one of the usual suffixes; a directory written by ``Dataset.save_to_disk`` or one of
        data files; or a name on the Hugging Face hub.
    split : str
        The split to read of a data set.

    Raises
    ------
    UserError
        No such file or data set, a damaged file, an unknown split, or no rows.
    """
    path = Path(source)
    if path.is_dir():
        columns = _load_dataset(source, split, saved=any((path / name).exists() for name in _SAVED_DATASET))
    elif path.exists() or path.suffix.lower() in _SUFFIXES or not _DATASET_NAME.fullmatch(source):
        columns = _load_file(require_file(path, "source file"))
    else:
        columns = _load_dataset(source, split, saved=False)
    if not columns or not next(iter(columns.values())):
        raise UserError(f"{source}: holds no rows")
    return columns


def _load_file(path: Path) -> Columns:
    suffix = path.suffix.lower()
    if suffix in {".parquet", ".pq"}:
        return read_parquet(path, "source file").to_pydict()
    if suffix in {".csv", ".tsv"}:
        return read_table(path, "source file", as_text=True).to_pydict()
    if suffix == ".json":
        return _from_records(_parse_json(path.read_bytes(), str(path)), str(path))
    if suffix in {".jsonl", ".ndjson"}:
        lines = enumerate(path.read_bytes().splitlines(), start=1)
        return _from_records(
            [_parse_json(line, f"{path}: line {number}") for number, line in lines if line.strip()], str(path)
        )
    raise UserError(f"{path}: unknown kind of file; give one of {listing(_SUFFIXES, 9)}")


def _parse_json(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); is the file damaged or cut off?") from error


def _from_records(records: Any, where: str) -> Columns:
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{where}: expected a list of objects, one a row")
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _load_dataset(source: str, split: str, saved: bool) -> Columns:
    import datasets

    if not is_terminal():
        datasets.disable_progress_bars()
    try:
        if saved:
            found = datasets.load_from_disk(source)
            if isinstance(found, datasets.DatasetDict):
                if split not in found:
                    raise UserError(
                        f"{source}: no split {split}; it has {listing(found)}, choose with --split"
                    )
                found = found[split]
        else:
            found = datasets.load_dataset(source, split=split)
        columns: Columns = found.to_dict()
        for name, feature in found.features.items():
            if isinstance(feature, datasets.ClassLabel):  # an index means nothing without its names
                columns[name] = [
                    feature.names[i] if i is not None and i >= 0 else None for i in columns[name]
                ]
        return columns
    except UserError:
        raise
    except Exception as error:  # every backend (network, cache, parser) raises its own kind
        what = "this directory cannot be read as a data set" if Path(source).is_dir() else (
            "no such file, and no data set of that name could be loaded"
        )  # fmt: skip
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"{source}: {what} (split {split}): {reason}; check the name and the network connection"
        ) from error
