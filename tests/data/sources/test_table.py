"""Any table through a column map: its columns, its classes, and what it is refused for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from source_files import write_csv, write_jsonl

from data.classes import PREFERENCE, PREFERENCE_NO_TIE, Classes
from data.errors import UserError
from data.files import write_parquet
from data.sources.clean import SURROGATES
from data.sources.formats import SourceOptions
from data.sources.read import read_source


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


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({"prompt": "p"}, {"ids": "column"}, "no column row_id or id among prompt; name one"),
        ({"id": 1, "words": "p"}, {}, "no column prompt among id, words"),
        ({"id": 1, "prompt": "p", "response_a": "a"}, {}, "has one of response_a and response_b"),
        ({"id": 1, "prompt": "p"}, {"columns": {"label": "y"}}, "no column y; it has id, prompt"),
        ({"id": 1, "prompt": "p"}, {"columns": {"labels": "y"}}, "no field labels in a row table"),
        ({"id": 1, "prompt": "p", "label": "u"}, {}, "labels show 1 classes, at least two"),
        ({"id": 1, "prompt": "p", "label": "w"}, {"classes": ("u", "v")}, "label w, none of the 2 classes"),
        ({"id": 1, "prompt": "p", "label": 2}, {"classes": ("u", "v")}, "label 2, .* count from 1"),
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


def test_a_pseudo_label_set_brings_its_soft_labels(tmp_path: Path) -> None:
    records = [
        {"id": f"u{i}", "prompt": "p", "response_a": "a", "response_b": "b", "probs": probs}
        for i, probs in enumerate([[0.7, 0.2, 0.1], None])
    ]
    source = write_jsonl(tmp_path / "t.jsonl", records)
    rows, _ = read_source(source, SourceOptions(columns={"label_probs": "probs"}))
    assert rows.labels.tolist() == [-1, -1]
    assert rows.targets[0].round(6).tolist() == [0.7, 0.2, 0.1]


def test_votes_written_as_floats_are_votes(tmp_path: Path) -> None:
    """A column with gaps turns whole numbers into floats, which a CSV keeps as 1.0."""
    names = PREFERENCE.names
    (tmp_path / "l.csv").write_text(
        f"id,prompt,response_a,response_b,{','.join(names)}\n"
        + '1,"[""p""]","[""a""]","[""b""]",0.0,0.0,1.0\n'
    )
    assert read_source(str(tmp_path / "l.csv"))[0].labels.tolist() == [2]
    (tmp_path / "t.csv").write_text(
        "id,prompt,response_a,response_b,label\n1,p,a,b,2.0\n2,q,a,b,\n3,r,a,b,0.0\n"
    )
    assert read_source(str(tmp_path / "t.csv"))[0].labels.tolist() == [2, -1, 0]
    vote = {"idx": 1, "instruction": "i", "response1": "a", "response2": "b", "annotator1": 1.0}
    (tmp_path / "p.json").write_text(json.dumps([vote]))
    assert read_source(str(tmp_path / "p.json"))[0].labels.tolist() == [0]


def test_empty_soft_labels_of_a_csv_are_none(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('id,prompt,label,label_probs\n1,p,a,"[0.25, 0.75]"\n2,q,b,\n')
    rows, _ = read_source(str(tmp_path / "t.csv"))
    assert rows.targets.tolist() == [[0.25, 0.75], [0, 1]]


def test_models_names_are_cleaned_like_texts(tmp_path: Path) -> None:
    record = {
        "id": "1",
        "prompt": "p",
        "response_a": "a",
        "response_b": "b",
        "model_a": "m\ud800",
        "model_b": 7,
    }
    rows, cleaning = read_source(write_jsonl(tmp_path / "t.jsonl", [record]))
    assert rows.table.select(["model_a", "model_b"]).to_pylist() == [{"model_a": "m\ufffd", "model_b": "7"}]
    assert cleaning.counts[SURROGATES] == 1
