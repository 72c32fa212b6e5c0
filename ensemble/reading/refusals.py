"""Checks of members and labels against one another, and what the user should know of what they found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data.errors import UserError, brief, listing
from data.schema import PREFERENCE, PREFERENCE_NO_TIE, Classes
from ensemble.reading.labels import Labels
from ensemble.reading.members import Member
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


def refuse_other_rows(first: Member, other: Member, index: dict[str, int]) -> None:
    """Refuse a member that predicts other rows than the first, whose rows are ``index``."""
    if other.row_ids is first.row_ids:
        return
    missing = set(index) - set(other.row_ids)
    surplus = [row_id for row_id in other.row_ids if row_id not in index]
    if not missing and not surplus:
        return
    parts = []
    lacking = [row_id for row_id in first.row_ids if row_id in missing]
    if missing:
        parts.append(f"{len(lacking)} rows are only in {first.path} (e.g. {listing(lacking, 3)})")
    if surplus:
        parts.append(f"{len(surplus)} rows are only in {other.path} (e.g. {listing(surplus, 3)})")
    raise UserError(
        f"{first.path} and {other.path} predict different rows: {'; '.join(parts)}; every set must hold "
        f"the same ids{written_otherwise(lacking, surplus)}"
    )


def refuse_absent_labels(labels: Labels, first: Member, truth: dict[str, int]) -> None:
    """Refuse labels that lack a predicted row."""
    absent = [row_id for row_id in first.row_ids if row_id not in truth]
    if absent:
        predicted = set(first.row_ids)
        spare = [row_id for row_id in labels.row_ids if row_id not in predicted]
        raise UserError(
            f"{labels.path}: has no label for {len(absent)} of the {len(first.row_ids)} rows of "
            f"{first.path}, e.g. {listing(absent)}; add them, with an empty label where it is unknown"
            f"{written_otherwise(absent, spare)}"
        )


def written_otherwise(some: Iterable[str], others: Iterable[str]) -> str:
    """Hint at ids that are one number written in two ways, as 7, 7.0 and 007 are; else an empty text."""
    by_value = {_value(text): text for text in some}
    by_value.pop(None, None)
    for text in others:
        twin = by_value.get(_value(text))
        if twin is not None:
            return f"; ids are compared as text, and {twin!r} is not {text!r}: write them alike"
    return ""


def _value(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


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


def label_notes(y: np.ndarray, P: np.ndarray, classes: Classes, members: Sequence[Member]) -> list[str]:
    """What to tell of classes that never happen, and of members that said they never would.

    Parameters
    ----------
    y : ndarray of shape (n, K)
    P : ndarray of shape (n, members, K)
    classes : Classes
    members : sequence of Member
    """
    never = [name for name, total in zip(classes.names, y.sum(axis=0), strict=True) if total == 0]
    notes = [f"no row is labelled {listing(never)}"] if never else []
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
