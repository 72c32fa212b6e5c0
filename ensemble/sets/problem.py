"""The blending problem of rows with candidates: members, labels and folds, joined by row and candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.classes import place_classes
from data.dataset import load_prepared
from data.errors import UserError, brief, listing
from data.files import read_table, sha256_text
from data.folds import Folds, read_folds
from data.ids import places
from data.labels import cell_text, is_missing
from data.schema import Rows
from data.softlabels import check_joinable, second_order_leak
from ensemble.reading.columns import read_ids
from ensemble.reading.dealing import N_FOLDS, deal
from ensemble.reading.members import Source, split_name
from ensemble.reading.problem import Problem
from ensemble.reading.refusals import refuse_few_rows
from ensemble.reading.stores import data_of
from ensemble.sets.long import SetMember, is_of_sets, read_member


@dataclass(frozen=True)
class SetProblem:
    """A problem whose classes are the places of each row's own candidates.

    Attributes
    ----------
    problem : Problem
    candidates : list of list of str
        Of its rows, in the order of the columns of ``P`` and ``y``.
    """

    problem: Problem
    candidates: list[list[str]]


def are_sets(arguments: Sequence[str]) -> bool:
    """Whether the first of the models given is of rows with candidates."""
    return bool(arguments) and is_of_sets(split_name(arguments[0])[1])


def load_set_problem(
    oof: Sequence[str],
    labels: Path | None = None,
    data: Path | None = None,
    folds: Path | None = None,
    seed: int = 0,
) -> SetProblem:
    """Load members and everything they are scored with.

    Parameters
    ----------
    oof : sequence of str
        Stores and prediction sets, each ``PATH`` or ``NAME=PATH``.
    labels : Path, optional
        Ids with ``label``, the right candidate's text; by default the labels of the data.
    data : Path, optional
        Prepared data; by default what the stores' manifests name.
    folds : Path, optional
        Fold file; by default the data's, the stores', or new ones.
    seed : int
        Of new folds.

    Raises
    ------
    UserError
        Members of other rows or candidates, in-sample stores, a label that is no candidate of its row, other
        folds than the stores were made on.
    """
    members = read_members(oof)
    rows, fold_file, place = _data_of(members, data, labels)
    first = members[0]
    if labels is not None:
        ids, found = _read_labels(labels)
        targets = {i: label for i, label in zip(ids, found, strict=True) if label is not None}
        known = [row_id for row_id in first.row_ids if row_id in targets]
    else:
        assert rows is not None
        labelled = {row_id for row_id, yes in zip(rows.row_ids, rows.labelled.tolist(), strict=True) if yes}
        known = [row_id for row_id in first.row_ids if row_id in labelled]
    refuse_few_rows(known, 2 * N_FOLDS, "have both predictions and a label", labels or place)
    ids = sorted(known)
    if rows is not None:
        at = places(ids, rows.row_ids)
        if (at < 0).any():
            raise UserError(f"{place}: lacks the row {ids[int(np.argmin(at))]}, which {first.path} predicts")
        rows = rows.take(at)
        candidates, whose = rows.candidates, str(place)
    else:
        at = places(ids, first.row_ids)
        candidates, whose = [first.candidates[i] for i in at], str(first.path)
    joined = [member.onto(ids, candidates, whose) for member in members]
    width = max(len(found) for found in candidates)
    P = np.stack([member.probs[:, :width] for member in joined], axis=1)
    if labels is not None:
        y = _one_hot([targets[row_id] for row_id in ids], ids, candidates, width, labels)
    else:
        assert rows is not None
        y = rows.targets[:, :width]
    if folds is not None:
        fold_file, place = read_folds(folds), folds
    fold, groups, folds_from = deal(ids, joined, fold_file, str(place), y, seed)  # type: ignore[arg-type]
    left = len(first.row_ids) - len(ids)
    notes = [f"{left} predicted rows without a label are left out"] if left else []
    notes += [
        f"{member.name} learnt from teachers that saw the folds it is scored on: its score and its weight "
        "flatter it; distill.student --leakage apart or strict closes this"
        for member in members
        if second_order_leak(member.manifest or {})
    ]
    hashes = {
        "rows": sha256_text("\x01".join(ids), *(name for found in candidates for name in ("", *found))),
        "folds": sha256_text(" ".join(map(str, fold.tolist())), " ".join(map(str, groups.tolist()))),
        "labels": sha256_text(y.tobytes().hex()),
    }
    problem = Problem(
        ids,
        P,
        y,
        fold,
        groups,
        place_classes(width),
        tuple(member.name for member in joined),
        tuple(Source(member.path, member.content_hash) for member in members),
        rows,
        folds_from,
        tuple(notes),
        hashes,
        given=np.argsort(places(ids, read_order(members, oof))),
    )
    return SetProblem(problem, candidates)


def read_order(members: Sequence[SetMember], oof: Sequence[str]) -> list[str]:
    """Row ids in the order of the file given first."""
    path = split_name(oof[0])[1]
    return next(member.row_ids for member in members if member.path == path)


def read_members(arguments: Sequence[str]) -> list[SetMember]:
    """Read members of distinct names, sorted by these, whose stores belong together and are out of fold."""
    members: list[SetMember] = []
    for argument in arguments:
        name, path = split_name(argument)
        member = read_member(path, name)
        if any(member.name == other.name for other in members):
            raise UserError(
                f"{path}: another model is named {member.name}, too; tell them apart with --oof NAME={path}"
            )
        if not member.name.strip() or not member.name.isprintable():
            raise UserError(f"{path}: a member cannot be called {member.name!r}; name it with NAME=PATH")
        kind = (member.manifest or {}).get("label_kind", "oof")
        if kind != "oof":
            raise UserError(
                f"{path}: its label_kind is {kind}, predictions by models that saw the rows' labels; "
                "only out-of-fold predictions can be blended honestly"
            )
        members.append(member)
    stores = [member for member in members if member.manifest is not None]
    for store in stores[1:]:
        check_joinable(stores[0].manifest or {}, store.manifest or {}, str(stores[0].path), str(store.path))
    members.sort(key=lambda member: member.name)
    for member in members[1:]:
        differing = sorted(set(member.row_ids).symmetric_difference(members[0].row_ids))
        if differing:
            raise UserError(
                f"{members[0].path} and {member.path} predict different rows: {len(differing)} are in one "
                f"alone, e.g. {listing(differing, 3)}"
            )
    return members


def _data_of(
    members: Sequence[SetMember], data: Path | None, labels: Path | None
) -> tuple[Rows | None, Folds | None, Path]:
    """Rows, folds and their place: the data given, or what a store names; none where labels stand alone."""
    store = next((member for member in members if member.manifest is not None), None)
    place = data
    if place is None and store is not None:
        place = data_of(store.path, str((store.manifest or {}).get("data", "")))
    if place is None:
        if labels is None:
            raise UserError("no labels to score against; give --labels FILE or --data DIR")
        return None, None, labels
    rows, folds = load_prepared(place)
    if not rows.classes.candidates:
        raise UserError(f"{place}: its rows have no candidates of their own, which the models predict")
    if store is not None:
        for name, value in {"rows_hash": rows.content_hash, "folds_hash": folds.content_hash}.items():
            if (store.manifest or {})[name] != value:
                raise UserError(
                    f"{store.path}: was made from other data than {place}: {name} differs; give the data it "
                    "was made from with --data"
                )
    return rows, folds, place


def _read_labels(path: Path) -> tuple[list[str], list[str | None]]:
    table = read_table(path, "label file", as_text=True)
    ids = read_ids(table, path)
    if "label" not in table.column_names:
        raise UserError(
            f"{path}: no column label, the right candidate's text, among {listing(table.column_names, 12)}"
        )
    if "weight" in table.column_names:
        raise UserError(
            f"{path}: has a column weight, and rows with candidates all count alike; leave the column out"
        )
    texts = [cell_text(cell) for cell in table.column("label").to_pylist()]
    return ids, [None if is_missing(text) else text for text in texts]


def _one_hot(
    labels: Sequence[str], ids: Sequence[str], candidates: Sequence[Sequence[str]], width: int, path: Path
) -> np.ndarray:
    y = np.zeros((len(ids), width))
    for line, label, row_id, own in zip(y, labels, ids, candidates, strict=True):
        if label not in own:
            raise UserError(
                f"{path}: row {row_id} has label {brief(label, 60)}, none of its {len(own)} candidates "
                f"({listing(own, 3)}); write the right one's text"
            )
        line[list(own).index(label)] = 1
    return y
