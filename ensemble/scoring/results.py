"""Evaluate a blending problem from end to end: nested scores, the choice, and the fit on all rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.arena import known_truth
from ensemble.methods.average import AverageStacker
from ensemble.methods.base import Blender
from ensemble.methods.blend import SimplexBlend
from ensemble.methods.calibrate import Calibrated
from ensemble.methods.catalogue import MIXTURE, SIMPLEST, left_out
from ensemble.reading.problem import Problem, dealt_again
from ensemble.scoring.bootstrap import DRAWS, Bootstrap, Interval, bootstrap
from ensemble.scoring.choice import choice_included, choose, final_fit_note, mixed, mixture
from ensemble.scoring.crossfit import cross_fit, fit_on, predict_all, sample_note, threads
from ensemble.solvers.numbers import log_loss
from ensemble.solvers.threads import one_blas_thread

AT_ONCE, ROWS_AT_ONCE = 8, 2_000_000
"""Methods whose intervals are found together, and rows of all of them together where that is more."""


@dataclass(frozen=True)
class Score:
    """One line of the table: a log-loss and how it compares.

    Attributes
    ----------
    name : str
    loss : float
        Nested (cross-fitted) mean log-loss, in nats.
    ci : Interval
        Of the loss.
    in_sample : float or None
        Loss on the rows it was fitted to; ``None`` where nothing was fitted here.
    vs_mean, vs_mean_ci
        Paired difference to the equal-weight mean; negative is better.
    vs_single, vs_single_ci
        Paired difference to the best single member.
    """

    name: str
    loss: float
    ci: Interval
    in_sample: float | None
    vs_mean: float
    vs_mean_ci: Interval
    vs_single: float
    vs_single_ci: Interval


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes
    ----------
    prior, members, methods, bayes
        Their scores; ``bayes`` is ``None`` where the true probabilities are unknown.
    fitted : dict of str to Blender
        Every method, fitted on all rows.
    probs : dict of str to ndarray of shape (n, K)
        Every method's nested predictions.
    chosen, why : str
        The simplest method, or :data:`ensemble.methods.catalogue.MIXTURE` where others count too.
    best : dict of str to float
        What counts in it, the largest share first.
    choice_included : float
        The chosen stack's loss with the choice itself cross-fitted.
    choice_included_ci : Interval
    best_single : str
    draws : Bootstrap
    seed : int
    repeats : int
        Outer cuts that the scores are means over.
    notes : tuple of str
        What the user should know about the result.
    """

    prior: Score
    members: list[Score]
    methods: list[Score]
    bayes: Score | None
    fitted: dict[str, Blender]
    probs: dict[str, np.ndarray]
    chosen: str
    why: str
    best: dict[str, float]
    choice_included: float
    choice_included_ci: Interval
    best_single: str
    draws: Bootstrap
    seed: int
    repeats: int = 1
    notes: tuple[str, ...] = ()

    @property
    def all_scores(self) -> list[Score]:
        """Every line of the table, in its order."""
        return [self.prior, *self.members, *self.methods, *([self.bayes] if self.bayes else [])]

    def score(self, name: str) -> Score:
        """The score of a method."""
        return next(score for score in self.methods if score.name == name)


def evaluate(
    problem: Problem, seed: int = 0, draws: int = DRAWS, workers: int | None = None, repeats: int = 1
) -> Result:
    """Score every method by the nested estimate, choose one, and fit it on all rows.

    Parameters
    ----------
    problem : Problem
    seed : int
        Of inner folds, trees and bootstrap.
    draws : int
        Of the bootstrap.
    workers : int, optional
        Folds fitted at once.
    repeats : int
        Times that the rows are dealt into folds anew and everything is scored again; losses are the means
        over these. The predictions kept are those of the folds given.
    """
    # All rows are fitted beside the folds, of which the last alone would leave a processor idle.
    with one_blas_thread(), threads(1) as beside:
        everything = beside.submit(fit_on, problem, np.arange(len(problem)), seed)
        deals = [problem, *(dealt_again(problem, seed, repeat) for repeat in range(1, repeats))]
        cuts = [cross_fit(deal, seed + i, workers=workers) for i, deal in enumerate(deals)]
        fitted = dict(everything.result())
    found = cuts[0]

    def row_losses(probs: np.ndarray) -> np.ndarray:
        return problem.weighted(log_loss(probs, problem.y))

    each = [{name: row_losses(probs) for name, probs in cut.probs.items()} for cut in cuts]
    losses = {name: np.mean([table[name] for table in each], axis=0) for name in each[0]}
    y, weight = problem.y, problem.weight
    included = np.mean(
        [
            row_losses(choice_included(cut.probs, y, deal.fold, weight))
            for cut, deal in zip(cuts, deals, strict=True)
        ],
        axis=0,
    )
    best = _mean_shares([mixture(cut.probs, y, weight) for cut in cuts])
    chosen = SIMPLEST
    if len(best) > 1:
        chosen = MIXTURE
        losses[MIXTURE] = np.mean([row_losses(mixed(cut.probs, best)) for cut in cuts], axis=0)
        found.probs[MIXTURE] = mixed(found.probs, best)
        fitted[MIXTURE] = AverageStacker.of({name: fitted[name] for name in best}, list(best.values()))

    own = {name: np.empty(len(problem)) for name in fitted}
    for rows, probs in predict_all(fitted, problem, np.arange(len(problem))):
        for name, part in probs.items():
            own[name][rows] = log_loss(part, problem.y[rows])
    own = {name: problem.weighted(loss) for name, loss in own.items()}
    inside = {name: float(loss.mean()) for name, loss in own.items()}
    notes = [
        final_fit_note(chosen, own[chosen], losses[chosen]),
        sample_note(problem),
        expensive_note(problem),
    ]
    single = {name: row_losses(problem.P[:, m]) for m, name in enumerate(problem.names)}
    best_single = choose(single)
    others = {"prior": row_losses(found.prior)}
    truth = None if problem.rows is None else known_truth(problem.rows)
    if truth is not None:
        others["Bayes optimum"] = row_losses(truth)

    boot = bootstrap(problem.groups, draws, seed, problem.weight)

    def scores(table: dict[str, np.ndarray]) -> list[Score]:
        """Score per-row losses by name, all by the same draws; some at a time, for the memory they take."""
        names, size = list(table), max(AT_ONCE, ROWS_AT_ONCE // len(problem))
        some = (names[begin : begin + size] for begin in range(0, len(names), size))
        return [score for part in some for score in scores_of(part, table)]

    def scores_of(names: list[str], table: dict[str, np.ndarray]) -> list[Score]:
        columns = np.stack([table[name] for name in names], axis=1)
        to_mean = columns - losses["mean"][:, None]
        to_single = columns - single[best_single][:, None]
        intervals = boot.intervals(np.concatenate([columns, to_mean, to_single], axis=1))
        n = len(names)
        return [
            Score(
                name,
                float(columns[:, i].mean()),
                intervals[i],
                inside.get(name),
                float(to_mean[:, i].mean()),
                intervals[n + i],
                float(to_single[:, i].mean()),
                intervals[2 * n + i],
            )
            for i, name in enumerate(names)
        ]

    # A member may bear a method's name, so the three kinds are scored apart.
    other_scores = scores(others)
    methods = scores(losses)
    members = [_without_in_sample(score) for score in scores(single)]
    return Result(
        _without_in_sample(other_scores[0]),
        members,
        methods,
        _without_in_sample(other_scores[1]) if truth is not None else None,
        fitted,
        found.probs,
        chosen,
        _why(best, chosen, methods, best_single),
        best,
        float(included.mean()),
        boot.interval(included),
        best_single,
        boot,
        seed,
        repeats,
        tuple(note for note in notes if note is not None),
    )


def _without_in_sample(score: Score) -> Score:
    return Score(**{**score.__dict__, "in_sample": None})


def expensive_note(problem: Problem) -> str | None:
    """What to tell the user where methods are left out for their cost, else ``None``."""
    n_members, n_classes = problem.P.shape[1:]
    names = left_out(n_members, n_classes)
    if not names:
        return None
    return f"not tried, as their cost grows with the square of {n_classes:,} classes: {', '.join(names)}"


def _mean_shares(found: list[dict[str, float]]) -> dict[str, float]:
    """Mean shares over several cuts, the largest first."""
    names = dict.fromkeys(name for shares in found for name in shares)
    mean = {name: sum(shares.get(name, 0.0) for shares in found) / len(found) for name in names}
    return dict(sorted(mean.items(), key=lambda item: -item[1]))


def _why(best: dict[str, float], chosen: str, methods: list[Score], best_single: str) -> str:
    scores = {score.name: score for score in methods}
    score = scores[chosen]
    if len(best) > 1:
        text = "; ".join(f"{name} {share:.2f}" for name, share in best.items())
        text = f"shares of most likelihood on nested predictions: {text}"
    else:
        text = "no mixture with others credibly beats it"
    if chosen != "mean":
        text += (
            f"; against the mean {score.vs_mean:+.4f} "
            f"[{score.vs_mean_ci.low:+.4f}, {score.vs_mean_ci.high:+.4f}]"
        )
    return text + (
        f"; against the best single model, {best_single}, {score.vs_single:+.4f} "
        f"[{score.vs_single_ci.low:+.4f}, {score.vs_single_ci.high:+.4f}]"
    )


def linear_weights(method: Blender) -> np.ndarray | None:
    """The members' weights where the method has one a member, else ``None``."""
    base = method.base if isinstance(method, Calibrated) else method
    return getattr(base, "weights_", None)


def shown_weights(result: Result) -> tuple[str, np.ndarray]:
    """Weights to show: the chosen method's, or the simplex blend's where it has none a member."""
    weights = linear_weights(result.fitted[result.chosen])
    if weights is not None:
        return result.chosen, weights
    simplex = result.fitted["simplex"]
    assert isinstance(simplex, SimplexBlend)
    return "simplex", simplex.weights_
