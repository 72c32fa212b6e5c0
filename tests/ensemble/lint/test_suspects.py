"""The leak lint: it names members that saw the labels, and lets strong honest ones pass."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from stack_files import CLASSES, write_csv, write_sets

from data.classes import Classes
from data.errors import UserError
from data.softmax import softmax
from ensemble.lint.suspects import in_sample_suspects, leave_out_suspects
from ensemble.reading.problem import Problem
from ensemble.scoring.explore import simulate_problem
from ensemble.stack import main


def honest(n: int, k: int, noise: np.ndarray, seed: int, sharp: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Members of unequal strength, one a noise level, each calibrated in its own way; and one-hot labels."""
    rng = np.random.default_rng(seed)
    z = sharp * rng.normal(size=(n, k))
    truth = softmax(z)
    labels = np.minimum((rng.random((n, 1)) > truth.cumsum(axis=1)).sum(axis=1), k - 1)
    seen = z[:, None] + sharp * noise[:, None] * rng.normal(size=(n, len(noise), k))
    return softmax(seen * rng.uniform(0.6, 1.3, size=(1, len(noise), 1))), np.eye(k)[labels]


def leaked(P: np.ndarray, y: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The first member after training on the labels: drawn to them by a share of its own for each row."""
    pull = np.clip(rng.normal(share, 0.1, size=(len(y), 1)), 0, 0.99)
    P = P.copy()
    P[:, 0] = (1 - pull) * P[:, 0] + pull * y
    return P


def problem(P: np.ndarray, y: np.ndarray) -> Problem:
    n, m, k = P.shape
    ids, names = [str(i) for i in range(n)], tuple(f"m{i}" for i in range(m))
    return Problem(ids, P, y, np.arange(n) % 3, np.arange(n), Classes(tuple("abcdef"[:k])), names)


def test_false_alarms_are_rare_on_honest_members_of_unequal_strength() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for seed in range(200):
        noise = rng.uniform(0.05, 2.5, size=rng.integers(2, 7))
        P, y = honest(600, int(rng.integers(2, 5)), noise, seed, float(rng.uniform(0.7, 3)))
        alarms += bool(in_sample_suspects(P, y, [f"m{m}" for m in range(len(noise))]))
    assert alarms <= 4  # 2 %


@pytest.mark.parametrize("share", [0.75, 0.95])
def test_a_member_that_saw_the_labels_is_named(share: float) -> None:
    rng = np.random.default_rng(1)
    caught = 0
    for seed in range(40):
        P, y = honest(600, 3, np.array([0.6, 0.5, 0.8]), seed)
        suspects = in_sample_suspects(leaked(P, y, share, rng), y, ["a", "b", "c"])
        assert {s.name for s in suspects} <= {"a"}
        caught += len(suspects)
    assert caught >= 38


def test_two_leaks_do_not_hide_one_another() -> None:
    rng = np.random.default_rng(2)
    P, y = honest(800, 3, np.array([0.6, 0.6, 0.5, 0.8]), 0)
    P = leaked(P, y, 0.9, rng)
    P[:, 1] = leaked(P[:, 1:2], y, 0.85, rng)[:, 0]
    assert {s.name for s in in_sample_suspects(P, y, ["a", "b", "c", "d"])} == {"a", "b"}


def test_a_member_that_learnt_some_rows_and_passes_for_a_strong_one_is_remarked_upon() -> None:
    """Nothing tells it from an honest one: it stays, and the user is asked."""
    P, y = honest(2500, 3, np.array([0.6, 0.7, 0.8]), 0)
    seen = np.random.default_rng(0).random((len(y), 1)) < 0.5
    P[:, 0] = np.where(seen, 0.2 * P[:, 0] + 0.8 * y, P[:, 0])
    given = problem(P, y)
    found = leave_out_suspects(given)
    assert found.names == given.names
    (note,) = found.notes
    assert note.startswith("m0 is far ahead: ")
    assert "where the next best, m1, has" in note
    assert leave_out_suspects(given, ["m0"]).notes == ()


def test_an_honest_member_a_little_ahead_and_badly_tempered_others_are_not() -> None:
    P, y = honest(2500, 3, np.array([0.5, 0.6, 0.7]), 0)
    P[:, 1:] = softmax(4 * np.log(np.maximum(P[:, 1:], 1e-9)))
    assert leave_out_suspects(problem(P, y)).notes == ()


def test_a_suspect_is_left_out_unless_trusted() -> None:
    P, y = honest(600, 3, np.array([0.6, 0.5, 0.8]), 0)
    given = problem(leaked(P, y, 0.9, np.random.default_rng(0)), y)
    without = leave_out_suspects(given)
    assert without.names == ("m1", "m2")
    assert without.P.shape == (600, 2, 3)
    assert "--trust m0" in without.notes[0]
    kept = leave_out_suspects(given, ["m0"])
    assert kept.names == given.names
    assert "trusted" in kept.notes[0]
    with pytest.raises(UserError, match="no such member"):
        leave_out_suspects(given, ["m9"])


def test_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths, labels = write_sets(tmp_path, n=240)
    truth = [line.split(",")[1] for line in Path(labels).read_text(encoding="utf-8").split()[1:]]
    lines = [[f"r{i:04d}", *(0.9 if k == int(t) else 0.05 for k in range(3))] for i, t in enumerate(truth)]
    leak = write_csv(tmp_path / "leak.csv", ["id", *CLASSES], lines)
    main(["--oof", *paths, str(leak), "--labels", labels, "--out", str(tmp_path / "stack")])
    assert "leak looks in-sample and is left out" in capsys.readouterr().out
    stack = json.loads((tmp_path / "stack" / "stack.json").read_text(encoding="utf-8"))
    assert stack["members"] == ["m1", "m2"]


def test_too_few_rows_are_said_to_be() -> None:
    few, some, enough = simulate_problem(100), simulate_problem(300), simulate_problem(2000)
    assert any("100 rows are too few to tell" in note for note in leave_out_suspects(few).notes)
    assert any("too few to tell one that learnt some" in note for note in leave_out_suspects(some).notes)
    assert not leave_out_suspects(enough).notes


def trained(seed: int, rounds: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Real learners on a noisy table: honest ones by fold, trees' predictions of their own rows; targets."""
    from lightgbm import LGBMClassifier
    from sklearn.datasets import make_classification
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier

    X, labels = make_classification(
        2500, 20, n_informative=6, n_classes=3, flip_y=0.25, class_sep=0.8, random_state=seed
    )
    trees = LGBMClassifier(
        num_leaves=8, n_estimators=rounds, learning_rate=0.06, num_threads=1, verbosity=-1, random_state=seed
    )
    models = {
        "trees": trees,
        "logit": LogisticRegression(C=0.1),
        "bayes": GaussianNB(),
        "neighbours": KNeighborsClassifier(40),
        "other trees": LGBMClassifier(num_leaves=16, n_estimators=60, num_threads=1, verbosity=-1),
    }
    found = {
        name: cross_val_predict(model, X, labels, cv=4, method="predict_proba")
        for name, model in models.items()
    }
    return found, trees.fit(X, labels).predict_proba(X), np.eye(3)[labels]


@pytest.mark.parametrize("seed", [0, 1])
def test_trees_that_predict_their_own_rows_are_named_and_the_same_trees_by_fold_are_not(seed: int) -> None:
    members, own, y = trained(seed, 100)
    names = list(members)
    honest_ones = np.stack(list(members.values()), axis=1)
    assert in_sample_suspects(honest_ones, y, names) == []
    leaks = honest_ones.copy()
    leaks[:, 0] = own
    losses = [-np.log((leaks[:, m] * y).sum(axis=1)).mean() for m in range(len(names))]
    assert losses[0] > 0.6 * min(losses[1:])  # by its loss alone it might be honest
    suspects = in_sample_suspects(leaks, y, names)
    assert [suspect.name for suspect in suspects] == ["trees"]
    assert "learnt some of the labels" in suspects[0].evidence
    twice = np.concatenate([leaks, leaks[:, :1] * 0.98 + 0.02 / 3], axis=1)  # nor does a copy hide it
    assert {s.name for s in in_sample_suspects(twice, y, [*names, "copy"])} == {"trees", "copy"}


def test_one_strong_member_among_weak_ones_and_copies_and_rare_classes_pass() -> None:
    alarms = 0
    for seed in range(20):
        P, y = honest(2500, 3, np.array([0.05, 1.5, 1.8, 2.2]), seed)
        alarms += bool(in_sample_suspects(P, y, list("abcd")))
        copies = np.concatenate([P, 0.99 * P[:, :2] + 0.01 / 3], axis=1)
        alarms += bool(in_sample_suspects(copies, y, list("abcdef")))
        rng = np.random.default_rng(seed)
        z = np.stack([np.full(2500, 2.5), np.zeros(2500)], axis=1) + rng.normal(size=(2500, 2))
        labels = (rng.random(2500) > softmax(z)[:, 0]).astype(int)
        seen = softmax(z[:, None] + np.array([0.2, 1, 1.5])[:, None] * rng.normal(size=(2500, 3, 2)))
        alarms += bool(in_sample_suspects(seen, np.eye(2)[labels], list("abc")))
    assert alarms <= 1
