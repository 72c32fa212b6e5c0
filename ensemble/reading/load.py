"""Loading the blending problem: members, labels and prepared data, from what a command was given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from data.classes import PREFERENCE, PREFERENCE_NO_TIE, Classes, classes_of
from data.dataset import ROWS, load_prepared
from data.errors import UserError, listing
from data.files import readable_parquet, refuse_impossible, table_columns
from data.folds import FOLDS, read_folds
from data.ids import places
from data.softlabels import check_joinable
from ensemble.reading.columns import infer_classes
from ensemble.reading.join import join_members
from ensemble.reading.judges import SCORE
from ensemble.reading.labels import labels_of, load_labels
from ensemble.reading.members import (
    Member,
    columns_of,
    joined,
    load_member,
    onto_common,
    split_name,
)
from ensemble.reading.problem import Problem
from ensemble.reading.refusals import refuse_member_as_labels, refuse_odd_name, refuse_other_data
from ensemble.reading.stores import data_of


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
        Stores and prediction sets, each ``PATH`` or ``NAME=PATH``; files of one name that share no row are
        those of one model's folds.
    labels : Path, optional
        Label file; by default the labels of the data. A row table with a fold file beside it is data.
    data : Path, optional
        Prepared data; by default what the stores' manifests name.
    folds : Path, optional
        Fold file; by default the data's, the stores', or new ones.
    seed : int
        Of new folds.
    """
    for path in (labels, data, folds):
        if path is not None:
            refuse_impossible(path)
    members = load_members(oof, _pair_of(labels, data))
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
    problem = join_members(members, truth, fold_file, rows, str(folds or place), seed)
    first = next(member for member in members if member.path == split_name(oof[0])[1])
    made_from = {}
    if place is not None and rows is not None and fold_file is not None:
        made_from = {"rows_hash": rows.content_hash, "folds_hash": fold_file.content_hash}
    return replace(
        problem,
        given=np.argsort(places(problem.row_ids, first.row_ids)),
        hashes=problem.hashes | made_from,
    )


def _has_folds(labels: Path) -> bool:
    """Whether labels are prepared data, whose folds and groups must not be lost."""
    folder = labels if labels.is_dir() else labels.parent
    return (labels.is_dir() or labels.name == ROWS) and (folder / FOLDS).exists()


def _pair_of(labels: Path | None, data: Path | None) -> Classes:
    """The classes of a pair where all members are judges, which name none: two or three."""
    if data is not None and (data / ROWS).is_file():
        import pyarrow.parquet as pq

        with readable_parquet(data / ROWS):
            return classes_of(pq.read_schema(data / ROWS), data)
    names = set(table_columns(labels, "label file")) if labels is not None and labels.is_file() else set()
    two = set(PREFERENCE_NO_TIE.names) <= names and not set(PREFERENCE.names) <= names
    return PREFERENCE_NO_TIE if two else PREFERENCE


def load_members(arguments: list[str], pair: Classes = PREFERENCE) -> list[Member]:
    """Load members that agree on their classes and have distinct names; returns them by name.

    Classes come from the first store, else from the first prediction set. The order in which they are given
    means nothing: trees and networks draw members at random, so another order would be another draw.

    Judges need not hold every row: they are brought onto the rows of the others, and where there are none
    onto all that any of them holds. Their classes are then those of ``pair``.
    """
    if not arguments:
        raise UserError("no models to blend; give --oof with stores or prediction sets")
    named = [split_name(argument) for argument in arguments]
    named.sort(key=lambda item: (not item[1].is_dir(), item[0] or item[1].name, str(item[1])))
    first = next((path for _, path in named if path.is_dir() and columns_of(path) is None), None)
    classes = load_member(first).classes if first else _shared_classes([path for _, path in named])
    if classes is None and all(path.is_file() and path.suffix.lower() != ".npy" for _, path in named):
        classes = pair
    members: list[Member] = []
    for name, path in named:
        member = _load(path, classes, name, [other for _, other in named])
        classes = classes or member.classes
        at = next((i for i, other in enumerate(members) if other.name == member.name), None)
        if at is not None and name is not None and not set(members[at].row_ids) & set(member.row_ids):
            members[at] = joined(members[at], member)  # the file of another fold
            continue
        if at is not None:
            raise UserError(
                f"{members[at].path} and {member.path} are both named {member.name}; tell them apart with "
                f"--oof NAME={member.path}; files of one model, a fold each, bear one name (NAME=FILE for "
                "each) and share no row"
            )
        if members and member.row_ids == members[0].row_ids:  # a million ids are held once
            member = replace(member, row_ids=members[0].row_ids)
        members.append(member)
    return agreed(members)


def agreed(members: list[Member]) -> list[Member]:
    """Members sorted by name, once their names can be shown and their stores be joined."""
    for member in members:
        refuse_odd_name(member)
    stores = [member for member in members if member.manifest is not None]
    for store in stores[1:]:
        check_joinable(stores[0].manifest or {}, store.manifest or {}, str(stores[0].path), str(store.path))
    return onto_common(sorted(members, key=lambda member: member.name))


def _load(path: Path, classes: Classes | None, name: str | None, others: list[Path]) -> Member:
    """Load a member; where its rows sum to 1 only with a column that another set lacks, name that set."""
    try:
        return load_member(path, classes, name)
    except UserError as mistake:
        odd = [column for column in columns_of(path) or [] if classes and column not in classes.names]
        if not odd or "not sum to 1" not in str(mistake):
            raise
        lacking = next(other for other in others if not set(odd) <= set(columns_of(other) or odd))
        raise UserError(
            f"{lacking}: no probability column {listing(odd)}, which {path} has; every set needs one a "
            "class, named as the class"
        ) from mistake


def _shared_classes(paths: list[Path]) -> Classes | None:
    """The classes of prediction sets: the columns that all have, so that one's further column is no class."""
    found = {path: columns for path in paths if (columns := columns_of(path)) is not None}
    if not found:
        return None
    if any(len(columns) > 1 for columns in found.values()):  # beside these a sole score is a judge's
        found = {path: columns for path, columns in found.items() if columns != [SCORE]}
    first = next(iter(found))
    shared = [name for name in found[first] if all(name in columns for columns in found.values())]
    # Where a class is lacking from one, the first set's columns stay, and the refusal names the file.
    return infer_classes(shared if len(shared) > 1 else found[first], first)


def _made_from(store: Member | None, required: bool) -> Path | None:
    """The data that a store's manifest names, where they are."""
    if store is None or not (store.manifest or {}).get("data"):
        return None
    stated = str((store.manifest or {})["data"])
    place = data_of(store.path, stated)
    if place is None and required:
        raise UserError(f"{store.path}: was made from {stated}, which is not there; give --labels or --data")
    return place
