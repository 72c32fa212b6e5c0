"""What the scores mean, in words, and the rule that a stack must beat the mean to be chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ensemble.reading.problem import Problem
from ensemble.scoring.bootstrap import Interval
from ensemble.scoring.results import Result
from ensemble.solvers.numbers import log_loss

PLAIN = "mean"
"""The simple method: whatever does not beat it beyond noise is not worth its parts."""


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
    why = f"nothing beats it beyond noise: {result.chosen} gains {_gain(score.vs_mean, score.vs_mean_ci)}"
    return instead(result, PLAIN, why)


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
        said = result.why if result.why.startswith("nothing") else "it is the mean"
        return Verdict(simplest, f"the mean is chosen: {said}")
    subject = "the blend" if len(problem.names) > 1 else "fitting its one member"
    gain = f"{subject} gains {_gain(chosen.vs_mean, chosen.vs_mean_ci)} on the mean"
    if chosen.vs_mean_ci.low > 0:
        low, high = chosen.vs_mean_ci.as_list()
        gain = f"{subject} loses {short(chosen.vs_mean)} ({short(low)} to {short(high)}) against the mean"
    elif chosen.vs_mean_ci.high >= 0:
        gain += ", which may be noise"
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


def _gain(difference: float, interval: Interval) -> str:
    """A paired difference as a gain, which is more where the loss is less."""
    return f"{short(-difference)} ({short(-interval.high)} to {short(-interval.low)})"


def short(value: float) -> str:
    """A number of nats as a sentence has it: ``.0173``."""
    return f"{value + 0.0:.4f}".replace("-0.0000", "0.0000").replace("0.", ".", 1)
