"""Files as people have them, each through the command: what is read, what is said, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data.dataset import columns_of, load_prepared
from data.errors import UserError
from data.folds import Folds
from data.prepare import main
from data.schema import Rows
from data.sources.read import read_source
from tests.helpers.source_files import write_csv, write_jsonl

WORDS = [
    "river",
    "stone",
    "candle",
    "harbor",
    "train",
    "engine",
    "garden",
    "silver",
    "apple",
    "forest",
    "paper",
    "monkey",
]


def words(i: int, n: int = 9) -> str:
    return " ".join(np.random.default_rng(i).choice(WORDS, n)) + f" {i}"


def prepared(tmp_path: Path, source: str, *options: str) -> tuple[Rows, Folds, dict]:
    out = tmp_path / "out"
    main(["--source", source, "--out", str(out), "--folds", "3", *options])
    rows, folds = load_prepared(out)
    return rows, folds, json.loads((out / "manifest.json").read_text())


def table(tmp_path: Path, labels: list[str], name: str = "t.csv") -> str:
    rows = [[f"r{i}", words(i), label] for i, label in enumerate(labels)]
    return write_csv(tmp_path / name, ["id", "prompt", "label"], rows)


def pairs(tmp_path: Path, labels: list[str], as_lists: bool = False) -> str:
    texts = [[words(3 * i + k) for k in range(3)] for i in range(len(labels))]
    cells = [[json.dumps([text]) if as_lists else text for text in row] for row in texts]
    rows = [[str(i), *row, label] for i, (row, label) in enumerate(zip(cells, labels, strict=True))]
    return write_csv(tmp_path / "p.csv", ["id", "prompt", "response_a", "response_b", "label"], rows)


@pytest.mark.parametrize("as_lists", [False, True])
def test_labels_of_a_pair_that_count_from_1_are_refused(tmp_path: Path, as_lists: bool) -> None:
    source = pairs(tmp_path, ["1", "2"] * 6, as_lists)
    with pytest.raises(UserError, match=r"none is 0.*--classes"):
        prepared(tmp_path, source)
    assert not (tmp_path / "out").exists()


def test_named_classes_count_from_where_they_do(tmp_path: Path) -> None:
    rows, _, _ = prepared(tmp_path, pairs(tmp_path, ["1", "2"] * 6), "--classes", "1,2")
    assert rows.labels.tolist() == [0, 1] * 6
    assert rows.classes.swap == (1, 0)


def test_a_stray_label_is_refused_as_the_stack_refuses_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row r7 has label 0, none of the 3 classes"):
        prepared(tmp_path, table(tmp_path, [*"1231231", "0", *"123"]), "--classes", "1,2,3")


def test_classes_called_as_columns_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"t.csv: class name id is that of a column"):
        prepared(tmp_path, table(tmp_path, ["id", "en", "fr"] * 4))


def test_shares_in_the_winner_columns_are_soft_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = ["id", "prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"]
    votes = [["0.384", "0.079", "0.536"], ["1", "0", "0"], ["0.5", "0.501", "0"], ["", "", ""]] * 3
    rows = [
        [str(i), *(json.dumps([words(3 * i + k)]) for k in range(3)), *vote] for i, vote in enumerate(votes)
    ]
    found, _, _ = prepared(tmp_path, write_csv(tmp_path / "t.csv", header, rows))
    np.testing.assert_allclose(found.targets[0], np.array([0.384, 0.079, 0.536]) / 0.999, rtol=1e-6)
    assert found.targets[1].tolist() == [1, 0, 0]
    assert found.labels.tolist()[:4] == [2, 0, 1, -1]
    shown = capsys.readouterr().out
    assert "6 rows whose winner columns hold shares, kept as soft labels" in shown
    assert "3 rows without a label have folds too" in shown


def test_one_hot_winners_alone_make_no_soft_labels(tmp_path: Path) -> None:
    header = ["id", "prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"]
    rows = [[str(i), words(i), "a", "b", "0", "True", "false"] for i in range(9)]
    found, _, _ = prepared(tmp_path, write_csv(tmp_path / "t.csv", header, rows))
    assert "label_probs" not in found.table.column_names
    assert found.labels.tolist() == [1] * 9
    assert found.table.column("prompt").to_pylist()[0] == [words(0)]


def test_lists_in_a_tables_texts_are_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [[json.dumps([words(i), "more"]), "ab"[i % 2]] for i in range(9)]
    found, _, _ = prepared(tmp_path, write_csv(tmp_path / "t.csv", ["prompt", "label"], rows))
    assert found.table.column("prompt").to_pylist()[0] == [words(0), "more"]
    assert "9 cells of JSON lists read as lists of turns" in capsys.readouterr().out


def test_answers_under_one_long_question_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = [" ".join(words(1000 + 10 * q + k) for k in range(9)) for q in range(2)]
    rows = [[str(i), f"Question: {questions[i % 2]}\nAnswer: {words(i, 4)}", "ab"[i % 2]] for i in range(40)]
    _, folds, _ = prepared(tmp_path, write_csv(tmp_path / "t.csv", ["id", "prompt", "label"], rows))
    assert len(set(folds.group_ids)) > 20
    assert "40 prompts share most of their text with many others" in capsys.readouterr().out


def test_rewordings_under_one_question_stay_together(tmp_path: Path) -> None:
    question = " ".join(words(1000 + k) for k in range(9))
    rows = [[str(i), f"{question} {words(i // 2, 12)}{'.' * (i % 2)}", "ab"[i % 2]] for i in range(40)]
    _, folds, _ = prepared(tmp_path, write_csv(tmp_path / "t.csv", ["id", "prompt", "label"], rows))
    fold, groups = folds.fold.tolist(), folds.group_ids
    assert all(groups[i] == groups[i + 1] and fold[i] == fold[i + 1] for i in range(0, 40, 2))


@pytest.mark.parametrize(("k", "kind"), [(65, "int8"), (127, "int8"), (150, "int16"), (5000, "int16")])
def test_thousands_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str], k: int, kind: str) -> None:
    source = table(tmp_path, [f"c{i % k:05d}" for i in range(2 * k)])
    rows, folds, manifest = prepared(tmp_path, source, "--near", "off")
    assert rows.classes.n == k == len(manifest["classes"])
    assert str(rows.table.schema.field("label").type) == kind
    assert rows.labels.tolist() == [i % k for i in range(2 * k)]
    assert np.bincount(folds.fold).min() > k / 2
    assert f"{k - 8:,} rarer classes are not shown" in capsys.readouterr().out


def test_a_missing_label_is_no_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, _, _ = prepared(tmp_path, table(tmp_path, ["x", "y", "nan", "NA"] * 4))
    assert rows.classes.names == ("x", "y")
    assert "8 labels such as nan, NA or none read as missing" in capsys.readouterr().out


def test_a_class_that_a_folds_training_lacks_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(tmp_path, table(tmp_path, ["rare", *"ab" * 10]))
    assert "note: 1 classes have all their rows in one fold, whose training lacks them: rare (fold" in (
        capsys.readouterr().out
    )


def test_a_text_and_a_label_without_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_csv(tmp_path / "t.csv", ["text", "target"], [[words(i), "ab"[i % 2]] for i in range(12)])
    rows, _, manifest = prepared(tmp_path, source)
    assert rows.row_ids[:2] == ["0", "1"]
    assert manifest["columns"] == {"t.csv": {"prompt": "text", "label": "target"}}
    assert columns_of(tmp_path / "out") == {"prompt": "text", "label": "target"}
    shown = capsys.readouterr().out
    assert "rows numbered from 0" in shown
    assert "column text read as prompt" in shown


@pytest.mark.parametrize(
    ("name", "ids"), [("Id", True), ("essay_id", True), ("textID", True), ("user_id", False)]
)
def test_a_column_of_ids_is_known_by_its_name_where_none_repeats(
    tmp_path: Path, name: str, ids: bool
) -> None:
    rows = [[f"e{i if ids else i % 3}", words(i), "ab"[i % 2]] for i in range(12)]
    found, _, manifest = prepared(tmp_path, write_csv(tmp_path / "t.csv", [name, "prompt", "label"], rows))
    assert found.row_ids[1] == ("e1" if ids else "1")
    assert read_source(str(tmp_path / "t.csv"))[0].id_name == (name if ids else "id")
    assert manifest["columns"]["t.csv"].get("row_id") == (name if ids else None)


@pytest.mark.parametrize("mark", [";", "\t"])
def test_cells_between_semicolons_or_tabs(tmp_path: Path, mark: str) -> None:
    lines = [
        mark.join(["id", "prompt", "label"]),
        *(mark.join([str(i), f"{words(i)}, so", "ab"[i % 2]]) for i in range(9)),
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    rows, _, _ = prepared(tmp_path, str(tmp_path / "t.csv"))
    assert rows.table.column("prompt").to_pylist()[0] == [f"{words(0)}, so"]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


CHOSEN = {
    "texts": lambda i: {"prompt": words(i), "chosen": f"good {i}", "rejected": f"bad {i}"},
    "messages": lambda i: {
        "prompt": [user(words(i))],
        "chosen": [assistant(f"good {i}")],
        "rejected": [assistant(f"bad {i}")],
    },
    "whole conversations": lambda i: {
        "chosen": [user(words(i)), assistant(f"good {i}")],
        "rejected": [user(words(i)), assistant(f"bad {i}")],
    },
    "a text and messages": lambda i: {
        "prompt": words(i),
        "chosen": [user(words(i)), assistant(f"good {i}")],
        "rejected": [user(words(i)), assistant(f"bad {i}")],
    },
    "messages as JSON": lambda i: {
        "prompt": json.dumps([user(words(i))]),
        "chosen": json.dumps([assistant(f"good {i}")]),
        "rejected": json.dumps([assistant(f"bad {i}")]),
    },
}


@pytest.mark.parametrize("layout", CHOSEN)
def test_chosen_and_rejected_become_pairs_with_sides_by_lot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    rows, _, _ = prepared(tmp_path, write_jsonl(tmp_path / "t.jsonl", [CHOSEN[layout](i) for i in range(40)]))
    sides = [rows.table.column(name).to_pylist() for name in ("response_a", "response_b")]
    better = [sides[label][i] for i, label in enumerate(rows.labels.tolist())]
    assert better == [[f"good {i}"] for i in range(40)]
    assert rows.table.column("prompt").to_pylist() == [[words(i)] for i in range(40)]
    assert 8 < rows.labels.sum() < 32
    assert "which of them stands first by a hash of the row's id" in capsys.readouterr().out


def test_ids_of_a_prompt_with_several_pairs_are_no_row_ids(tmp_path: Path) -> None:
    records = [{"prompt_id": f"p{i % 6}", **CHOSEN["texts"](i % 6), "chosen": f"good {i}"} for i in range(12)]
    rows, _, _ = prepared(tmp_path, write_jsonl(tmp_path / "t.jsonl", records))
    assert rows.row_ids == [str(i) for i in range(12)]


def test_conversations_written_as_one_text(tmp_path: Path) -> None:
    begin = "\n\nHuman: {}\n\nAssistant:"
    records = [
        {"chosen": begin.format(words(i)) + " good", "rejected": begin.format(words(i)) + " good grief"}
        for i in range(12)
    ]
    rows, _, _ = prepared(tmp_path, write_jsonl(tmp_path / "t.jsonl", records))
    assert rows.table.column("prompt").to_pylist()[0] == [begin.format(words(0)).strip()]
    first, second = (rows.table.column(name).to_pylist() for name in ("response_a", "response_b"))
    assert {first[0][0], second[0][0]} == {"good", "good grief"}
    records[3] = {"chosen": "one", "rejected": "two"}
    with pytest.raises(UserError, match="row 3 has no prompt"):
        prepared(tmp_path / "other", write_jsonl(tmp_path / "t.jsonl", records))
