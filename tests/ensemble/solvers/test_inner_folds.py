"""Inner folds owe nothing to the folds of the members, and the final fit is the one that was scored."""

from __future__ import annotations

import numpy as np
import pytest

from data.classes import PREFERENCE
from data.folds import make_folds
from data.schema import make_rows
from data.softmax import softmax
from ensemble.methods.trees import LightGBMStacker
from ensemble.reading.problem import Problem
from ensemble.scoring.choice import final_fit_note
from ensemble.scoring.crossfit import cross_fit
from ensemble.solvers.folds import group_folds, inner_folds
from ensemble.solvers.numbers import cross_entropy


def with_hands(n: int = 900, seed: int = 0) -> Problem:
    """Weak members whose fold models differ a little, on folds dealt by ``data``; a feature knows more."""
    rng = np.random.default_rng(seed)
    feature = rng.normal(size=n)
    truth = softmax(np.c_[0.4 * feature, -0.4 * feature, np.zeros(n)])
    labels = (rng.random((n, 1)) > truth.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    columns = {
        "row_id": [f"r{i:04d}" for i in range(n)],
        "prompt": [[f"prompt {i // 2 if i < 60 else i}"] for i in range(n)],
        "response_a": [["yes"]] * n,
        "response_b": [["no"]] * n,
        "label": labels.tolist(),
    }
    folds = make_folds(make_rows(columns, PREFERENCE, "test"), n_folds=5, seed=seed)
    groups = np.unique(folds.group_ids, return_inverse=True)[1]
    hands = 0.1 * rng.normal(size=(5, 2, 3))[folds.fold]
    P = softmax(hands + 0.02 * rng.normal(size=(n, 2, 3)))
    X = np.c_[feature, rng.normal(size=(n, 4))]
    y = np.eye(3)[labels]
    return Problem(columns["row_id"], P, y, folds.fold, groups, PREFERENCE, ("a", "b"), features=X)


def test_inner_folds_are_not_the_members_folds() -> None:
    problem = with_hands()
    for deal, most in ((group_folds, np.inf), (inner_folds, 1.5)):
        inner = deal(problem.y, problem.groups, 5, 0)
        both = np.zeros((5, 5, 3))
        np.add.at(both, (inner, problem.fold), problem.y)
        shares = both / both.sum(axis=0)  # of each class of a member fold, over inner folds; 0.2 if unrelated
        assert shares.max() < 0.2 * (1 + most)
        if deal is group_folds:  # one stream for both deals: whole classes of a fold share an inner one
            assert shares.max() > 0.6


def test_the_fit_on_all_rows_is_as_good_as_the_nested_ones() -> None:
    problem = with_hands()

    def fit(P: np.ndarray, y: np.ndarray, groups: np.ndarray) -> dict[str, LightGBMStacker]:
        X = problem.features[np.isin(problem.groups, groups)]
        return {"trees": LightGBMStacker(problem.classes.swap).fit(P, y, groups=groups, X=X)}

    nested = cross_entropy(cross_fit(problem, fit=fit).probs["trees"], problem.y)
    final = fit(problem.P, problem.y, problem.groups)["trees"]
    inside = cross_entropy(final.predict_known(problem.P, problem.features), problem.y)
    assert nested.mean() < 1.08  # the feature is learned
    assert final.rounds_["rows"] >= 40
    assert inside.mean() < nested.mean()
    assert final_fit_note("trees", inside, nested) is None
    assert cross_entropy(final.oof_, problem.y).mean() == pytest.approx(nested.mean(), abs=0.02)


def test_a_final_fit_that_learned_less_is_told() -> None:
    rng = np.random.default_rng(0)
    nested = rng.exponential(size=1000)
    assert final_fit_note("x", nested, nested) is None
    assert final_fit_note("x", nested + 0.01 + 0.3 * rng.normal(size=1000), nested) is None  # within noise
    assert "above its nested loss" in (final_fit_note("x", nested + 0.05, nested) or "")
