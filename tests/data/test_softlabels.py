"""The soft-label store: what goes in comes out, and a store that does not fit is refused by field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data.classes import PREFERENCE, Classes
from data.errors import UserError
from data.files import read_json, read_parquet, write_json, write_parquet
from data.softlabels import (
    JOIN_FIELDS,
    MANIFEST,
    MAY_CHANGE,
    OOF,
    check_joinable,
    is_store,
    read_logits,
    read_manifest,
    read_store,
    write_logits,
)
from data.softmax import softmax

PLAIN = Classes(("x", "y", "z", "w"))
FINITE = st.floats(-1e6, 1e6, width=32)


@pytest.mark.parametrize("name", MAY_CHANGE)
def test_fields_that_no_hash_covers_are_of_their_kind(tmp_path: Path, name: str) -> None:
    for value in ([], None, True) if name != "truncated_share" else ([], None, "x"):
        write_json(tmp_path / MANIFEST, {name: value})
        with pytest.raises(UserError, match=rf"manifest\.json: field {name} is"):
            read_manifest(tmp_path)


def test_a_file_written_under_another_manifest_is_refused(tmp_path: Path) -> None:
    """Two stores of the same rows hold files of one shape: a copy in the wrong place fits everything."""
    manifest = {
        "classes": list(PREFERENCE.names),
        "swap": list(PREFERENCE.swap or ()),
        "rows_hash": "r",
        "folds_hash": "f",
        "label_kind": "oof",
    }
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        own = {**manifest, "seed": name}
        write_json(tmp_path / name / MANIFEST, own)
        logits = np.full((2, 2, 3), ord(name), dtype=np.float32)
        write_logits(tmp_path / name / OOF, ["x", "y"], np.arange(2), logits, PREFERENCE, own)
    read_store(tmp_path / "a")
    write_json(tmp_path / "a" / MANIFEST, {**manifest, "seed": "a", "versions": {"torch": "another"}})
    read_store(tmp_path / "a")  # what may change
    (tmp_path / "a" / OOF).write_bytes((tmp_path / "b" / OOF).read_bytes())
    with pytest.raises(UserError, match=r"a/oof\.parquet: is not as it was written under the manifest\.json"):
        read_store(tmp_path / "a")
    read_logits(tmp_path / "a" / OOF, PREFERENCE)  # who does not say whose it must be


@pytest.mark.parametrize("backbone", [None, {"weight_hash": "w"}])
def test_a_file_that_was_changed_since_is_refused(tmp_path: Path, backbone: dict | None) -> None:
    """Of a training also one without the marks that say so; other tools' files bear none."""
    path = tmp_path / OOF
    manifest = {"seed": 1} if backbone is None else {"backbone": backbone}
    logits = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    write_logits(path, ["x", "y"], np.arange(2), logits, PREFERENCE, manifest)
    whole = pq.read_table(path)
    for changed in (
        whole.take([2, 3, 0, 1]),  # what is made of it follows its order
        whole.set_column(3, whole.schema.field(3), pa.array([9, 9, 9, 9], pa.float32())),
        whole.set_column(1, whole.schema.field(1), pa.array([1, 1, 1, 1], pa.int32())),
    ):
        pq.write_table(changed, path)
        with pytest.raises(UserError, match="is not as it was written"):
            read_logits(path, PREFERENCE, manifest)
    pq.write_table(whole.replace_schema_metadata(None), path)
    if backbone is None:
        read_logits(path, PREFERENCE, manifest)
    else:
        with pytest.raises(UserError, match="is not as it was written"):
            read_logits(path, PREFERENCE, manifest)


def write_store(path: Path, classes: Classes = PREFERENCE, n: int = 4, **changes: Any) -> np.ndarray:
    logits = np.random.default_rng(0).normal(size=(n, len(classes.orders), classes.n)).astype(np.float32)
    manifest = {
        "classes": list(classes.names),
        "swap": None if classes.swap is None else list(classes.swap),
        "rows_hash": "r" * 64,
        "folds_hash": "f" * 64,
        "label_kind": "oof",
        **changes,
    }
    write_json(path / "manifest.json", {key: value for key, value in manifest.items() if value != "absent"})
    write_logits(path / "oof.parquet", [f"r{i}" for i in range(n)], np.arange(n) % 2, logits, classes)
    return logits


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), classes=st.sampled_from([PREFERENCE, PLAIN]), n=st.integers(1, 6))
def test_round_trip_in_any_line_order(tmp_path: Path, data: st.DataObject, classes: Classes, n: int) -> None:
    ids = data.draw(st.lists(st.text(st.characters(codec="utf-8")), min_size=n, max_size=n, unique=True))
    shape = (n, len(classes.orders), classes.n)
    logits = data.draw(hnp.arrays(np.float32, shape, elements=FINITE))
    fold = np.array(data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)))
    path = tmp_path / "oof.parquet"
    write_logits(path, ids, fold, logits, classes)
    back_ids, back_fold, back = read_logits(path, classes)
    assert back_ids == ids
    np.testing.assert_array_equal(back_fold, fold)
    np.testing.assert_array_equal(back, logits)

    table = read_parquet(path)
    write_parquet(path, table.take(pa.array(data.draw(st.permutations(range(table.num_rows))))))
    shuffled_ids, shuffled_fold, shuffled = read_logits(path, classes)
    position = [shuffled_ids.index(row_id) for row_id in ids]
    np.testing.assert_array_equal(shuffled[position], logits)
    np.testing.assert_array_equal(shuffled_fold[position], fold)


@given(hnp.arrays(np.float64, (3, 4), elements=st.floats(-1e300, 1e300)), st.floats(-100, 100))
def test_softmax_is_a_distribution_and_ignores_a_shift(logits: np.ndarray, shift: float) -> None:
    probs = softmax(logits)
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    assert (probs >= 0).all()
    small = np.clip(logits, -50, 50)
    np.testing.assert_allclose(softmax(small + shift), softmax(small), rtol=1e-6)


def test_softmax_by_hand() -> None:
    np.testing.assert_allclose(softmax(np.log([[1.0, 2.0, 5.0]])), [[0.125, 0.25, 0.625]])


def test_store_averages_the_orders_before_the_softmax(tmp_path: Path) -> None:
    logits = write_store(tmp_path / "teacher")
    store = read_store(tmp_path / "teacher")
    assert is_store(tmp_path / "teacher")
    assert store.name == "teacher"
    assert store.classes == PREFERENCE
    np.testing.assert_array_equal(store.logits, logits)
    np.testing.assert_allclose(store.probs, softmax((logits[:, 0] + logits[:, 1]) / 2), rtol=1e-6)


def test_store_of_a_plain_text_has_one_order(tmp_path: Path) -> None:
    write_store(tmp_path / "teacher", PLAIN)
    store = read_store(tmp_path / "teacher")
    assert store.logits.shape == (4, 1, 4)
    assert store.classes.swap is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows_hash": "absent"}, r"manifest\.json: no field rows_hash"),
        ({"label_kind": "absent"}, r"manifest\.json: no field label_kind"),
        ({"label_kind": "guess"}, "label_kind 'guess' is none of oof, in_sample, fold_mean"),
        ({"swap": [1, 2, 0]}, r"manifest\.json: .*not a permutation that undoes itself"),
        ({"swap": [1.0, 0.0, 2.0]}, r"manifest\.json: field swap is .*, not a list of class numbers"),
        ({"swap": 5}, r"manifest\.json: field swap is 5"),
    ],
)
def test_bad_manifests_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_store(tmp_path / "s", **changes)
    with pytest.raises(UserError, match=message):
        read_store(tmp_path / "s")


def test_unfinished_or_missing_store_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such soft-label store"):
        read_store(tmp_path / "s")
    write_store(tmp_path / "s")
    (tmp_path / "s" / "oof.parquet").unlink()
    assert not is_store(tmp_path / "s")
    with pytest.raises(UserError, match="its run is unfinished, start the same command again"):
        read_store(tmp_path / "s")


def test_lines_that_do_not_make_one_of_each_order_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "s")
    path = tmp_path / "s" / "oof.parquet"
    table = read_parquet(path)
    cases = {
        "r3 must appear once": table.slice(0, 7),  # the last row lacks its swapped order
        "r0 must appear once": pa.concat_tables([table, table.slice(0, 1)]),
        "r1 must appear once": table.take(pa.array([0, 1, 2, 2, 4, 5, 6, 7])),
    }
    for message, damaged in cases.items():
        write_parquet(path, damaged)
        with pytest.raises(UserError, match=message):
            read_logits(path, PREFERENCE)
    write_parquet(path, table)
    with pytest.raises(UserError, match="for each of 1 order"):
        read_logits(path, Classes(PREFERENCE.names))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("swap", [0, 5] * 4, "column swap holds int64, not truths"),
        ("swap", [None, True] * 4, "column swap has 4 empty cells"),
        ("fold", [0.5] * 8, "column fold holds double, not whole numbers"),
        ("fold", [None, *[0] * 7], "column fold has 1 empty cells"),
        ("fold", [0, 1, *[0] * 6], "row r0 is in two folds"),
        ("row_id", list(range(8)), "column row_id holds int64, not text"),
        ("logit_winner_tie", ["0.5"] * 8, "column logit_winner_tie holds string, not floating-point"),
        ("logit_winner_tie", [1e300] * 8, "row r0 has a logit that is not finite"),
    ],
)
def test_columns_of_another_kind_are_refused(
    tmp_path: Path, name: str, values: list[Any], message: str
) -> None:
    write_store(tmp_path / "s")
    path = tmp_path / "s" / "oof.parquet"
    table = read_parquet(path)
    write_parquet(path, table.set_column(table.column_names.index(name), name, pa.array(values)))
    with pytest.raises(UserError, match=message):
        read_logits(path, PREFERENCE)


@pytest.mark.parametrize("names", [5, [["a"], ["b"]], [0, 1, 2]])
def test_class_names_that_are_none_are_refused(tmp_path: Path, names: object) -> None:
    write_store(tmp_path / "s")
    manifest = tmp_path / "s" / "manifest.json"
    write_json(manifest, {**read_json(manifest), "classes": names})
    with pytest.raises(UserError, match=r"manifest\.json: field classes is .*, not a list of names"):
        read_store(tmp_path / "s")


def test_a_manifest_that_is_no_object_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "s")
    (tmp_path / "s" / "manifest.json").write_text("5", encoding="utf-8")
    with pytest.raises(UserError, match="is not a manifest"):
        read_store(tmp_path / "s")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_logit_names_the_row(tmp_path: Path, value: float) -> None:
    logits = np.zeros((3, 2, 3), dtype=np.float32)
    logits[1, 1, 2] = value
    write_logits(tmp_path / "oof.parquet", ["a", "b", "c"], np.zeros(3, int), logits, PREFERENCE)
    with pytest.raises(UserError, match="row b has a logit that is not finite"):
        read_logits(tmp_path / "oof.parquet", PREFERENCE)


def test_truncated_store_is_named(tmp_path: Path) -> None:
    write_store(tmp_path / "s")
    path = tmp_path / "s" / "oof.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"oof\.parquet: not a readable Parquet file"):
        read_store(tmp_path / "s")


@pytest.mark.parametrize("field", JOIN_FIELDS)
def test_stores_that_disagree_are_not_joined(field: str) -> None:
    manifest = {"classes": ["a", "b"], "rows_hash": "r", "folds_hash": "f", "seed": 1}
    check_joinable(manifest, {**manifest, "seed": 2}, "one", "two")
    with pytest.raises(UserError, match=f"one and two cannot be joined: their manifests disagree on {field}"):
        check_joinable(manifest, {**manifest, field: "other"}, "one", "two")
