"""The LMSYS competition's layout: lists of turns, one-hot winners, and every refusal names the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from source_files import LMSYS_HEADER, LMSYS_ROWS, write_csv, write_jsonl

from data.classes import PREFERENCE
from data.errors import UserError
from data.files import write_parquet
from data.sources.clean import NULL_TURNS, SURROGATES
from data.sources.read import read_source


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


def lists(i: int, **more: Any) -> dict[str, Any]:
    return {"id": i, "prompt": json.dumps([f"q{i}"]), "response_a": '["a"]', "response_b": '["b"]', **more}


@pytest.mark.parametrize(
    ("more", "labels"),
    [
        ([{"label": 1}, {"label": "winner_tie"}, {"label": None}], [1, 2, -1]),
        ([{"winner": "model_b"}, {"winner": "tie"}, {"winner": ""}], [1, 2, -1]),
        ([{}, {}, {}], [-1, -1, -1]),
        ([{"label_probs": [0, 0.5, 0.5]}, {"label_probs": None}, {}], [-1, -1, -1]),
    ],
)
def test_lists_of_turns_keep_the_label_they_have(tmp_path: Path, more: list, labels: list[int]) -> None:
    """The reader of the competition's lists once passed over every label but its three columns."""
    rows, _ = read_source(write_jsonl(tmp_path / "t.jsonl", [lists(i, **m) for i, m in enumerate(more)]))
    assert rows.table.column("prompt").to_pylist() == [["q0"], ["q1"], ["q2"]]
    assert rows.labels.tolist() == labels
    if "label_probs" in more[0]:
        assert rows.targets[0].tolist() == [0, 0.5, 0.5]


def test_a_prompt_in_brackets_is_no_list(tmp_path: Path) -> None:
    record = {"id": "1", "prompt": "[INST] hello [/INST]", "response_a": "a", "response_b": "b"}
    rows, _ = read_source(write_jsonl(tmp_path / "t.jsonl", [record]))
    assert rows.table.column("prompt").to_pylist() == [["[INST] hello [/INST]"]]


def test_real_lmsys_rows(real_data: Path) -> None:
    rows, cleaning = read_source(str(real_data / "lmsys" / "preferences.csv"))
    assert len(rows) == 1470
    assert np.bincount(rows.labels).tolist() == [512, 500, 458]
    assert cleaning.counts == {NULL_TURNS: 8}
