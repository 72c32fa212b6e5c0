"""Reading labels: what happened, and what each row counts for.

A label is a class name or an index; a number is an index only where the classes are not numbers themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.errors import UserError, brief, listing
from data.files import read_table
from data.schema import Classes, Rows
from ensemble.reading.columns import as_number, check_probabilities, number_column, read_ids

if TYPE_CHECKING:
    import pyarrow as pa

_MISSING = ("", "nan", "na", "null", "none")


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
    """Read labels: a row table or prepared data, or ``id`` with ``label`` or one column a class.

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
    ids = read_ids(table, path)
    by_index = False
    if "label" in table.column_names:
        values = table.column("label").to_pylist()
        targets, by_index = _targets_from_labels(values, ids, classes, path)
    elif all(name in table.column_names for name in classes.names):
        columns = [number_column(_truths_as_numbers(table, name), name, ids, path) for name in classes.names]
        targets = check_probabilities(np.stack(columns, axis=1), ids, classes, path)
    else:
        raise UserError(
            f"{path}: no label column; it needs label (a class index or name) or one column a class "
            f"({listing(classes.names, 12)}), and has {listing(table.column_names, 12)}"
        )
    unused = [name for name in ("fold", "group_id") if name in table.column_names]
    notes = (f"{path}: column {listing(unused)} is not used; folds and groups are given with --folds",)
    weights = _weights(table, ids, path)
    return Labels(ids, targets, path, weights=weights, by_index=by_index, notes=notes if unused else ())


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


def _targets_from_labels(
    values: list[Any], ids: list[str], classes: Classes, path: Path
) -> tuple[np.ndarray, bool]:
    """One-hot targets (n, K), and whether a label was an index."""
    index = {name: k for k, name in enumerate(classes.names)}
    numbered = _as_numbers(classes.names)
    targets = np.full((len(values), classes.n), np.nan)
    by_index = False
    for i, value in enumerate(values):
        text = str(value)
        k = index.get(text)
        if k is None:
            if value is None or value != value or text.lower() in _MISSING:
                continue
            number = _whole(value)
            if numbered is not None:
                k = numbered.get(number)
            elif number is not None and 0 <= number < classes.n:
                k, by_index = int(number), True
        if k is None:
            allowed = "" if numbered is not None else f"an index from 0 to {classes.n - 1} or "
            raise UserError(
                f"{path}: row {ids[i]} has label {brief(value)!r}, none of the {classes.n} classes; give "
                f"{allowed}one of {listing(classes.names, 12)}"
            )
        targets[i] = np.eye(classes.n)[k]
    return targets, by_index


def _as_numbers(names: tuple[str, ...]) -> dict[float | None, int] | None:
    """Class names that are all whole numbers, such as grades from 1 to 5: a label 1 is then that name."""
    found = {_whole(name): k for k, name in enumerate(names)}
    return None if None in found else found


def _whole(value: Any) -> float | None:
    number = as_number(value)
    return number if number is not None and number.is_integer() else None
