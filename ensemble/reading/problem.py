"""The blending problem: members, labels, folds and groups of the same rows, and what it may be changed to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data.classes import Classes
from data.errors import UserError, listing
from data.schema import Rows
from ensemble.reading.judges import Judge
from ensemble.reading.maps import mapped
from ensemble.reading.members import Source
from ensemble.solvers.folds import group_folds

_REPEAT = 0xC07
"""Tells the random stream of repeated folds from others of the same seed."""


@dataclass(frozen=True)
class Problem:
    """Members' predictions of labelled rows, ready to be blended and scored. Rows are sorted by id.

    Attributes
    ----------
    row_ids : list of str, length n
    P : ndarray of shape (n, members, K)
        Probabilities.
    y : ndarray of shape (n, K)
        Target distributions.
    fold : ndarray of shape (n,)
    groups : ndarray of shape (n,)
        Codes of the prompt groups.
    classes : Classes
    names : tuple of str
        Members, in order.
    sources : tuple of Source
    rows : Rows or None
        The row table in the same order, where known.
    folds_from : str
        Where the folds came from.
    notes : tuple of str
        What the user should know about what was left out or assumed.
    hashes : dict
        Hashes of rows, folds and labels, and those of the prepared data that they are from, if they are.
    weight : ndarray of shape (n,) or None
        What each row counts for, in fits and in losses, with mean 1; ``None`` where all count alike.
    features : ndarray of shape (n, d) or None
        Of the rows themselves, where the row table is known; see :mod:`ensemble.reading.features`.
    given : ndarray of shape (n,) or None
        Positions of the rows in the order of the file given first, in which they are written.
    judges : dict of str to Judge
        What members said that give no probabilities, by their name. In ``P`` theirs are those of maps that
        other folds teach; see :meth:`seen_from`.
    """

    row_ids: list[str]
    P: np.ndarray
    y: np.ndarray
    fold: np.ndarray
    groups: np.ndarray
    classes: Classes
    names: tuple[str, ...]
    sources: tuple[Source, ...] = ()
    rows: Rows | None = None
    folds_from: str = "given"
    notes: tuple[str, ...] = ()
    hashes: dict[str, str] = field(default_factory=dict)
    weight: np.ndarray | None = None
    features: np.ndarray | None = None
    given: np.ndarray | None = None
    judges: dict[str, Judge] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def labels(self) -> np.ndarray:
        """The class of greatest target weight, shape (n,)."""
        return self.y.argmax(axis=1)

    def weighted(self, losses: np.ndarray) -> np.ndarray:
        """Losses of the rows (n,) times what each row counts for: their mean is the weighted mean."""
        return losses if self.weight is None else losses * self.weight

    def record(self, more: Sequence[str] = ()) -> dict[str, Any]:
        """What a record says of the rows, as JSON values, with ``more`` notes after the problem's own."""
        return {
            "n": len(self),
            "groups": int(self.groups.max()) + 1,
            "folds": len(np.unique(self.fold)),
            "folds_from": self.folds_from,
            "hashes": self.hashes,
            "weighted": self.weight is not None,
            "notes": [*self.notes, *more],
        }

    def seen_from(self, rows: np.ndarray, seed: int) -> Problem:
        """The problem as fits on some rows may see it: what judges mean is learnt from these rows alone."""
        if not self.judges:
            return self
        P = self.P.copy()
        for m, name in enumerate(self.names):
            if name in self.judges:
                P[:, m] = mapped(self.judges[name], self.y, self.weight, self.groups, rows, seed)
        return replace(self, P=P)


def declare_swap(problem: Problem, pairs: Sequence[str]) -> Problem:
    """Return the problem with the symmetry that the user says its classes have.

    Parameters
    ----------
    problem : Problem
    pairs : sequence of str
        ``A=B`` for classes that change places when the two sides of a row do; the others stay. ``none``
        alone says that there is no such symmetry, whatever the classes are called.

    Raises
    ------
    UserError
        Not of that form, an unknown class, or a class named twice.
    """
    names = problem.classes.names
    if list(pairs) == ["none"]:
        return replace(problem, classes=Classes(names))
    swap = list(range(len(names)))
    for pair in pairs:
        ends = next(
            ((a, b) for a in names for b in names if f"{a}={b}" == pair and a != b),
            None,
        )
        if ends is None:
            raise UserError(
                f"--swap {pair}: is not A=B with two of the classes {listing(names, 12)}, nor none alone"
            )
        a, b = (names.index(name) for name in ends)
        if swap[a] != a or swap[b] != b:
            raise UserError(f"--swap {pair}: names a class that already changes places with another")
        swap[a], swap[b] = b, a
    return replace(problem, classes=Classes(names, tuple(swap)))


def dealt_again(problem: Problem, seed: int, repeat: int) -> Problem:
    """The same problem with its groups dealt into as many other folds, for a repeated nested estimate.

    Members' predictions are out of fold whatever fold they come from, so the second level may be cut anew.
    """
    n_folds = len(np.unique(problem.fold))
    return replace(problem, fold=group_folds(problem.y, problem.groups, n_folds, (_REPEAT, seed, repeat)))
