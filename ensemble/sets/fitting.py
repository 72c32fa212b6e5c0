"""The stack of rows with candidates: every method scored by nested cross-fitting, the best kept.

Beside the log-loss stand accuracy, MAP@k and MRR of the nested predictions, with intervals over the same
draws of groups. There is no report page: its panels show classes that rows share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.console.command import format_table
from ensemble.methods.base import Blender, Training
from ensemble.methods.registry import registered
from ensemble.reading.problem import Problem, dealt_again
from ensemble.scoring.bootstrap import DRAWS, Interval, bootstrap
from ensemble.scoring.choice import choose
from ensemble.scoring.crossfit import CrossFit, cross_fit
from ensemble.scoring.ranking import METRICS, row_metrics
from ensemble.scoring.verdict import ASKED, PLAIN, against_mean, refusal
from ensemble.sets.pool import METHODS, fit_set_methods
from ensemble.sets.problem import SetProblem
from ensemble.solvers.numbers import log_loss
from ensemble.solvers.threads import one_blas_thread


@dataclass(frozen=True)
class SetScore:
    """What a method or member scores.

    Attributes
    ----------
    name : str
    loss : float
        Nested mean log-loss in nats; of a member its own.
    ci : Interval
    vs_mean : float
        Paired difference to the equal-weight mean; negative is better.
    vs_mean_ci : Interval
    metrics : tuple of float
        :data:`ensemble.scoring.ranking.METRICS`.
    metrics_ci : tuple of Interval
    """

    name: str
    loss: float
    ci: Interval
    vs_mean: float
    vs_mean_ci: Interval
    metrics: tuple[float, ...]
    metrics_ci: tuple[Interval, ...]


@dataclass(frozen=True)
class SetStack:
    """A fitted stack.

    Attributes
    ----------
    sets : SetProblem
    methods, members : list of SetScore
    even : float
        The log-loss of equal probabilities within each set.
    fitted : Blender
        The chosen method, on all rows.
    chosen : str
    probs : ndarray of shape (n, K)
        Its nested predictions.
    choice_included : float
        Log-loss with the choice cross-fitted, too.
    choice_included_ci : Interval
    verdict : str
        What the choice gains on the mean, or why this is taken, in a sentence.
    seed, repeats : int
    """

    sets: SetProblem
    methods: list[SetScore]
    members: list[SetScore]
    even: float
    fitted: Blender
    chosen: str
    probs: np.ndarray
    choice_included: float
    choice_included_ci: Interval
    verdict: str
    seed: int
    repeats: int

    @property
    def score(self) -> SetScore:
        """That of the chosen method."""
        return next(score for score in self.methods if score.name == self.chosen)


def left_out() -> list[str]:
    """Methods that need the same classes in every row, and are not tried."""
    return [name for name in registered() if name not in METHODS]


def fit_sets(sets: SetProblem, method: str | None = None, repeats: int = 1, seed: int = 0) -> SetStack:
    """Score every method by the nested estimate, choose one or take that asked for, and fit it.

    The one of least loss is chosen where it beats the mean beyond noise, else the mean.

    Parameters
    ----------
    sets : SetProblem
    method : str, optional
        One of the names that :func:`ensemble.sets.pool.fit_set_methods` gives.
    repeats : int
        Deals of the folds that losses are means over.
    seed : int
    """
    problem = sets.problem
    y, weight = problem.y, problem.weight

    def fit(P: np.ndarray, targets: np.ndarray, groups: np.ndarray) -> dict[str, Blender]:
        return fit_set_methods(Training.of(P, targets, None, groups), seed)

    with one_blas_thread():
        deals = [problem, *(dealt_again(problem, seed, repeat) for repeat in range(1, repeats))]
        cuts = [cross_fit(deal, seed + i, fit) for i, deal in enumerate(deals)]
        everything = fit(problem.P, y, problem.groups)
    each = [{name: log_loss(probs, y) for name, probs in cut.probs.items()} for cut in cuts]
    losses = {name: np.mean([table[name] for table in each], axis=0) for name in each[0]}
    included = np.mean([_choice_included(cut, deal) for cut, deal in zip(cuts, deals, strict=True)], axis=0)
    draws = bootstrap(problem.groups, DRAWS, seed, weight)
    single = {name: problem.P[:, m] for m, name in enumerate(problem.names)}

    def scored(name: str, loss: np.ndarray, probs: np.ndarray) -> SetScore:
        ranked = row_metrics(probs, y)
        columns = np.concatenate([loss[:, None], (loss - losses[PLAIN])[:, None], ranked], axis=1)
        own, to_mean, *others = draws.intervals(columns)
        means = columns.mean(axis=0)
        return SetScore(
            name, float(means[0]), own, float(means[1]), to_mean, tuple(means[2:].tolist()), tuple(others)
        )

    scores = {name: scored(name, loss, cuts[0].probs[name]) for name, loss in losses.items()}
    best = scores[method or choose(losses)]
    verdict = against_mean(len(problem.names), best.vs_mean, best.vs_mean_ci)
    if best.name == PLAIN:
        verdict = f"the mean is chosen: {ASKED if method else 'no method has less loss'}"
    elif method is None and best.vs_mean_ci.high >= 0:
        verdict = f"the mean is chosen: {refusal(best.name, best.vs_mean, best.vs_mean_ci)}"
        best = scores[PLAIN]
        included = losses[PLAIN]  # no choice is left that its score would have to include
    even = np.where(problem.P.max(axis=1) > 0, 1.0, 0.0)
    return SetStack(
        sets,
        list(scores.values()),
        [scored(name, log_loss(probs, y), probs) for name, probs in single.items()],
        float(log_loss(even / even.sum(axis=1, keepdims=True), y).mean()),
        everything[best.name],
        best.name,
        cuts[0].probs[best.name],
        float(included.mean()),
        draws.interval(included),
        verdict,
        seed,
        repeats,
    )


def _choice_included(cut: CrossFit, problem: Problem) -> np.ndarray:
    """Log-loss of each row (n,) by the method that is best on the other folds."""
    losses = {name: log_loss(probs, problem.y) for name, probs in cut.probs.items()}
    found = np.empty(len(problem))
    for number in np.unique(problem.fold):
        held = problem.fold == number
        name = choose({name: loss[~held] for name, loss in losses.items()})
        found[held] = losses[name][held]
    return found


def summary(stack: SetStack) -> list[str]:
    """Lines to print: members, the mean, the chosen method, its honest score, and the verdict."""

    def line(score: SetScore, what: str = "") -> list[str]:
        loss = f"[{score.ci.low:.4f}, {score.ci.high:.4f}]"
        ranked = zip(score.metrics, score.metrics_ci, strict=True)
        return [
            what or score.name,
            f"{score.loss:.4f}",
            loss,
            *(f"{value:.3f} [{ci.low:.3f}, {ci.high:.3f}]" for value, ci in ranked),
        ]

    members = sorted(stack.members, key=lambda score: score.loss)
    lines = [["even", f"{stack.even:.4f}", "", *[""] * len(METRICS)], *(line(score) for score in members)]
    if stack.chosen != PLAIN:
        lines.append(line(next(s for s in stack.methods if s.name == PLAIN), "mean of the members"))
    lines.append(line(stack.score, f"chosen: {stack.chosen}"))
    ends = stack.choice_included_ci
    honest = [f"{stack.choice_included:.4f}", f"[{ends.low:.4f}, {ends.high:.4f}]", *[""] * len(METRICS)]
    lines.append(["the same, its choice cross-fitted", *honest])
    table = format_table(["", "log-loss", "95 %", *METRICS], lines)
    return [*table.splitlines(), f"verdict: {stack.verdict}"]


def all_methods(stack: SetStack) -> list[str]:
    """Lines to print of ``--all``: every method, the best first, against the mean."""
    lines = [
        [
            ("* " if score.name == stack.chosen else "  ") + score.name,
            f"{score.loss:.4f}",
            f"{score.vs_mean:+.4f} [{score.vs_mean_ci.low:+.4f}, {score.vs_mean_ci.high:+.4f}]",
        ]
        for score in sorted(stack.methods, key=lambda score: score.loss)
    ]
    return format_table(["", "log-loss", "against the mean"], lines).splitlines()


def notes(stack: SetStack) -> list[str]:
    """What the user should know."""
    return [
        *stack.sets.problem.notes,
        f"not tried, as they need the same classes in every row: {', '.join(left_out())}",
        "rows with candidates of their own have no report page",
    ]
