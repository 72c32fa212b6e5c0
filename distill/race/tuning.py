"""A learning-rate sweep a backbone, before it is judged: the thread compared both at the rate of one.

Optuna tries a grid of factors around the recipe's rate on a share of the budget, and prunes by successive
halving (Jamieson and Talwalkar 2016; asynchronous, Li et al. 2020). It is scored on another fold than the
race's, so the race's own rows stay unseen. Pruning gives no error rate, and none is claimed for it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError
from data.files import read_json, write_json
from distill.race.race import Pause, row_losses
from distill.runs.run import Run
from distill.training.trainer import predict_logits, train

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
SHARE = 0.25
RUNGS = 4


def tune_lr(run: Run, race_fold: int, out: Path) -> float:
    """Return the learning rate of least loss on a fold that the race neither trains nor validates on.

    Parameters
    ----------
    run : Run
    race_fold : int
        The fold the race is validated on; left out here.
    out : Path
        Keeps every trial; a sweep that was killed goes on.

    Raises
    ------
    UserError
        Optuna is not installed, or there are fewer than three folds.
    """
    done = out / "tuned.json"
    if done.exists():
        return float(read_json(done, "tuned rate")["lr"])
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UserError("--tune needs Optuna: pip install 'distillstack[race]'") from error
    if run.folds.n_folds < 3:
        raise UserError(f"--tune lr needs a third fold to score on; the data have {run.folds.n_folds}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    out.mkdir(parents=True, exist_ok=True)
    rates = [run.model.train.lr * factor for factor in FACTORS]
    study = optuna.create_study(
        study_name=run.name,
        storage=JournalStorage(JournalFileBackend(str(out / "trials.log"))),
        sampler=optuna.samplers.GridSampler({"lr": rates}, seed=0),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
        load_if_exists=True,
    )
    fold = next(f for f in range(run.folds.n_folds) if f != race_fold)
    study.optimize(lambda trial: _score(trial, run, {race_fold, fold}, fold, rates, out), n_trials=len(rates))
    best = study.best_trial  # of those that were never pruned
    tried = {f"{t.params['lr']:g}": t.value if t.state.name == "COMPLETE" else None for t in study.trials}
    write_json(done, {"lr": best.params["lr"], "tried": tried, "share": SHARE, "fold": fold})
    return float(best.params["lr"])


def _score(trial: Any, run: Run, left_out: set[int], fold: int, rates: list[float], out: Path) -> float:
    """Train one rate rung by rung; report the loss on the tuning fold."""
    import optuna

    lr = trial.suggest_float("lr", min(rates), max(rates))
    model = run.model
    config = replace(model.train, lr=lr, epochs=model.train.epochs * SHARE)
    classifier = run.untrained(config.seed)
    known = run.examples.labelled
    rows = np.flatnonzero(~np.isin(run.folds.fold, list(left_out)) & known)
    held_out = np.flatnonzero((run.folds.fold == fold) & known)
    loss = float("inf")
    for rung in range(1, RUNGS + 1):
        try:
            train(
                classifier, run.examples, rows, config, run.loss, out / f"lr-{lr:g}",
                f"{run.name}, lr {lr:g}", callbacks=[Pause(rung / RUNGS)],
            )  # fmt: skip
        except FloatingPointError:
            raise optuna.TrialPruned from None  # diverged: as bad as can be
        logits = predict_logits(classifier, run.examples, held_out, model.train.predict_rows, run.name)
        loss = float(row_losses(logits, run.rows.targets[held_out]).mean())
        trial.report(loss, rung)
        if rung < RUNGS and trial.should_prune():
            raise optuna.TrialPruned
    return loss
