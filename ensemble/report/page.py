"""The report: one self-contained HTML page, without network, that shows what the stack found."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.files import write_text
from ensemble.reading.problem import Problem
from ensemble.report.charts import Whisker, Whiskers
from ensemble.report.frame import SCRIPT, SCRIPT_HASH, fixed, render, signed, span
from ensemble.report.panels import calibration, confusions, explorer, member_worth, slices, worst_rows
from ensemble.scoring.results import Result, Score, shown_weights


def write_report(path: Path, problem: Problem, result: Result) -> None:
    """Write the page, atomically."""
    write_text(path, render_report(problem, result))


def render_report(problem: Problem, result: Result) -> str:
    """Return the page as text."""
    weights_of, weights = shown_weights(result)
    return render(
        "report.jinja",
        problem=problem,
        result=result,
        n_groups=int(problem.groups.max()) + 1,
        n_folds=len(np.unique(problem.fold)),
        notes=[*problem.notes, *result.notes],
        tiles=_tiles(result),
        losses=Whiskers([Whisker(s.name, s.loss, s.ci, _kind(s, result)) for s in result.all_scores[1:]]),
        to_the_mean=Whiskers(
            [
                Whisker(s.name, s.vs_mean, s.vs_mean_ci, _kind(s, result))
                for s in result.methods
                if s.name != "mean"
            ],
            zero=0.0,
        ),
        scores=[_cells(score) for score in result.all_scores],
        marked=[_kind(score, result) for score in result.all_scores].index("chosen"),
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


def _kind(score: Score, result: Result) -> str:
    """CSS class of a score: the chosen method's, not a member's of the same name, is marked."""
    return "chosen" if score.name == result.chosen and score.in_sample is not None else ""


def _tiles(result: Result) -> list[tuple[str, str]]:
    best = result.score(result.chosen)
    single = next(score for score in result.members if score.name == result.best_single)
    tiles = [
        (fixed(best.loss), f"{result.chosen}, chosen"),
        (
            fixed(result.choice_included),
            f"the same, the choice itself cross-fitted {span(result.choice_included_ci)}",
        ),
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
        score.name,
        fixed(score.loss),
        span(score.ci),
        *(("", "") if inside is None else (fixed(inside), signed(score.loss - inside))),
        f"{signed(score.vs_mean)} {span(score.vs_mean_ci, '+')}",
        f"{signed(score.vs_single)} {span(score.vs_single_ci, '+')}",
    ]
