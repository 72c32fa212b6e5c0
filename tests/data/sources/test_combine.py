"""Several sources in one table: repeats found, contradictions kept as soft labels, ids kept apart."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.classes import PREFERENCE, PREFERENCE_NO_TIE, Classes
from data.errors import UserError
from data.files import sha256_text
from data.schema import Rows, make_rows
from data.sources.combine import combine, pair_keys


def rows_of(*items: tuple, classes: Classes = PREFERENCE, source: str = "s") -> Rows:
    """Rows from (id, prompt, response a, response b, label)."""
    ids, prompts, first, second, labels = zip(*items, strict=True)
    columns = {
        "row_id": list(ids), "prompt": [[p] for p in prompts], "response_a": [[a] for a in first],
        "response_b": [[b] for b in second], "label": list(labels), "source": [source] * len(ids),
    }  # fmt: skip
    return make_rows(columns, classes, source)


def test_contradicting_copies_keep_their_rows_and_get_the_mean_as_soft_label() -> None:
    rows = rows_of(
        ("1", "p", "a", "b", 0), ("2", "p", "a", "b", 1), ("3", "p", "b", "a", 0), ("4", "p", "a", "b", None),
        ("5", "q", "a", "b", 2), ("6", "q", "b", "a", 2), ("7", "z", "a", "b", 0),
    )  # fmt: skip
    joined, repeats = combine([("s", rows)])
    assert joined.row_ids == rows.row_ids
    assert joined.labels.tolist() == rows.labels.tolist()
    # Rows 1 and 2 disagree, and row 3, turned round, sides with row 2: one of three for "a", two for "b".
    np.testing.assert_allclose(
        joined.targets[:3], [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0]], atol=1e-6
    )
    assert joined.table["label_probs"].to_pylist()[3:] == [None] * 4
    assert repeats.contradicting == [["1", "2", "3"]]
    assert repeats.within == ["2", "3", "4", "6"]
    assert len(repeats.lines()) == 2


def test_rows_of_an_earlier_source_are_left_out_or_kept_and_their_votes_count() -> None:
    one = rows_of(("1", "p", "a", "b", 0), ("2", "q", "a", "b", 1))
    two = rows_of(("1", "p", "a", "b", 0), ("9", "q", "b", "a", 1), ("3", "new", "a", "b", 2), source="t")
    joined, repeats = combine([("s", one), ("t", two)])
    assert joined.row_ids == ["1", "2", "3"]
    assert joined.table["source"].to_pylist() == ["s", "s", "t"]
    assert repeats.between == {"t": ["1", "9"]}
    np.testing.assert_allclose(joined.targets[1], [0.5, 0.5, 0])  # 9 says the opposite of 2
    assert "2 rows of t repeat a pair of an earlier source, left out: 1, 9" in repeats.lines()
    with pytest.raises(UserError, match=r"1 row ids appear more than once: 1; .* --prefix-ids"):
        combine([("s", one), ("t", two)], keep_repeats=True)
    joined, _ = combine([("s", one), ("t", two)], keep_repeats=True, prefix_ids=True)
    assert joined.row_ids == ["s:1", "s:2", "t:1", "t:9", "t:3"]


def test_two_class_sources_join_three_class_ones() -> None:
    two = rows_of(("1", "p", "a", "b", 1), classes=PREFERENCE_NO_TIE)
    soft = Rows(
        two.table.append_column("label_probs", pa.array([[0.25, 0.75]], pa.list_(pa.float32(), 2))),
        two.classes,
    )
    three = rows_of(("2", "q", "a", "b", 2), source="t")
    joined, _ = combine([("s", soft), ("t", three)])
    assert joined.classes == PREFERENCE
    assert joined.labels.tolist() == [1, 2]
    np.testing.assert_allclose(joined.targets, [[0.25, 0.75, 0], [0, 0, 1]])


def test_what_does_not_go_together_is_refused() -> None:
    one = rows_of(("1", "p", "a", "b", 0))
    other = rows_of(("2", "p", "a", "b", 0), classes=Classes(("x", "y", "z"), (1, 0, 2)))
    with pytest.raises(UserError, match=r"s has the classes .* share their classes"):
        combine([("s", one), ("t", other)])
    with pytest.raises(UserError, match="two have the same name"):
        combine([("s", one), ("s", one)])


turn = st.lists(st.text("ab:1", max_size=3), min_size=0, max_size=3)


@settings(max_examples=200)
@given(st.lists(st.tuples(turn, turn, turn), min_size=1, max_size=12))
def test_pair_keys_are_equal_exactly_for_the_same_pair_in_either_order(triples) -> None:
    columns = {
        "row_id": [str(i) for i in range(len(triples))],
        **{name: [t[i] for t in triples] for i, name in enumerate(("prompt", "response_a", "response_b"))},
    }
    keys, turned = pair_keys(make_rows(columns, PREFERENCE, "t"))
    for i, (p, a, b) in enumerate(triples):
        assert turned[i] == (a > b)
        for j, (q, c, d) in enumerate(triples):
            assert (keys[i] == keys[j]) == (p == q and sorted((a, b)) == sorted((c, d)))


@given(st.integers(1, 40), st.booleans())
def test_the_content_hash_is_that_of_the_whole_columns_as_json(n: int, soft: bool) -> None:
    rows = rows_of(*((f"r{i}", f"p {i} é", "a", 'b"', i % 3 if i % 4 else None) for i in range(n)))
    table = rows.table
    names = ["row_id", "prompt", "response_a", "response_b", "label"]
    if soft:
        column = pa.array([[0.5, 0.25, 0.25] if i % 2 else None for i in range(n)], pa.list_(pa.float32(), 3))
        table = table.append_column("label_probs", column)
        names.append("label_probs")
    pieces = [table.slice(i, 7) for i in range(0, n, 7)]
    rows = Rows(pa.concat_tables(pieces), rows.classes)
    expected = sha256_text(
        *rows.classes.names, *names, *(json.dumps(table[name].to_pylist()) for name in names)
    )
    assert rows.content_hash == expected


def test_a_label_is_not_dropped_for_an_unlabelled_row() -> None:
    test = rows_of(("t1", "p", "a", "b", None), ("t2", "q", "a", "b", None))
    more = rows_of(("m1", "p", "b", "a", 0), ("m2", "z", "a", "b", 1), source="more")
    again = rows_of(("n1", "p", "a", "b", 1), ("n2", "q", "a", "b", None), source="again")
    joined, repeats = combine([("test", test), ("more", more), ("again", again)])
    assert joined.row_ids == ["t1", "t2", "m1", "m2"]
    assert joined.labels.tolist() == [-1, -1, 0, 1]
    assert repeats.between == {"again": ["n1", "n2"]}
    assert repeats.labelling == ["m1"]
    assert (
        "1 rows repeat an unlabelled pair of an earlier source, kept for their label: m1" in repeats.lines()
    )
    assert repeats.counts()["labelling"] == 1


def test_a_table_made_elsewhere_joins_whatever_its_types() -> None:
    own = rows_of(("1", "p", "a", "b", 0), ("2", "q", "a", "b", None))
    turns = pa.large_list(pa.large_string())
    wide = {
        "row_id": pa.array(["3", "4"], pa.large_string()),
        "prompt": pa.array([["r"], ["s"]], turns),
        "response_a": pa.array([["a"], ["a"]], turns),
        "response_b": pa.array([["b"], ["b"]], turns),
        "label": pa.array([2, None], pa.int64()),
        "label_probs": pa.array([None, [0.5, 0.5, 0.0]], pa.list_(pa.float64())),
        "source": pa.array(["x", "x"]).dictionary_encode(),
        "extra": pa.array([1, 2]),
    }
    other = Rows(pa.table(wide), PREFERENCE)
    for parts in ([("s", own), ("x", other)], [("x", other), ("s", own)]):
        joined, _ = combine(parts)
        assert joined.table.schema.field("label").type == pa.int8()
        by_id = dict(zip(joined.row_ids, joined.targets.tolist(), strict=True))
        assert by_id["1"] == [1, 0, 0]
        assert by_id["3"] == [0, 0, 1]
        assert by_id["4"] == [0.5, 0.5, 0]
    clash = Rows(own.table.append_column("extra", pa.array(["u", "v"])), PREFERENCE)
    with pytest.raises(UserError, match=r"sources s, x: a column has another type .*extra.*; rename"):
        combine([("s", clash), ("x", other)])
