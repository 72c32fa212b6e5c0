"""The story of a run: train a model without some rows, have it predict them, join what all have predicted.

Every model is one part of the run's directory (:mod:`distill.runs.run_directory`), and safe to do again: what
is finished is not touched, what was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data.errors import UserError
from data.softlabels import OOF, SoftLabels, read_store
from distill.config import CONFIG
from distill.model.backbone import load_trained
from distill.model.classifier import Classifier
from distill.processes import on_first
from distill.runs.run import Run
from distill.runs.run_directory import FINAL, Part
from distill.teaching.trust import check_weights, write_trained_on
from distill.training.keep_best import KeepBest, held_back
from distill.training.trainer import LossNotFinite, predict_logits, train


def fit_part(run: Run, name: str, everywhere: bool = False, report_to: str = "none") -> None:
    """Train the model of a part and predict the rows it never saw; do only what is left of that.

    Parameters
    ----------
    everywhere : bool
        Whether it also predicts the rows of other folds.

    Raises
    ------
    UserError
        No labelled rows, a loss or logits that are not finite, weights that were damaged, no memory.
    """
    folds, part = run.folds, run.directory.part(name)
    if not run.directory.finished(name):
        classifier = trained(run, part, report_to)
        if part.without:
            held_out = np.flatnonzero(part.held_out(folds))
            logits = predicted(run, part, classifier, held_out)
            run.write(part.predictions, held_out, folds.fold[held_out], logits)
        del classifier
    if everywhere and not run.directory.finished(name, everywhere):
        others = np.flatnonzero(~part.held_out(folds))
        logits = predicted(run, part, trained(run, part, report_to), others)
        run.write(part.elsewhere, others, np.full(len(others), part.without[0]), logits)
    on_first(part.tidy)


def pretrained(run: Run, report_to: str = "none") -> Path:
    """Return the weights that the stage before a run's trainings has left, training it first if need be."""
    part = run.directory.pretraining.part(FINAL)
    if not part.trained:
        assert run.pretraining is not None
        stage = run.pretraining()
        stage.claim()
        fit_part(stage, FINAL, report_to=report_to)
    on_first(lambda: check_weights(part.adapter))
    return part.adapter


def join_folds(run: Run) -> SoftLabels:
    """Join the folds' predictions into the run's store, in row order; pinned rows have none. Return it."""
    if not run.directory.joined:
        logits = run.read([run.directory.fold(k).predictions for k in range(run.folds.n_folds)])
        held = np.flatnonzero(~run.folds.pinned)
        run.write(run.out / OOF, held, run.folds.fold[held], logits[held])
    return read_store(run.out)


def predicted(run: Run, part: Part, classifier: Classifier, rows: np.ndarray) -> np.ndarray:
    """Predict rows in all their orders, shape (m, orders, K), going on from what an earlier start left."""
    limits = run.model.train
    what = f"{run.name} predicts, {part.words}"
    logits = predict_logits(
        classifier, run.examples, rows, limits.predict_rows, what, limits.pack_tokens, part.waiting
    )
    if not np.isfinite(logits).all():
        raise UserError(
            f"{part.path}: the model predicts logits that are not finite; lower the learning rate"
        )
    return logits


def trained(run: Run, part: Part, report_to: str) -> Classifier:
    """Return the trained classifier of a part, training it first if its weights are not there.

    It learns from the rows that it may see and that have a target.
    """
    model = run.model
    if part.trained:
        on_first(lambda: check_weights(part.adapter))
        return load_trained(
            model.backbone, run.backbone, part.adapter, model.lora.enabled, run.rows.classes.outputs
        )
    number, what = part.number(run.folds.n_folds), f"{run.name}, {part.words}"
    examples = run.examples_for(number)
    train_rows = seen = np.flatnonzero(~part.held_out(run.folds) & examples.labelled)
    if not seen.size:
        raise UserError(f"{what}: there are no labelled rows to train on")
    seed = model.train.seed * 1000 + number
    classifier = run.untrained(seed)
    start = None if run.pretraining is None else pretrained(run, report_to)
    if start is not None:
        classifier.start_from(start)
    config = replace(model.train, seed=seed)
    keeper = None
    if config.select_share:
        back = held_back(run.folds.group_ids, config.select_share, seed)[train_rows]
        if not back.any() or back.all():
            raise UserError(f"{what}: train.select_share {config.select_share} leaves no rows")
        keeper = KeepBest(
            classifier, examples, train_rows[back], part.path, config.select_steps, config.patience
        )
        train_rows = train_rows[~back]
    callbacks = [] if keeper is None else [keeper]
    try:
        train(classifier, examples, train_rows, config, run.loss, part.path, what, report_to, callbacks)
    except LossNotFinite as error:
        cause = "lower train.lr, or use bf16 instead of fp16"
        if error.step == 1:
            cause = f"nothing was learnt before it, so look at the weights of {run.backbone}, or at fp16"
        raise UserError(f"{what}: {error}; {cause}") from error
    except torch.OutOfMemoryError as error:
        raise UserError(f"{what}: {error}") from error
    if keeper is not None:
        keeper.restore()

    def save(directory: Path) -> None:
        classifier.save(directory)
        labelled, others = (
            [run.rows.row_ids[i] for i in seen if run.rows.labelled[i] == known] for known in (True, False)
        )
        write_trained_on(part.path, labelled, directory, run.manifest, run.out / CONFIG, start, others)

    on_first(lambda: part.keep(save))
    return classifier
