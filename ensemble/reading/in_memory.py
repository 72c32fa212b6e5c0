"""The blending problem from arrays, data frames and paths that a caller of the Python API gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.classes import Classes
from data.folds import Folds
from data.frames import is_frame
from data.ids import places
from data.labels import cell_text, is_missing
from ensemble.reading.dealing import N_FOLDS
from ensemble.reading.given import by_row, labels_given, members_given
from ensemble.reading.join import join_members
from ensemble.reading.labels import Labels
from ensemble.reading.load import agreed
from ensemble.reading.problem import Problem
from ensemble.solvers.folds import group_folds

if TYPE_CHECKING:
    from data.schema import Rows


def problem_given(
    members: Any,
    y: Any,
    groups: Any = None,
    folds: Any = None,
    sample_weight: Any = None,
    rows: Rows | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[Problem, tuple[str, ...], list[str]]:
    """Join what was given into a problem.

    Returns it with the names of the members in the order given, and the ids that are meant by position.

    :func:`ensemble.blending.blend` says what the arguments are.

    Raises
    ------
    UserError
        No distributions, rows that do not match, unknown labels, a split group.
    """
    known = Classes(tuple(classes)) if classes is not None else _classes_that_occur(members, y)
    given = members_given(members, known)
    found = agreed(given)
    ids = found[0].row_ids
    labels = labels_given(y, ids, found[0].classes, sample_weight)
    dealt = None if groups is None and folds is None else _dealt(groups, folds, labels, ids, seed)
    source = "given" if folds is not None else f"dealt here: {N_FOLDS} folds of whole groups, seed {seed}"
    problem = join_members(found, labels, dealt, rows, source, seed)
    return problem, tuple(member.name for member in given), ids


def _classes_that_occur(members: Any, y: Any) -> Classes | None:
    """The classes of arrays without names where labels are texts: those that occur, sorted."""
    parts = list(members.values()) if isinstance(members, Mapping) else list(members)
    if any(is_frame(part) or isinstance(part, str | Path) for part in parts) or is_frame(y):
        return None
    texts = np.asarray([] if isinstance(y, str | Path) else y)
    if texts.ndim != 1 or texts.dtype.kind not in "UO" or not len(texts):
        return None
    return Classes(tuple(sorted({str(text) for text in texts.tolist() if not is_missing(cell_text(text))})))


def _dealt(groups: Any, folds: Any, labels: Labels, ids: list[str], seed: int) -> Folds:
    """Folds as they are given, or groups dealt into folds."""
    group_ids = ids if groups is None else [str(group) for group in by_row(groups, ids, "groups")]
    if folds is not None:
        return Folds(ids, group_ids, np.asarray(by_row(folds, ids, "folds"), dtype=np.int64))
    targets = np.nan_to_num(labels.targets[places(ids, labels.row_ids)])
    return Folds(ids, group_ids, group_folds(targets, np.array(group_ids), N_FOLDS, seed))
