"""Sources of every known format to one row table, with what was changed on the way counted.

Known are the formats imported here, each of which registers itself (:mod:`data.sources.formats`), and a row
table of our own. A source is read batch by batch; where a scratch directory is given, the finished rows wait
in a memory-mapped file there, so that a set larger than memory can be prepared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.classes import CLASSES_KEY
from data.console.progress import progress
from data.errors import UserError
from data.ids import refuse_repeated
from data.labels import refuse_counting
from data.schema import ID_KEY, Rows, read_rows
from data.sources import (  # noqa: F401  they register
    candidates,
    chosen,
    lmarena,
    lmsys,
    misconceptions,
    pandalm,
    table,
    ultrafeedback,
    wsdm,
)
from data.sources.clean import Cleaning, is_utf8
from data.sources.formats import AUTO, FORMATS, Reader, SourceOptions, current_name, refuse_particular
from data.sources.open import Table, open_table
from data.sources.place import Place, source_name

if TYPE_CHECKING:
    import pyarrow as pa


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
    current_name(options.format)
    if options.limit is not None and options.limit < 1:
        raise UserError(f"a limit of {options.limit} rows leaves none; give 1 or more")
    cleaning = Cleaning()
    if options.format == AUTO and _is_prepared(source):
        refuse_particular(options, source, "row table", takes=("margin",))
        rows = read_rows(Path(source))
        if options.limit is not None:
            rows = rows.take(np.arange(min(options.limit, len(rows))))
        return rows, cleaning
    opened = open_table(source, options.split, options.streaming)
    if not any(any(batch.values()) for batch in opened.batches()):  # stops at the first batch with a row
        raise UserError(f"{source}: holds no rows")
    name = options.name or source_name(source)
    if not is_utf8(name) or "\x00" in name:
        raise UserError(f"{source}: its name is no UTF-8 text; rename the file, or name it in a sources file")
    place = Place(source, name, cleaning)
    reader = choose_reader(opened, source, options)
    first: list[Rows] = []

    def parts() -> Iterator[pa.Table]:
        left = options.limit
        for columns in progress(opened.batches(), f"reading {place.name}", unit="batch"):
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
    if place.classes is not None:
        refuse_counting(place.indices, place.classes, source)
    if place.perhaps_soft and rows.table.column("label_probs").null_count == len(rows):
        rows = Rows(rows.table.drop_columns(["label_probs"]), rows.classes)
    refuse_repeated(rows.row_ids, source)
    if "row_id" in cleaning.columns:
        named = {ID_KEY: cleaning.columns["row_id"].encode()}
        rows = Rows(rows.table.replace_schema_metadata(named), rows.classes)
    return rows, cleaning


def choose_reader(opened: Table, source: str, options: SourceOptions) -> Reader:
    """Return the reader of a source's format, known by its columns unless the options name it."""
    name = current_name(options.format)
    if name == AUTO:
        name = next((known.name for known in FORMATS.values() if known.fits(opened)), "table")
    return FORMATS[name].open(opened, source, options)


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
