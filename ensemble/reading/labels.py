"""Reading labels: what happened, and what each row counts for.

What a cell means is said by :mod:`data.labels`, which reads those of sources too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.classes import PREFERENCE, PREFERENCE_NO_TIE, Classes
from data.errors import UserError, listing
from data.files import read_table
from data.labels import WINNERS, LabelReader, cell_text, winner_index
from data.schema import Rows
from ensemble.reading.columns import class_columns, number_column, read_ids, read_probabilities

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Labels:
    """What happened: a target distribution a row.

    Attributes
    ----------
    row_ids : list of str
    targets : ndarray of shape (n, K)
        One-hot or soft; NaN where a row is unlabelled.
    path : Path
    rows : Rows or None
        The row table, where the labels came with one.
    weights : ndarray of shape (n,) or None
        What each row counts for, where a column ``weight`` says so.
    by_index : bool
        Whether a label was given as the index of a class, which means something by the classes' order alone.
    notes : tuple of str
        What the user should know about how the file was read.
    """

    row_ids: list[str]
    targets: np.ndarray
    path: Path
    rows: Rows | None = None
    weights: np.ndarray | None = None
    by_index: bool = False
    notes: tuple[str, ...] = ()


def load_labels(path: Path, classes: Classes) -> Labels:
    """Read labels: a row table or prepared data, or ids with ``label``, ``winner`` or one column a class.

    ``label`` is a class name, or a class index where the names are not numbers themselves; empty where a row
    is unlabelled. Class columns are one-hot (numbers or truths) or soft. A column ``weight`` says what each
    row counts for.

    Raises
    ------
    UserError
        Missing or damaged file, missing column, duplicate id, a label that is none of the classes.
    """
    from data.schema import read_rows

    if path.is_dir():
        return labels_of(read_rows(path), path, classes)
    table = read_table(path, "label file", as_text=True)
    if {"row_id", "prompt", "response_a", "label"} <= set(table.column_names) and path.suffix == ".parquet":
        return labels_of(read_rows(path), path, classes)
    return labels_in(table, path, classes)


def labels_in(table: pa.Table, path: Path, classes: Classes) -> Labels:
    """Read the table of a label file, which messages call by ``path``; as :func:`load_labels`."""
    ids = read_ids(table, path)
    names, said = table.column_names, []
    by_index = False
    column = _label_column(table, classes)
    if column == "winner":
        cells = zip(table.column(column).to_pylist(), ids, strict=True)
        found = [winner_index(cell, classes.n, key, str(path)) for cell, key in cells]
        targets = _one_hot(found, classes.n)
    elif column is not None:
        read = LabelReader(classes, str(path))
        cells = zip(table.column(column).to_pylist(), ids, strict=True)
        targets = _one_hot([read(cell, key) for cell, key in cells], classes.n)
        read.check_counting()
        by_index = bool(read.indices)
    elif all(name in names for name in classes.names) or classes.names[-1] in class_columns(names):
        for name in classes.names:
            table = _truths_as_numbers(table, name)
        targets = read_probabilities(table, ids, classes, path)
    else:
        raise UserError(
            f"{path}: no label column; it needs label (a class index or name), winner, or one column a class "
            f"({listing(classes.names, 12)}), and has {listing(names, 12)}"
        )
    if column not in (None, "label", "winner"):
        said.append(f"{path}: column {column} is taken as the label")
    if by_index and classes not in (PREFERENCE, PREFERENCE_NO_TIE):
        order = ", ".join(f"{k} = {name}" for k, name in enumerate(classes.names[:12]))
        said.append(f"{path}: labels that are numbers are read as {order}, the order of the columns")
    unused = [name for name in ("fold", "group_id") if name in names]
    if unused:
        said.append(f"{path}: column {listing(unused)} is not used; folds and groups are given with --folds")
    return Labels(
        ids, targets, path, weights=_weights(table, ids, path), by_index=by_index, notes=tuple(said)
    )


def _label_column(table: pa.Table, classes: Classes) -> str | None:
    """The column that names or numbers classes: ``label``, ``winner`` of a pair, or the only one there is."""
    names = table.column_names
    lower = {name.lower(): name for name in names}
    if "label" in lower:
        return lower["label"]
    if "winner" in names and classes in (PREFERENCE, PREFERENCE_NO_TIE):
        return (
            "winner"
            if {cell_text(cell) for cell in table.column("winner").to_pylist()} & set(WINNERS)
            else None
        )
    found = class_columns(names)
    return found[0] if len(found) == 1 and found[0] not in classes.names else None


def _one_hot(labels: list[int | None], n_classes: int) -> np.ndarray:
    """Targets (n, K): 1 at each label, NaN in a row without one."""
    targets = np.full((len(labels), n_classes), np.nan)
    for i, label in enumerate(labels):
        if label is not None:
            targets[i] = 0
            targets[i, label] = 1
    return targets


def labels_of(rows: Rows, path: Path, classes: Classes) -> Labels:
    """Labels of a row table, which must speak of the same classes."""
    if rows.classes.names != classes.names:
        raise UserError(
            f"{path}: its classes are {listing(rows.classes.names, 12)}, "
            f"where the predictions have {listing(classes.names, 12)}"
        )
    return Labels(rows.row_ids, rows.targets, path, rows, _weights(rows.table, rows.row_ids, path))


def _truths_as_numbers(table: pa.Table, name: str) -> pa.Table:
    """Write a column of truths, as ``pandas.get_dummies`` makes them, as 0 and 1."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if name not in table.column_names:
        return table
    column = table.column(name)
    if pa.types.is_string(column.type):
        text = pc.utf8_lower(pc.utf8_trim_whitespace(column))
        if not pc.all(pc.is_in(text, pa.array(["true", "false"]))).as_py():
            return table
        column = pc.equal(text, "true")
    if not pa.types.is_boolean(column.type):
        return table
    return table.set_column(table.column_names.index(name), name, column.cast(pa.int8()))


def _weights(table: pa.Table, ids: list[str], path: Path) -> np.ndarray | None:
    """The column ``weight``, where there is one: finite and not negative, the greatest of them 1."""
    if "weight" not in table.column_names:
        return None
    values = number_column(table, "weight", ids, path)
    bad = np.flatnonzero(~np.isfinite(values) | (values < 0))
    if bad.size:
        raise UserError(
            f"{path}: row {ids[bad[0]]} has no weight of 0 or more in column weight; give every row one"
        )
    return values / (values.max() or 1.0)  # their sum stays finite, whatever they are counted in
