"""Data sets through the ``datasets`` library: names on the hub, saved data sets, directories of data files.

The library finds out which files make up a split. Text files of a local directory are then read by our
own strict readers; of a CSV on the hub every cell is asked for as text, for pandas would read the id
``007`` as 7 and the answer ``NA`` as missing.
"""

from __future__ import annotations

import glob
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data.console.progress import is_terminal
from data.errors import UserError, brief, listing
from data.sources.text_files import BATCH_ROWS, Columns, Opened

TextReader = Callable[[Path], Opened | None]


def open_dataset(source: str, split: str, saved: bool, streaming: bool, read_text: TextReader) -> Opened:
    """Open a data set.

    Parameters
    ----------
    source : str
        A directory, or a name on the hub.
    split : str
    saved : bool
        The directory was written by ``Dataset.save_to_disk``.
    streaming : bool
        Stream it instead of preparing it in the library's cache first.
    read_text : callable
        Opens a text file of ours; None of any other file.

    Raises
    ------
    UserError
        No such data set or split, or a damaged file.
    """
    import datasets

    # Its retries; what failed is said once, below.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not is_terminal():
        datasets.disable_progress_bars()
    try:
        if saved:
            found: Any = datasets.load_from_disk(source)
            if isinstance(found, datasets.DatasetDict):
                found = found[_known(split, found, source)]
        else:
            builder = datasets.load_dataset_builder(source)
            splits = builder.config.data_files
            is_directory, is_csv = Path(source).is_dir(), hasattr(builder.config, "keep_default_na")
            files = []
            if splits and (is_directory or is_csv):
                files = [str(file) for file in splits[_known(split, splits, source)]]
            if files and is_directory:
                texts = [read_text(Path(file)) for file in files]
                if all(texts):
                    return _joined([text for text in texts if text is not None], files)
                patterns = [glob.escape(file) for file in files]
                found = datasets.load_dataset(
                    source, data_files={split: patterns}, split=split, streaming=streaming
                )
            elif files:
                found = csv_as_text(files, split, builder.config.sep, streaming)
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

    return names, batches


def csv_as_text(files: list[str], split: str, delimiter: str, streaming: bool) -> Any:
    """Load CSV files as a data set whose cells are the text they are, an empty one an empty text."""
    import datasets

    first = datasets.load_dataset("csv", data_files=files[:1], split="train", streaming=True, sep=delimiter)
    features = datasets.Features({name: datasets.Value("string") for name in next(iter(first), {})})
    return datasets.load_dataset(
        "csv", data_files={split: files}, split=split, streaming=streaming, sep=delimiter, features=features,
        keep_default_na=False,
    )  # fmt: skip


def _known(split: str, splits: Any, source: str) -> str:
    if split not in splits:
        raise UserError(f"{source}: no split {split}; it has {listing(splits)}, choose with --split")
    return split


def _joined(opened: list[Opened], files: list[str]) -> Opened:
    """Several files as one, if they have the same columns."""
    for file, (names, _) in zip(files, opened, strict=True):
        if set(names) != set(opened[0][0]):
            raise UserError(
                f"{file}: has the columns {listing(names, 12)} and {files[0]} {listing(opened[0][0], 12)}; "
                "files of one split share their columns, give one of them as the source"
            )
    return opened[0][0], lambda: itertools.chain.from_iterable(batches() for _, batches in opened)


def _unreadable(source: str, split: str, error: BaseException) -> UserError:
    """Every backend (network, cache, parser) raises its own kind, often wrapped in one that says nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = brief(str(error).strip().split("\n")[0] or type(error).__name__)
    if Path(source).is_dir():
        return UserError(
            f"{source}: this directory cannot be read as a data set (split {split}): {reason}; give one "
            "of its files as the source"
        )
    return UserError(
        f"{source}: no such file, and no data set of that name could be loaded (split {split}): {reason}; "
        "check the name and the network connection"
    )
