"""Sources of every known layout to one row table, with what was changed on the way counted.

Known are the LMSYS competition's CSV, the LMArena sets of conversations, the WSDM Cup's Parquet,
UltraFeedback, PandaLM, any table through a column map, and a row table of our own. A source is read
batch by batch; where a scratch directory is given, the finished rows wait in a memory-mapped file there,
so that a set larger than memory can be prepared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.errors import UserError, listing
from data.ids import refuse_repeated
from data.progress import progress
from data.schema import CLASSES_KEY, PREFERENCE, Rows, read_rows
from data.sources.clean import Cleaning, is_utf8
from data.sources.conversations import UltraFeedbackReader, read_arena
from data.sources.layouts import TEXTS, Place, read_lmsys, read_pandalm, read_wsdm, source_name
from data.sources.open import Columns, Table, open_table
from data.sources.table import TableReader

if TYPE_CHECKING:
    import pyarrow as pa

Reader = Callable[[Columns, Place], Rows]

FORMATS = ("auto", "lmsys", "arena", "wsdm", "ultrafeedback", "pandalm", "table")
_READERS: dict[str, Reader] = {
    "lmsys": read_lmsys,
    "arena": read_arena,
    "wsdm": read_wsdm,
    "pandalm": read_pandalm,
}


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source.

    Parameters
    ----------
    format : str
        One of ``FORMATS``; ``auto`` decides by the columns.
    columns : mapping of str to str
        For the plain table: which source column holds a field of the row table, e.g.
        ``{"prompt": "question"}``. ``label_probs`` takes one column of lists, or K comma-separated ones.
        Fields that are not named are taken from a column of their own name, ``row_id`` also from ``id``.
    classes : tuple of str, optional
        Class names of the plain table, in order.
    swap : tuple of int, optional
        Class permutation under a swap of the responses, where it is not the usual one.
    ids : str
        ``column``, or ``row-number`` to number the rows of a plain table that has no ids.
    split : str
        Split of a data set.
    limit : int, optional
        Keep the first rows only.
    streaming : bool
        Stream a data set from the hub instead of downloading it whole.
    margin : float
        For UltraFeedback: ratings that differ by no more are a tie.
    name : str, optional
        What the rows' ``source`` says; by default the file's or data set's name.
    """

    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    swap: tuple[int, ...] | None = None
    ids: str = "column"
    split: str = "train"
    limit: int | None = None
    streaming: bool = False
    margin: float = 0.0
    name: str | None = None


def read_source(
    source: str, options: SourceOptions | None = None, scratch: Path | None = None
) -> tuple[Rows, Cleaning]:
    """Read ``source`` into validated rows.

    Parameters
    ----------
    source : str
        A file, a directory, or the name of a Hugging Face data set.
    options : SourceOptions, optional
    scratch : Path, optional
        An existing directory in which the rows may be kept while they are in use.

    Returns
    -------
    rows : Rows
    cleaning : Cleaning
        What was changed on the way, counted.

    Raises
    ------
    UserError
        The source cannot be read, or a row or column of it cannot be taken.
    """
    options = options or SourceOptions()
    if options.format not in FORMATS:
        raise UserError(f"format {options.format} is unknown; choose one of {listing(FORMATS, 9)}")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"a limit of {options.limit} rows leaves none; give 1 or more")
    cleaning = Cleaning()
    if options.format == "auto" and _is_prepared(source):
        _only_for_tables(options, source, "row table")
        rows = read_rows(Path(source))
        if options.limit is not None:
            rows = rows.take(np.arange(min(options.limit, len(rows))))
        return rows, cleaning
    table = open_table(source, options.split, options.streaming)
    if not any(any(batch.values()) for batch in table.batches()):  # stops at the first batch with a row
        raise UserError(f"{source}: holds no rows")
    name = options.name or source_name(source)
    if not is_utf8(name) or "\x00" in name:
        raise UserError(f"{source}: its name is no UTF-8 text; rename the file, or name it in a sources file")
    place = Place(source, name, cleaning)
    reader = choose_reader(table, source, options)
    first: list[Rows] = []

    def parts() -> Iterator[pa.Table]:
        left = options.limit
        for columns in progress(table.batches(), f"reading {place.name}", unit="batch"):
            n = len(next(iter(columns.values()), []))
            if n == 0:
                continue
            rows = reader(columns, place)
            if left is not None:
                rows = rows if len(rows) <= left else rows.take(np.arange(left))
                left -= len(rows)
            first[:] = first or [rows]
            place.start += n
            yield rows.table
            if left == 0:
                return

    rows = Rows(join_parts(parts(), scratch, place.name), first[0].classes)
    refuse_repeated(rows.row_ids, source)
    return rows, cleaning


def choose_reader(table: Table, source: str, options: SourceOptions) -> Reader:
    """Return the reader of a source's layout, detected by its columns unless the options name it."""
    layout = _detect(table) if options.format == "auto" else options.format
    if layout == "table":
        if options.margin:
            raise UserError(f"{source}: --margin makes ties of UltraFeedback's ratings; leave it out here")
        return TableReader(table, source, options.columns, options.classes, options.swap, options.ids)
    _only_for_tables(options, source, layout)
    if layout == "ultrafeedback":
        return UltraFeedbackReader(options.margin)
    if options.margin:
        raise UserError(f"{source}: --margin makes ties of UltraFeedback's ratings; leave it out here")
    return _READERS[layout]


def _detect(table: Table) -> str:
    names = set(table.names)
    if {"conversation_a", "conversation_b"} <= names:
        return "arena"
    if {"instruction", "completions"} <= names or {"chosen", "rejected", "score_chosen"} <= names:
        return "ultrafeedback"
    if {"idx", "instruction", "response1", "response2"} <= names:
        return "pandalm"
    if {"id", *TEXTS} <= names:
        if set(PREFERENCE.names) & names:
            return "lmsys"
        first = next((batch for batch in table.batches() if batch["prompt"]), None)
        if first is not None and all(_is_json_list(first[name][0]) for name in TEXTS):
            return "lmsys"
        if "winner" in names and "label" not in names:
            return "wsdm"
    return "table"


def _is_json_list(cell: object) -> bool:
    if not isinstance(cell, str) or not cell.startswith("["):
        return False
    try:
        return isinstance(json.loads(cell), list)
    except (ValueError, RecursionError):
        return False


def join_parts(parts: Iterator[pa.Table], scratch: Path | None, name: str) -> pa.Table:
    """Join the batches of a source into one table, kept in a memory-mapped file under ``scratch``."""
    import pyarrow as pa
    from pyarrow import ipc

    if scratch is None:
        return pa.concat_tables(list(parts)).combine_chunks()
    number = sum(1 for _ in scratch.glob("*.arrow"))
    path = scratch / f"{number}.arrow"
    try:
        first = next(parts)
        with pa.OSFile(str(path), "wb") as sink, ipc.new_file(sink, first.schema) as writer:
            writer.write_table(first)
            for part in parts:
                writer.write_table(part)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written while reading {name} ({error.strerror or error})"
        ) from error
    with pa.memory_map(str(path)) as file:
        return ipc.open_file(file).read_all()


def _is_prepared(source: str) -> bool:
    """Whether a source is a row table of our own: a directory that holds one, or a file that says so."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(source)
    try:
        if (path / "rows.parquet").is_file():
            return True
        if path.suffix != ".parquet" or not path.is_file():
            return False
        return CLASSES_KEY in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError, ValueError):
        return False


def _only_for_tables(options: SourceOptions, where: str, layout: str) -> None:
    for name, given in (
        ("columns", options.columns),
        ("classes", options.classes),
        ("swap", options.swap),
        ("ids", options.ids != "column"),
    ):
        if given:
            raise UserError(
                f"{where}: is read as {layout}, where --{name} has no meaning; leave it out, "
                "or read the source as a plain table with --format table"
            )
