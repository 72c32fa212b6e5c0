"""The work of a training command as units: one (model, fold, seed) each, safe to run again anywhere.

A unit's inputs are its configuration and the files it names; its output is a finished directory, written so
that a unit killed at any moment goes on from its last checkpoint and a finished one does nothing. So units
can run one after another in this process, or on any machine that sees the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from data import storage
from data.console.progress import stage
from data.dataset import load_prepared
from data.errors import UserError, listing
from data.folds import Folds
from data.schema import Rows
from data.softlabels import SoftLabels, derived_path
from distill.config import ModelConfig, StudentConfig
from distill.losses import LOSSES, label_loss
from distill.own_loss import use_own
from distill.processes import on_first
from distill.runs.crossfit import fit_part, join_folds, pretrained
from distill.runs.described import foresee
from distill.runs.pretraining import Stage, open_stage
from distill.runs.run import LessonsFor, Run, plan_run
from distill.runs.run_directory import ADAPTER, BACKBONES, FINAL, PRETRAIN, RunDirectory
from distill.teaching.lessons import StudentLoss, lessons, pseudo_details, teacher_details
from distill.teaching.teachers import open_teachers
from distill.training.trainer import Loss

WEIGHTS = (ADAPTER, BACKBONES)
"""Directories that a student needs nothing of."""
HEAVY = ("*.safetensors", "checkpoint-*", BACKBONES)
"""What need not be here to see how far a run is."""


@dataclass(frozen=True)
class ModelSpec:
    """One model of a training command: what :meth:`plan` needs, and nothing that cannot be sent elsewhere.

    Attributes
    ----------
    name : str
    model : ModelConfig
        A :class:`~distill.config.StudentConfig` for the student.
    data : Path
        Prepared rows and folds: a directory, or a row table with its fold file beside it.
    out : Path
        The store's directory.
    teachers : tuple of Path
        The student's teachers; none for all that lie beside the data.
    leakage : {"standard", "apart", "strict"}
        The student's.
    own_loss : str
        File and function of the student's loss, where it is the user's own.
    """

    name: str
    model: ModelConfig
    data: Path
    out: Path
    teachers: tuple[Path, ...] = ()
    leakage: str = "standard"
    own_loss: str = ""

    def fetch(self) -> None:
        """Bring what the model is made from, where it lies on other storage."""
        self._fetch_sources(WEIGHTS)
        storage.fetch(self.out.parent / BACKBONES)

    def fetch_records(self) -> None:
        """Bring what says what the model is made from and how far it is, where it lies on other storage."""
        self._fetch_sources(HEAVY)
        storage.fetch(self.out, skip=HEAVY)

    def _fetch_sources(self, skip: Sequence[str]) -> None:
        taught = isinstance(self.model, StudentConfig) and not self.teachers
        fetch_prepared(self.data, taught, skip)
        if self.model.pretrain.data:
            fetch_prepared(storage.local_path(self.model.pretrain.data), False, skip)
        for teacher in self.teachers:
            storage.fetch(teacher, skip=skip)
            if self.leakage == "apart":
                storage.fetch(derived_path(teacher, "in_sample"), skip=skip)
            if isinstance(self.model, StudentConfig) and self.model.distill.pseudo_labels is not None:
                storage.fetch(derived_path(teacher, "fold_mean"), skip=skip)

    def plan(self, loaded: tuple[Rows, Folds] | None = None) -> Run:
        """Read the rows, unless they are given, and return the run that all of its units share."""
        rows, folds = loaded or load_prepared(self.data)
        stage = open_stage(self.model, rows, self._home)
        kind, loss, learnt, details = self._described(rows, folds, stage)
        run = plan_run(
            kind, self.name, self.model, rows, folds, self._home, self.out,
            loss=loss, lessons=learnt, details=details,
        )  # fmt: skip
        return run if stage is None else replace(run, pretraining=partial(stage.plan, run))

    def foresee(self, loaded: tuple[Rows, Folds]) -> Callable[[int], np.ndarray]:
        """Refuse what the run would be refused for, making nothing; return which rows each model learns.

        Returns
        -------
        callable
            From the number of a part to a mask of shape (n,), its held-out rows not yet taken off.

        Raises
        ------
        NotYet
            The student's teachers have not left what it learns from.
        UserError
            As of :meth:`plan` and of :meth:`distill.runs.run.Run.claim`.
        """
        rows, folds = loaded
        stage = open_stage(self.model, rows, self._home)
        kind, _, learnt, details = self._described(rows, folds, stage)
        foresee(kind, self.name, self.model, rows, folds, self.out, details)
        if learnt is None:
            return lambda _: rows.labelled
        return lambda number: np.isfinite(learnt(number)["targets"]).all(axis=1)

    @property
    def _home(self) -> Path:
        return self.data if self.data.is_dir() else self.data.parent

    def _described(
        self, rows: Rows, folds: Folds, stage: Stage | None
    ) -> tuple[str, Loss, LessonsFor | None, dict[str, Any]]:
        """Kind, loss, lessons and further manifest fields of the run."""
        details: dict[str, Any] = {} if stage is None else {"pretrain": stage.details}
        if rows.classes.candidates and self.model.backbone.head != "score":
            raise UserError(
                f"recipe: backbone.head {self.model.backbone.head} reads the words of classes, and these "
                "rows have candidates of their own, each of which gets one number; leave it at score"
            )
        if not isinstance(self.model, StudentConfig):
            return "teacher", label_loss, None, details
        config = self.model.distill
        if self.own_loss:
            use_own(config.loss, self.own_loss)
        if rows.classes.candidates and not LOSSES[config.loss].sets:
            known = [name for name, loss in LOSSES.items() if loss.sets]
            raise UserError(
                f"recipe: student.distill.loss {config.loss} counts every place alike, also those that a "
                f"row's own candidates leave empty; for such rows there are {listing(known, 9)}"
            )
        teachers = open_teachers(config, self.teachers, rows, folds, self._home, self.leakage)
        learnt = None if teachers is None else lambda k: vars(lessons(config, teachers, rows, folds, k))
        details |= teacher_details(config, teachers) | pseudo_details(config, teachers, rows, folds)
        return "student", StudentLoss(config), learnt, details


def fetch_prepared(path: Path, stores: bool, skip: Sequence[str] = WEIGHTS) -> None:
    """Bring prepared data from other storage, with the stores beside them or without."""
    directory = path.parent if path.suffix else path
    storage.fetch(directory, None if stores else (), skip=skip)


@dataclass(frozen=True)
class Unit:
    """One model to train and what it predicts.

    Attributes
    ----------
    model : ModelSpec
    part : str
        The directory under ``model.out``: ``fold-2``, ``final``, ``without-0-1`` for strict labels, or
        ``pretrain`` for the stage that the others wait for.
    everywhere : bool
        Whether a fold's model also predicts the rows it was trained on, for in-sample and fold-mean labels.
    report_to : str
        Tracker of the training.
    """

    model: ModelSpec
    part: str
    everywhere: bool = False
    report_to: str = "none"

    @property
    def name(self) -> str:
        """What the unit is called in tables and logs."""
        return f"{self.model.name}/{self.part}"

    @property
    def directory(self) -> Path:
        """Where it leaves its results."""
        return self.model.out / self.part

    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return RunDirectory(self.model.out).finished(self.part, self.everywhere)

    def run(self, planned: Run | None = None) -> None:
        """Do what is left to do.

        Raises
        ------
        UserError
            The training or its data fail for a reason that the message names.
        """
        if self.finished():
            on_first(RunDirectory(self.model.out).part(self.part).tidy)
            return
        run = planned or self.model.plan()
        run.claim()
        if self.part == PRETRAIN:
            pretrained(run, self.report_to)
        else:
            fit_part(run, self.part, self.everywhere, self.report_to)


def run_here(units: Sequence[Unit], run: Run) -> SoftLabels:
    """Run what is left of a run's units one after another, folds first; join the folds, return the store."""
    first = [unit for unit in units if unit.part == PRETRAIN or unit.part.startswith("fold-")]
    others = [unit for unit in units if unit not in first]
    run.claim()
    for number, unit in enumerate([*first, *others], start=1):
        if number == len(first) + 1:
            join_folds(run)
        with stage(f"unit {number} of {len(units)}"):
            unit.run(run)
    return join_folds(run)


def units_of(
    model: ModelSpec,
    n_folds: int,
    final: bool = False,
    strict: bool = False,
    everywhere: bool = False,
    report_to: str = "none",
) -> list[Unit]:
    """Return a model's units: its folds, and as asked the final training and a model without each two folds.

    A stage before them comes first, as all wait for it; then the longest, so that none of them starts when
    all else is done.
    """
    parts = [PRETRAIN] if model.model.pretrain.data else []
    parts += [FINAL] if final else []
    parts += [f"fold-{fold}" for fold in range(n_folds)]
    if strict:
        parts += [f"without-{i}-{j}" for i, j in combinations(range(n_folds), 2)]
    return [Unit(model, part, everywhere and part.startswith("fold-"), report_to) for part in parts]
