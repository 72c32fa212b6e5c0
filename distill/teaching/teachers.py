"""The hand-off from teachers to student: whose soft labels, for which rows, read from stores.

Out of fold, a row's label comes from a teacher that never saw its prompt. It may still have seen the rows
that the student will be scored on, and that flatters the score by as much as distillation gains
(``benchmarks/distillation.md``). ``apart`` labels come from the one model that never saw the scored fold;
``strict`` ones from models that saw neither it nor the row they label.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.candidates import ABSENT
from data.errors import UserError, listing
from data.files import sha256_files
from data.folds import Folds
from data.ids import places, refuse_repeated
from data.schema import Rows
from data.softlabels import (
    MANIFEST,
    OOF,
    SoftLabels,
    derived_path,
    is_store,
    read_logits,
    read_manifest,
    read_store,
)
from distill.config import CONFIG, DistillConfig
from distill.losses import LOSSES
from distill.teaching.stacked import KIND, PREDICTIONS, is_stack, read_stacked
from distill.teaching.trust import check_classes, check_made_from, check_store
from ensemble.records import STACK

LABELS = "labels.parquet"
"""In a store's ``fold-<k>/``: soft labels for the student scored on fold k, by models that never saw it."""
STUDENTS = "the student's data"
HUMAN = "human"
HUMAN_FLOOR = 0.02
"""Share of the uniform distribution mixed into human soft labels, whose zeros have no logarithm."""


class NotYet(UserError):
    """Teachers have not left what a student learns from; a command of theirs will."""


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
    unlabelled : str
        The ``label_kind`` of unlabelled rows' labels in ``logits``; empty where they are not learnt from.
    """

    names: list[str]
    logits: np.ndarray
    hashes: list[str]
    kind: str
    leakage: str
    by_fold: dict[int, np.ndarray]
    unlabelled: str = ""

    @property
    def untaught(self) -> int:
        """How many rows, all pinned to every training, have hard labels only."""
        return int((~np.isfinite(self.logits).all(axis=(1, 2))).sum())


def open_teachers(
    config: DistillConfig, paths: tuple[Path, ...], rows: Rows, folds: Folds, data_dir: Path, leakage: str
) -> Teachers | None:
    """Read the teachers that the recipe's loss and soft labels ask for; None where it needs none."""
    taught = LOSSES[config.loss].taught
    if not taught or config.labels == HUMAN:
        if paths:
            raise UserError(
                f"recipe: the student's loss {config.loss} with labels {config.labels} has no teachers; "
                "leave --teachers out"
            )
        return human_labels(rows) if taught else None
    found = list(paths) or find_teachers(data_dir, config.labels)
    if any(map(is_stack, found)):
        if config.pseudo_labels is not None:
            raise UserError(
                "recipe: student.distill.pseudo_labels are teachers' labels of unlabelled rows, of which a "
                "stack has none; teach with the stores that it blends"
            )
        return read_stacks(found, rows, folds, config.labels, leakage)
    return read_teachers(found, rows, folds, config.labels, leakage, config.pseudo_labels is not None)


def read_stacks(paths: list[Path], rows: Rows, folds: Folds, kind: str, leakage: str) -> Teachers:
    """Read stacks as teachers: their nested out-of-fold blends, aligned to the student's rows by id.

    Parameters
    ----------
    kind, leakage : str
        What the recipe asks for, which must be ``oof`` and ``standard``.

    Raises
    ------
    UserError
        Other kinds; single teachers beside a stack; a stack of other rows, folds or classes.
    """
    stores = [path for path in paths if not is_stack(path)]
    if stores:
        raise UserError(
            f"{listing(map(str, stores))}: is no stack, and a stack already blends what single teachers say; "
            "give --teachers either the stack or its members"
        )
    if kind != "oof" or leakage != "standard":
        raise UserError(
            f"{paths[0]}: a stack's labels are out of fold, and its fits saw the fold that the student is "
            f"scored on; the recipe's labels {kind} with leakage {leakage} cannot be had from it: give "
            "--leakage standard and student.distill.labels=oof"
        )
    logits, hashes = [], []
    for path in paths:
        store = read_stacked(path)
        check_made_from(rows, folds, STUDENTS, store.manifest, path)
        check_classes(store, rows, PREDICTIONS)
        found = _aligned(store, rows, folds, path / PREDICTIONS, only_labelled=True)
        logits.append(np.where(rows.labelled[:, None], found, 0))  # of the others nothing is learnt
        hashes.append(sha256_files([path / STACK, path / PREDICTIONS]))
    refuse_repeated([path.resolve().name for path in paths], "--teachers", "names of stacks")
    return Teachers(
        [path.resolve().name for path in paths], np.stack(logits, axis=1), hashes, KIND, leakage, {}
    )


def find_teachers(directory: Path, kind: str = "oof") -> list[Path]:
    """Return the teachers' stores of soft labels of ``kind`` directly under ``directory``.

    Raises
    ------
    NotYet
        There are none, or one is unfinished.
    UserError
        One is damaged, which is not to be left out without a word.
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
            raise NotYet(
                f"{path}: this teacher is unfinished; start its command again to finish it, or name the ones "
                "to learn from with --teachers"
            )
        teachers.append(path)
    if not teachers:
        option = "" if kind == "oof" else f" --labels {kind}"
        raise NotYet(
            f"{directory}: holds no teacher's store of {kind} labels; run distill.teacher_oof{option} first, "
            "or give --teachers"
        )
    return teachers


def read_teachers(
    paths: list[Path],
    rows: Rows,
    folds: Folds,
    kind: str = "oof",
    leakage: str = "standard",
    unlabelled: bool = False,
) -> Teachers:
    """Read the teachers' stores, aligned to the student's rows by id.

    Parameters
    ----------
    kind : {"oof", "in_sample", "fold_mean"}
    leakage : {"standard", "apart", "strict"}
        Apart needs the store's ``in_sample`` labels beside it: ``distill.teacher_oof --labels in_sample``.
        Strict needs ``fold-<k>/labels.parquet`` in every store: what ``distill.teacher_oof --leakage
        strict`` leaves.
    unlabelled : bool
        Whether unlabelled rows are learnt from. No model was trained on these, so where every teacher has
        left its ``fold_mean`` labels they come from all of its models, not from their own fold's alone.

    Raises
    ------
    UserError
        A store of other rows, folds or classes, or of another kind of labels; one that fails
        :func:`distill.teaching.trust.check_store`; labels of teachers that saw the fold; a name twice.
    """
    names, logits, hashes = [], [], []
    by_fold: dict[int, list[np.ndarray]] = {}
    by_all = unlabelled and kind == "oof" and all(is_store(derived_path(p, "fold_mean")) for p in paths)
    for path in paths:
        store = read_store(path)
        check_made_from(rows, folds, STUDENTS, store.manifest, path)
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
        if by_all:
            mean = _derived(store, rows, folds, "fold_mean")
            logits[-1][~rows.labelled] = _aligned(mean, rows, folds, mean.path / OOF)[~rows.labelled]
            files.append(mean.path / OOF)
        teaching = store
        if leakage == "apart" and kind != "in_sample":
            teaching = _derived(store, rows, folds, "in_sample")
        # In-sample labels are always those of the one teacher that never saw the student's scored fold.
        if leakage != "standard" or kind == "in_sample":
            for fold in range(folds.n_folds):
                files.append(teaching.path / f"fold-{fold}" / LABELS)
                by_fold.setdefault(fold, []).append(_fold_labels(teaching, rows, folds, fold))
        hashes.append(sha256_files(files))
    stacked = {fold: np.stack(parts, axis=1) for fold, parts in by_fold.items()}
    by_whom = ("fold_mean" if by_all else kind) if unlabelled else ""
    return Teachers(names, np.stack(logits, axis=1), hashes, kind, leakage, stacked, by_whom)


def _derived(store: SoftLabels, rows: Rows, folds: Folds, kind: str) -> SoftLabels:
    """Return the store of further labels that the same teacher left beside its own."""
    home = Path(os.path.normpath(store.path / store.manifest.get("derived_from", ".")))
    path = derived_path(home, kind)
    if not is_store(path):
        if store.manifest.get("kind") == "student":
            raise UserError(
                f"{store.path}: is a student's store, which has no labels but those out of fold; give "
                "--leakage standard"
            )
        raise NotYet(
            f"{path}: missing; run distill.teacher_oof with --labels in_sample first: there the labels for "
            "a fold's student come from the model that never saw the fold"
        )
    found = read_store(path)
    check_made_from(rows, folds, STUDENTS, found.manifest, path)
    for name in ("label_kind", "backbone", "train", "lora"):
        wanted = kind if name == "label_kind" else store.manifest.get(name)
        if found.manifest.get(name) != wanted:
            raise UserError(f"{path}: is not of the teacher {store.path}: its manifest differs in {name}")
    return found


def _aligned(
    store: SoftLabels, rows: Rows, folds: Folds, where: Path, only_labelled: bool = False
) -> np.ndarray:
    """A store's logits in the order of ``rows``, shape (n, K); NaN at pinned rows that it does not hold.

    With ``only_labelled`` at unlabelled ones, too.
    """
    at = places(rows.row_ids, store.row_ids)
    held = at >= 0
    needed = rows.labelled if only_labelled else np.ones_like(held)
    _refuse_missing(rows, ~held & ~folds.pinned & needed, where)
    found = np.full((len(rows), rows.classes.n), np.nan)
    found[held] = store.mean_logits[at[held]]
    return found


def _refuse_missing(rows: Rows, missing: np.ndarray, where: Path) -> None:
    """Refuse labels that lack the rows marked in ``missing``, shape (n,), bool."""
    ids = [rows.row_ids[i] for i in np.flatnonzero(missing)]
    if ids:
        raise UserError(f"{where}: has no soft labels for {len(ids)} rows: {listing(ids)}")


def _fold_labels(store: SoftLabels, rows: Rows, folds: Folds, fold: int) -> np.ndarray:
    """Labels for the student scored on ``fold``, shape (n, K).

    Zeros where the student has no use of them, NaN at pinned rows without any.
    """
    path = store.path / f"fold-{fold}" / LABELS
    if not path.exists():
        raise NotYet(
            f"{path}: missing, so every label may come from a teacher that saw fold {fold}, on which the "
            "student is scored; run distill.teacher_oof with --leakage strict first"
        )
    ids, held_out, logits = read_logits(path, store.classes, store.manifest)
    at = places(rows.row_ids, ids)
    have = at >= 0
    if (own := np.flatnonzero(have & (folds.fold == fold))).size:
        row_id = rows.row_ids[own[0]]
        raise UserError(f"{path}: holds row {row_id} of fold {fold}, on which the student is scored")
    expected = fold if store.manifest["label_kind"] == "in_sample" else folds.fold
    if (saw := np.flatnonzero(have & (held_out[at] != expected))).size:
        row_id = rows.row_ids[saw[0]]
        raise UserError(f"{path}: row {row_id} was labelled by a teacher that saw it or fold {fold}")
    _refuse_missing(rows, ~have & (folds.fold != fold) & ~folds.pinned, path)
    found = np.zeros((len(rows), rows.classes.n))
    found[have] = logits[at[have]].mean(axis=1)
    found[folds.pinned & ~have] = np.nan
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
    sizes = [k] * len(rows) if rows.sizes is None else rows.sizes.tolist()
    logits = np.full((len(rows), k), ABSENT)
    for line, p, n in zip(logits, given, sizes, strict=True):
        probs = np.full(n, 1 / n) if p is None else np.asarray(p) / np.sum(p)
        line[:n] = np.log((1 - HUMAN_FLOOR) * probs + HUMAN_FLOOR / n)
    return Teachers([HUMAN], logits[:, None], [rows.content_hash], HUMAN, "standard", {})
