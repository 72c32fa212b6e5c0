"""Folds inside the stack: stratified by label, never parting a group, and reproducible.

Used for the cross-validation inside a method, and for the outer folds where prediction sets come
without a fold file.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MANY_ROWS = 15_000
_INNER = 0x1AAE12
"""Tells the random stream of inner folds from that of every other deal by the same seed."""


def inner_folds(targets: np.ndarray, groups: np.ndarray | None, n_folds: int, seed: int) -> np.ndarray:
    """Folds of the cross-validation inside a method; see :func:`group_folds`.

    They must owe nothing to the folds that the members were trained in. Each fold's model has a hand of
    its own, which trees can tell. Dealt from the same stream as those folds, an inner fold is made of
    whole classes of some of them: what is learned outside it is then wrong about it by construction, and
    every method flexible enough to see the hands is cut to nothing.

    From :data:`MANY_ROWS` on three folds do, whatever ``n_folds`` says: two thirds of so many rows choose
    as well as four fifths.
    """
    return group_folds(targets, groups, n_folds if len(targets) < MANY_ROWS else 3, (_INNER, seed))


def group_folds(
    targets: np.ndarray, groups: np.ndarray | None, n_folds: int, seed: int | Sequence[int]
) -> np.ndarray:
    """Deal groups into folds of like size and like label shares; returns the fold of each row (n,).

    Groups are shuffled within their majority class and dealt in turn, large ones first.

    Parameters
    ----------
    targets : ndarray of shape (n, K)
    groups : ndarray of shape (n,), optional
        Group codes; each row its own group by default.
    n_folds : int
        Reduced to the number of groups where there are fewer.
    """
    n = len(targets)
    codes = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    n_groups = int(codes.max()) + 1
    totals = np.zeros((n_groups, targets.shape[1]))
    np.add.at(totals, codes, targets)
    sizes = np.bincount(codes, minlength=n_groups)
    majority = totals.argmax(axis=1)
    shuffled = np.random.default_rng(seed).permutation(n_groups)
    order = shuffled[np.lexsort((majority[shuffled], -sizes[shuffled]))]
    fold_of_group = np.empty(n_groups, dtype=np.int64)
    fold_of_group[order] = np.arange(n_groups) % max(min(n_folds, n_groups), 2)
    return fold_of_group[codes]
