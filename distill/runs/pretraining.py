"""A stage before a run's trainings: another data set, learnt once, from which all of them start.

The stage is a run of its own, of one model, in the run's directory. What it has changed, adapters or full
weights, is where the model of every fold and of all rows begins; its head is discarded. Nothing is merged,
so that a base in four bits stays the one that it is and the trained adapter is all that prediction needs.

A row of the other set whose prompt also stands in the run's own rows, equal or nearly so, would have taught
every fold's model what it is scored on. Such rows are left out, and how many is told.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset import load_prepared, near_of
from data.errors import UserError
from data.folds import Folds
from data.groups import Near, shared_prompts
from data.schema import Rows
from data.storage import local_path
from distill.config import ModelConfig, TrainConfig
from distill.losses import label_loss
from distill.processes import on_first
from distill.runs.run import Run, plan_run


@dataclass(frozen=True)
class Stage:
    """What a model is trained on first, and how.

    Attributes
    ----------
    model : ModelConfig
        The model that it is a stage of.
    rows, folds : Rows, Folds
        The other data.
    home : Path
        Where they are prepared.
    near : Near or None
        How alike prompts of theirs and of the run's own rows are to count as one.
    """

    model: ModelConfig
    rows: Rows
    folds: Folds
    home: Path
    near: Near | None

    @property
    def details(self) -> dict[str, Any]:
        """What the run's manifest says of it."""
        train = self._train
        return {
            "rows_hash": self.rows.content_hash,
            "classes": list(self.rows.classes.names),
            "near": None if self.near is None else self.near.threshold,
            "epochs": train.epochs,
            "lr": train.lr,
            "seed": train.seed,
            "template": self._template,
        }

    @property
    def _train(self) -> TrainConfig:
        given = asdict(self.model.pretrain)
        stated = {name: given[name] for name in ("epochs", "lr", "seed") if given[name] is not None}
        return replace(self.model.train, **stated)

    @property
    def _template(self) -> str:
        return self.model.pretrain.template or self.model.template

    def plan(self, run: Run) -> Run:
        """Leave out what the run's own rows are not to be taught, and return the stage as a run.

        Raises
        ------
        UserError
            No labelled rows are left.
        """
        labelled = self.rows.labelled
        kept = np.flatnonzero(labelled & ~on_first(lambda: shared_prompts(self.rows, run.rows, self.near)))
        left_out = int(labelled.sum()) - len(kept)
        if not kept.size:
            raise UserError(
                f"{self.home}: pretrain.data has no labelled rows but {left_out} whose prompts are among the "
                "rows that are trained on after it"
            )
        on_first(lambda: self._tell(run, len(kept), left_out))
        own = self.rows.take(kept)
        return plan_run(
            "teacher",
            f"{run.name}, pre-stage",
            self._settings(run),
            own,
            self.folds.aligned_to(own.row_ids),
            self.home,
            run.directory.pretraining.path,
            loss=label_loss,
            details={"left_out": left_out, "before": run.rows.content_hash},
        )

    def _tell(self, run: Run, kept: int, left_out: int) -> None:
        logging.getLogger(__name__).warning(
            "%s: is first trained on %d rows of %s%s", run.name, kept, self.home,
            f"; {left_out} others have prompts of the rows to come, and are left out" if left_out else "",
        )  # fmt: skip

    def _settings(self, run: Run) -> ModelConfig:
        """The model's configuration on the run's very base, with the stage's own template and training."""
        backbone = replace(self.model.backbone, path=run.backbone, tiny=None, first_layers=None)
        if self.rows.classes.n != run.rows.classes.n:
            backbone.verdicts = []  # words of other classes
        return ModelConfig(
            backbone=backbone,
            lora=self.model.lora,
            template=self._template,
            encode=self.model.encode,
            train=self._train,
            resources=self.model.resources,
        )


def open_stage(model: ModelConfig, rows: Rows, home: Path) -> Stage | None:
    """Read the data that a model is trained on first; None where its recipe names none.

    Parameters
    ----------
    model : ModelConfig
    rows : Rows
        Those that it is trained on after them.
    home : Path
        Where these are prepared.

    Raises
    ------
    UserError
        The other data are missing, damaged or not prepared, or are the model's own.
    """
    if not model.pretrain.data:
        return None
    place = local_path(model.pretrain.data)
    others, folds = load_prepared(place)
    if others.content_hash == rows.content_hash:
        raise UserError(
            f"{place}: pretrain.data holds the very rows that are trained on after it; take others"
        )
    return Stage(model, others, folds, place if place.is_dir() else place.parent, near_of(home))
