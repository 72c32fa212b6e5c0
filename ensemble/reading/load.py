"""Loading the blending problem: members, labels and prepared data, from what a command was given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from data.dataset import ROWS, load_prepared
from data.errors import UserError
from data.folds import FOLDS, read_folds
from data.softlabels import check_joinable
from ensemble.reading.join import join_members
from ensemble.reading.labels import labels_of, load_labels
from ensemble.reading.members import Member, load_member, split_name
from ensemble.reading.problem import Problem
from ensemble.reading.refusals import refuse_member_as_labels, refuse_odd_name, refuse_other_data


def load_problem(
    oof: list[str],
    labels: Path | None = None,
    data: Path | None = None,
    folds: Path | None = None,
    seed: int = 0,
) -> Problem:
    """Load members and everything they are scored with.

    :func:`~ensemble.reading.join.join_members` says what is refused.

    Parameters
    ----------
    oof : list of str
        Stores and prediction sets, each ``PATH`` or ``NAME=PATH``.
    labels : Path, optional
        Label file; by default the labels of the data. A row table with a fold file beside it is data.
    data : Path, optional
        Prepared data; by default what the stores' manifests name.
    folds : Path, optional
        Fold file; by default the data's, the stores', or new ones.
    seed : int
        Of new folds.
    """
    members = load_members(oof)
    classes = members[0].classes
    if labels is not None and data is None and _has_folds(labels):
        labels, data = None, labels
    if labels is not None:
        refuse_member_as_labels(labels, members)
    store = next((member for member in members if member.manifest is not None), None)
    place = data or _made_from(store, required=labels is None)
    truth = rows = fold_file = None
    if place is not None:
        rows, fold_file = load_prepared(place)
        if store is not None:
            refuse_other_data(store, rows, fold_file, place)
        truth = labels_of(rows, place, classes)
    if labels is not None:
        truth = load_labels(labels, classes)
        rows = truth.rows if rows is None else rows
    if truth is None:
        raise UserError("no labels to score against; give --labels FILE or --data DIR")
    if folds is not None:
        fold_file = read_folds(folds)
    return join_members(members, truth, fold_file, rows, str(folds or place), seed)


def _has_folds(labels: Path) -> bool:
    """Whether labels are prepared data, whose folds and groups must not be lost."""
    folder = labels if labels.is_dir() else labels.parent
    return (labels.is_dir() or labels.name == ROWS) and (folder / FOLDS).exists()


def load_members(arguments: list[str]) -> list[Member]:
    """Load members that agree on their classes and have distinct names; returns them by name.

    Classes come from the first store, else from the first prediction set. The order in which they are given
    means nothing: trees and networks draw members at random, so another order would be another draw.
    """
    if not arguments:
        raise UserError("no models to blend; give --oof with stores or prediction sets")
    named = [split_name(argument) for argument in arguments]
    classes = None
    named.sort(key=lambda item: (not item[1].is_dir(), item[0] or item[1].name, str(item[1])))
    for name, path in named:
        if path.suffix.lower() != ".npy":  # an array names no classes
            classes = load_member(path, None, name).classes
            break
    members: list[Member] = []
    for name, path in named:
        member = load_member(path, classes, name)
        classes = classes or member.classes
        refuse_odd_name(member)
        same = next((other for other in members if other.name == member.name), None)
        if same is not None:
            raise UserError(
                f"{same.path} and {member.path} are both named {member.name}; tell them apart with "
                f"--oof NAME={member.path}"
            )
        if members and member.row_ids == members[0].row_ids:  # a million ids are held once
            member = replace(member, row_ids=members[0].row_ids)
        members.append(member)
    stores = [member for member in members if member.manifest is not None]
    for store in stores[1:]:
        check_joinable(stores[0].manifest or {}, store.manifest or {}, str(stores[0].path), str(store.path))
    return sorted(members, key=lambda member: member.name)


def _made_from(store: Member | None, required: bool) -> Path | None:
    """The data that a store's manifest names, where they are; a relative path may start at the store."""
    if store is None or not (store.manifest or {}).get("data"):
        return None
    stated = str((store.manifest or {})["data"])
    place = next((place for place in (store.path / stated, Path(stated)) if place.exists()), None)
    if place is None and required:
        raise UserError(f"{store.path}: was made from {stated}, which is not there; give --labels or --data")
    return place
