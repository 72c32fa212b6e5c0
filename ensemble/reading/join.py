"""Joining members, labels and folds by row id into one problem."""

from __future__ import annotations

import numpy as np

from data.errors import listing
from data.files import sha256_text
from data.folds import Folds
from data.ids import places
from data.schema import Rows
from data.softlabels import second_order_leak
from ensemble.reading.dealing import N_FOLDS, deal
from ensemble.reading.features import row_features
from ensemble.reading.judges import told
from ensemble.reading.labels import Labels
from ensemble.reading.maps import cross_fitted
from ensemble.reading.members import Member
from ensemble.reading.oddities import odd_members
from ensemble.reading.problem import Problem
from ensemble.reading.refusals import (
    label_notes,
    refuse_absent_labels,
    refuse_ambiguous_index,
    refuse_few_rows,
    refuse_in_sample,
    refuse_other_rows,
    refuse_single_class,
    refuse_weightless,
)

_LEAST_ROWS = 2 * N_FOLDS


def join_members(
    members: list[Member],
    labels: Labels,
    folds: Folds | None = None,
    rows: Rows | None = None,
    folds_from: str = "given",
    seed: int = 0,
) -> Problem:
    """Join members, labels and folds by row id.

    Members must predict exactly the same rows. Every one of these must stand in the labels; rows whose
    label is empty, and labels of rows that nobody predicted, are left out and counted in the notes.

    Raises
    ------
    UserError
        Rows that do not match, in-sample stores, stores whose folds differ from the fold file, a group
        in two folds.
    """
    first = members[0]
    refuse_in_sample(members)
    for other in members[1:]:
        refuse_other_rows(first, other)
    refuse_ambiguous_index(labels, members)
    refuse_absent_labels(labels, first)
    notes = [
        f"{member.name} learnt from teachers that saw the folds it is scored on: its score and its weight "
        "flatter it; distill.student --leakage apart or strict closes this"
        for member in members
        if second_order_leak(member.manifest or {})
    ]
    notes += [
        f"{member.path}: column {listing(member.spare)} is none of the classes and is not used"
        for member in members
        if member.spare
    ]
    notes += labels.notes
    ids, y, weight, left_out = _scored(labels, first)
    notes += left_out
    refuse_single_class(y, first.classes, labels)
    fold, groups, folds_from = deal(ids, members, folds, folds_from, y, seed)
    P = np.empty((len(ids), len(members), first.classes.n))
    judges = {}
    for m, member in enumerate(members):
        if m == 0 or member.row_ids is not members[m - 1].row_ids:
            at = places(ids, member.row_ids)
        if member.judge is None:
            P[:, m] = member.probs[at]
            continue
        judges[member.name] = member.judge.take(at)
        P[:, m] = cross_fitted(judges[member.name], y, weight, fold)
        notes.append(told(member.name, judges[member.name]))
    notes += label_notes(y, P, first.classes, members, labels.by_index)
    counted = labels.path if labels.by_index else None
    notes += odd_members(P, y, [member.name for member in members], first.classes, counted)
    if rows is not None:
        at = places(ids, rows.row_ids)
        rows = rows.take(at) if (at >= 0).all() else None
    hashes = {
        "rows": sha256_text("\x01".join(ids)),
        "folds": sha256_text(" ".join(map(str, fold.tolist())), " ".join(map(str, groups.tolist()))),
        "labels": sha256_text(y.tobytes().hex()),
    }
    return Problem(
        ids,
        P,
        y,
        fold,
        groups,
        first.classes,
        tuple(member.name for member in members),
        tuple(member.source for member in members),
        rows,
        folds_from,
        tuple(notes),
        hashes,
        weight,
        None if rows is None else row_features(rows),
        judges=judges,
    )


def _scored(labels: Labels, first: Member) -> tuple[list[str], np.ndarray, np.ndarray | None, list[str]]:
    """Rows that can be scored: ids in order, targets (n, K), weights (n,) of mean 1, and what is left out."""
    known = np.isfinite(labels.targets).all(axis=1)
    labelled = {row_id for row_id, yes in zip(labels.row_ids, known.tolist(), strict=True) if yes}
    ids = sorted(labelled.intersection(first.row_ids))
    notes = []
    extra, empty = len(labels.row_ids) - len(first.row_ids), len(first.row_ids) - len(ids)
    if extra:
        notes.append(f"{extra} labelled rows that no model predicts are left out")
    if empty:
        notes.append(f"{empty} predicted rows without a label are left out")
    refuse_few_rows(ids, _LEAST_ROWS, "have both predictions and a label", labels.path)
    at = places(ids, labels.row_ids)
    if labels.weights is None:
        return ids, labels.targets[at], None, notes
    refuse_weightless(labels.weights[at], labels.path)
    kept = at[labels.weights[at] > 0]
    if len(kept) < len(at):
        notes.append(f"{len(at) - len(kept)} rows of weight 0 are left out")
        ids = [labels.row_ids[i] for i in kept]
        refuse_few_rows(ids, _LEAST_ROWS, "have a weight above 0", labels.path)
    weight = labels.weights[kept]
    return ids, labels.targets[kept], weight / weight.mean(), notes
