"""Is a soft label what its store says? Checks that need no model, made before a student learns from it.

The record (which folds, which training rows, joined from which parts) is checked first. Then the numbers:
soft labels of another class order, or of swapped rows whose classes were not put back, fit the rows better
when their columns are exchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError, listing
from data.files import read_json, require_file, sha256_files, sha256_text, write_json
from data.folds import Folds
from data.ids import places
from data.schema import Rows
from data.softlabels import MANIFEST, OOF, SoftLabels, check_joinable, read_logits, run_hash
from data.softmax import softmax
from ensemble.solvers.numbers import cross_entropy

ACCEPT = "--accept-changed"
TRAINED_ON = "trained_on.json"
MANIFEST_HASH = "manifest_hash"
Z_REFUSED = 5.0
"""Standard errors from which a contradiction is no accident; a weak teacher's labels stay far below."""
FEWEST = 30
"""Labelled rows from which on the numbers are looked at."""
ALL_PERMUTATIONS = 5
"""Classes up to which every permutation is tried; beyond, every exchange of two."""


def write_trained_on(
    directory: Path,
    row_ids: list[str],
    weights: Path | None = None,
    manifest: Mapping[str, Any] | None = None,
    settings: Path | None = None,
    start: Path | None = None,
    unlabelled: Sequence[str] = (),
) -> None:
    """Record the rows that the model in ``directory`` is trained on, and hash what it is loaded from.

    That is its weights with the adapter's configuration, the run's manifest, and its ``settings``. Weights
    that its training started from, instead of none, are hashed beside them. ``unlabelled`` rows, which soft
    labels alone taught it, are recorded by themselves.
    """
    record: dict[str, Any] = {"n_rows": len(row_ids), "rows_hash": _hash(row_ids)}
    if weights is not None:
        record["weights_hash"] = sha256_files(_files(weights))
    if manifest is not None:
        record["run_hash"] = run_hash(manifest)
    if settings is not None:
        record["settings_hash"] = sha256_files([settings])
        record[MANIFEST_HASH] = sha256_files([settings.with_name(MANIFEST)])
    if unlabelled:
        record |= {"n_unlabelled": len(unlabelled), "unlabelled_hash": _hash(list(unlabelled))}
    if start is not None:
        record["start_hash"] = sha256_files(_files(start))
    write_json(directory / TRAINED_ON, record)


def read_record(directory: Path) -> dict[str, Any]:
    """Read what :func:`write_trained_on` left; nothing where there is none."""
    path = directory / TRAINED_ON
    if not path.exists():
        return {}
    found = read_json(path, "training record")
    if not isinstance(found, dict):
        raise UserError(f"{path}: is not a training record; it is damaged, train that model again")
    return found


def differs(what: str, accepted: bool) -> None:
    """Refuse something that is not as it was recorded; warn where the command line accepts it.

    Parameters
    ----------
    what : str
        The file, and what is wrong with it.
    accepted : bool
        Whether ``--accept-changed`` was given.
    """
    if not accepted:
        raise UserError(
            f"{what}; restore it, or make it again, or give {ACCEPT} if it is what you want to use"
        )
    logging.getLogger(__name__).warning("%s; it is used as it is", what)


def check_manifest(weights: Path, manifest: Mapping[str, Any], where: Path, accepted: bool = False) -> None:
    """Refuse a manifest that is not the one under which ``weights`` were trained; see :func:`differs`.

    Nor may its file have changed in what may differ when a run is continued: a card tells that, too.
    """
    _check(weights, "run_hash", run_hash(manifest), where, accepted)
    if MANIFEST_HASH in read_record(weights.parent):  # records of earlier versions lack it
        _check(weights, MANIFEST_HASH, sha256_files([where]), where, accepted)


def check_settings(weights: Path, where: Path, accepted: bool = False) -> None:
    """Refuse a run's configuration that is not the one of the training; see :func:`differs`."""
    _check(weights, "settings_hash", sha256_files([require_file(where, "configuration")]), where, accepted)


def check_weights(weights: Path, accepted: bool = False) -> None:
    """Refuse trained weights that are not as they were written, by the record beside them.

    The adapter's configuration counts as one of its files.

    Raises
    ------
    UserError
        A byte was changed, a file is missing, or there is no record.
    """
    _check(weights, "weights_hash", sha256_files(_files(weights)), weights, accepted)


def _check(weights: Path, field: str, found: str, what: Path, accepted: bool) -> None:
    stated = read_record(weights.parent).get(field)
    if stated is None:
        differs(
            f"{weights.parent}: was made by an earlier version, or lost its {TRAINED_ON}: no record covers "
            f"{what.name}",
            accepted,
        )
    elif stated != found:
        differs(f"{what}: was changed or damaged after {weights.parent.name} was trained", accepted)


def _files(weights: Path) -> list[Path]:
    return sorted(path for path in weights.iterdir() if path.is_file())


def _hash(row_ids: list[str]) -> str:
    return sha256_text(*sorted(row_ids))


def check_made_from(rows: Rows, folds: Folds, what: str, manifest: dict[str, Any], where: Path) -> None:
    """Refuse a manifest of other rows, folds or classes than those of ``what``, naming the field."""
    ours = {
        "classes": list(rows.classes.names),
        "rows_hash": rows.content_hash,
        "folds_hash": folds.content_hash,
    }
    check_joinable(ours, manifest, what, str(where))


def check_store(store: SoftLabels, rows: Rows, folds: Folds) -> None:
    """Refuse a store whose out-of-fold labels are not what they are called, or do not fit the rows.

    Parameters
    ----------
    store : SoftLabels
        Of the same rows, folds and classes (:func:`check_made_from`).

    Raises
    ------
    UserError
        Rows in other folds; parts that are not what was joined; a model trained on rows of its own fold;
        orders or classes that contradict the labels.
    """
    check_candidates(store, rows)
    if store.manifest["label_kind"] == "oof":
        check_folds(store, folds)
        check_training(store, rows, folds)
    if store.candidates is None:  # whose places are the same classes in every row
        check_classes(store, rows)


def check_candidates(store: SoftLabels, rows: Rows) -> None:
    """Every row's logits are those of its own candidates, in their order."""
    if store.candidates is None:
        return
    at = places(store.row_ids, rows.row_ids)
    for row_id, found, i in zip(store.row_ids, store.candidates, at.tolist(), strict=True):
        if i >= 0 and found != rows.candidates[i]:
            raise UserError(
                f"{store.path / OOF}: row {row_id} has the candidates {listing(found, 3)}, and the rows have "
                f"{listing(rows.candidates[i], 3)}; both must come from the same prepared data"
            )


def check_folds(store: SoftLabels, folds: Folds) -> None:
    """Every row stands in the fold of the fold file, with the logits of that fold's own part."""
    at = places(store.row_ids, folds.row_ids)
    for i in np.flatnonzero((at >= 0) & (folds.fold[at] != store.fold)):
        raise UserError(
            f"{store.path / OOF}: row {store.row_ids[i]} was predicted as one of fold {store.fold[i]}, and "
            f"the fold file has it in {folds.fold[at[i]]}; these labels are not out of fold here"
        )
    for part in sorted(store.path.glob(f"fold-*/{OOF}")):
        number = int(part.parent.name.removeprefix("fold-"))
        ids, _, logits = read_logits(part, store.classes, store.manifest)
        here, joined = places(ids, folds.row_ids), places(ids, store.row_ids)
        for i in np.flatnonzero((here < 0) | (folds.fold[here] != number)):
            of = f"fold {folds.fold[here[i]]}" if here[i] >= 0 else "no fold"
            raise UserError(
                f"{part}: holds row {ids[i]} of {of}, which the model of fold {number} was trained on; were "
                "fold files exchanged?"
            )
        for i in np.flatnonzero((joined >= 0) & (logits != store.logits[joined]).any(axis=(1, 2))):
            raise UserError(
                f"{store.path / OOF}: row {ids[i]} has other logits than {part}; the joined file is not "
                "made of these folds, start the teacher's command again without it"
            )


def check_training(store: SoftLabels, rows: Rows, folds: Folds) -> None:
    """Every fold's model was trained on the labelled rows of the other folds, by its own record."""
    known = rows.labelled
    ids = np.array(rows.row_ids, dtype=object)
    everything = _hash(ids[known].tolist())
    for record in sorted(store.path.glob(f"fold-*/{TRAINED_ON}")):
        number = int(record.parent.name.removeprefix("fold-"))
        found = read_record(record.parent).get("rows_hash")
        if found == _hash(ids[known & (folds.fold != number)].tolist()):
            continue
        what = "all rows" if found == everything else "other rows than those outside its fold"
        raise UserError(
            f"{record}: the teacher of fold {number} was trained on {what}, so its labels of that fold are "
            "not out of fold; train it again with distill.teacher_oof"
        )


def check_classes(store: SoftLabels, rows: Rows, file: str = OOF) -> None:
    """No other reading of the columns fits the rows' labels clearly better, in either order of a pair.

    By the labels and not by comparing the orders: a teacher that has only learnt to prefer a place
    contradicts itself by rights. ``file`` of the store is what messages name.
    """
    at = places(rows.row_ids, store.row_ids)
    known = np.flatnonzero((at >= 0) & rows.labelled)
    if len(known) < FEWEST:
        return
    logits, targets = store.logits[at[known]], rows.targets[known]
    for order in range(logits.shape[1]):
        probs = softmax(logits[:, order])
        plain = cross_entropy(probs, targets)
        for other in _readings(store.classes.n):
            gain = plain - cross_entropy(probs[:, other], targets)
            error = gain.std() / np.sqrt(len(gain))
            if error == 0 or gain.mean() <= Z_REFUSED * error:
                continue
            names = ", ".join(store.classes.names[c] for c in other)
            cause = "are its classes in another order?"
            if order and other == store.classes.permutation:
                cause = "were they not put back after the swap, or is the swap flag inverted?"
            raise UserError(
                f"{store.path / file}: {'swapped rows' if order else 'the labels'} fit better if its columns "
                f"are read as {names} (log-loss {plain.mean() - gain.mean():.3f} against "
                f"{plain.mean():.3f}); {cause}"
            )


def _readings(k: int) -> list[list[int]]:
    identity = list(range(k))
    if k <= ALL_PERMUTATIONS:
        return [list(p) for p in permutations(identity) if list(p) != identity]
    found = []
    for a, b in combinations(identity, 2):
        exchanged = identity.copy()
        exchanged[a], exchanged[b] = b, a
        found.append(exchanged)
    return found
