"""The folds that a problem is scored on: a fold file's, the stores' own, or new ones.

Stores bring their folds, prepared data brings folds and prompt groups, a fold file brings both; plain
prediction sets bring none, and are dealt into folds here, each row its own group.
"""

from __future__ import annotations

import numpy as np

from data.folds import Folds
from data.ids import places
from ensemble.reading.members import Member
from ensemble.reading.refusals import (
    refuse_few_groups,
    refuse_one_fold,
    refuse_other_folds,
    refuse_split_group,
)
from ensemble.solvers.folds import group_folds

N_FOLDS = 5


def deal(
    ids: list[str], members: list[Member], folds: Folds | None, source: str, y: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the folds (n,) of rows, the codes of their groups (n,), and where they came from.

    Parameters
    ----------
    ids : list of str, length n
    members : list of Member
    folds : Folds, optional
        Of a fold file, which goes before all else.
    source : str
        Where these came from.
    y : ndarray of shape (n, K)
        Target distributions, by which new folds are stratified.
    seed : int
        Of new folds.

    Raises
    ------
    UserError
        A store of other folds, all rows in one fold, a group in two, or too few groups outside a fold.
    """
    stored = {
        member.path: member.fold[places(ids, member.row_ids)] for member in members if member.fold is not None
    }
    groups = np.arange(len(ids))
    if folds is not None:
        aligned = folds.aligned_to(ids)
        fold = aligned.fold
        groups = np.unique(np.array(aligned.group_ids), return_inverse=True)[1]
    elif stored:
        path, fold = next(iter(stored.items()))
        source = f"{path} (each row its own group)"
    else:
        fold = group_folds(y, None, N_FOLDS, seed)
        source = f"dealt here: {N_FOLDS} folds stratified by label, seed {seed}, each row its own group"
    for path, its_own in stored.items():
        refuse_other_folds(path, its_own, fold, ids, source)
    refuse_one_fold(fold, source)
    refuse_split_group(fold, groups, ids, source)
    refuse_few_groups(fold, groups, source)
    return fold, groups, source
