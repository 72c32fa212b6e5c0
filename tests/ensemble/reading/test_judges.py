"""Judges' files, what is read from them, and the maps from what they say to probabilities."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stack_files import write_csv, write_sets

from data.classes import PREFERENCE, PREFERENCE_NO_TIE, Classes
from data.errors import UserError
from ensemble.reading.judges import Judge
from ensemble.reading.load import load_problem
from ensemble.reading.maps import JudgeMap, cross_fitted, fit_map
from ensemble.reading.members import load_member

NAN = float("nan")
SWAP = PREFERENCE.swap or ()


def read(path: Path, header: list[str], lines: list[list[object]], classes: Classes = PREFERENCE) -> Judge:
    judge = load_member(write_csv(path / "judge.csv", ["id", *header], lines), classes).judge
    assert judge is not None
    return judge


def test_verdicts_are_read_in_the_rows_own_terms(tmp_path: Path) -> None:
    lines = [["r1", "A", "A"], ["r2", "model_b", "[[A]]"], ["r3", "tie", ""], ["r4", "", "b"]]
    judge = read(tmp_path, ["verdict", "verdict_swapped"], lines)
    np.testing.assert_array_equal(judge.signal, [[0, 1], [1, 1], [2, NAN], [NAN, 0]])
    assert judge.kind == "verdict"
    assert judge.swap == SWAP
    once = read(tmp_path, ["verdict"], [["r1", "winner_model_a"], ["r2", "Tie"]], PREFERENCE_NO_TIE)
    np.testing.assert_array_equal(once.signal, [[0, NAN], [2, NAN]])  # a tie where no class is one
    assert once.swap is None


def test_scores_are_read_as_what_the_first_side_is_better_by(tmp_path: Path) -> None:
    sides = read(tmp_path, ["score_a", "score_b"], [["r1", 7, 4], ["r2", 5, ""]])
    np.testing.assert_array_equal(sides.signal, [[3, NAN], [NAN, NAN]])
    assert sides.kind == "score"
    assert sides.swap == SWAP
    assert sides.order == (1, 2, 0)
    orders = read(tmp_path, ["score", "score_swapped"], [["r1", 2, -1], ["r2", "", 4]])
    np.testing.assert_array_equal(orders.signal, [[2, 1], [NAN, -4]])
    assert read(tmp_path, ["score"], [["r1", 0.5]]).swap is None


@pytest.mark.parametrize(
    ("header", "cells", "classes", "said"),
    [
        (
            ["verdict"],
            ["C++"],
            PREFERENCE,
            "row r1 has verdict C\\+\\+; it must be one of A, B, tie, or empty",
        ),
        (["verdict"], ["bird"], Classes(("cat", "dog")), "must be one of cat, dog"),
        (["score_a", "score_b"], ["7", "x"], PREFERENCE, "row r1 has 'x' in column score_b"),
        (["score_a", "score_b"], ["7", "inf"], PREFERENCE, "row r1 has no finite number in column score_b"),
        (["score_a", "score_b"], [1, 2], Classes(("cat", "dog")), "speak of two sides"),
    ],
)
def test_what_no_judge_says_is_refused(
    tmp_path: Path, header: list[str], cells: list[object], classes: Classes, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        read(tmp_path, header, [["r1", *cells]], classes)


def test_a_column_of_probabilities_called_score_stays_one(tmp_path: Path) -> None:
    lines = [[f"r{i}", i / 20] for i in range(20)]
    path = write_csv(tmp_path / "binary.csv", ["id", "score"], lines)
    labels = write_csv(tmp_path / "labels.csv", ["id", "label"], [[f"r{i}", int(i > 9)] for i in range(20)])
    problem = load_problem([str(path)], labels)
    assert problem.judges == {}
    assert problem.classes.names == ("not score", "score")


def test_judges_join_members_on_their_rows_and_may_lack_some(tmp_path: Path) -> None:
    paths, labels = write_sets(tmp_path, 60)
    judge = write_csv(tmp_path / "judge.csv", ["id", "verdict"], [["r0003", "A"], ["r0007", "tie"]])
    score = write_csv(tmp_path / "score.csv", ["id", "score"], [["r0003", 1.5]])
    problem = load_problem([str(judge), *paths, str(score)], Path(labels))
    assert problem.names == ("judge", "m1", "m2", "score")
    assert len(problem) == 60
    assert np.isfinite(problem.judges["judge"].signal).any(axis=1).sum() == 2
    np.testing.assert_allclose(problem.P.sum(axis=2), 1)
    assert any(
        "judge is a judge that gives verdicts" in note and "58 of 60" in note for note in problem.notes
    )
    with pytest.raises(UserError, match="judges none of the rows"):
        load_problem(
            [str(write_csv(tmp_path / "odd.csv", ["id", "verdict"], [["x", "A"]])), *paths], Path(labels)
        )


def simulated(n: int, kind: str, seed: int = 0) -> tuple[Judge, np.ndarray]:
    rng = np.random.default_rng(seed)
    better = rng.normal(size=n)
    labels = np.where(
        np.abs(better + rng.normal(size=n)) < 0.4, 2, (better + rng.normal(size=n) < 0).astype(int)
    )
    if kind == "score":
        return Judge("score", np.stack([better, np.full(n, NAN)], axis=1), (1, 2, 0), SWAP), np.eye(3)[labels]
    said = [np.where(np.abs(m) < 0.3, 2, m < 0) for m in (better + shift for shift in (0.6, -0.6))]
    return Judge("verdict", np.stack(said, axis=1).astype(float), (), SWAP), np.eye(3)[labels]


@pytest.mark.parametrize("kind", ["verdict", "score"])
def test_maps_treat_both_orders_alike_and_survive_json(kind: str) -> None:
    judge, y = simulated(600, kind)
    found = fit_map(judge, y, None)
    there = found(judge.signal)
    np.testing.assert_allclose(found(judge.exchanged(SWAP)), there[:, list(SWAP)], atol=1e-12)
    np.testing.assert_allclose(there.sum(axis=1), 1)
    again = JudgeMap.from_dict(json.loads(json.dumps(found.to_dict())))
    np.testing.assert_array_equal(again(judge.signal), there)
    turned = fit_map(replace(judge, signal=judge.exchanged(SWAP)), y[:, list(SWAP)], None)
    np.testing.assert_allclose(turned(judge.signal), there, atol=1e-12)


def test_score_maps_rise_and_find_the_chances() -> None:
    judge, y = simulated(20_000, "score")
    found = fit_map(judge, y, None)
    line = np.linspace(-4, 4, 200)
    probs = found(np.stack([line, np.full(200, NAN)], axis=1))
    assert (np.diff(probs[:, 0]) >= -1e-12).all()
    assert (np.diff(probs[:, 1]) <= 1e-12).all()
    for low, high in ((-2.0, -1.0), (-0.5, 0.5), (1.0, 2.0)):
        inside = (judge.signal[:, 0] > low) & (judge.signal[:, 0] < high)
        np.testing.assert_allclose(
            found(judge.signal[inside]).mean(axis=0), y[inside].mean(axis=0), atol=0.02
        )


def test_silence_and_what_was_never_said_are_the_classes_shares() -> None:
    judge, y = simulated(900, "verdict")
    found = fit_map(judge.take(np.arange(900)), y, None)
    silent = found(np.full((1, 2), NAN))[0]
    shares = (y + y[:, list(SWAP)]).mean(axis=0) / 2
    np.testing.assert_allclose(silent, shares, atol=0.01)
    few = fit_map(judge.take(np.arange(2)), y[:2], None)
    assert few(judge.signal).min() > 0.05  # two rows leave nothing impossible


@pytest.mark.parametrize("kind", ["verdict", "score"])
def test_what_fits_see_owes_nothing_to_other_labels(tmp_path: Path, kind: str) -> None:
    n = 200
    judge, y = simulated(n, kind)
    paths, labels = write_sets(tmp_path, n)
    problem = load_problem(paths, Path(labels))
    problem = replace(problem, y=y, judges={"m1": judge})
    train = np.flatnonzero(problem.fold != 0)
    other = y.copy()
    other[problem.fold == 0] = np.roll(other[problem.fold == 0], 1, axis=1)
    seen, changed = (replace(problem, y=labels).seen_from(train, 0).P for labels in (y, other))
    np.testing.assert_array_equal(seen, changed)
    assert not np.array_equal(seen[:, 0], problem.P[:, 0])
    assert np.array_equal(seen[:, 1], problem.P[:, 1])


@pytest.mark.parametrize("kind", ["verdict", "score"])
def test_a_rows_probabilities_owe_nothing_to_its_own_fold(kind: str) -> None:
    judge, y = simulated(200, kind)
    fold = np.arange(200) % 4
    other = np.where((fold == 2)[:, None], np.roll(y, 1, axis=1), y)
    found, changed = (cross_fitted(judge, labels, None, fold) for labels in (y, other))
    np.testing.assert_array_equal(found[fold == 2], changed[fold == 2])
    assert not np.array_equal(found[fold == 1], changed[fold == 1])
