"""Members and labels: aligned by id and name, and every departure refused in one clear message."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stack_files import CLASSES, prepared, write_csv, write_sets, write_store

from data.classes import PREFERENCE, Classes
from data.errors import UserError
from data.folds import read_folds, write_folds
from ensemble.reading.labels import load_labels
from ensemble.reading.load import load_problem
from ensemble.reading.members import load_member, split_name

HEADER = ["id", *CLASSES]


def test_columns_are_matched_by_name_and_rows_by_id(tmp_path: Path) -> None:
    paths, labels = write_sets(tmp_path)
    straight = load_problem(paths, Path(labels))
    member = load_member(Path(paths[1]))
    shuffled = np.random.default_rng(0).permutation(len(member.row_ids))
    order = [2, 0, 1]
    lines = [[member.row_ids[i], *member.probs[i, order].tolist()] for i in shuffled]
    write_csv(Path(paths[1]), ["id", *[CLASSES[k] for k in order]], lines)
    again = load_problem(paths, Path(labels))
    np.testing.assert_allclose(again.P, straight.P, atol=1e-15)
    np.testing.assert_array_equal(again.y, straight.y)
    np.testing.assert_array_equal(again.fold, straight.fold)


def test_parquet_and_csv_are_the_same_set(tmp_path: Path) -> None:
    paths, _ = write_sets(tmp_path)
    member = load_member(Path(paths[0]))
    table = {"row_id": member.row_ids} | {name: member.probs[:, k] for k, name in enumerate(CLASSES)}
    pq.write_table(pa.table(table), tmp_path / "m1.parquet")
    other = load_member(tmp_path / "m1.parquet")
    assert other.row_ids == member.row_ids
    np.testing.assert_allclose(other.probs, member.probs, atol=1e-15)


def test_rounded_probabilities_are_normalised(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "m.csv", HEADER, [["1", 0.395, 0.321, 0.2837]])
    assert load_member(file).probs.sum() == pytest.approx(1, abs=1e-15)


BAD_SETS = {
    "missing column": (["id", "winner_model_a", "winner_model_b"], [["1", 0.5, 0.5]], "winner_tie"),
    "missing id": (list(CLASSES), [[0.2, 0.3, 0.5]], "no id column"),
    "duplicate id": (HEADER, [["7", 0.2, 0.3, 0.5], ["7", 0.2, 0.3, 0.5]], "7"),
    "empty id": (HEADER, [["1", 0.2, 0.3, 0.5], ["", 0.2, 0.3, 0.5]], "line 2"),
    "no rows": (HEADER, [], "no rows"),
    "NaN": (HEADER, [["1", 0.2, 0.3, 0.5], ["8", 0.2, "", 0.5]], "row 8"),
    "nan text": (HEADER, [["1", 0.2, 0.3, 0.5], ["8", 0.2, "nan", 0.5]], "row 8"),
    "infinite": (HEADER, [["8", 0.2, "inf", 0.5]], "row 8"),
    "negative": (HEADER, [["9", -0.1, 0.6, 0.5]], "row 9"),
    "above one": (HEADER, [["9", 2.5, -1.0, -0.5]], "logits"),
    "wrong sum": (HEADER, [["1", 0.2, 0.3, 0.5], ["5", 0.2, 0.3, 0.4]], "row 5"),
    "text": (HEADER, [["1", "high", 0.3, 0.5]], "winner_model_a"),
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_bad_prediction_sets_are_refused(tmp_path: Path, case: str) -> None:
    header, lines, words = BAD_SETS[case]
    file = write_csv(tmp_path / "bad.csv", header, lines)
    with pytest.raises(UserError, match=words) as caught:
        load_member(file, PREFERENCE)
    assert "bad.csv" in str(caught.value)


def test_missing_damaged_and_unknown_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.csv"):
        load_member(tmp_path / "gone.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a soft-label store"):
        load_member(tmp_path / "empty")
    pq.write_table(pa.table({"id": ["1"], "a": [0.5], "b": [0.5]}), tmp_path / "cut.parquet")
    whole = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated"):
        load_member(tmp_path / "cut.parquet")
    (tmp_path / "m.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match="unknown kind"):
        load_member(tmp_path / "m.xlsx")


def test_labels_as_index_name_or_columns_agree(tmp_path: Path) -> None:
    index = write_csv(tmp_path / "a.csv", ["id", "label"], [["1", 0], ["2", 2], ["3", ""]])
    name = write_csv(
        tmp_path / "b.csv", ["row_id", "label"], [["1", CLASSES[0]], ["2", CLASSES[2]], ["3", ""]]
    )
    hot = write_csv(tmp_path / "c.csv", HEADER, [["1", 1, 0, 0], ["2", 0, 0, 1]])
    targets = [load_labels(path, PREFERENCE).targets for path in (index, name, hot)]
    np.testing.assert_array_equal(targets[0], targets[1])
    np.testing.assert_array_equal(targets[0][:2], targets[2])
    assert np.isnan(targets[0][2]).all()


@pytest.mark.parametrize("label", ["3", "-1", "1.5", "winner_model_c"])
def test_unknown_labels_are_refused(tmp_path: Path, label: str) -> None:
    file = write_csv(tmp_path / "labels.csv", ["id", "label"], [["1", "0"], ["row9", label]])
    with pytest.raises(UserError, match=r"labels\.csv: row row9"):
        load_labels(file, PREFERENCE)


def test_labels_without_a_label_are_refused(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "labels.csv", ["id", "winner"], [["1", "0"]])
    with pytest.raises(UserError, match="no label column"):
        load_labels(file, PREFERENCE)


def test_sets_of_different_rows_are_refused(tmp_path: Path) -> None:
    paths, labels = write_sets(tmp_path)
    lines = Path(paths[1]).read_text(encoding="utf-8").splitlines()
    Path(paths[1]).write_text("\n".join([*lines[:-1], lines[-1].replace("r0119", "x1")]), encoding="utf-8")
    with pytest.raises(UserError, match=r"r0119.*x1"):
        load_problem(paths, Path(labels))


def test_rows_without_a_label_line_are_refused_and_empty_ones_left_out(tmp_path: Path) -> None:
    paths, labels = write_sets(tmp_path)
    lines = Path(labels).read_text(encoding="utf-8").splitlines()
    Path(labels).write_text("\n".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(UserError, match="r0119"):
        load_problem(paths, Path(labels))
    Path(labels).write_text("\n".join([*lines[:-1], "r0119,", "zz,1"]), encoding="utf-8")
    problem = load_problem(paths, Path(labels))
    assert len(problem) == 119
    assert "1 predicted rows without a label are left out" in problem.notes
    assert "1 labelled rows that no model predicts are left out" in problem.notes


def test_two_members_of_one_name_are_refused_and_can_be_renamed(tmp_path: Path) -> None:
    (first, _), labels = write_sets(tmp_path / "one")
    (second, _), _ = write_sets(tmp_path / "two")
    with pytest.raises(UserError, match="both named m1"):
        load_problem([first, second], Path(labels))
    assert load_problem([first, f"other={second}"], Path(labels)).names == ("m1", "other")
    assert split_name("runs/a=b/m.csv") == (None, Path("runs/a=b/m.csv"))


def test_sets_of_other_classes_are_refused(tmp_path: Path) -> None:
    paths, labels = write_sets(tmp_path, classes=["x", "y", "z"])
    other, _ = write_sets(tmp_path / "other", classes=["x", "y", "w"])
    with pytest.raises(UserError, match="no probability column z"):
        load_problem([paths[0], f"o={other[0]}"], Path(labels))
    assert load_problem(paths, Path(labels)).classes == Classes(("x", "y", "z"))


def test_no_labels_at_all_is_a_mistake(tmp_path: Path) -> None:
    paths, _ = write_sets(tmp_path)
    with pytest.raises(UserError, match="--labels"):
        load_problem(paths)
    with pytest.raises(UserError, match="no models"):
        load_problem([])


def test_stores_bring_their_data_folds_and_groups(tmp_path: Path) -> None:
    rows, P = prepared(tmp_path / "data")
    stores = [str(write_store(tmp_path / f"t{m}", tmp_path / "data", P[:, m])) for m in range(2)]
    problem = load_problem(stores)
    assert problem.names == ("t0", "t1")
    assert problem.row_ids == sorted(rows.row_ids)
    assert problem.rows is not None
    assert problem.rows.row_ids == problem.row_ids
    folds = read_folds(tmp_path / "data").aligned_to(problem.row_ids)
    np.testing.assert_array_equal(problem.fold, folds.fold)
    assert len(np.unique(problem.groups)) == 60
    np.testing.assert_allclose(problem.P, P, atol=1e-6)


def test_a_store_may_be_moved_with_its_data(tmp_path: Path) -> None:
    _, P = prepared(tmp_path / "run")
    write_store(tmp_path / "run" / "teacher", tmp_path / "run", P[:, 0], data="..")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert len(load_problem([str(tmp_path / "moved" / "teacher")])) == 120


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("folds_hash", "0" * 64, "folds_hash"),
        ("rows_hash", "0" * 64, "rows_hash"),
        ("classes", ["winner_model_a", "winner_model_b", "tie"], "tie"),
        ("label_kind", "in_sample", "in_sample"),
        ("label_kind", "fold_mean", "fold_mean"),
        ("label_kind", "guess", "guess"),
        ("data", "/no/such/data", "/no/such/data"),
    ],
)
def test_stores_that_cannot_be_joined_are_refused(
    tmp_path: Path, field: str, value: object, words: str
) -> None:
    _, P = prepared(tmp_path / "data")
    good = write_store(tmp_path / "good", tmp_path / "data", P[:, 0])
    bad = write_store(tmp_path / "bad", tmp_path / "data", P[:, 1], **{field: value})
    with pytest.raises(UserError, match=words):
        load_problem([str(bad), str(good)])
    if field != "data":  # the first store's data is enough
        with pytest.raises(UserError, match=words):
            load_problem([str(good), str(bad)])


def test_an_unfinished_store_is_refused(tmp_path: Path) -> None:
    _, P = prepared(tmp_path / "data")
    store = write_store(tmp_path / "t", tmp_path / "data", P[:, 0])
    whole = (store / "oof.parquet").read_bytes()
    (store / "oof.parquet").write_bytes(whole[:-100])
    with pytest.raises(UserError, match="truncated"):
        load_problem([str(store)])
    (store / "oof.parquet").unlink()
    with pytest.raises(UserError, match="unfinished"):
        load_problem([str(store)])


def test_a_fold_file_is_followed_and_checked(tmp_path: Path) -> None:
    paths, labels = write_sets(tmp_path)
    ids = load_member(Path(paths[0])).row_ids
    fold = np.arange(120) % 2
    write_folds_file(
        tmp_path / "folds.parquet", ids, [f"g{i // 4}" for i in range(120)], (np.arange(120) // 4) % 2
    )
    problem = load_problem(paths, Path(labels), folds=tmp_path / "folds.parquet")
    np.testing.assert_array_equal(problem.fold, (np.arange(120) // 4) % 2)
    assert len(np.unique(problem.groups)) == 30
    write_folds_file(tmp_path / "split.parquet", ids, [f"g{i // 4}" for i in range(120)], fold)
    with pytest.raises(UserError, match="split over folds"):
        load_problem(paths, Path(labels), folds=tmp_path / "split.parquet")
    write_folds_file(tmp_path / "one.parquet", ids, ids, np.zeros(120, dtype=int))
    with pytest.raises(UserError, match="one fold"):
        load_problem(paths, Path(labels), folds=tmp_path / "one.parquet")
    write_folds_file(tmp_path / "short.parquet", ids[1:], ids[1:], fold[1:])
    with pytest.raises(UserError, match="r0000"):
        load_problem(paths, Path(labels), folds=tmp_path / "short.parquet")


def write_folds_file(path: Path, ids: list[str], groups: list[str], fold: np.ndarray) -> None:
    from data.folds import Folds

    write_folds(path, Folds(ids, groups, fold))


def test_stores_under_other_folds_than_the_file_are_refused(tmp_path: Path) -> None:
    rows, P = prepared(tmp_path / "data")
    store = write_store(tmp_path / "t", tmp_path / "data", P[:, 0])
    fold = (np.arange(120) // 2) % 3
    write_folds_file(tmp_path / "f.parquet", rows.row_ids, [f"g{i // 2}" for i in range(120)], fold)
    with pytest.raises(UserError, match="other folds"):
        load_problem([str(store)], folds=tmp_path / "f.parquet")


def test_a_row_table_whose_end_is_damaged_is_named(tmp_path: Path) -> None:
    """Its schema alone is looked at first, by another reader of Arrow's."""
    home, members = tmp_path / "home", write_sets(tmp_path)[0]
    home.mkdir()
    pq.write_table(pa.table({"row_id": ["x"] * 1000, "label": list(range(1000))}), home / "rows.parquet")
    whole = (home / "rows.parquet").read_bytes()
    size = int.from_bytes(whole[-8:-4], "little")
    for at in range(len(whole) - 8 - size, len(whole), 16):
        (home / "rows.parquet").write_bytes(whole[:at] + bytes(64) + whole[at + 64 :])
        with pytest.raises(UserError, match=r"rows\.parquet|home"):
            load_problem(members, None, home)
