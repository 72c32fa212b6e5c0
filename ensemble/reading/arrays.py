"""Reading predictions that a NumPy file holds, whose ids stand in a text beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.errors import UserError
from data.files import require_file
from ensemble.reading.columns import check_ids


def read_array(path: Path) -> tuple[list[str], np.ndarray]:
    """Read a ``.npy`` of numbers (n, K), and its ids, one a line in ``<stem>.ids.txt``.

    Raises
    ------
    UserError
        Missing or damaged file, an array of another shape, ids that are not one a row.
    """
    require_file(path, "prediction set")
    try:
        values = np.load(path, allow_pickle=False)
        if not isinstance(values, np.ndarray):
            raise ValueError("it is an archive of several")
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise UserError(
            f"{path}: cannot be read as a NumPy array ({error}); save it with numpy.save"
        ) from error
    if values.ndim != 2 or values.shape[1] < 2 or values.dtype.kind not in "fiu":
        raise UserError(
            f"{path}: holds {values.dtype} of shape {values.shape}; needs numbers, one row a row id and "
            "one column a class"
        )
    file = path.with_suffix(".ids.txt")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read ({error}); {path} needs its row ids there, one a line"
        ) from error
    ids = [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
    if len(ids) != len(values):
        raise UserError(f"{file}: has {len(ids)} ids, and {path} has {len(values)} rows; give one id a row")
    return check_ids(ids, "id", file), values.astype(np.float64)
