"""The blending problem: members, labels, folds and groups, aligned by row id.

Stores bring their folds, prepared data brings folds, prompt groups and text, a fold file brings folds
and groups; plain prediction sets bring none, and are dealt into folds here, each row its own group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset import ROWS
from data.errors import UserError, listing
from data.files import sha256_text
from data.folds import FOLDS, Folds, read_folds
from data.schema import Classes, Rows
from ensemble.reading.features import row_features
from ensemble.reading.labels import Labels, labels_of, load_labels
from ensemble.reading.members import Member, Source, load_member, split_name
from ensemble.reading.refusals import (
    label_notes,
    refuse_absent_labels,
    refuse_ambiguous_index,
    refuse_few_groups,
    refuse_member_as_labels,
    refuse_odd_name,
    refuse_other_rows,
    refuse_single_class,
)
from ensemble.solvers.folds import group_folds

N_FOLDS = 5
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
        Hashes of rows, folds and labels.
    weight : ndarray of shape (n,) or None
        What each row counts for, in fits and in losses, with mean 1; ``None`` where all count alike.
    features : ndarray of shape (n, d) or None
        Of the rows themselves, where the row table is known; see :mod:`ensemble.reading.features`.
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

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def labels(self) -> np.ndarray:
        """The class of greatest target weight, shape (n,)."""
        return self.y.argmax(axis=1)

    def weighted(self, losses: np.ndarray) -> np.ndarray:
        """Losses of the rows (n,) times what each row counts for: their mean is the weighted mean."""
        return losses if self.weight is None else losses * self.weight


def load_problem(
    oof: list[str],
    labels: Path | None = None,
    data: Path | None = None,
    folds: Path | None = None,
    seed: int = 0,
) -> Problem:
    """Load members and everything they are scored with; see :func:`align` for what is refused.

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
    return align(members, truth, fold_file, rows, source, seed)


def _has_folds(labels: Path) -> bool:
    """Whether labels are prepared data, whose folds and groups must not be lost."""
    folder = labels if labels.is_dir() else labels.parent
    return (labels.is_dir() or labels.name == ROWS) and (folder / FOLDS).exists()


def load_members(arguments: list[str]) -> list[Member]:
    """Load members that agree on their classes and have distinct names; returns them by name.

    Classes come from the first store, else from the first prediction set. The order in which they are given
    means nothing: trees and networks draw members at random, so another order would be another draw.
    """
    from data.softlabels import check_joinable

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
    from data.dataset import load_prepared

    store = next((member for member in members if member.manifest is not None), None)
    manifest: dict[str, Any] = (store.manifest or {}) if store else {}
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
        found = {"rows_hash": rows.content_hash, "folds_hash": folds.content_hash}
        for name, value in found.items():
            if manifest[name] != value:
                raise UserError(
                    f"{store.path}: was made from other data than {place}: {name} is {manifest[name][:12]}… "
                    f"in its manifest and {value[:12]}… there; give the data it was made from with --data"
                )
    return labels_of(rows, place, members[0].classes), folds


def align(
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
    from data.softlabels import second_order_leak

    for member in members:
        kind = (member.manifest or {}).get("label_kind", "oof")
        if kind != "oof":
            raise UserError(
                f"{member.path}: its label_kind is {kind}, predictions by models that saw the rows' labels; "
                "only out-of-fold predictions can be blended honestly"
            )
    first = members[0]
    index = {row_id: i for i, row_id in enumerate(first.row_ids)}
    for other in members[1:]:
        refuse_other_rows(first, other, index)
    refuse_ambiguous_index(labels, members)
    truth = {row_id: i for i, row_id in enumerate(labels.row_ids)}
    refuse_absent_labels(labels, first, truth)
    notes = [
        f"{member.name} learnt from teachers that saw the folds it is scored on: its score and its weight "
        "flatter it; distill.student --leakage apart or strict closes this"
        for member in members
        if second_order_leak(member.manifest or {})
    ]
    notes += labels.notes
    extra = len(truth) - len(index)
    if extra:
        notes.append(f"{extra} labelled rows that no model predicts are left out")
    ids = sorted(row_id for row_id in index if np.isfinite(labels.targets[truth[row_id]]).all())
    if len(ids) < len(index):
        notes.append(f"{len(index) - len(ids)} predicted rows without a label are left out")
    if len(ids) < 2 * N_FOLDS:
        raise UserError(f"{labels.path}: {len(ids)} rows have both predictions and a label; too few to score")

    P = np.empty((len(ids), len(members), first.classes.n))
    for m, member in enumerate(members):
        if m == 0 or member.row_ids is not members[m - 1].row_ids:
            place = {row_id: i for i, row_id in enumerate(member.row_ids)}
            order = np.array([place[row_id] for row_id in ids])
        P[:, m] = member.probs[order]
    y = labels.targets[[truth[row_id] for row_id in ids]]
    weight = None
    if labels.weights is not None:
        weight = labels.weights[[truth[row_id] for row_id in ids]]
        if weight.sum() <= 0:
            raise UserError(f"{labels.path}: every row that can be scored has weight 0")
        kept = weight > 0
        if not kept.all():
            notes.append(f"{int((~kept).sum())} rows of weight 0 are left out")
            ids, P, y, weight = (
                [i for i, k in zip(ids, kept, strict=True) if k],
                P[kept],
                y[kept],
                weight[kept],
            )
            if len(ids) < 2 * N_FOLDS:
                raise UserError(f"{labels.path}: {len(ids)} rows have a weight above 0; too few to score")
        weight = weight / weight.mean()
    refuse_single_class(y, first.classes, labels)
    notes += label_notes(y, P, first.classes, members)
    fold, groups, folds_from = _folds(ids, members, folds, folds_from, y, seed)
    if rows is not None:
        place = {row_id: i for i, row_id in enumerate(rows.row_ids)}
        known = all(row_id in place for row_id in ids)
        rows = rows.take(np.array([place[row_id] for row_id in ids])) if known else None
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
    )


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


def _folds(
    ids: list[str], members: list[Member], folds: Folds | None, source: str, y: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """Folds (n,), group codes (n,), and where they came from."""
    stored = [(m, dict(zip(m.row_ids, m.fold.tolist(), strict=True))) for m in members if m.fold is not None]
    if folds is not None:
        aligned = folds.aligned_to(ids)
        fold = aligned.fold
        groups = np.unique(np.array(aligned.group_ids), return_inverse=True)[1]
    elif stored:
        member, by_id = stored[0]
        fold = np.array([by_id[row_id] for row_id in ids], dtype=np.int64)
        groups, source = np.arange(len(ids)), f"{member.path} (each row its own group)"
    else:
        groups = np.arange(len(ids))
        fold = group_folds(y, None, N_FOLDS, seed)
        source = f"dealt here: {N_FOLDS} folds stratified by label, seed {seed}, each row its own group"
    for member, by_id in stored:
        wrong = [row_id for row_id, k in zip(ids, fold.tolist(), strict=True) if by_id[row_id] != k]
        if wrong:
            raise UserError(
                f"{member.path}: {len(wrong)} rows were predicted under other folds than those of {source}, "
                f"e.g. {listing(wrong, 3)}; make them from the same fold file"
            )
    if len(np.unique(fold)) < 2:
        raise UserError(f"{source}: all rows are in one fold; two or more are needed to score honestly")
    order = np.lexsort((fold, groups))
    split = (groups[order][1:] == groups[order][:-1]) & (fold[order][1:] != fold[order][:-1])
    if split.any():
        at = order[1:][split][0]
        raise UserError(
            f"{source}: the group of row {ids[at]} is split over folds; a group must share a fold"
        )
    refuse_few_groups(fold, groups, source)
    return fold, groups, source
