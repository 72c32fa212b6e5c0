"""What models cost for a row: one amount for all rows, or each row's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError, brief, listing
from data.files import read_table
from data.frames import as_table, is_frame
from data.ids import places
from ensemble.reading.columns import as_number, check_ids, number_column, read_ids
from ensemble.reading.given import by_row

COLUMN = "cost"
Cost = float | np.ndarray


def costs_given(
    given: Mapping[str, Any], names: Sequence[str], ids: Sequence[str], free: str = ""
) -> dict[str, Cost]:
    """Read what each model costs for rows ``ids``.

    Parameters
    ----------
    given : mapping of str to amount, array of shape (n,), Series, data frame or path
        By the model's name. A file or a frame has an id and a column ``cost``.
    names : sequence of str
        Models that need one.
    ids : sequence of str
    free : str
        The model that may cost nothing: the cheap one, whose predictions may be there already.

    Raises
    ------
    UserError
        A model without a cost, a cost of no model, rows without one, or one that is no amount above 0.
    """
    missing = [name for name in names if name not in given]
    unknown = [name for name in given if name not in names]
    if unknown and not names:
        raise UserError(f"--cost: the router knows what {listing(unknown)} costs for a row; leave it out")
    if missing or unknown:
        parts = [f"no cost of {listing(missing)}"] if missing else []
        parts += [f"{listing(unknown)} is no model that needs one"] if unknown else []
        raise UserError(f"--cost: {'; '.join(parts)}; give NAME=AMOUNT for each of {listing(names, 12)}")
    return {name: _cost(given[name], name, ids, name == free) for name in names}


def _cost(value: Any, name: str, ids: Sequence[str], free: bool) -> Cost:
    where = f"--cost {name}"
    if isinstance(value, str) and as_number(value) is not None:
        value = float(value)
    if isinstance(value, str | Path):
        if not Path(value).is_file():
            raise UserError(f"{where}={brief(value)}: is neither an amount nor a file of rows' costs")
        return _in_table(read_table(Path(value), "cost file", as_text=True), Path(value), ids, free)
    if is_frame(value):
        table, own = as_table(value)
        if own:
            return _in_table(table, Path(where), ids, free)
        value = table.column(COLUMN).to_pylist() if COLUMN in table.column_names else []
    if np.ndim(value) or hasattr(value, "to_frame"):
        amounts = np.array([as_number(cell) for cell in by_row(value, ids, where)], dtype=np.float64)
        return _checked(amounts, ids, where, free)
    amount = as_number(value)
    if amount is None or not math.isfinite(amount) or amount < 0 or (amount == 0 and not free):
        raise UserError(f"{where}={brief(value)}: a row's cost is a number above 0, in any unit, or a file")
    return amount


def _in_table(table: Any, path: Path, ids: Sequence[str], free: bool) -> np.ndarray:
    if COLUMN not in table.column_names:
        raise UserError(
            f"{path}: has no column {COLUMN}; costs of rows are an id and a {COLUMN}, and it has "
            f"{listing(table.column_names, 12)}"
        )
    own = read_ids(table, path)
    at = places(ids, own)
    absent = [row_id for row_id, place in zip(ids, at.tolist(), strict=True) if place < 0]
    if absent:
        raise UserError(f"{path}: has no cost of {len(absent)} rows, e.g. {listing(absent, 3)}")
    return _checked(number_column(table, COLUMN, check_ids(own, "id", path), path)[at], ids, str(path), free)


def _checked(amounts: np.ndarray, ids: Sequence[str], where: str, free: bool) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(amounts) | (amounts < 0) | ((amounts == 0) & (not free)))
    if bad.size:
        raise UserError(
            f"{where}: row {brief(ids[bad[0]])} has the cost {amounts[bad[0]]:g}; give every row a number "
            "above 0"
        )
    return amounts


def spread(cost: Cost, n: int) -> np.ndarray:
    """A cost as one number a row, shape (n,)."""
    return np.full(n, cost) if isinstance(cost, int | float) else np.asarray(cost, dtype=np.float64)
