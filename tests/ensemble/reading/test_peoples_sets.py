"""Prediction sets and label files as people have them: what is read, what is said, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data.errors import UserError
from ensemble.reading.load import load_members, load_problem
from tests.helpers.stack_files import CLASSES, competition, write_csv

N = 120
IDS = [str(1000 + i) for i in range(N)]


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    P, y = competition(N)
    for m in range(2):
        write_set(tmp_path / f"m{m + 1}.csv", P[:, m])
    write_csv(tmp_path / "labels.csv", ["id", "label"], list(zip(IDS, y.tolist(), strict=True)))
    return tmp_path, P, y


def write_set(
    path: Path,
    probs: np.ndarray,
    classes: Sequence[str] = CLASSES,
    id_name: str = "id",
    ids: Sequence[str] = IDS,
) -> str:
    lines = [[row_id, *row] for row_id, row in zip(ids, probs.tolist(), strict=True)]
    return str(write_csv(path, [id_name, *classes], lines))


def test_a_binary_set_of_one_column_is_p_and_1_less_p(tmp_path: Path) -> None:
    P, y = competition(N, 2)
    paths = [write_set(tmp_path / f"b{m}.csv", P[:, m, 1:], ["generated"]) for m in range(2)]
    labels = write_csv(tmp_path / "y.csv", ["id", "generated"], list(zip(IDS, y.tolist(), strict=True)))
    problem = load_problem(paths, labels)
    assert problem.classes.names == ("not generated", "generated")
    np.testing.assert_allclose(problem.P, P)
    assert problem.labels.tolist() == y.tolist()
    other = write_csv(tmp_path / "other.csv", ["id", "label"], list(zip(IDS, y.tolist(), strict=True)))
    assert load_problem(paths, other).labels.tolist() == y.tolist()
    target = write_csv(tmp_path / "target.csv", ["id", "target"], list(zip(IDS, y.tolist(), strict=True)))
    found = load_problem(paths, target)
    assert found.labels.tolist() == y.tolist()
    assert any("column target is taken as the label" in note for note in found.notes)


def test_one_of_two_known_classes_is_enough(tmp_path: Path) -> None:
    P, _ = competition(N, 2)
    names = ["winner_model_a", "winner_model_b"]
    both = write_set(tmp_path / "both.csv", P[:, 0], names)
    first = write_set(tmp_path / "first.csv", P[:, 1, :1], names[:1])
    _, member = load_members([both, first])
    np.testing.assert_allclose(member.probs, P[:, 1])
    bare = write_set(tmp_path / "z.csv", P[:, 1, :1], ["p"])
    with pytest.raises(UserError, match="no probability column winner_model_a, winner_model_b"):
        load_members([both, bare])


def test_winners_as_labels(sets: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, _, y = sets
    names = ["model_a", "model_b", "tie (bothbad)"]
    lines = [[row_id, names[k]] for row_id, k in zip(IDS, y.tolist(), strict=True)]
    problem = load_problem([str(folder / "m1.csv")], write_csv(folder / "w.csv", ["id", "winner"], lines))
    assert problem.labels.tolist() == y.tolist()


@pytest.mark.parametrize("classes", [CLASSES, ("x", "y", "z")])
def test_a_further_column_is_no_class_and_is_named(tmp_path: Path, classes: tuple[str, ...]) -> None:
    P, y = competition(N)
    wide = np.concatenate([P[:, 0], np.full((N, 1), 12.5)], axis=1)
    odd = write_set(tmp_path / "m1.csv", wide, [*classes, "seconds"])
    plain = write_set(tmp_path / "m2.csv", P[:, 1], classes)
    labels = write_csv(
        tmp_path / "y.csv", ["id", "label"], list(zip(IDS, [classes[k] for k in y], strict=True))
    )
    problem = load_problem([odd, plain], labels)
    assert problem.classes.names == tuple(classes)
    assert any(f"{odd}: column seconds is none of the classes" in note for note in problem.notes)
    if classes is not CLASSES:
        with pytest.raises(UserError, match="without column seconds they are distributions"):
            load_problem([odd], labels)


def test_dust_below_0_is_clipped(sets: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, P, _ = sets
    P[0, 0] = [-1e-9, 0.5, 0.500000001]
    write_set(folder / "m1.csv", P[:, 0])
    assert load_members([str(folder / "m1.csv")])[0].probs[0].min() == 0
    P[0, 0] = [-1e-3, 0.5, 0.501]
    write_set(folder / "m1.csv", P[:, 0])
    with pytest.raises(UserError, match="not logits"):
        load_members([str(folder / "m1.csv")])


@pytest.mark.parametrize("name", ["Id", "ID", "Row_ID", "essay_id", "textID"])
def test_columns_of_ids_by_other_names(sets: tuple[Path, np.ndarray, np.ndarray], name: str) -> None:
    folder, P, _ = sets
    write_set(folder / "m1.csv", P[:, 0], id_name=name)
    member = load_members([str(folder / "m1.csv"), str(folder / "m2.csv")])[0]
    assert member.row_ids == IDS
    assert member.id_name == name
    assert member.spare == ()


def test_semicolons_and_decimal_commas(sets: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, P, _ = sets
    text = (folder / "m1.csv").read_text().replace(",", ";").replace(".", ",")
    (folder / "m1.csv").write_text(text)
    np.testing.assert_allclose(load_members([str(folder / "m1.csv")])[0].probs, P[:, 0])


def test_a_file_a_fold(sets: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, P, _ = sets
    parts = []
    for k in range(3):
        at = np.arange(k, N, 3)
        parts.append(write_set(folder / f"f{k}.csv", P[at, 0], ids=[IDS[i] for i in at]))
    labels, other = folder / "labels.csv", str(folder / "m2.csv")
    joined = load_problem([*(f"m1={part}" for part in parts), other], labels)
    assert joined.names == ("m1", "m2")
    np.testing.assert_allclose(joined.P, P)
    with pytest.raises(UserError, match="a fold each, bear one name: NAME=FILE for each"):
        load_problem([*parts, other], labels)
    with pytest.raises(UserError, match="both named m1"):
        load_problem([f"m1={parts[0]}", f"m1={parts[0]}"], labels)


def test_labels_by_index_in_another_order_than_the_columns(tmp_path: Path) -> None:
    P, y = competition(N, 3)
    order = [0, 2, 1]
    paths = [write_set(tmp_path / f"o{m}.csv", P[:, m][:, order], ["a", "tie", "b"]) for m in range(2)]
    lines = list(zip(IDS, y.tolist(), strict=True))
    with pytest.raises(UserError, match=r"read as 0 = a, 1 = tie, 2 = b.*Give the labels as class names"):
        load_problem(paths, write_csv(tmp_path / "y.csv", ["id", "label"], lines))
    named = write_csv(tmp_path / "n.csv", ["id", "label"], [[i, ("a", "b", "tie")[k]] for i, k in lines])
    assert not load_problem(paths, named).notes


def test_one_member_of_exchanged_columns_is_noted(sets: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, P, _ = sets
    write_set(folder / "m2.csv", P[:, 1][:, [1, 0, 2]])
    problem = load_problem([str(folder / "m1.csv"), str(folder / "m2.csv")], folder / "labels.csv")
    assert any(note.startswith("m2 has a log-loss of") for note in problem.notes)
    assert not any(note.startswith("m1 has a log-loss of") for note in problem.notes)


@pytest.mark.parametrize(("shift", "message"), [(1, "count from 1"), (0, "none is 0")])
def test_labels_that_count_from_1(
    sets: tuple[Path, np.ndarray, np.ndarray], shift: int, message: str
) -> None:
    folder, _, y = sets
    cells = y + shift if shift else np.maximum(y, 1)
    labels = write_csv(folder / "y.csv", ["id", "label"], list(zip(IDS, cells.tolist(), strict=True)))
    with pytest.raises(UserError, match=message):
        load_problem([str(folder / "m1.csv")], labels)
