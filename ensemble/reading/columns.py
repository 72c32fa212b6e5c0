"""Reading the columns of a table: ids, classes, numbers and probabilities; a refusal names the row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.errors import UserError, brief, listing
from data.ids import refuse_repeated
from data.schema import PREFERENCE, PREFERENCE_NO_TIE, SUM_TOLERANCE, Classes

if TYPE_CHECKING:
    import pyarrow as pa

ID_COLUMNS = ("id", "row_id")
PANDAS_INDEX = ("", "Unnamed: 0", "__index_level_0__")
"""What the index of a pandas table is called in a file: to_csv's, the same read again, and to_parquet's."""
NOT_CLASSES = (*ID_COLUMNS, *PANDAS_INDEX, "fold", "group_id", "label", "swap", "weight")


def infer_classes(columns: list[str], path: Path) -> Classes:
    """Return the classes that columns name; the known preference tasks bring their order and swap."""
    for known in (PREFERENCE, PREFERENCE_NO_TIE):
        if sorted(columns) == sorted(known.names):
            return known
    if len(columns) < 2:
        raise UserError(
            f"{path}: has {len(columns)} probability columns ({listing(columns)}); "
            "a prediction set needs an id and one column a class"
        )
    try:
        return Classes(tuple(columns))
    except UserError as mistake:
        raise UserError(f"{path}: {mistake}") from mistake


def read_ids(table: pa.Table, path: Path) -> list[str]:
    """Return the id column as text; refuse a missing column, an empty or repeated id, an empty file."""
    column = next((name for name in ID_COLUMNS if name in table.column_names), None)
    if column is None:
        semicolons = "; is it separated by semicolons? save it with commas" if table.num_columns == 1 else ""
        raise UserError(
            f"{path}: no id column (id or row_id); the file has {listing(table.column_names, 12)}"
            f"{semicolons if ';' in table.column_names[0] else ''}"
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
    bad = np.argwhere((values < 0) | (values > 1 + SUM_TOLERANCE))
    if bad.size:
        row, column = bad[0]
        percent = np.allclose(values.sum(axis=1), 100, atol=1) and values.min() >= 0
        raise UserError(
            f"{path}: row {ids[row]} has {values[row, column]:g} in column {classes.names[column]}, "
            f"outside 0 to 1; {'divide percentages by 100' if percent else 'give probabilities, not logits'}"
        )
    sums = values.sum(axis=1)
    wrong = np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE)
    if wrong.size:
        raise UserError(
            f"{path}: {wrong.size} rows do not sum to 1, e.g. row {ids[wrong[0]]} sums to "
            f"{sums[wrong[0]]:.6g} over {listing(classes.names, 12)}; normalise them, or name all the classes"
        )
    return values / sums[:, None]
