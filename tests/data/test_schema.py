"""The row table: what it refuses, and that what it writes is what it reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.classes import PREFERENCE, PREFERENCE_NO_TIE, Classes
from data.errors import UserError
from data.schema import Rows, make_rows, read_rows, validate, write_rows

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
TURNS = st.lists(TEXT, min_size=1, max_size=3)


@st.composite
def row_tables(draw: st.DrawFn) -> Rows:
    classes = draw(
        st.sampled_from([PREFERENCE, PREFERENCE_NO_TIE, Classes(("x", "y", "z", "ü")), Classes(("a", "b"))])
    )
    n = draw(st.integers(1, 6))
    ids = draw(st.lists(TEXT.filter(bool), min_size=n, max_size=n, unique=True))
    columns = {
        "row_id": ids,
        "prompt": draw(st.lists(TURNS, min_size=n, max_size=n)),
        "label": draw(st.lists(st.none() | st.integers(0, classes.n - 1), min_size=n, max_size=n)),
    }
    if classes.swap is not None:
        columns["response_a"] = draw(st.lists(TURNS, min_size=n, max_size=n))
        columns["response_b"] = draw(st.lists(TURNS, min_size=n, max_size=n))
    if draw(st.booleans()):
        weights = draw(
            st.lists(
                st.none() | st.lists(st.integers(1, 9), min_size=classes.n, max_size=classes.n),
                min_size=n,
                max_size=n,
            )
        )
        columns["label_probs"] = [None if w is None else [v / sum(w) for v in w] for w in weights]
    return make_rows(columns, classes, "drawn")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=row_tables())
def test_round_trip_keeps_everything(tmp_path: Path, rows: Rows) -> None:
    write_rows(tmp_path / "rows.parquet", rows)
    back = read_rows(tmp_path)
    assert back.table.to_pylist() == rows.table.to_pylist()
    assert back.classes == rows.classes
    assert back.content_hash == rows.content_hash


@settings(max_examples=40, deadline=None)
@given(rows=row_tables())
def test_targets_are_distributions_and_follow_the_labels(rows: Rows) -> None:
    soft = rows.table.column("label_probs").to_pylist() if "label_probs" in rows.table.column_names else []
    for i, (target, label) in enumerate(zip(rows.targets, rows.labels, strict=True)):
        if soft and soft[i] is not None:
            np.testing.assert_allclose(target, np.array(soft[i]) / np.sum(soft[i]))
        elif label >= 0:
            assert target[label] == 1
            assert target.sum() == 1
        else:
            assert np.isnan(target).all()


def rows_of(**columns: list) -> dict[str, list]:
    return {"row_id": ["r1", "r2"], "prompt": [["p"], ["q"]], **columns}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (rows_of(row_id=["r1", "r1"]), r"src: 1 row ids appear more than once: r1"),
        (rows_of(row_id=["r1", None]), r"src: row 1 \(counted from 0\) has no row_id"),
        (rows_of(row_id=["", "r1"]), r"src: row 0 \(counted from 0\) has no row_id"),
        (rows_of(label=[0, 3]), r"src: row r2 has label 3, outside the 3 classes winner_model_a"),
        (rows_of(label=[-2, 0]), r"src: row r1 has label -2"),
        (rows_of(label_probs=[[1, 0, 0], [0.5, 0.6, -0.1]]), r"src: row r2 has label_probs"),
        (rows_of(label_probs=[[0.5, 0.2, 0.2], None]), r"src: row r1 has label_probs"),
        (rows_of(label_probs=[[float("nan"), 0.5, 0.5], None]), r"src: row r1 has label_probs"),
        ({"row_id": [], "prompt": []}, r"src: holds no rows"),
    ],
)
def test_bad_rows_are_refused_by_name(columns: dict[str, list], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_rows(columns, PREFERENCE, "src")


def test_missing_column_is_named(tmp_path: Path) -> None:
    table = make_rows(rows_of(), PREFERENCE, "src").table.drop_columns(["response_b"])
    with pytest.raises(UserError, match="no column response_b; the file has row_id, prompt"):
        validate(Rows(table, PREFERENCE), "src")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("row_id", pa.array([1, 2]), "column row_id is int64 where a row table has string"),
        ("prompt", pa.array(["p", "q"]), "column prompt is string where a row table has list<string>"),
        ("label", pa.array([0.0, 1.0]), "column label is double where a row table has integer"),
        (
            "response_a",
            pa.array([["a"], [None]], pa.list_(pa.string())),
            "row 1 .*, column response_a has a null",
        ),
        ("prompt", pa.array([None, ["q"]], pa.list_(pa.string())), "row 0 .*, column prompt has a null"),
    ],
)
def test_tables_made_elsewhere_are_checked_by_type(
    tmp_path: Path, name: str, values: pa.Array, message: str
) -> None:
    table = make_rows(rows_of(), PREFERENCE, "src").table
    pq.write_table(table.set_column(table.column_names.index(name), name, values), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=message):
        read_rows(tmp_path)


def test_file_without_our_metadata_is_a_preference_table(tmp_path: Path) -> None:
    table = make_rows(rows_of(), PREFERENCE_NO_TIE, "src").table.replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet").classes == PREFERENCE


def test_truncated_row_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_rows(path, make_rows(rows_of(), PREFERENCE, "src"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"rows\.parquet: not a readable Parquet file"):
        read_rows(path)


@pytest.mark.parametrize("swap", [(0, 0, 2), (1, 2, 0), (0, 1)])
def test_swap_must_undo_itself(swap: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="not a permutation that undoes itself"):
        Classes(("a", "b", "c"), swap)


@pytest.mark.parametrize("names", [("a",), ("a", "a")])
def test_class_names_must_be_distinct(names: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="two or more distinct names"):
        Classes(names)


def test_orders_of_a_pair_and_of_a_plain_text() -> None:
    assert PREFERENCE.orders == (False, True)
    assert PREFERENCE.permutation == [1, 0, 2]
    assert Classes(("a", "b")).orders == (False,)
    assert Classes(("a", "b")).permutation == [0, 1]


def test_content_hash_sees_every_field_and_no_storage() -> None:
    base = rows_of(response_a=[["a"], ["b"]], response_b=[["c"], ["d"]], label=[0, 1])
    reference = make_rows(base, PREFERENCE, "src").content_hash
    changes = [
        {"row_id": ["r1", "r3"]},
        {"prompt": [["p"], ["q", ""]]},
        {"response_a": [["a"], ["B"]]},
        {"response_b": [["c", "d"], ["d"]]},
        {"label": [0, None]},
        {"label_probs": [None, [0, 1, 0]]},
    ]
    hashes = {make_rows({**base, **change}, PREFERENCE, "src").content_hash for change in changes}
    assert len(hashes | {reference}) == len(changes) + 1
    table = make_rows(base, PREFERENCE, "another").table
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert Rows(chunked, PREFERENCE).content_hash == reference


def test_take_keeps_order_and_classes() -> None:
    rows = make_rows(rows_of(label=[0, 1]), PREFERENCE, "src").take(np.array([1, 0]))
    assert rows.row_ids == ["r2", "r1"]
    assert rows.labels.tolist() == [1, 0]


def test_text_that_is_not_utf8_is_found_when_the_table_is_read(tmp_path: Path) -> None:
    turns = pa.list_(pa.string())
    bad = pa.array([[b"\xff"]], pa.list_(pa.binary())).view(turns)
    columns = {"row_id": ["1"], "prompt": bad, "response_a": bad, "response_b": bad}
    pq.write_table(pa.table({**columns, "label": pa.array([0], pa.int8())}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"rows\.parquet: is damaged \(.*UTF8.*\); make it again"):
        read_rows(tmp_path)


@pytest.mark.parametrize("fixed", [False, True])
def test_soft_labels_of_either_list_type_are_the_same_rows(tmp_path: Path, fixed: bool) -> None:
    """A nullable list of a fixed size is not read back by every release of Arrow that wrote it."""
    columns = {"row_id": ["1", "2"], "prompt": [["p"], ["q"]], "label_probs": [[0.25, 0.5, 0.25], None]}
    rows = make_rows(columns, PREFERENCE, "here")
    assert rows.table.schema.field("label_probs").type == pa.list_(pa.float32())
    write_rows(tmp_path / "rows.parquet", rows)
    assert read_rows(tmp_path).content_hash == rows.content_hash
    if fixed:
        at = rows.table.column_names.index("label_probs")
        column = pa.array(columns["label_probs"], pa.list_(pa.float32(), 3))
        other = Rows(rows.table.set_column(at, "label_probs", column), PREFERENCE)
        assert other.content_hash == rows.content_hash
        np.testing.assert_array_equal(other.targets, rows.targets)
        assert other.labelled.tolist() == [True, False]
