"""Reading the columns of a table: ids, classes, numbers and probabilities; a refusal names the row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.classes import PREFERENCE, PREFERENCE_NO_TIE, RESERVED, Classes
from data.errors import UserError, brief, listing
from data.frames import PANDAS_INDEX
from data.ids import id_column, refuse_repeated
from data.schema import SUM_TOLERANCE

if TYPE_CHECKING:
    import pyarrow as pa

NEGATIVE = "not "
"""Before the one column's name of a binary set: the class that it gives 1 - p."""
DUST = 1e-6
"""A probability this little below 0 is rounding, and clipped."""


def class_columns(names: list[str]) -> list[str]:
    """Return the columns of a prediction set that may be classes: all but ids, indices and what is reserved.

    A sole ``label`` is the one column of a binary set.
    """
    ids = id_column(names)
    rest = [name for name in names if name != ids and name not in PANDAS_INDEX]
    found = [name for name in rest if name.lower() not in RESERVED]
    return found or [name for name in rest if name.lower() == "label"]


def infer_classes(columns: list[str], path: Path) -> Classes:
    """Return the classes that columns name; the known preference tasks bring their order and swap.

    One column is that of a binary set: the probability of the class it names.
    """
    for known in (PREFERENCE, PREFERENCE_NO_TIE):
        if set(known.names) <= set(columns):
            return known
    if len(columns) == 1:
        name = columns[0]
        return Classes(("0", "1") if name.lower() in RESERVED else (f"{NEGATIVE}{name}", name))
    if not columns:
        raise UserError(
            f"{path}: has no probability columns; a prediction set needs an id and one column a class"
        )
    try:
        return Classes(tuple(columns))
    except UserError as mistake:
        raise UserError(f"{path}: {mistake}") from mistake


def read_ids(table: pa.Table, path: Path) -> list[str]:
    """Return the id column as text; refuse a missing column, an empty or repeated id, an empty file."""
    column = id_column(table.column_names)
    if column is None:
        raise UserError(
            f"{path}: no id column (id, row_id, or one whose name ends in _id); the file has "
            f"{listing(table.column_names, 12)}; rename the one that holds the ids"
        )
    return check_ids(table.column(column).to_pylist(), column, path)


def check_ids(values: list[Any], column: str, path: Path) -> list[str]:
    """Return ids as text; refuse one that is empty, repeated or no text and no number, naming its line."""
    if not values:
        raise UserError(f"{path}: holds no rows")
    for i, value in enumerate(values):
        if value is None or value == "" or value != value:
            raise UserError(f"{path}: line {i + 1} of the data has no {column}")
        if isinstance(value, (bool, bytes, list, dict)):
            raise UserError(
                f"{path}: line {i + 1} of the data has the {column} {brief(value)}; ids are text or numbers"
            )
    ids = [str(value) for value in values]
    refuse_repeated(ids, str(path), "ids", "; keep one line a row")
    return ids


def number_column(table: pa.Table, name: str, ids: list[str], path: Path) -> np.ndarray:
    """Return a column as float64 (n,), NaN where it is empty; refuse what is no number, naming the row."""
    import pyarrow as pa

    column = table.column(name)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        import pyarrow.compute as pc

        # A CSV is read as text, so that ids keep their zeros.
        text = pc.utf8_trim_whitespace(column)
        if pc.any(pc.match_substring(text, ",")).as_py():  # numbers as much of Europe writes them
            text = pc.replace_substring(text, ",", ".")
        try:
            column = pc.if_else(pc.equal(text, ""), None, text).cast(pa.float64())
        except pa.ArrowInvalid as error:
            cells = zip(ids, text.to_pylist(), strict=True)
            row, value = next(((i, v) for i, v in cells if v and as_number(v) is None), ("", error))
            raise UserError(
                f"{path}: row {row} has {brief(value)!r} in column {name}, where a number was expected"
            ) from error
    kind = column.type
    known = (pa.types.is_floating, pa.types.is_integer, pa.types.is_null, pa.types.is_decimal)
    if not any(fits(kind) for fits in known):
        raise UserError(f"{path}: column {name} holds {kind} values where numbers were expected")
    return np.array(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def as_number(value: object) -> float | None:
    """Return what a cell says as a number, or nothing where it says none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


def check_probabilities(values: np.ndarray, ids: list[str], classes: Classes, path: Path) -> np.ndarray:
    """Return rows normalised to sum to exactly 1; refuse what is not a distribution, naming the row."""
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        row, column = bad[0]
        raise UserError(
            f"{path}: row {ids[row]} has no finite number in column {classes.names[column]}; "
            "every row needs a probability for every class"
        )
    values = np.where((values < 0) & (values >= -DUST), 0.0, values)
    bad = np.argwhere((values < 0) | (values > 1 + SUM_TOLERANCE))
    if bad.size:
        row, column = bad[0]
        percent = np.allclose(values.sum(axis=1), 100, atol=1) and values.min() >= 0
        raise UserError(
            f"{path}: row {ids[row]} has {values[row, column]:g} in column {classes.names[column]}, "
            f"outside 0 to 1; {'divide percentages by 100' if percent else 'give probabilities, not logits'}"
            f"{_odd_one(values, classes)}"
        )
    sums = values.sum(axis=1)
    wrong = np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE)
    if wrong.size:
        raise UserError(
            f"{path}: {wrong.size} rows do not sum to 1, e.g. row {ids[wrong[0]]} sums to "
            f"{sums[wrong[0]]:.6g} over {listing(classes.names, 12)}; normalise them, or name all the classes"
            f"{_odd_one(values, classes)}"
        )
    return values / sums[:, None]


def _odd_one(values: np.ndarray, classes: Classes) -> str:
    """What to say of a column without which the others are distributions; else an empty text."""
    for k in range(classes.n if classes.n > 2 else 0):
        rest = np.delete(values, k, axis=1)
        if (rest >= -DUST).all() and (np.abs(rest.sum(axis=1) - 1) <= SUM_TOLERANCE).all():
            return (
                f"; without column {classes.names[k]} they are distributions: if it is no class, leave it out"
            )
    return ""


def read_probabilities(table: pa.Table, ids: list[str], classes: Classes, path: Path) -> np.ndarray:
    """Return a table's probabilities (n, K) in class order, rows summing to 1.

    One column stands for two classes where it names one of them, or where these come from such a column.
    """
    names = class_columns(table.column_names)
    missing = [name for name in classes.names if name not in table.column_names]
    binary = classes.n == 2 and len(names) == 1
    from_one = classes.names == ("0", "1") or classes.names[0].startswith(NEGATIVE)
    if missing and binary and (names[0] in classes.names or from_one):
        p = number_column(table, names[0], ids, path)
        second = names[0] != classes.names[0]
        return check_probabilities(np.stack([1 - p, p] if second else [p, 1 - p], axis=1), ids, classes, path)
    if missing:
        raise UserError(
            f"{path}: no probability column {listing(missing)}; the file has "
            f"{listing(table.column_names, 12)}, and needs one column a class, named as the class"
        )
    values = np.stack([number_column(table, column, ids, path) for column in classes.names], axis=1)
    return check_probabilities(values, ids, classes, path)
