"""The soft-label file of rows with candidates: one line a row and candidate, in the long layout.

``row_id``, ``fold``, ``candidate`` (its text) and ``logit``; a row's lines stand together, in the order of
its set. So a file says of itself which candidate each logit belongs to, whatever is joined to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.candidates import ABSENT, set_rows
from data.errors import UserError, brief
from data.files import require_columns, sha256_text
from data.ids import refuse_repeated

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("row_id", "fold", "candidate", "logit")


def long_table(
    row_ids: Sequence[str], fold: np.ndarray, logits: np.ndarray, candidates: Sequence[Sequence[str]]
) -> tuple[pa.Table, str]:
    """Lay out logits (n, 1, K) a line a row and candidate; return the table and the hash of its columns."""
    import pyarrow as pa

    sizes = np.array([len(found) for found in candidates])
    ids = [row_id for row_id, n in zip(row_ids, sizes, strict=True) for _ in range(n)]
    names = [candidate for found in candidates for candidate in found]
    folds = np.repeat(fold, sizes)
    flat = logits[:, 0][np.arange(logits.shape[2]) < sizes[:, None]].astype(np.float32)
    table = pa.table(
        {
            "row_id": pa.array(ids, pa.string()),
            "fold": pa.array(folds, pa.int32()),
            "candidate": pa.array(names, pa.string()),
            "logit": pa.array(flat),
        }
    )
    return table, _content(ids, folds, names, flat)


def read_long(
    table: pa.Table, width: int, path: Path
) -> tuple[list[str], np.ndarray, np.ndarray, list[list[str]], str]:
    """Read such a table back.

    Returns
    -------
    row_ids : list of str
    fold : ndarray of shape (n,)
    logits : ndarray of shape (n, 1, width), float32
        :data:`~data.candidates.ABSENT` behind each set.
    candidates : list of list of str
    content : str
        The hash of the columns.

    Raises
    ------
    UserError
        A column is missing, of another type or has empty cells, a logit is not finite, a row's lines stand
        apart, repeat a candidate or name two folds, or a set is larger than ``width``.
    """
    import pyarrow.types as pt

    require_columns(table, list(COLUMNS), path)
    wanted = {
        "row_id": pt.is_string,
        "fold": pt.is_integer,
        "candidate": pt.is_string,
        "logit": pt.is_floating,
    }
    for name, fits in wanted.items():
        column = table.column(name)
        if not fits(column.type) or column.null_count:
            raise UserError(
                f"{path}: column {name} holds {column.type}, {column.null_count} of its cells empty, which "
                "no soft-label file has; make it again"
            )
    if not table.num_rows:
        raise UserError(f"{path}: holds no rows")
    ids, names = table.column("row_id").to_pylist(), table.column("candidate").to_pylist()
    fold = table.column("fold").to_numpy(zero_copy_only=False).astype(np.int64)
    values = table.column("logit").to_numpy(zero_copy_only=False).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise UserError(f"{path}: row {ids[bad[0]]} has a logit that is not finite")
    starts = [i for i, row_id in enumerate(ids) if i == 0 or row_id != ids[i - 1]]
    row_ids = [ids[i] for i in starts]
    refuse_repeated(row_ids, str(path), "rows", ", whose lines stand together in a soft-label file")
    sizes = np.diff([*starts, len(ids)])
    candidates = [names[start : start + n] for start, n in zip(starts, sizes, strict=True)]
    for row_id, found, start in zip(row_ids, candidates, starts, strict=True):
        if len(set(found)) < len(found) or len(found) > width:
            raise UserError(
                f"{path}: row {row_id} has the candidates {brief(found, 80)}; each once, and {width} at most"
            )
        if (fold[start : start + len(found)] != fold[start]).any():
            raise UserError(f"{path}: row {row_id} is in two folds; one model predicts all its candidates")
    logits = set_rows(values, sizes, width, ABSENT)[:, None]
    return row_ids, fold[starts], logits, candidates, _content(ids, fold, names, values)


def _content(ids: Sequence[str], fold: np.ndarray, names: Sequence[str], logits: np.ndarray) -> str:
    numbers = (fold.astype("<i8"), logits.astype("<f4"))
    return sha256_text(*ids, "", *names, *(part.tobytes().hex() for part in numbers))
