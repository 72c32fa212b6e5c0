"""What a student model learns, made of its teachers: logits and weights a row, targets, and the loss on them.

Every student model, of a fold or of all rows, has lessons of its own. Rows pinned to every training were
seen by every teacher and have no label of theirs: the student learns them from their hard labels alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import UserError, listing
from data.folds import Folds
from data.schema import Rows
from data.softmax import softmax
from distill.config import DistillConfig
from distill.losses import LOSSES, Terms, cross_entropy, mix_teachers, named_terms, total
from distill.teaching.teachers import HUMAN, Teachers


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
    learning = rows.labelled & (folds.fold != fold) & np.isfinite(logits).all(axis=(1, 2))
    weights = row_weights(config, teachers.names, logits, targets, learning)
    if config.pseudo_labels is not None:
        blend = np.einsum("ntk,nt->nk", softmax(logits), weights)
        sure = ~rows.labelled & (blend.max(axis=1) >= config.pseudo_labels) & (folds.fold != fold)
        targets[sure] = blend[sure]
    return Lessons(logits, weights, targets)


def hard_targets(rows: Rows) -> np.ndarray:
    """One-hot labels, or the most voted class where there is none; NaN where a row is unlabelled."""
    targets = rows.targets.copy()
    known = rows.labelled
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

    Attributes
    ----------
    terms : dict of str to Tensor
        What the last loss was made of, each of shape (n,) and without gradients: what a training logs.
    """

    def __init__(self, config: DistillConfig) -> None:
        self.config = config
        self.terms: Terms = {}

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
        given = vars(config) | {"teacher_logits": teacher_logits, "teacher_weights": weights}
        terms = named_terms(config.loss, logits, batch["targets"], **given)
        if bare is not None:
            alone = cross_entropy(logits, batch["targets"])
            zero = torch.zeros_like(alone)
            terms = {name: torch.where(bare, zero, term) for name, term in terms.items()}
            terms["ce"] = torch.where(bare, alone, terms.get("ce", zero))
        self.terms = {name: term.detach() for name, term in terms.items()}
        return total(terms)


def teacher_details(config: DistillConfig, teachers: Teachers | None) -> dict[str, Any]:
    """Manifest fields that pin whom the student learnt from, and how."""
    described = asdict(config)
    del described["leakage"]  # stands beside it, and is not the recipe's alone to say
    if LOSSES[config.loss].hash:
        described["loss_hash"] = LOSSES[config.loss].hash
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


def pseudo_details(
    config: DistillConfig, teachers: Teachers | None, rows: Rows, folds: Folds
) -> dict[str, Any]:
    """Manifest field of the unlabelled rows that the final student learns: how many, by what labels."""
    if config.pseudo_labels is None or teachers is None:
        return {}
    targets = lessons(config, teachers, rows, folds, folds.n_folds).targets
    taught = ~rows.labelled & np.isfinite(targets).all(axis=1)
    return {
        "pseudo_labelled": {"rows": int(taught.sum()), "of": int((~rows.labelled).sum())}
        | ({"label_kind": teachers.unlabelled} if teachers.unlabelled else {})
    }


def mode_of(config: DistillConfig, manifest: Mapping[str, Any]) -> str:
    """In a few words, what the score of a student of this manifest rests on."""
    kind = manifest["teacher_label_kind"]
    if kind is None:
        return f"{config.loss}, no teacher"
    untaught = manifest.get("hard_labels_only", 0)
    alone = f"; {untaught} pinned rows by hard labels" if untaught else ""
    pseudo = manifest.get("pseudo_labelled")
    if pseudo:
        alone += f"; {pseudo['rows']} of {pseudo['of']} unlabelled rows by soft labels"
    return f"{kind}, {manifest['leakage']} leakage{alone}"
