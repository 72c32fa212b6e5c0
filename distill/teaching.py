"""The hand-off from teachers to student: whose soft labels, for which rows, with which weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import UserError, listing
from data.files import sha256_files
from data.folds import Folds
from data.schema import Rows
from data.softlabels import OOF, check_joinable, is_store, read_manifest, read_store
from distill.config import DistillConfig
from distill.losses import soft_label_loss
from distill.trainer import Loss


@dataclass(frozen=True)
class Teachers:
    """Soft labels of several teachers for the student's rows.

    Attributes
    ----------
    names : list of str
    logits : ndarray of shape (n, teachers, K)
        Out-of-fold, averaged over both orders of a pair, in the order of the student's rows.
    hashes : list of str
        Hash of each store's ``oof.parquet``.
    """

    names: list[str]
    logits: np.ndarray
    hashes: list[str]


def find_teachers(directory: Path) -> list[Path]:
    """Return the teachers' stores directly under ``directory``."""
    stores = [path for path in sorted(directory.iterdir()) if is_store(path)]
    teachers = [path for path in stores if read_manifest(path).get("kind") == "teacher"]
    if not teachers:
        raise UserError(
            f"{directory}: holds no teacher's store; run distill.teacher_oof first, or give --teachers"
        )
    return teachers


def read_teachers(paths: list[Path], rows: Rows, folds: Folds) -> Teachers:
    """Read the teachers' stores, aligned to the student's rows by id.

    Raises
    ------
    UserError
        A store of other rows, folds or classes; soft labels that are not out of fold; a name twice.
    """
    ours = {
        "classes": list(rows.classes.names),
        "rows_hash": rows.content_hash,
        "folds_hash": folds.content_hash,
    }
    names, logits = [], []
    for path in paths:
        store = read_store(path)
        check_joinable(ours, store.manifest, "the student's data", str(path))
        if store.manifest["label_kind"] != "oof":
            raise UserError(
                f"{path}: its soft labels are {store.manifest['label_kind']}, not out of fold; "
                "a student scored on these rows needs label_kind oof"
            )
        if store.name in names:
            raise UserError(
                f"{path}: another teacher is also named {store.name}; teachers are told apart by directory"
            )
        position = {row_id: i for i, row_id in enumerate(store.row_ids)}
        missing = [row_id for row_id in rows.row_ids if row_id not in position]
        if missing:
            pinned = int(folds.pinned.sum())
            raise UserError(
                f"{path / OOF}: has no soft labels for {len(missing)} rows: {listing(missing)}"
                + ("; rows pinned to every training have no out-of-fold label" if pinned else "")
            )
        names.append(store.name)
        logits.append(store.mean_logits[[position[row_id] for row_id in rows.row_ids]])
    return Teachers(names, np.stack(logits, axis=1), [sha256_files([path / OOF]) for path in paths])


def weights_of(config: DistillConfig, names: list[str]) -> list[float]:
    """Return the teachers' weights, summing to one; equal unless the recipe says otherwise."""
    if not config.teacher_weights:
        return [1 / len(names)] * len(names)
    if set(config.teacher_weights) != set(names):
        raise UserError(
            f"recipe: student.distill.teacher_weights names {listing(config.teacher_weights)}; "
            f"the teachers are {listing(names)}"
        )
    values = [config.teacher_weights[name] for name in names]
    if min(values) < 0 or sum(values) <= 0:
        raise UserError("recipe: student.distill.teacher_weights must not be negative, nor all zero")
    return [value / sum(values) for value in values]


def student_loss(config: DistillConfig, names: list[str]) -> Loss:
    """Return the student's loss on a collated batch."""
    weights = torch.tensor(weights_of(config, names))

    def loss(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return soft_label_loss(
            logits,
            batch["targets"],
            batch["teacher_logits"],
            weights.to(logits.device),
            config.weight,
            config.temperature,
        )

    return loss


def teacher_details(config: DistillConfig, teachers: Teachers) -> dict[str, Any]:
    """Manifest fields that pin whom the student learnt from, and how."""
    resolved = dict(zip(teachers.names, weights_of(config, teachers.names), strict=True))
    return {
        "distill": {**asdict(config), "teacher_weights": resolved},
        "teachers": dict(zip(teachers.names, teachers.hashes, strict=True)),
    }
