"""Folds: a partition of the rows, groups never split, labels spread evenly, files checked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.classes import PREFERENCE
from data.dataset import sources_of
from data.errors import UserError
from data.files import write_parquet
from data.folds import (
    Folds,
    check_folds,
    check_near,
    make_folds,
    read_folds,
    write_folds,
)
from data.groups import Near, group_prompts, normalise_prompt
from data.schema import Rows, make_rows, with_usual_types


def rows_with(prompts: list[str], labels: list[int | None]) -> Rows:
    ids = [f"r{i}" for i in range(len(prompts))]
    return make_rows({"row_id": ids, "prompt": [[p] for p in prompts], "label": labels}, PREFERENCE, "drawn")


@st.composite
def grouped_rows(draw: st.DrawFn) -> tuple[Rows, int]:
    n = draw(st.integers(2, 60))
    prompts = draw(st.lists(st.integers(0, 40).map("prompt {}".format), min_size=n, max_size=n))
    labels = draw(st.lists(st.none() | st.integers(0, 2), min_size=n, max_size=n))
    n_folds = draw(st.integers(2, 6))
    assume(len(set(prompts)) >= n_folds)
    return rows_with(prompts, labels), n_folds


@settings(max_examples=150, deadline=None)
@given(drawn=grouped_rows(), seed=st.integers(0, 3))
def test_folds_partition_the_rows_and_never_split_a_prompt(drawn: tuple[Rows, int], seed: int) -> None:
    rows, n_folds = drawn
    folds = make_folds(rows, n_folds, seed)
    assert folds.row_ids == rows.row_ids
    assert set(folds.fold.tolist()) == set(range(n_folds))
    prompts = [turns[0] for turns in rows.table.column("prompt").to_pylist()]
    assert len({*zip(prompts, folds.fold.tolist(), strict=True)}) == len(set(prompts))
    assert (
        len({*zip(prompts, folds.group_ids, strict=True)}) == len(set(prompts)) == len(set(folds.group_ids))
    )
    largest = max(Counter(prompts).values())
    sizes = np.bincount(folds.fold)
    assert sizes.max() - sizes.min() <= 3 * largest
    assert check_folds(folds, rows, "made").content_hash == folds.content_hash


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.none() | st.integers(0, 2), min_size=6, max_size=120), n_folds=st.integers(2, 6))
def test_distinct_prompts_are_dealt_evenly_in_every_label(labels: list[int | None], n_folds: int) -> None:
    rows = rows_with([f"prompt {i}" for i in range(len(labels))], labels)
    folds = make_folds(rows, n_folds)
    for label in (None, 0, 1, 2):
        held = np.bincount(
            folds.fold[[i for i, value in enumerate(labels) if value == label]], minlength=n_folds
        )
        assert held.max() - held.min() <= 2
    sizes = np.bincount(folds.fold, minlength=n_folds)
    assert sizes.max() - sizes.min() <= 2


def test_folds_follow_the_seed_only() -> None:
    rows = rows_with([f"prompt {i % 30}" for i in range(60)], [i % 3 for i in range(60)])
    assert make_folds(rows, 4, 1).content_hash == make_folds(rows, 4, 1).content_hash
    assert make_folds(rows, 4, 1).content_hash != make_folds(rows, 4, 2).content_hash


def test_too_few_groups_or_folds_are_refused() -> None:
    rows = rows_with(["same"] * 8 + ["other"], [0] * 9)
    with pytest.raises(UserError, match="9 rows hold 2 distinct prompts, too few for 3 folds"):
        make_folds(rows, 3)
    with pytest.raises(UserError, match="1 folds cannot be cross-validated"):
        make_folds(rows, 1)


@pytest.mark.parametrize(
    "same",
    [
        ["What is 2 + 2?", "  what IS\t2 +\n2? ", "\uff37hat is 2 + 2?", "What\u00a0is 2 + 2?"],
        ["Stra\u00dfe", "STRASSE"],
        ["caf\u00e9", "cafe\u0301", "CAF\u00c9"],
    ],
)
def test_prompts_that_differ_in_looks_only_are_one_group(same: list[str]) -> None:
    assert len(set(group_prompts([text] for text in same))) == 1


def test_turns_are_part_of_the_prompt_but_not_their_borders() -> None:
    assert normalise_prompt(["One", "two"]) == "one two"
    assert group_prompts([["one", "two"]]) == group_prompts([["one two"]])
    assert group_prompts([["one", "two"]]) != group_prompts([["two", "one"]])


@given(st.lists(st.text(), max_size=3))
def test_normalising_twice_changes_nothing(turns: list[str]) -> None:
    once = normalise_prompt(turns)
    assert normalise_prompt([once]) == once


def test_file_round_trip(tmp_path: Path) -> None:
    rows = rows_with([f"prompt {i}" for i in range(10)], [0, 1] * 5)
    folds = make_folds(rows, 3)
    write_folds(tmp_path, folds)
    for path in (tmp_path, tmp_path / "folds.parquet"):
        back = read_folds(path)
        assert (back.row_ids, back.group_ids) == (folds.row_ids, folds.group_ids)
        np.testing.assert_array_equal(back.fold, folds.fold)
        assert back.content_hash == folds.content_hash


def test_content_hash_sees_every_field() -> None:
    base = Folds(["a", "b"], ["g", "h"], np.array([0, 1]))
    changed = [
        Folds(["a", "c"], ["g", "h"], np.array([0, 1])),
        Folds(["a", "b"], ["g", "i"], np.array([0, 1])),
        Folds(["a", "b"], ["g", "h"], np.array([1, 0])),
    ]
    assert len({folds.content_hash for folds in [base, *changed]}) == 4


def test_alignment_follows_the_ids() -> None:
    folds = Folds(["a", "b", "c"], ["g", "h", "i"], np.array([0, 1, 2]))
    aligned = folds.aligned_to(["c", "a"])
    assert (aligned.row_ids, aligned.group_ids, aligned.fold.tolist()) == (["c", "a"], ["i", "g"], [2, 0])
    with pytest.raises(UserError, match="no fold for 1 of 2 rows: d"):
        folds.aligned_to(["a", "d"])


def test_check_returns_the_folds_in_row_order() -> None:
    rows = rows_with(["p", "q", "s"], [0, 1, 2])
    folds = check_folds(Folds(["r2", "r0", "r1"], ["c", "a", "b"], np.array([1, 0, 1])), rows, "f")
    assert folds.row_ids == rows.row_ids
    assert folds.fold.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("ids", "groups", "fold", "message"),
    [
        (["r0", "r1"], ["a", "b"], [0, 1], "f: the fold file has no fold for 1 of 3 rows: r2"),
        (
            ["r0", "r1", "r2", "r9"],
            list("abcd"),
            [0, 1, 0, 1],
            "f: 1 rows of the fold file are not in .*: r9",
        ),
        (["r0", "r1", "r2", "r2"], list("abcc"), [0, 1, 0, 0], "f: 1 rows appear more than once: r2"),
        (["r0", "r1", "r2"], list("abc"), [0, 1, 3], "f: fold numbers are 0, 1, 3"),
        (["r0", "r1", "r2"], list("abc"), [1, 2, 1], "f: fold numbers are 1, 2"),
        (["r0", "r1", "r2"], list("abc"), [0, 0, 0], "f: fold numbers are 0;"),
        (
            ["r0", "r1", "r2"],
            list("aba"),
            [0, 0, 1],
            r"f: group a is split over folds 0 and 1 \(rows r0 and r2\)",
        ),
    ],
)
def test_fold_files_that_break_the_contract(
    ids: list[str], groups: list[str], fold: list[int], message: str
) -> None:
    rows = rows_with(["p", "q", "s"], [0, 1, 2])
    with pytest.raises(UserError, match=message):
        check_folds(Folds(ids, groups, np.array(fold)), rows, "f")


def test_prompt_leak_is_found_although_the_file_states_other_groups() -> None:
    rows = rows_with(["Same prompt", "q", "same  prompt"], [0, 1, 2])
    leaking = Folds(["r0", "r1", "r2"], ["a", "b", "c"], np.array([0, 0, 1]))
    with pytest.raises(
        UserError, match=r"prompt group \w{16} is split over folds 0 and 1 \(rows r0 and r2\)"
    ):
        check_folds(leaking, rows, "f")


def test_damaged_fold_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "folds.parquet"
    with pytest.raises(UserError, match="no such fold file"):
        read_folds(tmp_path)
    cases = {
        "no column group_id": {"row_id": ["a"], "fold": [0]},
        "column fold has empty entries": {"row_id": ["a"], "group_id": ["g"], "fold": pa.nulls(1)},
        "column fold must hold whole numbers": {"row_id": ["a"], "group_id": ["g"], "fold": [0.5]},
        "1 rows appear more than once: a": {"row_id": ["a", "a"], "group_id": ["g", "g"], "fold": [0, 0]},
    }  # fmt: skip
    for message, columns in cases.items():
        write_parquet(path, pa.table(columns))
        with pytest.raises(UserError, match=message):
            read_folds(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read_folds(path)


def test_real_rows_are_balanced(real_data: Path) -> None:
    from data.sources.read import read_source

    rows, _ = read_source(str(real_data / "lmsys" / "preferences.csv"))
    folds = make_folds(rows, 5)
    counts = np.zeros((5, 3), dtype=int)
    np.add.at(counts, (folds.fold, rows.labels), 1)
    assert (counts.max(axis=0) - counts.min(axis=0)).max() <= 3
    assert len(set(folds.group_ids)) < len(rows)


def pinned_rows() -> Rows:
    """Twelve rows of two sources; two of the extra ones share a prompt with validated rows."""
    prompts = [f"prompt {i}" for i in range(8)] + ["prompt 1", "PROMPT  2", "extra 1", "extra 2"]
    return make_rows(
        {
            "row_id": [f"r{i}" for i in range(12)],
            "prompt": [[p] for p in prompts],
            "label": [i % 3 for i in range(12)],
            "source": ["main"] * 8 + ["extra"] * 4,
        },
        PREFERENCE,
        "drawn",
    )


def test_pinned_rows_train_every_fold_unless_their_prompt_is_validated(tmp_path: Path) -> None:
    rows = pinned_rows()
    folds = make_folds(rows, 3, pin=["extra"])
    assert folds.n_folds == 3
    assert np.flatnonzero(folds.pinned).tolist() == [10, 11]
    assert folds.fold[8] == folds.fold[1]
    assert folds.fold[9] == folds.fold[2]
    write_folds(tmp_path, folds)
    back = check_folds(read_folds(tmp_path), rows, tmp_path)
    assert back.content_hash == folds.content_hash


def test_a_pinned_row_beside_a_validated_one_is_a_leak() -> None:
    rows = pinned_rows()
    folds = make_folds(rows, 3, pin=["extra"])
    leaking = folds.fold.copy()
    leaking[8] = -1
    with pytest.raises(
        UserError, match=r"holds row r8, pinned to every training, and row r1, which is validated"
    ):
        check_folds(Folds(folds.row_ids, folds.group_ids, leaking), rows, "f")
    leaking = folds.fold.copy()
    leaking[10] = -2
    with pytest.raises(UserError, match="fold numbers are -2, 0, 1, 2"):
        check_folds(Folds(folds.row_ids, folds.group_ids, leaking), rows, "f")


def test_folds_are_balanced_over_sources_too() -> None:
    n = 300
    rows = make_rows(
        {
            "row_id": [f"r{i}" for i in range(n)],
            "prompt": [[f"prompt {i}"] for i in range(n)],
            "label": [i % 3 for i in range(n)],
            "source": ["big" if i % 5 else "small" for i in range(n)],
        },
        PREFERENCE,
        "drawn",
    )
    folds = make_folds(rows, 4)
    source = np.array(rows.table["source"].to_pylist())
    for name in ("big", "small"):
        for label in range(3):
            held = np.bincount(folds.fold[(source == name) & (rows.labels == label)], minlength=4)
            assert held.max() - held.min() <= 2


def test_near_duplicates_share_a_fold() -> None:
    long = "please explain to me in simple words how a combustion engine works"
    prompts = [f"{long}{'!' * (i % 4)}" for i in range(8)] + [
        "".join(map(chr, range(97 + i % 5, 122 - i, 2))) + f" {i} {i * i}" for i in range(20)
    ]
    rows = rows_with(prompts, [i % 3 for i in range(28)])
    folds = make_folds(rows, 4, near=Near(0.8))
    assert len(set(folds.fold[:8].tolist())) == 1
    exact = make_folds(rows, 4)
    assert len(set(exact.fold[:8].tolist())) > 1
    check_near(folds, rows, Near(0.8), "f")
    with pytest.raises(UserError, match=r"near-duplicate group .* is split over folds"):
        check_near(exact, rows, Near(0.8), "f")


@pytest.mark.parametrize("values", [[1, 2], [["a"], ["b"]], [True, None], [1.5, 2.5], ["x", None]])
def test_a_source_is_text_whatever_the_table_has(values: list[Any]) -> None:
    rows = rows_with([f"prompt {i}" for i in range(40)], [i % 3 for i in range(40)])
    place = rows.table.column_names.index("source")
    named = pa.array([values[i % 2] for i in range(len(rows))])
    sourced = Rows(rows.table.set_column(place, "source", named), rows.classes)
    assert with_usual_types(sourced).table.schema.field("source").type == pa.string()
    folds = make_folds(sourced, 2, seed=0, pin=[str(values[0])])
    assert folds.pinned.sum() == 20
    assert sources_of(sourced) == {str(values[0]): 20, str(values[1]): 20}
