"""Cells of a source to labels: a class by name or number, a winner, one-hot columns, soft labels."""

from __future__ import annotations

import json

from data.errors import UserError, brief, listing
from data.labels import cell_text, label_index
from data.schema import PREFERENCE, Classes
from data.sources.open import Columns
from data.sources.place import require

WINNERS = {"model_a": 0, "model_b": 1}


def copy_labels(columns: Columns, out: Columns, classes: Classes, where: str) -> None:
    """Read a source's labels, one-hot, as a ``winner`` or in ``label``, and the soft ones beside them."""
    if "label_probs" in columns:
        out["label_probs"] = soft_label_cells(columns, "label_probs", out["row_id"], classes, where)
    winners = {**WINNERS, "tie": 2} if classes.n == 3 else WINNERS
    if classes.n == 3 and any(name in columns for name in PREFERENCE.names):
        require(columns, list(PREFERENCE.names), where)
        votes = zip(*(columns[name] for name in PREFERENCE.names), strict=True)
        out["label"] = [_one_hot(row, key, where) for key, row in zip(out["row_id"], votes, strict=True)]
    elif "winner" in columns:
        cells = zip(out["row_id"], columns["winner"], strict=True)
        out["label"] = [winner_index(cell, winners, key, where) for key, cell in cells]
    elif "label" in columns:
        cells = zip(out["row_id"], columns["label"], strict=True)
        out["label"] = [label_index(cell_text(cell), classes, key, where) for key, cell in cells]


def soft_label_cells(columns: Columns, names: str, ids: list, classes: Classes, where: str) -> list:
    """Distributions from one column of lists or from K columns; a row with all cells empty has none."""
    theirs = names.split(",")
    cells = columns[theirs[0]] if len(theirs) == 1 else list(zip(*(columns[n] for n in theirs), strict=True))
    out: list[list[float] | None] = []
    for row_id, cell in zip(ids, cells, strict=True):
        if cell in (None, "") or (len(theirs) > 1 and all(value in (None, "") for value in cell)):
            out.append(None)
            continue
        try:
            values = [float(value) for value in (json.loads(cell) if isinstance(cell, str) else cell)]
        except (TypeError, ValueError, RecursionError, OverflowError):
            values = []
        if len(values) != classes.n:
            raise UserError(
                f"{where}: row {row_id}, column {names} holds {brief(cell)}, not {classes.n} numbers, one "
                "a class"
            )
        out.append(values)
    return out


def winner_index(value: object, winners: dict[str, int], row_id: str, where: str) -> int | None:
    """Return the class that a ``winner`` cell names; none where it is empty."""
    text = cell_text(value)
    if text is None:
        return None
    if text not in winners:
        raise UserError(
            f"{where}: row {row_id} has winner {brief(text)}; it must be one of {listing(winners, 9)}"
        )
    return winners[text]


def _one_hot(values: tuple[object, ...], row_id: object, where: str) -> int | None:
    texts = [cell_text(value) for value in values]
    if all(text is None for text in texts):
        return None
    if sorted(str(text) for text in texts) != ["0", "0", "1"]:
        shown = listing(
            f"{name}={brief(value, 40)}" for name, value in zip(PREFERENCE.names, values, strict=True)
        )
        raise UserError(f"{where}: row {row_id} has {shown}; exactly one of them must be 1 and the others 0")
    return texts.index("1")
