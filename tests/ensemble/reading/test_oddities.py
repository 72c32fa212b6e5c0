"""What looks odd among members is told: exchanged classes, copies, constants, the reading of labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stack_files import write_sets
from tasks import task

from data.classes import Classes
from ensemble.reading.load import load_problem
from ensemble.reading.oddities import exchanged, odd_members

CLASSES = Classes(("a", "tie", "b"))


def members(n: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """Three honest members of unequal strength, and one-hot targets."""
    P, labels = task(n, members=3)
    return P[:, 1:], np.eye(3)[labels]


def test_honest_members_are_not_remarked_upon() -> None:
    P, y = members()
    assert odd_members(P, y, ["m1", "m2"], CLASSES) == []


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_a_member_with_columns_in_another_order_is_named_with_it(order: tuple[int, ...]) -> None:
    P, y = members()
    wrong = P.copy()
    wrong[:, 0] = P[:, 0][:, np.argsort(order)]
    assert exchanged(wrong[:, 0], y) == order
    (note,) = odd_members(wrong, y, ["m1", "m2"], CLASSES)
    assert note.startswith("m1: what happened is far likelier with classes exchanged")
    assert "another order than the labels'" in note
    np.testing.assert_array_equal(wrong[:, 1], P[:, 1])


def test_members_that_all_exchange_the_same_point_at_the_labels() -> None:
    P, y = members()
    (note,) = odd_members(P[:, :, [1, 0, 2]], y, ["m1", "m2"], CLASSES)
    assert note.startswith("m1, m2")
    assert "labels may be read in another order" in note


def test_a_bad_member_that_no_order_mends_is_not_called_exchanged() -> None:
    _, y = members()
    noise = np.random.default_rng(0).dirichlet([0.3, 0.3, 0.3], size=len(y))
    assert exchanged(noise, y) is None


def test_copies_and_constants_are_named() -> None:
    P, y = members()
    same = np.full((len(y), 1, 3), 1 / 3)
    given = np.concatenate([P, 0.999 * P[:, :1] + 0.001 / 3, same], axis=1)
    notes = odd_members(given, y, ["m1", "m2", "again", "flat"], CLASSES)
    assert notes[0] == "flat says the same of every row"
    assert notes[1].startswith("m1, again are near-copies")
    assert len(notes) == 2


def test_the_reading_of_indices_is_told(tmp_path: Path) -> None:
    paths, labels = write_sets(tmp_path)
    notes = load_problem(paths, Path(labels)).notes
    assert any(note.startswith("labels are numbers, read as 0 = ") for note in notes)


def test_rows_follow_the_file_given_first(tmp_path: Path) -> None:
    paths, labels = write_sets(tmp_path)
    header, *lines = Path(paths[1]).read_text(encoding="utf-8").splitlines()
    Path(paths[1]).write_text("\n".join([header, *reversed(lines)]) + "\n", encoding="utf-8")
    problem = load_problem([paths[1], paths[0]], Path(labels))
    assert problem.given is not None
    written = [problem.row_ids[i] for i in problem.given]
    assert written == [line.split(",")[0] for line in reversed(lines)]
    assert written != problem.row_ids


def many_classes() -> tuple[np.ndarray, np.ndarray]:
    """Rows of 200 classes, five of each, and a calibrated member's probabilities."""
    rng = np.random.default_rng(0)
    logits = 2.5 * rng.normal(size=(1000, 200))
    probs = np.exp(logits)
    probs /= probs.sum(axis=1, keepdims=True)
    labels = (rng.random((1000, 1)) > probs.cumsum(axis=1)).sum(axis=1).clip(0, 199)
    return probs, np.eye(200)[labels]


def test_of_many_columns_the_luckiest_is_not_called_exchanged() -> None:
    probs, y = many_classes()
    assert exchanged(probs, y) is None
    order = np.arange(200)
    order[:100] = np.roll(order[:100], 1)
    found = exchanged(probs[:, np.argsort(order)], y)
    assert found is not None
    assert np.mean(np.array(found) == order) > 0.9
