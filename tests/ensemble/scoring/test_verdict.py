"""The verdict says what the scores mean, and a mean that nothing beats beyond noise is chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ensemble.methods.catalogue import METHODS
from ensemble.reading.problem import Problem
from ensemble.scoring.bootstrap import Interval
from ensemble.scoring.explore import simulate_problem
from ensemble.scoring.results import Result, evaluate
from ensemble.scoring.verdict import ASKED, instead, settle, short, verdict


@pytest.fixture(scope="module")
def solved() -> tuple[Problem, Result]:
    problem = simulate_problem(120, 2)
    return problem, evaluate(problem, draws=100)


def scored(result: Result, name: str, vs_mean: float, low: float, high: float) -> Result:
    """The result with a method chosen that differs from the mean by so much."""
    chosen = instead(result, name, "for a test")
    score = replace(chosen.score(name), vs_mean=vs_mean, vs_mean_ci=Interval(low, high))
    return replace(chosen, methods=[score if s.name == name else s for s in chosen.methods])


def test_a_gain_beyond_noise_is_kept_and_told(solved: tuple[Problem, Result]) -> None:
    problem, result = solved
    found = scored(result, "logit", -0.0173, -0.0256, -0.0089)
    assert settle(found) is found
    told = verdict(problem, found)
    assert told.sentence.startswith("the blend gains .0173 (.0089 to .0256) on the mean; ")
    assert told.simplest in METHODS[: METHODS.index("logit") + 1]
    named = told.simplest.replace("best single", f"the best single model, {result.best_single}")
    assert told.simplest == "logit" or told.sentence.endswith(f"within noise of it is {named}")


@pytest.mark.parametrize("high", [0.0, 0.0040])
def test_where_nothing_beats_the_mean_beyond_noise_it_is_chosen(
    solved: tuple[Problem, Result], high: float
) -> None:
    problem, result = solved
    settled = settle(scored(result, "logit", -0.0012, -0.0034, high))
    assert settled.chosen == "mean"
    assert list(settled.best) == ["mean"]
    assert settled.choice_included == settled.score("mean").loss
    assert verdict(problem, settled).sentence.startswith(
        "the mean is chosen: nothing beats it beyond noise: logit gains .0012 ("
    )
    assert settle(settled) is settled


@pytest.mark.parametrize(
    ("low", "span", "end"),
    [(0.002, "(.0020 to .0200)", ";"), (-0.004, "(-.0040 to .0200)", ", which may be")],
)
def test_a_loss_is_called_one(solved: tuple[Problem, Result], low: float, span: str, end: str) -> None:
    problem, result = solved
    found = scored(result, "logit", 0.01, low, 0.02)
    assert verdict(problem, found).sentence.startswith(f"the blend loses .0100 {span} against the mean{end}")
    said = f"the mean is chosen: nothing beats it beyond noise: logit loses .0100 {span}"
    assert verdict(problem, settle(found)).sentence == said


def test_a_mean_that_was_asked_for_says_so(solved: tuple[Problem, Result]) -> None:
    problem, result = solved
    assert verdict(problem, instead(result, "mean", ASKED)).sentence == f"the mean is chosen: {ASKED}"


def test_the_simplest_within_noise_is_found_by_the_rows(solved: tuple[Problem, Result]) -> None:
    """Methods of the same predictions are within noise; one that is worse on every row is not."""
    problem, result = solved
    right = np.argmax(problem.y, axis=1)
    good = np.full(problem.y.shape, 0.1)
    good[np.arange(len(good)), right] = 0.8
    bad = np.full(problem.y.shape, 1 / problem.y.shape[1])
    probs = {name: bad if METHODS.index(name) < METHODS.index("simplex") else good for name in METHODS}
    found = replace(instead(result, "mlp", "for a test"), probs=probs)
    assert verdict(problem, found).simplest == "simplex"
    only = replace(found, probs={name: good if name == "mlp" else bad for name in METHODS})
    assert verdict(problem, only).sentence.endswith("no simpler method is within noise of it")


@pytest.mark.parametrize(
    ("value", "text"), [(0.0173, ".0173"), (-0.0089, "-.0089"), (1.25, "1.2500"), (-0.00001, ".0000")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text
