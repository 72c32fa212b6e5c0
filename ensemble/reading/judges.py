"""Judges: members that give a verdict or a score instead of probabilities, perhaps in both orders of a pair.

A judge's file has an id and one of these, by the names of its columns:

- ``verdict``: who won, ``A``, ``B`` or ``tie`` (or ``model_a``, ``[[A]]``, a class's name);
- ``verdict`` and ``verdict_swapped``: the same asked again with the two sides exchanged, in which ``A`` is
  the side that was shown first;
- ``score_a`` and ``score_b``: a score of each side, the higher the better;
- ``score``, with or without ``score_swapped``: by how much the side shown first is better. Alone it is a
  judge's only beside members that name the classes of a pair, else the probability of a class.

Empty cells and rows that its file does not hold are rows on which it said nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.classes import PREFERENCE, PREFERENCE_NO_TIE, Classes
from data.errors import UserError, brief, listing
from data.labels import BOTH_BAD, cell_text, is_missing
from ensemble.reading.columns import class_columns, number_column

if TYPE_CHECKING:
    import pyarrow as pa

VERDICT, SCORE, SIDES = "verdict", "score", ("score_a", "score_b")
SWAPPED = "_swapped"
_WORDS = (("a", "model_a", "[[a]]"), ("b", "model_b", "[[b]]"), ("tie", "c", "[[c]]", *BOTH_BAD))


@dataclass(frozen=True)
class Judge:
    """What a judge said.

    Attributes
    ----------
    kind : {"verdict", "score"}
    signal : ndarray of shape (n, 2)
        Of each row in its own order, then in the exchanged one, both told in the row's own terms: the number
        of a class (that of classes for a tie where no class is one), or by how much the first side is better.
        NaN where it said nothing.
    order : tuple of int
        Of scores: the classes from that of the second side over the tie to that of the first.
    swap : tuple of int or None
        How classes change places with the sides, where it was asked in both orders or scored either side by
        itself, and so treats both alike.
    """

    kind: str
    signal: np.ndarray
    order: tuple[int, ...] = ()
    swap: tuple[int, ...] | None = None

    def take(self, rows: np.ndarray) -> Judge:
        """What it said of some rows; nothing of those whose number is -1."""
        return replace(self, signal=np.where((rows >= 0)[:, None], self.signal[rows], np.nan))

    def exchanged(self, swap: Sequence[int]) -> np.ndarray:
        """What it would have said (n, 2), had every row's sides been given in the other order."""
        return -self.signal[:, ::-1] if self.kind == SCORE else _turned(self.signal[:, ::-1], swap)


def judge_columns(names: Sequence[str], classes: Classes | None = None) -> tuple[str, ...]:
    """The columns of a judge's file that say what it said; none where the file is no judge's."""
    if set((classes or PREFERENCE_NO_TIE).names) <= set(names):
        return ()
    if set(SIDES) <= set(names):
        return SIDES
    pair = next(
        ((name, name + SWAPPED) for name in (VERDICT, SCORE) if {name, name + SWAPPED} <= set(names)), ()
    )
    if pair:
        return pair
    if VERDICT in names and (classes is None or VERDICT not in classes.names):
        return (VERDICT,)
    beside = classes is not None and sides_of(classes) is not None
    return (SCORE,) if beside and class_columns(list(names)) == [SCORE] else ()


def read_judge(table: pa.Table, ids: list[str], classes: Classes, path: Path) -> Judge:
    """Read what a judge said.

    Raises
    ------
    UserError
        A verdict that is none, a score that is no number, or classes that are not those of a pair where it
        speaks of two sides.
    """
    columns = judge_columns(table.column_names, classes)
    two = len(columns) == 2
    if columns != (VERDICT,) and sides_of(classes) is None:
        raise UserError(
            f"{path}: {listing(columns)} speak of two sides, and the classes are "
            f"{listing(classes.names, 12)}; call those of a pair {listing(PREFERENCE.names)}"
        )
    swap = pair_of(classes).swap if two else None
    if columns[0] == VERDICT:
        said = [_verdicts(table.column(name).to_pylist(), ids, classes, name, path) for name in columns]
        if swap is not None:
            said[1] = _turned(said[1], swap)
        return Judge(VERDICT, _pair(said), swap=swap)
    scores = [number_column(table, name, ids, path) for name in columns]
    for name, score in zip(columns, scores, strict=True):
        if np.isinf(score).any():
            row = ids[int(np.argmax(np.isinf(score)))]
            raise UserError(f"{path}: row {brief(row)} has no finite number in column {name}; leave it empty")
    if columns == SIDES:
        scores = [scores[0] - scores[1]]
    elif two:
        scores[1] = -scores[1]
    return Judge(SCORE, _pair(scores), tuple(order_of(classes)), swap)


def sides_of(classes: Classes) -> tuple[int, int] | None:
    """The class of the first side and that of the second, where the others, if any, are one tie."""
    swap = pair_of(classes).swap
    moved = [k for k, other in enumerate(swap or ()) if other != k]
    return (moved[0], moved[1]) if len(moved) == 2 and classes.n <= 3 else None


def pair_of(classes: Classes) -> Classes:
    """The known pair of these names, which has its symmetry whatever a stack makes of it."""
    return next((pair for pair in (PREFERENCE, PREFERENCE_NO_TIE) if pair.names == classes.names), classes)


def order_of(classes: Classes) -> list[int]:
    """The classes of a pair from that of the second side over the tie to that of the first."""
    sides = sides_of(classes)
    assert sides is not None
    return [sides[1], *(k for k in range(classes.n) if k not in sides), sides[0]]


def told(name: str, judge: Judge) -> str:
    """A note on how a judge was read."""
    silent = int(np.isnan(judge.signal).all(axis=1).sum())
    both = ", both sides alike" if judge.swap else ""
    return (
        f"{name} is a judge that gives {judge.kind}s{both}: they are mapped to probabilities inside the folds"
        + (f"; it says nothing of {silent:,} of {len(judge.signal):,} rows" if silent else "")
    )


def _turned(numbers: np.ndarray, swap: Sequence[int]) -> np.ndarray:
    """Numbers of classes after the sides have changed places; a tie of no class, and NaN, stay."""
    turned, there = np.array([*swap, len(swap)], dtype=np.float64), np.isfinite(numbers)
    return np.where(there, turned[np.where(there, numbers, 0).astype(int)], np.nan)


def _pair(columns: list[np.ndarray]) -> np.ndarray:
    return np.stack([*columns, *[np.full(len(columns[0]), np.nan)] * (2 - len(columns))], axis=1)


def _verdicts(cells: list, ids: list[str], classes: Classes, column: str, path: Path) -> np.ndarray:
    """Verdicts as numbers of classes (n,), NaN where there is none."""
    words = {name: k for k, name in enumerate(classes.names)}
    sides = sides_of(classes)
    if sides is not None:
        tie = order_of(classes)[1] if classes.n == 3 else classes.n
        for side, known in zip((*sides, tie), _WORDS, strict=True):
            words |= dict.fromkeys(known, side)
    found = np.full(len(cells), np.nan)
    for i, cell in enumerate(cells):
        text = cell_text(cell)
        if is_missing(text, words):
            continue
        number = words.get(str(text), words.get(str(text).lower()))
        if number is None:
            raise UserError(
                f"{path}: row {brief(ids[i])} has {column} {brief(text)}; it must be one of "
                f"{listing(('A', 'B', 'tie') if sides is not None else classes.names, 12)}, or empty"
            )
        found[i] = number
    return found
