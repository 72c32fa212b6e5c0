"""Data frames and tables in memory (pandas, polars, Arrow), as Arrow tables or as a file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.ids import id_column

if TYPE_CHECKING:
    import pyarrow as pa

Frame = Any
"""A pandas or polars data frame, or an Arrow table."""
PANDAS_INDEX = ("", "Unnamed: 0", "__index_level_0__")
"""What the index of a pandas table is called in a file: to_csv's, the same read again, and to_parquet's."""


def is_frame(value: Any) -> bool:
    """Whether a value is a data frame or a table."""
    return hasattr(value, "__arrow_c_stream__") and (
        hasattr(value, "columns") or hasattr(value, "column_names")
    )


def as_table(frame: Frame) -> tuple[pa.Table, bool]:
    """A frame as an Arrow table with ids first, and whether these are its own.

    Its own are an id column, else an index that is not just the rows' numbers.
    """
    import pyarrow as pa

    to_pandas_index = hasattr(frame, "index") and hasattr(frame, "iloc")
    table = pa.Table.from_pandas(frame) if to_pandas_index else pa.table(frame)
    name = id_column(table.column_names)
    if name is None:
        name = next((index for index in PANDAS_INDEX[2:] if index in table.column_names), None)
    if name is None:
        return table.add_column(0, "id", pa.array(numbered(table.num_rows), pa.string())), False
    ids = table.column(name)
    return table.drop_columns([name]).add_column(0, "id", ids), True


def numbered(n: int, begin: int = 0) -> list[str]:
    """Numbers of ``n`` things that are known by position alone; sorted as texts they keep their order."""
    width = len(str(n - 1 + begin))
    return [f"{i:0{width}d}" for i in range(begin, n + begin)]


@contextmanager
def as_file(source: Frame | str | Path) -> Iterator[str]:
    """Yield a source as a path: of a frame a file that is gone afterwards, its own index a column of ids."""
    if not is_frame(source):
        yield str(source)
        return
    import pyarrow.parquet as pq

    table, own = as_table(source)
    with tempfile.TemporaryDirectory(prefix="distillstack-") as folder:
        path = Path(folder) / "frame.parquet"
        pq.write_table(table if own else table.drop_columns(["id"]), path)
        yield str(path)
