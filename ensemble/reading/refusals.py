"""Checks of members and labels against one another, and what the user should know of what they found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data.classes import PREFERENCE, PREFERENCE_NO_TIE, Classes
from data.errors import UserError, brief, listing
from data.folds import Folds
from data.schema import Rows
from ensemble.reading.columns import as_number
from ensemble.reading.labels import Labels
from ensemble.reading.members import Member
from ensemble.reading.oddities import index_reading
from ensemble.solvers.numbers import LOSS_FLOOR

_LEAST_GROUPS = 3
"""Groups outside a fold that the cross-validations inside a method need, one inside another."""


def refuse_odd_name(member: Member) -> None:
    """Refuse a name that cannot be shown: an empty one, or control characters."""
    if not member.name.strip() or not member.name.isprintable():
        raise UserError(
            f"{brief(member.path)}: a member cannot be called {member.name!r}; name it with --oof NAME=PATH"
        )


def refuse_member_as_labels(labels: Path, members: Sequence[Member]) -> None:
    """Refuse labels that are one of the prediction sets: soft labels that it would predict without fault."""
    for member in members:
        if labels.exists() and labels.samefile(member.path):
            raise UserError(f"{labels}: is given as labels and as a prediction set too; give what happened")


def refuse_in_sample(members: Sequence[Member]) -> None:
    """Refuse stores whose labels are not out of fold."""
    for member in members:
        kind = (member.manifest or {}).get("label_kind", "oof")
        if kind != "oof":
            raise UserError(
                f"{member.path}: its label_kind is {kind}, predictions by models that saw the rows' labels; "
                "only out-of-fold predictions can be blended honestly"
            )


def refuse_other_data(store: Member, rows: Rows, folds: Folds, place: Path) -> None:
    """Refuse a store that was made from other rows or folds than those at ``place``."""
    manifest = store.manifest or {}
    for name, value in {"rows_hash": rows.content_hash, "folds_hash": folds.content_hash}.items():
        if manifest[name] != value:
            raise UserError(
                f"{store.path}: was made from other data than {place}: {name} is {manifest[name][:12]}… "
                f"in its manifest and {value[:12]}… there; give the data it was made from with --data"
            )


def refuse_other_rows(first: Member, other: Member) -> None:
    """Refuse a member that predicts other rows than the first."""
    if other.row_ids is first.row_ids:
        return
    lacking, surplus = _absent(first.row_ids, other.row_ids), _absent(other.row_ids, first.row_ids)
    parts = [
        f"{len(ids)} rows are only in {member.path} (e.g. {listing(ids, 3)})"
        for ids, member in ((lacking, first), (surplus, other))
        if ids
    ]
    if parts:
        apart = len(lacking) == len(first.row_ids) and not written_otherwise(lacking, surplus)
        raise UserError(
            f"{first.path} and {other.path} predict different rows: {'; '.join(parts)}; every set must hold "
            f"the same ids{written_otherwise(lacking, surplus)}"
            f"{'; files of one model, a fold each, bear one name: NAME=FILE for each' if apart else ''}"
        )


def refuse_absent_labels(labels: Labels, first: Member) -> None:
    """Refuse labels that lack a predicted row."""
    absent = _absent(first.row_ids, labels.row_ids)
    if absent:
        spare = _absent(labels.row_ids, first.row_ids)
        raise UserError(
            f"{labels.path}: has no label for {len(absent)} of the {len(first.row_ids)} rows of "
            f"{first.path}, e.g. {listing(absent)}; add them, with an empty label where it is unknown"
            f"{written_otherwise(absent, spare)}"
        )


def _absent(ids: Sequence[str], others: Sequence[str]) -> list[str]:
    """Those of ``ids`` that are none of ``others``."""
    known = set(others)
    return [row_id for row_id in ids if row_id not in known]


def written_otherwise(some: Iterable[str], others: Iterable[str]) -> str:
    """Hint at ids that are one number written in two ways, as 7, 7.0 and 007 are; else an empty text."""
    by_value = {as_number(text): text for text in some}
    by_value.pop(None, None)
    for text in others:
        twin = by_value.get(as_number(text))
        if twin is not None:
            return f"; ids are compared as text, and {twin!r} is not {text!r}: write them alike"
    return ""


def refuse_ambiguous_index(labels: Labels, members: Sequence[Member]) -> None:
    """Refuse labels by index where the members' columns stand in different orders.

    What an index means would hang on which member is named first. Stores and the known preference tasks
    bring an order of their own.
    """
    classes = members[0].classes
    own = any(member.manifest is not None for member in members) or classes in (PREFERENCE, PREFERENCE_NO_TIE)
    if own or not labels.by_index:
        return
    ordered = [member for member in members if member.order]
    other = next((member for member in ordered if member.order != ordered[0].order), None)
    if other is not None:
        raise UserError(
            f"{labels.path}: a label there is the index of a class, and {ordered[0].path} and {other.path} "
            f"name the classes in different orders ({listing(ordered[0].order, 12)}; "
            f"{listing(other.order, 12)}); give the labels as class names, or all columns in one order"
        )


def refuse_single_class(y: np.ndarray, classes: Classes, labels: Labels) -> None:
    """Refuse labels (n, K) that are all one class, which anything would predict without loss."""
    seen = np.flatnonzero(y.sum(axis=0) > 0)
    if len(seen) == 1:
        raise UserError(
            f"{labels.path}: every labelled row is {classes.names[seen[0]]}; a score needs rows of two "
            "classes or more"
        )


def refuse_few_rows(ids: Sequence[str], least: int, which: str, path: Path) -> None:
    """Refuse fewer rows than can be scored; ``which`` says what they have."""
    if len(ids) < least:
        raise UserError(f"{path}: {len(ids)} rows {which}; too few to score")


def refuse_weightless(weights: np.ndarray, path: Path) -> None:
    """Refuse rows (n,) that all count for nothing."""
    if weights.sum() <= 0:
        raise UserError(f"{path}: every row that can be scored has weight 0")


def refuse_other_folds(
    path: Path, its_own: np.ndarray, fold: np.ndarray, ids: Sequence[str], source: str
) -> None:
    """Refuse a member whose own folds (n,) are not those of ``source``."""
    wrong = np.flatnonzero(its_own != fold)
    if wrong.size:
        raise UserError(
            f"{path}: {wrong.size} rows were predicted under other folds than those of {source}, "
            f"e.g. {listing([ids[i] for i in wrong.tolist()], 3)}; make them from the same fold file"
        )


def refuse_one_fold(fold: np.ndarray, source: str) -> None:
    """Refuse folds (n,) that are all the same."""
    if len(np.unique(fold)) < 2:
        raise UserError(f"{source}: all rows are in one fold; two or more are needed to score honestly")


def refuse_split_group(fold: np.ndarray, groups: np.ndarray, ids: Sequence[str], source: str) -> None:
    """Refuse a group that stands in two folds."""
    order = np.lexsort((fold, groups))
    split = (groups[order][1:] == groups[order][:-1]) & (fold[order][1:] != fold[order][:-1])
    if split.any():
        at = order[1:][split][0]
        raise UserError(
            f"{source}: the group of row {ids[at]} is split over folds; a group must share a fold"
        )


def refuse_few_groups(fold: np.ndarray, groups: np.ndarray, source: str) -> None:
    """Refuse folds outside which there are too few groups to fit anything on."""
    total = len(np.unique(groups))
    for number in np.unique(fold):
        outside = total - len(np.unique(groups[fold == number]))
        if outside < _LEAST_GROUPS:
            raise UserError(
                f"{source}: {outside} of {total} groups are outside fold {number}, and methods are fitted on "
                f"{_LEAST_GROUPS} or more; give rows of more prompts, or more folds"
            )


def label_notes(
    y: np.ndarray, P: np.ndarray, classes: Classes, members: Sequence[Member], by_index: bool = False
) -> list[str]:
    """What to tell of how labels are read, of classes that never happen, and of members that said so.

    Parameters
    ----------
    y : ndarray of shape (n, K)
    P : ndarray of shape (n, members, K)
    classes : Classes
    members : sequence of Member
    by_index : bool
        Whether labels are indices of classes.
    """
    never = [name for name, total in zip(classes.names, y.sum(axis=0), strict=True) if total == 0]
    notes = [f"no row is labelled {listing(never)}"] if never else []
    if by_index:
        notes.append(f"labels are numbers, {index_reading(classes)}")
    for m, member in enumerate(members):
        zero = int(((P[:, m] < LOSS_FLOOR) & (y > 0)).any(axis=1).sum())
        if zero:
            notes.append(
                f"{member.name} gives no probability to what happened in {zero} rows; there it is taken as "
                f"{LOSS_FLOOR:g}, a loss of {-np.log(LOSS_FLOOR):.1f}"
            )
        if member.path.suffix.lower() == ".npy":
            notes.append(
                f"the columns of {member.path} are taken as {listing(classes.names, 12)}, in this order"
            )
    return notes
