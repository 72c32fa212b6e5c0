"""Readers: each layout in exactly its own schema, and every refusal names file, row and field."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError
from data.files import write_parquet
from data.schema import PREFERENCE, PREFERENCE_NO_TIE, Classes, write_rows
from data.sources.clean import BARE_VALUES, NULL_TURNS, SURROGATES, TIED_VOTES, Cleaning, clean_turns
from data.sources.read import SourceOptions, read_source

LMSYS_HEADER = [
    "id", "model_a", "model_b", "prompt", "response_a", "response_b",
    "winner_model_a", "winner_model_b", "winner_tie",
]  # fmt: skip
LMSYS_ROWS = [
    ["30192", "gpt-4", "vicuna", '["Hi","And, you?"]', '["Hello","a\\nb"]', '["Yo",null]', "1", "0", "0"],
    ["53567", "koala", "g", '["x \\ud83d\\ude00"]', '["bad \\ud83d end"]', '["say \\"y\\""]', "0", "1", "0"],
    ["65089", "a", "b", '["Hi"]', '["\\u00fc"]', '["b"]', "0", "0", "1"],
]  # fmt: skip


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> str:
    with open(path, "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([header, *rows])
    return str(path)


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def pandalm(idx: int, votes: tuple[Any, Any, Any], **changes: Any) -> dict[str, Any]:
    return {
        "idx": idx, "motivation_app": "Gmail", "cmp_key": "bloom-7b_llama-7b", "instruction": f"Do {idx}.",
        "input": "", "response1": "one", "response2": "two",
        **{f"annotator{i}": vote for i, vote in enumerate(votes, start=1)}, **changes,
    }  # fmt: skip


def test_lmsys_csv(tmp_path: Path) -> None:
    rows, cleaning = read_source(write_csv(tmp_path / "train.csv", LMSYS_HEADER, LMSYS_ROWS))
    assert rows.classes == PREFERENCE
    assert rows.row_ids == ["30192", "53567", "65089"]
    assert rows.labels.tolist() == [0, 1, 2]
    first, second, third = rows.table.to_pylist()
    assert first["prompt"] == ["Hi", "And, you?"]
    assert first["response_a"] == ["Hello", "a\nb"]
    assert first["response_b"] == ["Yo", ""]
    assert (first["model_a"], first["model_b"], first["source"]) == ("gpt-4", "vicuna", "train.csv")
    assert second["prompt"] == ["x 😀"]
    assert second["response_a"] == ["bad \ufffd end"]
    assert second["response_b"] == ['say "y"']
    assert third["response_a"] == ["ü"]
    assert cleaning.counts == {NULL_TURNS: 1, SURROGATES: 1}


def test_lmsys_test_file_is_unlabelled(tmp_path: Path) -> None:
    rows = [[row[0], *row[3:6]] for row in LMSYS_ROWS]
    read, _ = read_source(write_csv(tmp_path / "test.csv", ["id", *LMSYS_HEADER[3:6]], rows))
    assert read.labels.tolist() == [-1, -1, -1]
    assert read.table.column("prompt").to_pylist()[0] == ["Hi", "And, you?"]


def test_lmsys_parquet_with_lists_reads_like_the_csv(tmp_path: Path) -> None:
    columns = dict(zip(LMSYS_HEADER, zip(*LMSYS_ROWS[::2], strict=True), strict=True))
    typed: dict[str, list] = {name: list(values) for name, values in columns.items()}
    for name in LMSYS_HEADER[3:6]:
        typed[name] = [json.loads(value) for value in typed[name]]
    for name in ["id", *LMSYS_HEADER[6:]]:
        typed[name] = [int(value) for value in typed[name]]
    write_parquet(tmp_path / "train.parquet", pa.table(typed))
    from_parquet, _ = read_source(str(tmp_path / "train.parquet"))
    from_csv, _ = read_source(write_csv(tmp_path / "train.csv", LMSYS_HEADER, LMSYS_ROWS[::2]))
    assert from_parquet.content_hash == from_csv.content_hash


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (6, "1", "row 53567 has winner_model_a=1, winner_model_b=1, winner_tie=0; exactly one"),
        (7, "0", "row 53567 has winner_model_a=0, winner_model_b=0, winner_tie=0; exactly one"),
        (8, "", "row 53567 has winner_model_a=0, winner_model_b=1, winner_tie=; exactly one"),
        (7, "0.5", "row 53567 has winner_model_a=0, winner_model_b=0.5"),
        (3, "not json", "row 53567, column prompt is not a JSON list of turns"),
        (4, '{"a": 1}', "row 53567, column response_a holds .* where a JSON list of turns was expected"),
        (5, '[["nested"]]', r"row 53567, column response_b holds \['nested'\] where text"),
        (0, "30192", "1 row ids appear more than once: 30192"),
        (0, "", "row 1 .* has no row_id"),
    ],
)
def test_lmsys_refusals_name_the_row(tmp_path: Path, column: int, value: str, message: str) -> None:
    rows = [list(row) for row in LMSYS_ROWS]
    rows[1][column] = value
    source = write_csv(tmp_path / "train.csv", LMSYS_HEADER, rows)
    with pytest.raises(UserError, match=message) as caught:
        read_source(source)
    assert source in str(caught.value)


def test_lmsys_lacking_one_winner_column(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "train.csv", LMSYS_HEADER[:-1], [row[:-1] for row in LMSYS_ROWS])
    with pytest.raises(UserError, match=r"train\.csv: no column winner_tie; it has id, model_a"):
        read_source(source)


def test_pandalm_votes_become_soft_and_hard_labels(tmp_path: Path) -> None:
    records = [
        pandalm(0, (1, 1, 1)),
        pandalm(1, (2, 2, 0), input="With this."),
        pandalm(2, (0, 0, 1)),
        pandalm(3, (0, 1, 2), response1=True),
    ]
    (tmp_path / "testset.json").write_text(json.dumps(records))
    rows, cleaning = read_source(str(tmp_path / "testset.json"))
    assert rows.row_ids == ["0", "1", "2", "3"]
    assert rows.labels.tolist() == [0, 1, 2, 2]
    np.testing.assert_allclose(
        rows.targets, np.array([[3, 0, 0], [0, 2, 1], [1, 0, 2], [1, 1, 1]]) / 3, rtol=1e-6
    )
    table = rows.table.to_pylist()
    assert [row["prompt"] for row in table[:2]] == [["Do 0."], ["Do 1.\n\nWith this."]]
    assert (table[0]["response_a"], table[0]["response_b"]) == (["one"], ["two"])
    assert (table[0]["model_a"], table[0]["model_b"]) == ("bloom-7b", "llama-7b")
    assert table[3]["response_a"] == ["True"]
    assert cleaning.counts == {TIED_VOTES: 1, BARE_VALUES: 1}


@pytest.mark.parametrize("vote", [3, None, "1st"])
def test_pandalm_unknown_vote(tmp_path: Path, vote: Any) -> None:
    (tmp_path / "t.json").write_text(json.dumps([pandalm(0, (1, 1, 1)), pandalm(7, (1, vote, 1))]))
    with pytest.raises(UserError, match=r"t\.json: row 7, column annotator2 holds"):
        read_source(str(tmp_path / "t.json"))


def test_plain_table_through_a_column_map(tmp_path: Path) -> None:
    header = ["key", "question", "one", "two", "better", "pa", "pb", "pt"]
    cells = [["007", "q1", "a", "b", "A", "0.5", "0.25", "0.25"], ["08", "q2", "c", "d", "", "", "", ""]]
    options = SourceOptions(
        columns={
            "row_id": "key", "prompt": "question", "response_a": "one", "response_b": "two",
            "label": "better", "label_probs": "pa,pb,pt",
        },
        classes=("A", "B", "TIE"),
    )  # fmt: skip
    rows, _ = read_source(write_csv(tmp_path / "t.csv", header, cells), options)
    assert rows.row_ids == ["007", "08"]
    assert rows.classes == Classes(("A", "B", "TIE"), (1, 0, 2))
    assert rows.labels.tolist() == [0, -1]
    assert rows.table.column("label_probs").to_pylist() == [[0.5, 0.25, 0.25], None]
    assert rows.table.column("prompt").to_pylist() == [["q1"], ["q2"]]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([0, 1, 2], PREFERENCE),
        (["winner_tie", "winner_model_a", None], PREFERENCE),
        ([0, 1, 0], PREFERENCE_NO_TIE),
        (["winner_model_b", None, None], PREFERENCE_NO_TIE),
        ([None, None, None], PREFERENCE),
    ],
)
def test_pair_classes_are_inferred_from_the_labels(tmp_path: Path, labels: list, classes: Classes) -> None:
    records = [
        {"id": i, "prompt": "p", "response_a": "a", "response_b": "b", "label": label}
        for i, label in enumerate(labels)
    ]
    rows, _ = read_source(write_jsonl(tmp_path / "t.jsonl", records))
    assert rows.classes == classes
    expected = [-1 if v is None else v if isinstance(v, int) else PREFERENCE.names.index(v) for v in labels]
    assert rows.labels.tolist() == expected


def test_pair_with_unknown_class_names_asks_for_their_order(tmp_path: Path) -> None:
    records = [{"id": 1, "prompt": "p", "response_a": "a", "response_b": "b", "label": "first"}]
    source = write_jsonl(tmp_path / "t.jsonl", records)
    with pytest.raises(
        UserError, match=r"labels first means .* \(first is first in row 0, counted from 0\); .*--classes"
    ):
        read_source(source)
    rows, _ = read_source(source, SourceOptions(classes=("first", "second")))
    assert rows.classes == Classes(("first", "second"), (1, 0))


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        (["sad", "glad", "sad"], ("glad", "sad"), [1, 0, 1]),
        ([10, 9, 2], ("2", "9", "10"), [2, 1, 0]),
        ([1.0, float("nan"), 2.0], ("1", "2"), [0, -1, 1]),
    ],
)
def test_plain_text_classes(tmp_path: Path, labels: list, names: tuple[str, ...], indices: list[int]) -> None:
    write_parquet(
        tmp_path / "t.parquet",
        pa.table({"row_id": ["a", "b", "c"], "prompt": ["x", "y", "z"], "label": labels}),
    )
    rows, _ = read_source(str(tmp_path / "t.parquet"))
    assert rows.classes == Classes(names, None)
    assert rows.labels.tolist() == indices
    assert rows.table.column("response_a").to_pylist() == [[], [], []]


def test_json_lines_keep_lone_surrogates_out(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(
        '{"id": "a", "prompt": "x \\udc00", "label": "u"}\n{"id": "b", "label": "v"}'
    )
    rows, cleaning = read_source(str(tmp_path / "t.jsonl"))
    assert rows.table.column("prompt").to_pylist() == [["x \ufffd"], [""]]
    assert cleaning.counts == {SURROGATES: 1, NULL_TURNS: 1}


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({"prompt": "p"}, {}, "no column row_id or id among prompt; .* --ids row-number"),
        ({"id": 1, "text": "p"}, {}, "no column prompt among id, text"),
        ({"id": 1, "prompt": "p", "response_a": "a"}, {}, "has one of response_a and response_b"),
        ({"id": 1, "prompt": "p"}, {"columns": {"label": "y"}}, "no column y; it has id, prompt"),
        ({"id": 1, "prompt": "p"}, {"columns": {"labels": "y"}}, "no field labels in a row table"),
        ({"id": 1, "prompt": "p", "label": "u"}, {}, "labels show 1 classes, at least two"),
        ({"id": 1, "prompt": "p", "label": "w"}, {"classes": ("u", "v")}, "row 1 has label w; a label is"),
        ({"id": 1, "prompt": "p", "label": 2}, {"classes": ("u", "v")}, "label 2; .* from 0 to 1"),
        ({"id": 1, "prompt": {"a": 1}}, {"classes": ("u", "v")}, "row 1, column prompt holds"),
        ({"id": 1, "prompt": "p"}, {"classes": ("u", "v"), "swap": (1, 0)}, "no two responses to swap"),
        (
            {"id": 1, "prompt": "p", "response_a": "a", "response_b": "b"},
            {"classes": ("u", "v", "w", "x")},
            "4 classes of a pair; say with --swap",
        ),
        (
            {"id": 1, "prompt": "p", "probs": [0.5, 0.5]},
            {"classes": ("u", "v", "w"), "columns": {"label_probs": "probs"}},
            "row 1, column probs holds .* not 3 numbers",
        ),
        (
            {"id": 1, "prompt": "p", "probs": [0.5, 0.6]},
            {"classes": ("u", "v"), "columns": {"label_probs": "probs"}},
            "row 1 has label_probs .* not 2 non-negative numbers that sum to 1",
        ),
        ({"id": 1, "prompt": "p"}, {"format": "lmsys"}, "no column response_a, response_b"),
        ({"id": 1, "prompt": "p"}, {"format": "xml"}, "format xml is unknown"),
        ({"id": 1, "prompt": "p"}, {"limit": 0}, "a limit of 0 rows leaves none"),
        ({"id": 1, "prompt": "p"}, {"format": "pandalm", "ids": "row-number"}, "--ids has no meaning"),
    ],
)  # fmt: skip
def test_plain_table_refusals(
    tmp_path: Path, record: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    source = write_jsonl(tmp_path / "t.jsonl", [record])
    with pytest.raises(UserError, match=message):
        read_source(source, SourceOptions(**options))


def test_rows_are_numbered_on_request_and_limited(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "t.jsonl", [{"prompt": f"p{i}", "label": "uv"[i % 2]} for i in range(5)])
    rows, _ = read_source(source, SourceOptions(ids="row-number", limit=3))
    assert rows.row_ids == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", b'[{"idx": 1, "instr', r"t\.json: row 0 .* not valid JSON"),
        ("t.json", b"null", r"t\.json: expected a list of objects, one a row, or one object a line"),
        ("t.jsonl", b'{"id": 1, "prompt": "p"}\n{"id": 2, "pro', r"t\.jsonl: line 2: not valid JSON"),
        ("t.parquet", b"PAR1", r"t\.parquet: not a readable Parquet file"),
        ("t.csv", b"id,prompt\n", r"t\.csv: holds no rows"),
        ("t.csv", b"id,prompt\n1,\xff\n", r"t\.csv: cannot be read as CSV"),
        ("t.xls", b"x", r"t\.xls: unknown kind of file"),
    ],
)
def test_damaged_sources_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_source(str(tmp_path / name))


def test_missing_file_is_not_taken_for_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.csv: no such source file"):
        read_source("gone.csv")
    with pytest.raises(UserError, match="no such source file"):
        read_source(str(tmp_path / "gone"))


def test_unknown_data_set_is_a_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("cannot reach the hub\nmore detail")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(
        UserError, match=r"nobody/no-such-set: .* \(split train\): cannot reach the hub; check"
    ):
        read_source("nobody/no-such-set")


def test_a_directory_of_csv_files_keeps_its_text(tmp_path: Path) -> None:
    """The library would read 007 as 7 and NA as missing, and fail on a test file without the label."""
    (tmp_path / "train.csv").write_text("id,prompt,label\n007,NA,a\n1.0,12,b\n")
    (tmp_path / "test.csv").write_text("id,prompt\nt1,hello\n")
    rows, cleaning = read_source(str(tmp_path))
    assert rows.row_ids == ["007", "1.0"]
    assert rows.table.column("prompt").to_pylist() == [["NA"], ["12"]]
    assert cleaning.lines() == ["nothing was changed"]
    rows, _ = read_source(str(tmp_path), SourceOptions(split="test", classes=("a", "b")))
    assert rows.row_ids == ["t1"]
    with pytest.raises(UserError, match="no split dev; it has train, test"):
        read_source(str(tmp_path), SourceOptions(split="dev"))
    (tmp_path / "train.csv").rename(tmp_path / "train-0.csv")
    (tmp_path / "train-1.csv").write_text("id,prompt,label\n9,x,a\n")
    assert read_source(str(tmp_path))[0].row_ids == ["007", "1.0", "9"]
    (tmp_path / "train-1.csv").write_text("id,text\n9,x\n")
    with pytest.raises(UserError, match=r"train-1\.csv: has the columns id, text and .*train-0\.csv"):
        read_source(str(tmp_path))


def test_a_directory_of_parquet_files_is_read_one_split_alone(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": ["1", "2"], "prompt": ["p", "q"], "label": [0, 1]}),
        tmp_path / "train [1] #2%20.parquet",
    )
    pq.write_table(pa.table({"id": ["1"], "scored": [True]}), tmp_path / "test.parquet")
    for streaming in (False, True):
        assert len(read_source(str(tmp_path), SourceOptions(streaming=streaming))[0]) == 2
    (tmp_path / "train [1] #2%20.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(UserError, match=r"data set \(split train\): .*[Pp]arquet.*; give one of its"):
        read_source(str(tmp_path))


@pytest.mark.parametrize("streaming", [False, True])
def test_csv_on_the_hub_is_asked_for_as_text(tmp_path: Path, streaming: bool) -> None:
    """A local file stands for the hub's: the library takes either by its address."""
    from data.sources.hub import csv_as_text

    (tmp_path / "x.csv").write_text("id,prompt\n007,NA\n1.0,\n")
    found = csv_as_text([str(tmp_path / "x.csv")], "train", ",", streaming)
    assert list(found) == [{"id": "007", "prompt": "NA"}, {"id": "1.0", "prompt": ""}]


@pytest.mark.parametrize("source", ["", " ", "https://huggingface.co/datasets/a/b", "s3://bucket/t.csv"])
def test_what_is_neither_file_nor_name_is_said_to_be(source: str) -> None:
    with pytest.raises(UserError, match=r"source '.*': give a file, a directory, or the name of a data set"):
        read_source(source)


def test_values_that_python_has_no_type_for_are_no_obstacle(tmp_path: Path) -> None:
    when = pa.array([10**12, None], pa.timestamp("s"))  # far beyond the year 9999
    table = pa.table({"id": ["1", "2"], "prompt": ["p", "q"], "label": [0, 1], "when": when})
    pq.write_table(table, tmp_path / "t.parquet")
    assert len(read_source(str(tmp_path / "t.parquet"))[0]) == 2


def test_saved_data_set_with_splits_and_named_classes(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"id": datasets.Value("int64"), "text": datasets.Value("string"),
         "label": datasets.ClassLabel(names=["world", "sport"])}
    )  # fmt: skip
    data = datasets.Dataset.from_dict(
        {"id": [1, 2, 3], "text": ["a", "b", "c"], "label": [0, 1, -1]}, features
    )
    datasets.DatasetDict({"fit": data}).save_to_disk(tmp_path / "saved")
    options = SourceOptions(columns={"prompt": "text"}, split="fit")
    rows, _ = read_source(str(tmp_path / "saved"), options)
    assert rows.classes.names == ("sport", "world")
    assert rows.labels.tolist() == [1, 0, -1]
    with pytest.raises(UserError, match="no split train; it has fit"):
        read_source(str(tmp_path / "saved"), SourceOptions(columns={"prompt": "text"}))


def test_our_own_row_table_is_a_source_too(tmp_path: Path) -> None:
    rows, _ = read_source(write_csv(tmp_path / "train.csv", LMSYS_HEADER, LMSYS_ROWS))
    write_rows(tmp_path / "made" / "rows.parquet", rows)
    again, _ = read_source(str(tmp_path / "made"))
    assert again.content_hash == rows.content_hash


@given(st.lists(st.none() | st.text(st.characters(exclude_characters="\x00"))))
def test_cleaned_turns_are_utf8_and_every_change_is_counted(turns: list[str | None]) -> None:
    cleaning = Cleaning()
    cleaned = clean_turns(turns, cleaning, "here")
    "".join(cleaned).encode("utf-8")
    assert len(cleaned) == len(turns)
    assert cleaning.counts[NULL_TURNS] == turns.count(None)
    changed = sum(
        a != b for old, new in zip(turns, cleaned, strict=True) for a, b in zip(old or "", new, strict=True)
    )
    assert cleaning.counts[SURROGATES] == changed


def test_real_lmsys_rows(real_data: Path) -> None:
    rows, cleaning = read_source(str(real_data / "lmsys" / "preferences.csv"))
    assert len(rows) == 1470
    assert np.bincount(rows.labels).tolist() == [512, 500, 458]
    assert cleaning.counts == {NULL_TURNS: 8}


def test_real_pandalm_rows(real_data: Path) -> None:
    rows, cleaning = read_source(str(real_data / "pandalm" / "testset-v1.json"))
    assert len(rows) == 999
    # Unanimous and two-to-one votes as counted in the file itself; no pair split its votes three ways.
    assert np.bincount(rows.labels).tolist() == [368 + 33 + 21, 426 + 36 + 10, 85 + 13 + 7]
    assert cleaning.counts == {BARE_VALUES: 6}
    assert rows.table.column("model_a").to_pylist()[:2] == ["bloom-7b", "bloom-7b"]
