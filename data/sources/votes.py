"""Cells of a source to labels: a class by name or number, a winner, one-hot columns, soft labels."""

from __future__ import annotations

import json

import numpy as np

from data.classes import PREFERENCE, Classes
from data.errors import UserError, brief, listing
from data.labels import BOTH_BAD, LabelReader, cell_text, is_missing, winner_index
from data.schema import SUM_TOLERANCE
from data.sources.clean import BOTH_BAD_TIES, MISSING_LABELS, SOFT_VOTES
from data.sources.open import Columns
from data.sources.place import Place, require

TRUTHS = {"true": "1", "false": "0"}


def copy_labels(columns: Columns, out: Columns, classes: Classes, place: Place) -> None:
    """Read a source's labels, one-hot, as a ``winner`` or in ``label``, and the soft ones beside them."""
    where = place.where
    if "label_probs" in columns:
        out["label_probs"] = soft_label_cells(columns, "label_probs", out["row_id"], classes, where)
    if classes.n == 3 and any(name in columns for name in PREFERENCE.names):
        _copy_votes(columns, out, place)
    elif "winner" in columns:
        cells = columns["winner"]
        both = zip(out["row_id"], cells, strict=True)
        out["label"] = [winner_index(cell, classes.n, key, where) for key, cell in both]
        place.cleaning.note(BOTH_BAD_TIES, sum(cell_text(cell) in BOTH_BAD for cell in cells))
    elif "label" in columns:
        out["label"] = label_cells(columns["label"], out["row_id"], classes, place)


def label_cells(cells: list, ids: list[str], classes: Classes, place: Place) -> list[int | None]:
    """Labels of one column as class indices; those read as an index are kept at ``place``."""
    read = LabelReader(classes, place.where)
    labels = [read(cell, key) for key, cell in zip(ids, cells, strict=True)]
    place.indices |= read.indices
    if place.classes is None:
        place.classes = classes
    texts = [cell_text(cell) for cell, label in zip(cells, labels, strict=True) if label is None]
    place.cleaning.note(MISSING_LABELS, sum(text is not None for text in texts))
    return labels


def _copy_votes(columns: Columns, out: Columns, place: Place) -> None:
    """Read the three winner columns: one-hot, or shares, whose greatest is then the label."""
    require(columns, list(PREFERENCE.names), place.where)
    votes = zip(*(columns[name] for name in PREFERENCE.names), strict=True)
    labels: list[int | None] = []
    soft: list[list[float] | None] = []
    for key, row in zip(out["row_id"], votes, strict=True):
        shares = _shares(row, key, place.where)
        labels.append(None if shares is None else int(shares.argmax()))
        soft.append(None if shares is None or shares.max() == 1 else shares.tolist())
    out["label"] = labels
    if "label_probs" not in out:
        out["label_probs"], place.perhaps_soft = soft, True
        place.cleaning.note(SOFT_VOTES, sum(shares is not None for shares in soft))


def _shares(values: tuple[object, ...], row_id: object, where: str) -> np.ndarray | None:
    texts = [cell_text(value) for value in values]
    if all(is_missing(text) for text in texts):
        return None
    try:
        shares = np.array([float(TRUTHS.get(str(text).lower(), text or "")) for text in texts])
    except ValueError:
        shares = np.full(len(texts), np.nan)
    if not ((shares >= 0) & (shares <= 1 + SUM_TOLERANCE)).all() or abs(shares.sum() - 1) > SUM_TOLERANCE:
        shown = listing(
            (f"{name}={brief(value, 40)}" for name, value in zip(PREFERENCE.names, values, strict=True)),
            names=False,
        )
        raise UserError(
            f"{where}: row {brief(row_id)} has {shown}; exactly one of them must be 1 "
            "and the others 0, or all of them shares that sum to 1"
        )
    return shares


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
                f"{where}: row {brief(row_id)}, column {names} holds {brief(cell)}, not {classes.n} "
                "numbers, one a class"
            )
        out.append(values)
    return out
