"""Rows that bring their own options: sets of any size, laid out as arrays, and what a set must keep.

A set has two candidates or more, each a text, no text twice; a label is a place in it. Numbers over the
candidates of many rows stand in an array as wide as the largest set, and behind a smaller one there stands
:data:`ABSENT` for a logit, 0 for a probability: a softmax over the line is then the softmax over the set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.errors import UserError, brief

if TYPE_CHECKING:
    import pyarrow as pa

CANDIDATES = "candidates"
"""The column of a row's own options, and what manifests call rows that have it."""
ABSENT = -1e4
"""The logit of a place that a row's set does not have: finite, and its softmax 0 at any usual temperature."""


def set_rows(values: np.ndarray, sizes: np.ndarray, width: int, absent: float) -> np.ndarray:
    """Lay values of sets, one set behind another, into an array (sets, width), ``absent`` behind each set.

    Parameters
    ----------
    values : ndarray of shape (sum of sizes,)
    sizes : ndarray of shape (sets,)
    width : int
        At least the largest size.
    absent : float
    """
    laid = np.full((len(sizes), width), absent, dtype=values.dtype)
    laid[np.arange(width) < np.asarray(sizes)[:, None]] = values
    return laid


def refuse_odd_sets(
    column: pa.ChunkedArray, row_ids: Sequence[str], labels: np.ndarray, most: int, where: str | Path
) -> None:
    """Refuse a column of candidates that does not keep what a set must, naming the row.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
    row_ids : sequence of str
    labels : ndarray of shape (n,)
        Places; -1 where unlabelled.
    most : int
        Candidates that a row may have.
    where : str or Path
        For messages.
    """
    import pyarrow.types as pt

    kind = column.type
    if not (pt.is_list(kind) or pt.is_large_list(kind)) or not (
        pt.is_string(kind.value_type) or pt.is_large_string(kind.value_type)
    ):
        raise UserError(
            f"{where}: column {CANDIDATES} is {kind} where a row table has list<string>; "
            "make the row table with python -m data.prepare --source FILE --out DIR"
        )
    for row_id, found, label in zip(row_ids, column.to_pylist(), labels.tolist(), strict=True):
        n = len(found or [])
        if n < 2:
            raise UserError(
                f"{where}: row {row_id} has {n} candidates; give two or more, of which one is right, or "
                "leave the row out"
            )
        if any(not candidate or not candidate.strip() for candidate in found):
            raise UserError(f"{where}: row {row_id} has an empty candidate; give each a text")
        if len(set(found)) < n:
            twice = next(candidate for candidate in found if found.count(candidate) > 1)
            raise UserError(f"{where}: row {row_id} has the candidate {brief(twice, 60)} twice; keep one")
        if n > most:
            raise UserError(
                f"{where}: row {row_id} has {n} candidates, and the table's metadata say at most {most}; "
                "make it again"
            )
        if label >= n:
            raise UserError(
                f"{where}: row {row_id} has label {label}, which is no place among its {n} candidates, "
                "counted from 0"
            )
