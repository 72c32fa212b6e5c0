"""A stack as a teacher: its nested out-of-fold blend, which no fit made that saw the row's fold.

What a stack says of the rows that it was fitted on is half memory; ``predictions.parquet`` holds what its
method said of each fold when it was fitted on the others. Its members' predictions are out of fold as well,
or the stack had refused them. The blend that labels a row was still fitted on the labels of the fold that the
student is scored on, as were the members: of the kinds of leakage only ``standard`` can be had from it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.classes import place_classes, refuse_candidates
from data.errors import UserError
from data.files import read_parquet, require_columns
from data.softlabels import SoftLabels
from ensemble.records import BOUND, STACK

KIND = "stack"
"""The ``teacher_label_kind`` of students that a stack has taught."""
PREDICTIONS = BOUND[0]
LEAST = 1e-9
"""Probability that stands for none, which has no logarithm."""


def is_stack(path: Path) -> bool:
    """Whether ``path`` is the directory of a stack."""
    return (path / STACK).is_file()


def read_stacked(path: Path) -> SoftLabels:
    """Read a stack's nested out-of-fold blend as soft labels of one order.

    Raises
    ------
    UserError
        No stack, or one that was changed; one that was not made from prepared data, whose rows and folds are
        not known.
    """
    from ensemble.saved import classes_of, load_stack

    content, _ = load_stack(path)
    if content.get("candidates"):
        refuse_candidates(place_classes(2), str(path), "give the stores that it blends as --teachers")
    hashes = content.get("rows", {}).get("hashes", {})
    missing = [name for name in ("rows_hash", "folds_hash") if name not in hashes]
    if missing or PREDICTIONS not in content.get("files", {}):
        raise UserError(
            f"{path / STACK}: does not say which prepared rows and folds it was made from, so that its "
            "predictions cannot be told to be out of fold here; make the stack again with --data"
        )
    classes = classes_of(content)
    table = read_parquet(path / PREDICTIONS, "a stack's predictions")
    require_columns(table, ["row_id", "fold", *classes.names], path / PREDICTIONS)
    probs = np.stack([table.column(name).to_numpy() for name in classes.names], axis=1)
    manifest = {
        "classes": list(classes.names),
        "label_kind": KIND,
        "rows_hash": hashes["rows_hash"],
        "folds_hash": hashes["folds_hash"],
    }
    logits = np.log(np.maximum(probs, LEAST))[:, None]
    fold = table.column("fold").to_numpy().astype(np.int64)
    return SoftLabels(table.column("row_id").to_pylist(), fold, logits, classes, manifest, path)
