"""The row table: one labelled example a row.

``rows.parquet`` holds ``row_id``, ``prompt``, ``response_a``, ``response_b`` (one list entry a turn),
``label`` (class index, as wide as the classes need, null where unlabelled), optionally ``label_probs``
(soft labels), ``model_a``, ``model_b`` and ``source``. Further columns are kept and ignored. What the labels
mean (:mod:`data.classes`) travels in the file's metadata.

Rows that bring their own options have these in ``candidates``, two or more each, and the label is the index
of the right one: their classes are the places in such a set (:func:`data.classes.place_classes`), of which a
row has as many as candidates. Arrays over the classes are then as wide as the largest set, zero where a row
has none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.candidates import CANDIDATES, refuse_odd_sets, set_rows
from data.classes import Classes, classes_of, label_type, metadata_of
from data.errors import UserError, brief, listing
from data.files import TextDigest, read_parquet, readable_parquet, require_columns, write_parquet
from data.ids import refuse_repeated

if TYPE_CHECKING:
    import pyarrow as pa

ID_KEY = b"distillstack.id"
"""In the metadata of rows just read: what their source calls its column of ids."""
SUM_TOLERANCE = 5e-3
"""Probabilities rounded to a few digits may miss 1 by this; they are then normalised."""
HASH_ROWS = 4096
HASHED = ["row_id", "prompt", "response_a", "response_b", "label"]


@dataclass(frozen=True)
class Rows:
    """A validated row table.

    Attributes
    ----------
    table : pyarrow.Table
        The columns of the module's contract, and any further ones.
    classes : Classes
        What the labels mean.
    """

    table: pa.Table
    classes: Classes

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def row_ids(self) -> list[str]:
        """Row ids in table order."""
        return self.table.column("row_id").to_pylist()

    @property
    def id_name(self) -> str:
        """What the source of rows just read calls its column of ids; ``id`` where it has none."""
        return (self.table.schema.metadata or {}).get(ID_KEY, b"id").decode()

    @cached_property
    def labels(self) -> np.ndarray:
        """Class index a row, shape (n,), int64; -1 where unlabelled."""
        return np.array(
            self.table.column("label").fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64
        )

    @cached_property
    def candidates(self) -> list[list[str]]:
        """Each row's own candidates, in their order, of rows that have them."""
        return self.table.column(CANDIDATES).to_pylist()

    @cached_property
    def sizes(self) -> np.ndarray | None:
        """How many candidates each row has, shape (n,), int64; none where rows share their classes."""
        if not self.classes.candidates:
            return None
        import pyarrow.compute as pc

        lengths = pc.list_value_length(self.table.column(CANDIDATES))
        return lengths.to_numpy(zero_copy_only=False).astype(np.int64)

    @cached_property
    def targets(self) -> np.ndarray:
        """Target distribution a row, shape (n, K), float64: ``label_probs`` where given, else one-hot.

        Rows that are neither are NaN.
        """
        labels = self.labels
        targets = np.full((len(self), self.classes.n), np.nan)
        known = labels >= 0
        targets[known] = 0
        targets[known, labels[known]] = 1
        if "label_probs" in self.table.column_names:
            probs, given = soft_labels(self.table, self.classes.n, self.sizes)
            targets[given] = probs[given] / probs[given].sum(axis=1, keepdims=True)
        return targets

    @cached_property
    def labelled(self) -> np.ndarray:
        """Which rows have a target, shape (n,), bool."""
        known = self.labels >= 0
        if "label_probs" in self.table.column_names:
            known = known | self.table.column("label_probs").is_valid().to_numpy()
        return known

    @cached_property
    def content_hash(self) -> str:
        """Hash of ids, texts, labels and class names; equal for equal content however it is stored."""
        columns = hashed_columns(self.classes, self.table.column_names)
        return hash_rows(self.classes, columns, lambda name: self.table.select([name]).to_batches(HASH_ROWS))

    def take(self, indices: np.ndarray) -> Rows:
        """Return the rows at ``indices``."""
        import pyarrow as pa

        return Rows(self.table.take(pa.array(indices)), self.classes)


def hashed_columns(classes: Classes, names: Sequence[str]) -> list[str]:
    """The columns of a row table that its content hash covers."""
    also = ("label_probs", *((CANDIDATES,) if classes.candidates else ()))
    return [*HASHED, *(name for name in also if name in names)]


def hash_rows(
    classes: Classes, columns: list[str], batches: Callable[[str], Iterable[pa.RecordBatch]]
) -> str:
    """Hash the columns of a row table as the JSON lists they are, batch by batch.

    Parameters
    ----------
    classes : Classes
    columns : list of str
    batches : callable
        Returns the batches of one column, whose borders make no difference.
    """
    digest = TextDigest(*classes.names, *columns)
    for name in columns:
        separator = "["
        for batch in batches(name):
            values = batch.column(0).to_pylist()
            if values:
                digest.add(separator + json.dumps(values)[1:-1])
                separator = ", "
        digest.add("[]" if separator == "[" else "]")
        digest.end()
    return digest.hexdigest()


def soft_labels(
    table: pa.Table, n_classes: int, sizes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``label_probs`` as an array (n, K), and which rows have any, shape (n,).

    Where a row has none, or lists of another length, its numbers are NaN. The length is K, or of rows with
    candidates as many as each has, by ``sizes`` (n,); the rest of its line is then 0.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table.column("label_probs").combine_chunks()
    given = column.is_valid().to_numpy(zero_copy_only=False)
    lists = column.cast(pa.list_(pa.float32())).drop_null()
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    wanted = np.full(len(lengths), n_classes) if sizes is None else sizes[given]
    fits = np.flatnonzero(given)[lengths == wanted]
    values = pc.list_flatten(lists).to_numpy(zero_copy_only=False).astype(np.float64)
    probs = np.full((table.num_rows, n_classes), np.nan)
    values = values[np.repeat(lengths == wanted, lengths)]
    probs[fits] = set_rows(values, lengths[lengths == wanted], n_classes, 0.0)
    return probs, given


def column_types(classes: Classes) -> dict[str, pa.DataType]:
    """Return the types of a row table's columns."""
    import pyarrow as pa

    text, turns = pa.string(), pa.list_(pa.string())
    return {
        "row_id": text,
        "prompt": turns,
        "response_a": turns,
        "response_b": turns,
        "label": label_type(classes),
        "label_probs": pa.list_(pa.float32()),  # of a fixed size, releases of Arrow do not read one another's
        **({CANDIDATES: turns} if classes.candidates else {}),
        "model_a": text,
        "model_b": text,
        "source": text,
    }


def as_text(column: pa.ChunkedArray) -> pa.Array:
    """A column as text, whatever it holds; null stays null."""
    import pyarrow as pa

    if column.type == pa.string():
        return column.combine_chunks()
    return pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())


def with_usual_types(rows: Rows) -> Rows:
    """Return rows whose columns have the types that ours have: a table made elsewhere may have wider ones."""
    import pyarrow as pa

    table = rows.table
    for name, kind in column_types(rows.classes).items():
        if name not in table.column_names or table.schema.field(name).type == kind:
            continue
        if name == "label_probs":
            probs, given = soft_labels(table, rows.classes.n, rows.sizes)
            pairs = zip(probs.tolist(), given.tolist(), strict=True)
            sizes = [rows.classes.n] * len(rows) if rows.sizes is None else rows.sizes.tolist()
            column = pa.array(
                [row[:size] if has else None for (row, has), size in zip(pairs, sizes, strict=True)], kind
            )
        elif kind == pa.string():
            column = as_text(table.column(name))
        else:
            column = table.column(name).cast(kind)
        table = table.set_column(table.column_names.index(name), name, column)
    return Rows(table, rows.classes)


def make_rows(columns: dict[str, list], classes: Classes, where: str) -> Rows:
    """Build and validate a row table from Python columns; ``where`` names the source in messages.

    ``row_id`` and ``prompt`` are required. Missing responses become empty lists, missing labels null.
    """
    import pyarrow as pa

    n = len(columns["row_id"])
    types = column_types(classes)
    defaults: dict[str, object] = {"response_a": [], "response_b": [], "label": None, "source": where}
    arrays = {}
    for name, kind in types.items():
        if name in columns:
            arrays[name] = pa.array(columns[name], kind)
        elif name in defaults:
            arrays[name] = pa.array([defaults[name]] * n, kind)
    for name in columns:
        if name not in types:
            arrays[name] = pa.array(columns[name])
    return validate(Rows(pa.table(arrays), classes), where)


def validate(rows: Rows, where: str | Path) -> Rows:
    """Return ``rows`` if they keep the contract, else say which row or column does not.

    Raises
    ------
    UserError
        A missing column or one of another type, no rows, a null text, a missing or duplicate id, a label
        outside the classes, or soft labels that are not a distribution.
    """
    require_columns(rows.table, ["row_id", "prompt", "response_a", "response_b", "label"], where)
    if len(rows) == 0:
        raise UserError(f"{where}: holds no rows")
    _validate_types(rows.table, where)
    ids = rows.row_ids
    missing = [i for i, row_id in enumerate(ids) if not row_id]
    if missing:
        raise UserError(f"{where}: row {missing[0]} (counted from 0) has no row_id")
    refuse_repeated(ids, str(where))
    if rows.classes.candidates:
        require_columns(rows.table, [CANDIDATES], where)
        refuse_odd_sets(rows.table.column(CANDIDATES), ids, rows.labels, rows.classes.n, where)
    bad = np.flatnonzero((rows.labels < -1) | (rows.labels >= rows.classes.n))
    if bad.size:
        raise UserError(
            f"{where}: row {ids[bad[0]]} has label {rows.labels[bad[0]]}, "
            f"outside the {rows.classes.n} classes {listing(rows.classes.names)}"
        )
    if "label_probs" in rows.table.column_names:
        _validate_soft_labels(rows, where)
    return rows


def _validate_types(table: pa.Table, where: str | Path) -> None:
    """Refuse columns of another type, and texts that are null: a table made elsewhere may hold either."""
    import pyarrow.compute as pc
    import pyarrow.types as pt

    def is_text(kind: pa.DataType) -> bool:
        return bool(pt.is_string(kind) or pt.is_large_string(kind))

    def is_turns(kind: pa.DataType) -> bool:
        return bool((pt.is_list(kind) or pt.is_large_list(kind)) and is_text(kind.value_type))

    expected = {"row_id": ("string", is_text), "label": ("integer", pt.is_integer)}
    expected |= dict.fromkeys(("prompt", "response_a", "response_b"), ("list<string>", is_turns))
    for name, (kind, fits) in expected.items():
        found = table.schema.field(name).type
        if not fits(found):
            raise UserError(
                f"{where}: column {name} is {found} where a row table has {kind}; "
                "make the row table with python -m data.prepare --source FILE --out DIR"
            )
    for name in ("prompt", "response_a", "response_b"):
        column = table.column(name)
        if column.null_count or pc.list_flatten(column).null_count:
            lists = column.to_pylist()
            first = next(i for i, turns in enumerate(lists) if turns is None or None in turns)
            raise UserError(
                f"{where}: row {first} (counted from 0), column {name} has a null where text was expected"
            )


def _validate_soft_labels(rows: Rows, where: str | Path) -> None:
    import pyarrow as pa
    import pyarrow.types as pt

    kind = rows.table.schema.field("label_probs").type
    is_lists = pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind)
    if not is_lists or not (pt.is_floating(kind.value_type) or pt.is_integer(kind.value_type)):
        raise UserError(f"{where}: column label_probs is {kind} where a row table has list<float>")
    try:
        probs, given = soft_labels(rows.table, rows.classes.n, rows.sizes)
    except pa.ArrowException as error:
        raise UserError(f"{where}: column label_probs cannot be read as numbers ({error})") from error
    with np.errstate(invalid="ignore"):
        sound = (
            np.isfinite(probs).all(axis=1)
            & (probs >= 0).all(axis=1)
            & (np.abs(probs.sum(axis=1) - 1) <= SUM_TOLERANCE)
        )
    bad = np.flatnonzero(given & ~sound)
    if bad.size:
        shown = rows.table.column("label_probs")[int(bad[0])].as_py()
        wanted = rows.classes.n if rows.sizes is None else rows.sizes[bad[0]]
        raise UserError(
            f"{where}: row {rows.row_ids[bad[0]]} has label_probs {brief(shown)}, not {wanted} "
            "non-negative numbers that sum to 1"
        )


def write_rows(path: Path, rows: Rows) -> None:
    """Write ``rows.parquet``, class names and swap in its metadata."""
    write_parquet(path, rows.table.replace_schema_metadata(metadata_of(rows.classes)))


def read_rows(path: Path) -> Rows:
    """Read and validate a row table from a ``rows.parquet`` or a directory that holds one.

    A file without our metadata is taken as a preference table: A wins, B wins, tie.
    """
    import pyarrow as pa

    file = path / "rows.parquet" if path.is_dir() else path
    table = read_parquet(file, "row table")
    try:
        table.validate(full=True)  # text that is not UTF-8 would only be met where it is used
    except pa.ArrowException as error:
        raise UserError(f"{file}: is damaged ({brief(error)}); make it again") from error
    return validate(Rows(table, classes_of(table.schema, file)), file)


def describe_file(path: Path) -> tuple[Classes, int, str]:
    """Return classes, number of rows and content hash of a table on disk, without holding it in memory."""
    import pyarrow.parquet as pq

    with readable_parquet(path), pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        require_columns(file.schema_arrow, HASHED, path)
        classes = classes_of(file.schema_arrow, path)
        columns = hashed_columns(classes, names)
        content = hash_rows(classes, columns, lambda name: file.iter_batches(HASH_ROWS, columns=[name]))
        return classes, file.metadata.num_rows, content
