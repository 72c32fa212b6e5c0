"""The report: one self-contained HTML page, without network, that shows what the stack found."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.files import write_text
from ensemble.reading.problem import Problem
from ensemble.report.charts import Whisker, Whiskers
from ensemble.report.frame import SCRIPT, SCRIPT_HASH, fixed, render, signed, span
from ensemble.report.panels import calibration, confusions, explorer, member_worth, slices, worst_rows
from ensemble.report.summary import by_score, next_commands
from ensemble.scoring.results import Result, Score, shown_weights
from ensemble.scoring.verdict import verdict

CONTENTS = {
    "methods": "Methods and members",
    "weights": "Fitted weights",
    "reliability": "Reliability",
    "explore": "Weights by hand",
    "members": "What each member is worth",
    "slices": "Where the blend helps",
    "confusion": "Confusion by class",
    "worst": "Worst rows",
    "next": "Next step",
}
"""Sections by their id."""


def write_report(path: Path, problem: Problem, result: Result) -> None:
    """Write the page, atomically."""
    write_text(path, render_report(problem, result))


def render_report(problem: Problem, result: Result) -> str:
    """Return the page as text, which is the same wherever the stack stands."""
    weights_of, weights = shown_weights(result)
    scores = by_score(result.all_scores)
    return render(
        "report.jinja",
        problem=problem,
        result=result,
        n_groups=int(problem.groups.max()) + 1,
        n_folds=len(np.unique(problem.fold)),
        notes=[*problem.notes, *result.notes],
        tiles=_tiles(result),
        verdict=verdict(problem, result).sentence,
        commands=next_commands(problem, Path("DIR"), result.fitted[result.chosen].needs_rows),
        contents=CONTENTS,
        to_the_mean=Whiskers(
            [_to_the_mean(score, result) for score in scores],
            zero=0.0,
            scaled=[_to_the_mean(score, result) for score in _near(result.methods)],
        ),
        scores=[_cells(score) for score in scores],
        weights_of=weights_of,
        weights=list(zip(problem.names, weights.tolist(), strict=True)),
        longest=float(np.abs(weights).max()) or 1.0,
        calibration=calibration(problem, result),
        explorer=explorer(problem, result),
        members=member_worth(problem, result),
        slices=slices(problem, result),
        confusion=confusions(problem, result),
        worst=worst_rows(problem, result),
        script=SCRIPT,
        script_hash=SCRIPT_HASH,
    )


def _to_the_mean(score: Score, result: Result) -> Whisker:
    return Whisker(score.name, score.vs_mean, score.vs_mean_ci, _kind(score, result))


def _near(methods: list[Score]) -> list[Score]:
    """The methods that differ from the mean by no more than the greatest gain on it; all where none gains."""
    gain = max(-score.vs_mean for score in methods)
    return [score for score in methods if abs(score.vs_mean) <= gain] if gain > 0 else methods


def _kind(score: Score, result: Result) -> str:
    """CSS class of a score: the chosen method's, not a member's of the same name, is marked."""
    return "chosen" if score.name == result.chosen and score.in_sample is not None else ""


def _tiles(result: Result) -> list[tuple[str, str]]:
    best = result.score(result.chosen)
    single = next(score for score in result.members if score.name == result.best_single)
    tiles = [
        (
            fixed(result.choice_included),
            f"honest log-loss of the stack, its choice cross-fitted too {span(result.choice_included_ci)}",
        ),
        (fixed(best.loss), f"{result.chosen}, chosen, by its own folds"),
        (signed(best.vs_mean), f"against the mean {span(best.vs_mean_ci, '+')}"),
        (fixed(single.loss), f"best single model, {single.name}"),
        (fixed(result.prior.loss), "prior: class frequencies"),
    ]
    if result.bayes is not None:
        tiles.append((fixed(result.bayes.loss), "Bayes optimum: the true probabilities"))
    return tiles


def _cells(score: Score) -> list[str]:
    """A line of the table of all scores."""
    inside = score.in_sample
    return [
        fixed(score.loss),
        span(score.ci),
        *(("", "") if inside is None else (fixed(inside), signed(score.loss - inside))),
        f"{signed(score.vs_mean)} {span(score.vs_mean_ci, '+')}",
        f"{signed(score.vs_single)} {span(score.vs_single_ci, '+')}",
    ]
