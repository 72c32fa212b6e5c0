"""A learning-rate sweep a backbone, before it is judged: the thread compared both at the rate of one.

Every rate of a grid around the recipe's is trained to the end of a schedule of its own, a share of the
budget, and scored on another fold than the race's, so the race's own rows stay unseen. None is stopped before
its end: while the rate rises, and for some steps after, losses tell how fast a model has moved and not where
it will arrive. On real models the halving of rates after a quarter of their steps threw out the best one.

Two things stand between such a sweep and the rate of the whole budget. One training of few steps is off by
.02 and more on a GPU, the same one twice, so a parabola through the losses tells its lowest point and no
single loss does. And the longer a training, the lower its best rate: that of a quarter of the steps was two
to four times too high on real models (``benchmarks/study.md``; Bjorck et al. 2024, arXiv 2409.19913, for
pretraining), so what is found is multiplied by the root of the share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.files import read_json, write_json
from distill.race.race import row_losses, uninformed_loss
from distill.runs.run import Run
from distill.training.trainer import predict_logits, train

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
SHARE = 0.25


def tune_lr(run: Run, race_fold: int, out: Path, tell: Callable[[str], None] = lambda _: None) -> float:
    """Return a learning rate by its loss on a fold that the race neither trains nor validates on.

    It is :func:`best_rate` of the sweep, times the root of the share of the budget that this trained for.

    Parameters
    ----------
    run : Run
    race_fold : int
        The fold the race is validated on; left out here. There are two others or more.
    out : Path
        Keeps every rate's losses; a sweep that was killed goes on.
    tell : callable
        Is given a line about what was found, and what it is worth.

    Raises
    ------
    UserError
        No rate trained without diverging.
    """
    done, nothing = out / "tuned.json", uninformed_loss(run.rows)
    if done.exists():
        found = read_json(done, "tuned rate")
        tell(in_words(run.name, found["lr"], found["tried"], found["fold"], nothing))
        return float(found["lr"])
    fold = next(f for f in range(run.folds.n_folds) if f != race_fold)
    rates = [run.model.train.lr * factor for factor in FACTORS]
    losses = {lr: _losses(run, {race_fold, fold}, fold, lr, out / f"lr-{lr:g}") for lr in rates}
    means = {lr: float(loss.mean()) for lr, loss in losses.items() if loss is not None}
    tried = {f"{lr:g}": means.get(lr) for lr in rates}
    if not means:
        raise UserError(
            f"--tune lr: all of {', '.join(tried)} diverged; give a lower train.lr and another --out"
        )
    chosen = float(f"{best_rate(means, nothing) * SHARE**0.5:.2g}")
    write_json(done, {"lr": chosen, "tried": tried, "share": SHARE, "fold": fold})
    tell(in_words(run.name, chosen, tried, fold, nothing))
    return chosen


def in_words(name: str, lr: float, tried: Mapping[str, float | None], fold: int, nothing: float) -> str:
    """Say which rate was taken and from what, and where the sweep cannot know.

    Parameters
    ----------
    tried : mapping of str to float or None
        Mean log-loss by rate; None where it diverged.
    nothing : float
        The log-loss of knowing nothing.
    """
    losses = {float(rate): loss for rate, loss in tried.items() if loss is not None}
    shown = ", ".join(
        f"{rate} " + ("diverged" if loss is None else f"{loss:.4f}") for rate, loss in tried.items()
    )
    line = f"{name}: learning rate {lr:g}, by a quarter of the budget at each, scored on fold {fold}: {shown}"
    if min(losses.values()) >= nothing:
        return (
            f"{line}; none of them knows more than nothing ({nothing:.4f}), so that this is a guess: so few "
            "steps learn too little to tell; give more rows or epochs, or leave --tune out"
        )
    rates = [float(rate) for rate in tried]
    side = {rates[0]: "lower", rates[-1]: "higher"}.get(best_rate(losses, nothing))
    if side is not None:
        line += f"; a {side} one than these may be better still: try a {side} train.lr in another --out"
    return line


def best_rate(losses: dict[float, float], nothing: float) -> float:
    """Where a parabola through losses by the logarithm of the rate is lowest.

    A loss counts by its share of what the best has learnt: rates so low or so high that little is learnt lie
    on no parabola. Where it bends the other way, or there are fewer than three such losses, it is the rate of
    the least.

    Parameters
    ----------
    losses : dict of float to float
        Mean log-loss by learning rate.
    nothing : float
        The log-loss of knowing nothing.

    Returns
    -------
    float
        Within the rates that were tried.
    """
    rates, found = np.array(list(losses)), np.array(list(losses.values()))
    learnt = (nothing - found).clip(0)
    if (learnt > 0).sum() >= 3:
        _, slope, bend = map(float, np.polynomial.polynomial.polyfit(np.log(rates), found, 2, w=learnt))
        if bend > 0:
            return float(np.exp(-slope / 2 / bend).clip(rates.min(), rates.max()))
    return float(rates[found.argmin()])


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
