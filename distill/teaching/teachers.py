"""The hand-off from teachers to student: whose soft labels, for which rows, with which weights.

Every student model, of a fold or of all rows, has lessons of its own: the teachers' logits, their weights a
row, and the targets. Out of fold, a row's label comes from a teacher that never saw its prompt. It may still
have seen the rows that the student will be scored on, and that flatters the score by as much as distillation
gains (``benchmarks/distillation.md``). ``apart`` lessons come from the one model that never saw the scored
fold; ``strict`` ones from models that saw neither it nor the row they label.

Rows pinned to every training were seen by every teacher and have no such label: the student learns them from
their hard labels alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
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
from data.softlabels import (
    MANIFEST,
    OOF,
    SoftLabels,
    check_joinable,
    derived_path,
    is_store,
    read_logits,
    read_manifest,
    read_store,
)
from data.softmax import softmax
from distill.config import CONFIG, DistillConfig
from distill.teaching.losses import UNTAUGHT, cross_entropy, mix_teachers, named_loss, swap_consistency
from distill.teaching.trust import check_store

LABELS = "labels.parquet"
"""In a store's ``fold-<k>/``: soft labels for the student scored on fold k, by models that never saw it."""
HUMAN = "human"
HUMAN_FLOOR = 0.02
"""Share of the uniform distribution mixed into human soft labels, whose zeros have no logarithm."""


@dataclass(frozen=True)
class Teachers:
    """Soft labels of several teachers for the student's rows.

    Attributes
    ----------
    names : list of str
    logits : ndarray of shape (n, teachers, K)
        Averaged over both orders of a pair, in the order of the student's rows; what the final student
        learns from, and in standard mode every fold's. NaN at pinned rows, which only have hard labels.
    hashes : list of str
        Hash of each store's files of labels.
    kind : str
        The soft labels' ``label_kind``, or ``human``.
    leakage : str
    by_fold : dict of int to ndarray
        Instead of ``logits``, for the student scored on a fold; zeros at the fold's own rows.
    """

    names: list[str]
    logits: np.ndarray
    hashes: list[str]
    kind: str
    leakage: str
    by_fold: dict[int, np.ndarray]

    @property
    def untaught(self) -> int:
        """How many rows, all pinned to every training, have hard labels only."""
        return int((~np.isfinite(self.logits).all(axis=(1, 2))).sum())


def find_teachers(directory: Path, kind: str = "oof") -> list[Path]:
    """Return the teachers' stores of soft labels of ``kind`` directly under ``directory``.

    Raises
    ------
    UserError
        There are none; or one is unfinished or damaged, which is not to be left out without a word.
    """
    teachers = []
    for path in sorted(directory.iterdir()):
        if not is_store(path) and not ((path / MANIFEST).exists() and (path / CONFIG).exists()):
            continue
        manifest = read_manifest(path)
        if "kind" not in manifest:
            raise UserError(f"{path / MANIFEST}: does not say of what kind it is; it is damaged, restore it")
        if manifest["kind"] != "teacher" or manifest.get("label_kind") != kind:
            continue
        if not is_store(path):
            raise UserError(
                f"{path}: this teacher is unfinished; start its command again to finish it, or name the ones "
                "to learn from with --teachers"
            )
        teachers.append(path)
    if not teachers:
        option = "" if kind == "oof" else f" --labels {kind}"
        raise UserError(
            f"{directory}: holds no teacher's store of {kind} labels; run distill.teacher_oof{option} first, "
            "or give --teachers"
        )
    return teachers


def read_teachers(
    paths: list[Path], rows: Rows, folds: Folds, kind: str = "oof", leakage: str = "standard"
) -> Teachers:
    """Read the teachers' stores, aligned to the student's rows by id.

    Parameters
    ----------
    kind : {"oof", "in_sample", "fold_mean"}
    leakage : {"standard", "apart", "strict"}
        Apart needs the store's ``in_sample`` labels beside it: ``distill.teacher_oof --labels in_sample``.
        Strict needs ``fold-<k>/labels.parquet`` in every store: what ``distill.teacher_oof --leakage
        strict`` leaves.

    Raises
    ------
    UserError
        A store of other rows, folds or classes, or of another kind of labels; one that fails
        :func:`distill.teaching.trust.check_store`; labels of teachers that saw the fold; a name twice.
    """
    ours = {
        "classes": list(rows.classes.names),
        "rows_hash": rows.content_hash,
        "folds_hash": folds.content_hash,
    }
    names, logits, hashes = [], [], []
    by_fold: dict[int, list[np.ndarray]] = {}
    for path in paths:
        store = read_store(path)
        check_joinable(ours, store.manifest, "the student's data", str(path))
        if store.manifest["label_kind"] != kind:
            raise UserError(
                f"{path}: its soft labels are {store.manifest['label_kind']}, and the recipe's "
                f"student.distill.labels asks for {kind}"
            )
        if store.name in names:
            raise UserError(
                f"{path}: another teacher is also named {store.name}; teachers are told apart by directory"
            )
        check_store(store, rows, folds)
        names.append(store.name)
        logits.append(_aligned(store, rows, folds, path / OOF))
        files = [path / OOF]
        teaching = store
        if leakage == "apart" and kind != "in_sample":
            teaching = _in_sample_of(store, ours)
        # In-sample labels are always those of the one teacher that never saw the student's scored fold.
        if leakage != "standard" or kind == "in_sample":
            for fold in range(folds.n_folds):
                files.append(teaching.path / f"fold-{fold}" / LABELS)
                by_fold.setdefault(fold, []).append(_fold_labels(teaching, rows, folds, fold))
        hashes.append(sha256_files(files))
    stacked = {fold: np.stack(parts, axis=1) for fold, parts in by_fold.items()}
    return Teachers(names, np.stack(logits, axis=1), hashes, kind, leakage, stacked)


def _in_sample_of(store: SoftLabels, ours: dict[str, Any]) -> SoftLabels:
    """Return the store of in-sample labels that the same teacher left beside its own."""
    home = Path(os.path.normpath(store.path / store.manifest.get("derived_from", ".")))
    path = derived_path(home, "in_sample")
    if not is_store(path):
        raise UserError(
            f"{path}: missing; run distill.teacher_oof with --labels in_sample first: there the labels for "
            "a fold's student come from the model that never saw the fold"
        )
    found = read_store(path)
    check_joinable(ours, found.manifest, "the student's data", str(path))
    for name in ("label_kind", "backbone", "train", "lora"):
        wanted = "in_sample" if name == "label_kind" else store.manifest.get(name)
        if found.manifest.get(name) != wanted:
            raise UserError(f"{path}: is not of the teacher {store.path}: its manifest differs in {name}")
    return found


def _aligned(store: SoftLabels, rows: Rows, folds: Folds, where: Path) -> np.ndarray:
    """A store's logits in the order of ``rows``, shape (n, K); NaN at pinned rows that it does not hold."""
    position = {row_id: i for i, row_id in enumerate(store.row_ids)}
    held = np.array([row_id in position for row_id in rows.row_ids])
    missing = [rows.row_ids[i] for i in np.flatnonzero(~held & ~folds.pinned)]
    if missing:
        raise UserError(f"{where}: has no soft labels for {len(missing)} rows: {listing(missing)}")
    found = np.full((len(rows), rows.classes.n), np.nan)
    found[held] = store.mean_logits[[position[rows.row_ids[i]] for i in np.flatnonzero(held)]]
    return found


def _fold_labels(store: SoftLabels, rows: Rows, folds: Folds, fold: int) -> np.ndarray:
    """Labels for the student scored on ``fold``, shape (n, K).

    Zeros where the student has no use of them, NaN at pinned rows without any.
    """
    path = store.path / f"fold-{fold}" / LABELS
    if not path.exists():
        raise UserError(
            f"{path}: missing, so every label may come from a teacher that saw fold {fold}, on which the "
            "student is scored; run distill.teacher_oof with --leakage strict first"
        )
    ids, held_out, logits = read_logits(path, store.classes)
    position = {row_id: i for i, row_id in enumerate(rows.row_ids)}
    found = np.zeros((len(rows), rows.classes.n))
    have = np.zeros(len(rows), dtype=bool)
    for row_id, without, values in zip(ids, held_out, logits, strict=True):
        i = position.get(row_id)
        if i is None:
            continue
        if folds.fold[i] == fold:
            raise UserError(f"{path}: holds row {row_id} of fold {fold}, on which the student is scored")
        if without != (fold if store.manifest["label_kind"] == "in_sample" else folds.fold[i]):
            raise UserError(f"{path}: row {row_id} was labelled by a teacher that saw it or fold {fold}")
        found[i], have[i] = values.mean(axis=0), True
    found[folds.pinned & ~have] = np.nan
    missing = [rows.row_ids[i] for i in np.flatnonzero(~have & (folds.fold != fold) & ~folds.pinned)]
    if missing:
        raise UserError(f"{path}: has no soft labels for {len(missing)} rows: {listing(missing)}")
    return found


def human_labels(rows: Rows) -> Teachers:
    """The rows' own ``label_probs`` as a teacher.

    Raises
    ------
    UserError
        There is no such column, or a labelled row has none.
    """
    name = "label_probs"
    if name not in rows.table.column_names:
        raise UserError(f"the rows have no {name}, which student.distill.labels human learns from")
    given = rows.table.column(name).to_pylist()
    bare = [
        r for r, p, label in zip(rows.row_ids, given, rows.labels, strict=True) if p is None and label >= 0
    ]
    if bare:
        raise UserError(f"{len(bare)} labelled rows have no {name}: {listing(bare)}")
    k = rows.classes.n
    probs = np.array([np.full(k, 1 / k) if p is None else np.asarray(p) / np.sum(p) for p in given])
    logits = np.log((1 - HUMAN_FLOOR) * probs + HUMAN_FLOOR / k)
    return Teachers([HUMAN], logits[:, None], [rows.content_hash], HUMAN, "standard", {})


@dataclass(frozen=True)
class Lessons:
    """What one student model learns.

    Attributes
    ----------
    teacher_logits : ndarray of shape (n, teachers, K)
    teacher_weights : ndarray of shape (n, teachers)
    targets : ndarray of shape (n, K)
        NaN at rows not to be trained on.
    """

    teacher_logits: np.ndarray
    teacher_weights: np.ndarray
    targets: np.ndarray


def lessons(config: DistillConfig, teachers: Teachers, rows: Rows, folds: Folds, fold: int) -> Lessons:
    """Lessons of the student scored on ``fold``; of the final student for ``folds.n_folds``.

    Nothing here depends on the labels of the scored fold: fitted weights come from the other folds' rows.
    """
    logits = teachers.by_fold.get(fold, teachers.logits)
    targets = hard_targets(rows) if teachers.kind == HUMAN else rows.targets.copy()
    learning = np.isfinite(targets).all(axis=1) & (folds.fold != fold) & np.isfinite(logits).all(axis=(1, 2))
    weights = row_weights(config, teachers.names, logits, targets, learning)
    if config.pseudo_labels is not None:
        blend = np.einsum("ntk,nt->nk", softmax(logits), weights)
        unlabelled = ~np.isfinite(targets).all(axis=1)
        sure = unlabelled & (blend.max(axis=1) >= config.pseudo_labels) & (folds.fold != fold)
        targets[sure] = blend[sure]
    return Lessons(logits, weights, targets)


def hard_targets(rows: Rows) -> np.ndarray:
    """One-hot labels, or the most voted class where there is none; NaN where a row is unlabelled."""
    targets = rows.targets.copy()
    known = np.isfinite(targets).all(axis=1)
    chosen = np.where(rows.labels >= 0, rows.labels, np.nan_to_num(targets).argmax(axis=1))
    targets[known] = np.eye(rows.classes.n)[chosen[known]]
    return targets


def row_weights(
    config: DistillConfig, names: list[str], logits: np.ndarray, targets: np.ndarray, learning: np.ndarray
) -> np.ndarray:
    r"""The teachers' weights a row, shape (n, teachers), summing to one.

    Fitted weights are the simplex blend's on the rows ``learning``. Weights by confidence fall with the
    entropy of a teacher's prediction, :math:`a_t \propto e^{-H_t}` (Kwon et al., ICASSP 2020, with entropies
    in place of losses: no label is used).
    """
    n = len(logits)
    if config.weighting == "confidence":
        probs = softmax(logits)
        return softmax(np.nan_to_num((probs * np.log(np.maximum(probs, 1e-30))).sum(axis=-1)))
    if config.weighting == "fitted":
        from ensemble.methods.blend import SimplexBlend

        fitted = SimplexBlend().fit(softmax(logits[learning]), targets[learning]).weights_
        return np.tile(fitted, (n, 1))
    return np.tile(weights_of(config, names), (n, 1))


def weights_of(config: DistillConfig, names: list[str]) -> list[float]:
    """Return the teachers' fixed weights, summing to one; equal unless the recipe names others."""
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


class StudentLoss:
    """The student's loss on a collated pack.

    Parameters
    ----------
    config : DistillConfig
    permutation : list of int
        What swapping does to the classes.

    Attributes
    ----------
    whole_pairs : bool
        Whether both orders of a row must be in one pack, side by side.
    """

    def __init__(self, config: DistillConfig, permutation: list[int]) -> None:
        self.config = config
        self.permutation = permutation
        self.whole_pairs = config.consistency > 0

    def __call__(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return a loss a sequence, shape (n,); cross-entropy alone where the teachers' logits are NaN."""
        config = self.config
        teacher_logits, weights = batch.get("teacher_logits"), batch.get("teacher_weights")
        bare = None
        if teacher_logits is not None:
            bare = ~teacher_logits.isfinite().all(dim=(1, 2))
            teacher_logits = teacher_logits.masked_fill(bare[:, None, None], 0.0)
        if teacher_logits is not None and weights is not None and config.mixing != "separate":
            teacher_logits = mix_teachers(teacher_logits, weights, config.mixing)
            weights = torch.ones_like(weights[:, :1])
        loss = named_loss(
            config.loss,
            logits,
            batch["targets"],
            teacher_logits,
            weights,
            config.weight,
            config.temperature,
            config.smoothing,
        )
        if bare is not None:
            loss = torch.where(bare, cross_entropy(logits, batch["targets"]), loss)
        if self.whole_pairs:
            loss = loss + config.consistency * swap_consistency(logits, self.permutation)
        return loss


def taught(config: DistillConfig) -> bool:
    """Whether the loss needs teachers at all."""
    return config.loss not in UNTAUGHT


def teacher_details(config: DistillConfig, teachers: Teachers | None) -> dict[str, Any]:
    """Manifest fields that pin whom the student learnt from, and how."""
    described = asdict(config)
    del described["leakage"]  # stands beside it, and is not the recipe's alone to say
    if teachers is None:
        return {"distill": described, "teachers": {}, "teacher_label_kind": None, "leakage": None}
    resolved = dict(zip(teachers.names, weights_of(config, teachers.names), strict=True))
    fixed = config.weighting == "equal"
    alone = teachers.untaught
    return {
        **({"hard_labels_only": alone} if alone else {}),
        "distill": described | {"teacher_weights": resolved if fixed else {}},
        "teachers": dict(zip(teachers.names, teachers.hashes, strict=True)),
        "teacher_label_kind": teachers.kind,
        "leakage": teachers.leakage,
    }


def mode_of(config: DistillConfig, manifest: Mapping[str, Any]) -> str:
    """In a few words, what the score of a student of this manifest rests on."""
    kind = manifest["teacher_label_kind"]
    if kind is None:
        return f"{config.loss}, no teacher"
    untaught = manifest.get("hard_labels_only", 0)
    alone = f"; {untaught} pinned rows by hard labels" if untaught else ""
    return f"{kind}, {manifest['leakage']} leakage{alone}"
