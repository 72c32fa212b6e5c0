"""The nested score repeated over other folds, and symmetries declared on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stack_files import competition, write_sets

from data.classes import Classes
from data.errors import UserError
from ensemble.methods.blend import BestSingle, EqualMean, SimplexBlend
from ensemble.methods.pool import LogPool
from ensemble.reading.problem import Problem, dealt_again, declare_swap
from ensemble.scoring.choice import choice_included
from ensemble.scoring.crossfit import cross_fit
from ensemble.scoring.results import evaluate
from ensemble.solvers.folds import group_folds
from ensemble.solvers.numbers import log_loss
from ensemble.stack import main


def few_methods(P: np.ndarray, y: np.ndarray, groups: Any = None, *_: Any) -> dict[str, Any]:
    """Methods of few parameters, for these are tests of the score and not of the methods."""
    pool = LogPool(strength=1.0, floor=1e-7)
    kinds = {"best single": BestSingle(), "mean": EqualMean(), "simplex": SimplexBlend(), "log-pool": pool}
    return {name: method.fit(P, y, groups=groups) for name, method in kinds.items()}


def problem_of(n: int = 240, classes: tuple[str, ...] = ("a", "b", "c")) -> Problem:
    P, labels = competition(n, len(classes))
    y, groups = np.eye(len(classes))[labels], np.arange(n) // 2
    fold = group_folds(y, groups, 4, 0)
    return Problem([f"r{i:03d}" for i in range(n)], P, y, fold, groups, Classes(classes), ("m1", "m2"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble.scoring.crossfit.fit_methods", few_methods)


def test_folds_dealt_again_are_others_and_part_no_group() -> None:
    problem = problem_of()
    deals = [problem, *(dealt_again(problem, 0, repeat) for repeat in (1, 2))]
    for deal in deals:
        assert np.bincount(deal.fold).tolist() == [60] * 4
        assert len({*zip(deal.groups.tolist(), deal.fold.tolist(), strict=True)}) == 120
    for one, other in ((0, 1), (0, 2), (1, 2)):
        together = np.histogram2d(deals[one].fold, deals[other].fold, bins=4)[0]
        assert together.max() < 40


@pytest.mark.usefixtures("quick")
def test_a_repeated_score_is_the_mean_over_the_deals() -> None:
    problem = problem_of()
    result = evaluate(problem, draws=50, workers=1, repeats=3)
    deals = [problem, *(dealt_again(problem, 0, repeat) for repeat in (1, 2))]
    losses, included = [], []
    for i, deal in enumerate(deals):
        probs = cross_fit(deal, i, workers=1).probs
        each = {name: log_loss(p, problem.y) for name, p in probs.items()}
        losses.append(each["log-pool"].mean())
        included.append(log_loss(choice_included(probs, problem.y, deal.fold), problem.y).mean())
    assert len(set(losses)) == 3
    assert result.score("log-pool").loss == pytest.approx(np.mean(losses), abs=1e-12)
    assert result.choice_included == pytest.approx(np.mean(included), abs=1e-12)
    once = evaluate(problem, draws=50, workers=1)
    assert once.score("log-pool").loss == pytest.approx(losses[0], abs=1e-12)
    np.testing.assert_array_equal(once.probs["log-pool"], result.probs["log-pool"])


@pytest.mark.usefixtures("quick")
def test_swap_and_repeats_on_the_command_line(tmp_path: Path) -> None:
    paths, labels = write_sets(tmp_path, classes=("left", "right", "both", "neither"))
    out = tmp_path / "stack"
    arguments = ["--oof", *paths, "--labels", labels, "--out", str(out)]
    main([*arguments, "--swap", "left=right", "--repeats", "2"])
    stack = json.loads((out / "stack.json").read_text(encoding="utf-8"))
    assert stack["swap"] == [1, 0, 2, 3]
    assert stack["repeats"] == 2
    with pytest.raises(UserError, match="--repeats 0"):
        main([*arguments, "--repeats", "0"])


def test_a_declared_swap_is_any_exchange_of_classes() -> None:
    problem = problem_of(classes=("w=x", "b", "c", "d", "e"))
    assert declare_swap(problem, ["b=c"]).classes.swap == (0, 2, 1, 3, 4)
    assert declare_swap(problem, ["w=x=e", "c=d"]).classes.swap == (4, 1, 3, 2, 0)
    assert declare_swap(declare_swap(problem, ["b=c"]), ["none"]).classes.swap is None
    for wrong in (["b"], ["b=z"], ["b=b"], ["b=c", "c=d"], ["none", "b=c"]):
        with pytest.raises(UserError, match="--swap"):
            declare_swap(problem, wrong)
