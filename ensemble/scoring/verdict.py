"""What the scores mean, in words, and the rule that a stack must beat the mean to be chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ensemble.reading.problem import Problem
from ensemble.scoring.bootstrap import Interval
from ensemble.scoring.results import Result
from ensemble.solvers.numbers import log_loss

PLAIN = "mean"
"""The simple method: whatever does not beat it beyond noise is not worth its parts."""
ASKED = "it was asked for"
"""Why a method is taken that was not chosen by its score."""


def instead(result: Result, name: str, why: str) -> Result:
    """The result with another method chosen; no choice is left that its score would have to include."""
    score = result.score(name)
    return replace(
        result,
        chosen=name,
        why=why,
        best={name: 1.0},
        choice_included=score.loss,
        choice_included_ci=score.ci,
    )


def settle(result: Result) -> Result:
    """Choose the mean where the chosen stack does not beat it beyond noise, and say so in ``why``.

    Beyond noise is what the 95 % interval of the paired difference leaves out.
    """
    score = result.score(result.chosen)
    if result.chosen == PLAIN or score.vs_mean_ci.high < 0:
        return result
    return instead(result, PLAIN, refusal(result.chosen, score.vs_mean, score.vs_mean_ci))


def refusal(name: str, difference: float, interval: Interval) -> str:
    """Why the mean is taken and not a method that differs from it by so much."""
    return f"nothing beats it beyond noise: {name} {moves(difference, interval)}"


@dataclass(frozen=True)
class Verdict:
    """What to tell of a result.

    Attributes
    ----------
    simplest : str
        The simplest method that the chosen one does not beat beyond noise; itself where it beats them all.
    sentence : str
    """

    simplest: str
    sentence: str


def verdict(problem: Problem, result: Result) -> Verdict:
    """Put into words what the chosen method gains on the mean, and which simple one would do.

    The methods are compared on the nested predictions of the folds given, by the result's own bootstrap.
    """
    chosen = result.score(result.chosen)
    simplest = _simplest_within_noise(problem, result)
    if chosen.name == PLAIN:
        return Verdict(simplest, f"the mean is chosen: {result.why}")
    gain = against_mean(len(problem.names), chosen.vs_mean, chosen.vs_mean_ci)
    if simplest == chosen.name:
        return Verdict(simplest, f"{gain}; no simpler method is within noise of it")
    said = simplest.replace("best single", f"the best single model, {result.best_single}")
    return Verdict(simplest, f"{gain}; the simplest method within noise of it is {said}")


def _simplest_within_noise(problem: Problem, result: Result) -> str:
    losses = problem.weighted(log_loss(result.probs[result.chosen], problem.y))
    for score in result.methods:  # the simplest first
        if score.name == result.chosen:
            break
        other = problem.weighted(log_loss(result.probs[score.name], problem.y))
        if result.draws.interval(other - losses).low <= 0:
            return score.name
    return result.chosen


def against_mean(members: int, difference: float, interval: Interval) -> str:
    """What a blend of so many members gains or loses, and whether that may be noise."""
    subject = "the blend" if members > 1 else "fitting its one member"
    said = f"{subject} {moves(difference, interval)} {'against' if difference > 0 else 'on'} the mean"
    return f"{said}, which may be noise" if interval.low <= 0 <= interval.high else said


def moves(difference: float, interval: Interval) -> str:
    """What a paired difference gains, or loses where the log-loss is greater; no gain is below nothing."""
    if difference > 0:
        return f"loses {short(difference)} ({short(interval.low)} to {short(interval.high)})"
    return f"gains {short(-difference)} ({short(-interval.high)} to {short(-interval.low)})"


def short(value: float) -> str:
    """A number of nats as a sentence has it: ``.0173``."""
    return f"{value + 0.0:.4f}".replace("-0.0000", "0.0000").replace("0.", ".", 1)
