"""Loading the blending problem: members, labels and prepared data, from what a command was given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from data.dataset import ROWS, load_prepared
from data.errors import UserError
from data.folds import FOLDS, Folds, read_folds
from data.softlabels import check_joinable
from ensemble.reading.join import join_members
from ensemble.reading.labels import Labels, labels_of, load_labels
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
    prepared = _prepared(data, members, required=labels is None)
    if labels is not None:
        truth = load_labels(labels, classes)
    else:
        assert prepared is not None
        truth = prepared[0]
    rows = prepared[0].rows if prepared else truth.rows
    if folds is not None:
        fold_file, source = read_folds(folds), str(folds)
    elif prepared is not None:
        fold_file, source = prepared[1], str(prepared[0].path)
    else:
        fold_file, source = None, ""
    return join_members(members, truth, fold_file, rows, source, seed)


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


def _prepared(data: Path | None, members: list[Member], required: bool) -> tuple[Labels, Folds] | None:
    """Rows and folds of ``data``, or of the directory a store's manifest names."""
    store = next((member for member in members if member.manifest is not None), None)
    manifest = (store.manifest if store else None) or {}
    place = data
    if place is None and store is not None and manifest.get("data"):
        stated = Path(str(manifest["data"]))
        places = [store.path / stated, stated] if not stated.is_absolute() else [stated]
        place = next((p for p in places if p.exists()), None)
        if place is None and required:
            raise UserError(
                f"{store.path}: was made from {stated}, which is not there; give --labels or --data"
            )
    if place is None:
        if required:
            raise UserError("no labels to score against; give --labels FILE or --data DIR")
        return None
    rows, folds = load_prepared(place)
    if store is not None:
        refuse_other_data(store, rows, folds, place)
    return labels_of(rows, place, members[0].classes), folds
