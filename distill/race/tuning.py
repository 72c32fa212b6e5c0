"""A learning-rate sweep a backbone, before it is judged: the thread compared both at the rate of one.

Every rate of a grid around the recipe's is trained to the end of a schedule of its own, a share of the
budget, and scored on another fold than the race's, so the race's own rows stay unseen. None is stopped before
its end: while the rate rises, and for some steps after, losses tell how fast a model has moved and not where
it will arrive. On real models the halving of rates after a quarter of their steps threw out the best one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.files import read_json, write_json
from distill.race.race import row_losses
from distill.runs.run import Run
from distill.training.trainer import predict_logits, train

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
SHARE = 0.25


def tune_lr(run: Run, race_fold: int, out: Path) -> float:
    """Return a learning rate by its loss on a fold that the race neither trains nor validates on.

    Of the rates that are within one standard error of the best, paired over the rows, it is the lowest: a
    training four times as long wants a lower one (Bjorck et al. 2024, arXiv 2409.19913). The rule of one
    standard error is that of Breiman et al. 1984.

    Parameters
    ----------
    run : Run
    race_fold : int
        The fold the race is validated on; left out here.
    out : Path
        Keeps every rate's losses; a sweep that was killed goes on.

    Raises
    ------
    UserError
        There are fewer than three folds, or no rate trained without diverging.
    """
    done = out / "tuned.json"
    if done.exists():
        return float(read_json(done, "tuned rate")["lr"])
    if run.folds.n_folds < 3:
        raise UserError(f"--tune lr needs a third fold to score on; the data have {run.folds.n_folds}")
    fold = next(f for f in range(run.folds.n_folds) if f != race_fold)
    rates = [run.model.train.lr * factor for factor in FACTORS]
    losses = {lr: _losses(run, {race_fold, fold}, fold, lr, out / f"lr-{lr:g}") for lr in rates}
    tried = {f"{lr:g}": None if loss is None else float(loss.mean()) for lr, loss in losses.items()}
    chosen = lowest_of_the_best({lr: loss for lr, loss in losses.items() if loss is not None})
    if chosen is None:
        raise UserError(f"--tune lr: all of {', '.join(tried)} diverged; give a lower train.lr")
    write_json(done, {"lr": chosen, "tried": tried, "share": SHARE, "fold": fold})
    return chosen


def lowest_of_the_best(losses: dict[float, np.ndarray]) -> float | None:
    """The lowest rate within one standard error of the best, by losses a row, each of shape (n,)."""
    if not losses:
        return None
    best = min(losses.values(), key=lambda loss: float(loss.mean()))

    def near(loss: np.ndarray) -> bool:
        gap = loss - best
        return float(gap.mean()) <= float(gap.std()) / len(gap) ** 0.5

    return min(lr for lr, loss in losses.items() if near(loss))


def _losses(run: Run, left_out: set[int], fold: int, lr: float, out: Path) -> np.ndarray | None:
    """Train at one rate; return the losses (n,) on the tuning fold, None where it diverged."""
    kept = out / "losses.json"
    if kept.exists():
        found = read_json(kept, "losses of a rate")["losses"]
        return None if found is None else np.array(found)
    model = run.model
    config = replace(model.train, lr=lr, epochs=model.train.epochs * SHARE)
    classifier = run.untrained(config.seed)
    known = run.examples.labelled
    rows = np.flatnonzero(~np.isin(run.folds.fold, list(left_out)) & known)
    held_out = np.flatnonzero((run.folds.fold == fold) & known)
    try:
        train(classifier, run.examples, rows, config, run.loss, out, f"{run.name}, lr {lr:g}")
    except FloatingPointError:
        write_json(kept, {"losses": None})
        return None
    logits = predict_logits(classifier, run.examples, held_out, model.train.predict_rows, run.name)
    losses = row_losses(logits, run.rows.targets[held_out])
    write_json(kept, {"losses": losses.tolist()})
    return losses
