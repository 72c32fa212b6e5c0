"""Is a soft label what its store says? Checks that need no model, made before a student learns from it.

The record (which folds, which training rows, joined from which parts) is checked first. Then the numbers:
soft labels of another class order, or of swapped rows whose classes were not put back, fit the rows better
when their columns are exchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError
from data.files import read_json, sha256_files, sha256_text, write_json
from data.folds import Folds
from data.schema import Rows
from data.softlabels import OOF, SoftLabels, read_logits
from data.softmax import softmax

TRAINED_ON = "trained_on.json"
MAY_CHANGE = ("versions", "data", "backbone_path", "backbone_source", "truncated_share")
"""Manifest fields that may differ when a run is continued: they do not change its numbers."""
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
) -> None:
    """Record the rows that the model in ``directory`` is trained on, its weights' hash and its run's."""
    record: dict[str, Any] = {"n_rows": len(row_ids), "rows_hash": _hash(row_ids)}
    if weights is not None:
        record["weights_hash"] = sha256_files(_files(weights))
    if manifest is not None:
        record["run_hash"] = run_hash(manifest)
    write_json(directory / TRAINED_ON, record)


def run_hash(manifest: Mapping[str, Any]) -> str:
    """Hash what a manifest says of a run's numbers; where things lie may change."""
    kept = {name: value for name, value in manifest.items() if name not in MAY_CHANGE}
    return sha256_text(json.dumps(kept, sort_keys=True))


def read_record(directory: Path) -> dict[str, Any]:
    """Read what :func:`write_trained_on` left; nothing where there is none."""
    path = directory / TRAINED_ON
    if not path.exists():
        return {}
    found = read_json(path, "training record")
    if not isinstance(found, dict):
        raise UserError(f"{path}: is not a training record; it is damaged, train that model again")
    return found


def check_manifest(weights: Path, manifest: Mapping[str, Any], where: Path) -> None:
    """Refuse a manifest that is not the one under which ``weights`` were trained."""
    stated = read_record(weights.parent).get("run_hash")
    if stated is not None and stated != run_hash(manifest):
        raise UserError(
            f"{where}: was changed or damaged after {weights.parent.name} was trained; restore it, or train "
            "again"
        )


def check_weights(weights: Path) -> None:
    """Refuse trained weights that are not as they were written, by the record beside them.

    Raises
    ------
    UserError
        A byte was changed, or a file is missing. An earlier version kept no hash; those weights pass.
    """
    stated = read_record(weights.parent).get("weights_hash")
    if stated is not None and stated != sha256_files(_files(weights)):
        raise UserError(
            f"{weights}: these weights were changed or damaged after training; restore them, or delete "
            f"{weights.parent} and start the training's command again"
        )


def _files(weights: Path) -> list[Path]:
    return sorted(path for path in weights.iterdir() if path.is_file())


def _hash(row_ids: list[str]) -> str:
    return sha256_text(*sorted(row_ids))


def check_store(store: SoftLabels, rows: Rows, folds: Folds) -> None:
    """Refuse a store whose out-of-fold labels are not what they are called, or do not fit the rows.

    Parameters
    ----------
    store : SoftLabels
        Of the same rows, folds and classes (:func:`data.softlabels.check_joinable`).

    Raises
    ------
    UserError
        Rows in other folds; parts that are not what was joined; a model trained on rows of its own fold;
        orders or classes that contradict the labels.
    """
    if store.manifest["label_kind"] == "oof":
        check_folds(store, folds)
        check_training(store, rows, folds)
    check_classes(store, rows)


def check_folds(store: SoftLabels, folds: Folds) -> None:
    """Every row stands in the fold of the fold file, with the logits of that fold's own part."""
    position = {row_id: i for i, row_id in enumerate(store.row_ids)}
    expected = dict(zip(folds.row_ids, folds.fold.tolist(), strict=True))
    for row_id, fold in zip(store.row_ids, store.fold.tolist(), strict=True):
        if expected.get(row_id, fold) != fold:
            raise UserError(
                f"{store.path / OOF}: row {row_id} was predicted as one of fold {fold}, and the fold file "
                f"has it in {expected[row_id]}; these labels are not out of fold here"
            )
    for part in sorted(store.path.glob(f"fold-*/{OOF}")):
        number = int(part.parent.name.removeprefix("fold-"))
        ids, _, logits = read_logits(part, store.classes)
        for row_id, values in zip(ids, logits, strict=True):
            if expected.get(row_id) != number:
                raise UserError(
                    f"{part}: holds row {row_id} of fold {expected.get(row_id)}, which the model of fold "
                    f"{number} was trained on; were fold files exchanged?"
                )
            if row_id in position and not np.array_equal(values, store.logits[position[row_id]]):
                raise UserError(
                    f"{store.path / OOF}: row {row_id} has other logits than {part}; the joined file is not "
                    "made of these folds, start the teacher's command again without it"
                )


def check_training(store: SoftLabels, rows: Rows, folds: Folds) -> None:
    """Every fold's model was trained on the labelled rows of the other folds, by its own record."""
    known = np.isfinite(rows.targets).all(axis=1)
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


def check_classes(store: SoftLabels, rows: Rows) -> None:
    """No other reading of the columns fits the rows' labels clearly better, in either order of a pair.

    By the labels and not by comparing the orders: a teacher that has only learnt to prefer a place
    contradicts itself by rights.
    """
    position = {row_id: i for i, row_id in enumerate(store.row_ids)}
    targets = rows.targets
    known = [i for i, r in enumerate(rows.row_ids) if r in position and np.isfinite(targets[i]).all()]
    if len(known) < FEWEST:
        return
    logits = store.logits[[position[rows.row_ids[i]] for i in known]]
    for order in range(logits.shape[1]):
        logs = np.log(np.clip(softmax(logits[:, order]), 1e-15, None))
        plain = -(targets[known] * logs).sum(axis=1)
        for other in _readings(store.classes.n):
            gain = plain + (targets[known] * logs[:, other]).sum(axis=1)
            error = gain.std() / np.sqrt(len(gain))
            if error == 0 or gain.mean() <= Z_REFUSED * error:
                continue
            names = ", ".join(store.classes.names[c] for c in other)
            cause = "are its classes in another order?"
            if order and other == store.classes.permutation:
                cause = "were they not put back after the swap, or is the swap flag inverted?"
            raise UserError(
                f"{store.path / OOF}: {'swapped rows' if order else 'the labels'} fit better if its columns "
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
