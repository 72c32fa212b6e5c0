"""Published layouts, each on a small file in exactly its schema, read from files and through datasets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.schema import PREFERENCE, PREFERENCE_NO_TIE, write_rows
from data.sources.clean import BOTH_BAD, IMAGES, RATED_TIES, SURROGATES, UNANSWERED, UNPAIRED
from data.sources.read import SourceOptions, read_source


def text(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def parts(role: str, content: str) -> dict[str, Any]:
    """A message as the 140k set has it."""
    return {"role": role, "content": [{"type": "text", "text": content, "image": None, "mimeType": None}]}


def talk(*turns: str) -> list[dict[str, Any]]:
    return [text(("user", "assistant")[i % 2], content) for i, content in enumerate(turns)]


def arena_100k(i: int, winner: str) -> dict[str, Any]:
    return {
        "question_id": f"q{i}", "model_a": "gpt-4", "model_b": "claude", "winner": winner,
        "conversation_a": talk("Hi", "A1", "And?", "A2"), "conversation_b": talk("Hi", "B1", "And?", "B2"),
        "turn": 2, "anony": True, "language": "English", "tstamp": 1.5,
    }  # fmt: skip


def arena_140k(i: int, winner: str) -> dict[str, Any]:
    return {
        "id": f"v{i}", "model_a": "m", "model_b": "n", "winner": winner, "evaluation_session_id": "s",
        "evaluation_order": 1, "conversation_a": [parts("user", "Hi"), parts("assistant", "A")],
        "conversation_b": [parts("user", "Hi"), parts("assistant", "B")], "is_code": False,
    }  # fmt: skip


def write_parquet(path: Path, records: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(records), path)
    return str(path)


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.mark.parametrize("write", [write_parquet, write_jsonl])
def test_arena_100k(tmp_path: Path, write: Any) -> None:
    winners = ["model_a", "model_b", "tie", "tie (bothbad)"]
    records = [arena_100k(i, winner) for i, winner in enumerate(winners)]
    rows, cleaning = read_source(write(tmp_path / f"t.{write.__name__[6:]}", records))
    assert rows.classes == PREFERENCE
    assert rows.row_ids == ["q0", "q1", "q2", "q3"]
    assert rows.labels.tolist() == [0, 1, 2, 2]
    first = rows.table.to_pylist()[0]
    assert (first["prompt"], first["response_a"], first["response_b"]) == (
        ["Hi", "And?"],
        ["A1", "A2"],
        ["B1", "B2"],
    )
    assert (first["model_a"], first["model_b"]) == ("gpt-4", "claude")
    assert rows.table["both_bad"].to_pylist() == [False, False, False, True]
    assert cleaning.counts == {BOTH_BAD: 1}


@pytest.mark.parametrize("write", [write_parquet, write_jsonl])
def test_arena_140k(tmp_path: Path, write: Any) -> None:
    records = [arena_140k(i, winner) for i, winner in enumerate(["both_bad", "tie", "model_b"])]
    rows, _ = read_source(write(tmp_path / f"t.{write.__name__[6:]}", records))
    assert rows.labels.tolist() == [2, 2, 1]
    assert rows.table["both_bad"].to_pylist() == [True, False, False]
    assert rows.table["response_b"].to_pylist() == [["B"]] * 3


def test_conversations_with_system_images_and_missing_answers(tmp_path: Path) -> None:
    record = arena_140k(0, "model_a")
    picture = {"type": "image", "text": None, "image": "x.png", "mimeType": "image/png"}
    opening = [
        text("system", "Be brief."),
        {"role": "user", "content": [picture, {"type": "text", "text": "See?"}]},
    ]
    record["conversation_a"] = json.dumps([*opening, text("assistant", "yes"), text("user", "Sure?")])
    record["conversation_b"] = json.dumps(
        [*opening, text("assistant", "no"), text("assistant", "."), text("user", "Sure?")]
    )
    rows, cleaning = read_source(write_jsonl(tmp_path / "t.jsonl", [record]))
    (row,) = rows.table.to_pylist()
    assert row["prompt"] == ["Be brief.\n\nSee?", "Sure?"]
    assert (row["response_a"], row["response_b"]) == (["yes", ""], ["no\n\n.", ""])
    assert cleaning.counts == {IMAGES: 2, UNANSWERED: 2}


def test_wsdm_cup(tmp_path: Path) -> None:
    records = [
        {"id": f"h{i}", "prompt": "[not a list", "response_a": "a", "response_b": "b", "winner": winner,
         "model_a": "m", "model_b": "n", "language": "English"}
        for i, winner in enumerate(["model_a", "model_b"])
    ]  # fmt: skip
    rows, _ = read_source(write_parquet(tmp_path / "train.parquet", records))
    assert rows.classes == PREFERENCE_NO_TIE
    assert rows.labels.tolist() == [0, 1]
    assert rows.table["prompt"].to_pylist() == [["[not a list"]] * 2
    unlabelled = [{name: r[name] for name in ("id", "prompt", "response_a", "response_b")} for r in records]
    test, _ = read_source(write_parquet(tmp_path / "test.parquet", unlabelled), SourceOptions(format="wsdm"))
    assert test.classes == PREFERENCE_NO_TIE
    assert test.labels.tolist() == [-1, -1]


def completion(model: str, score: Any) -> dict[str, Any]:
    return {"model": model, "response": f"by {model}", "overall_score": score, "critique": "c"}


@pytest.mark.parametrize(("margin", "labels"), [(0.0, {0: 5, 2: 1}), (1.0, {0: 2, 2: 4})])
def test_ultrafeedback_pairs_and_ties_within_a_margin(tmp_path: Path, margin: float, labels: dict) -> None:
    scores = {"a": 9.0, "b": 8.5, "c": 7.5, "d": 7.5}
    record = {
        "source": "evol", "instruction": "Do it.", "models": list(scores),
        "completions": [completion(model, score) for model, score in scores.items()],
    }  # fmt: skip
    rows, cleaning = read_source(
        write_parquet(tmp_path / "t.parquet", [record]), SourceOptions(margin=margin)
    )
    assert rows.row_ids == ["0-0-1", "0-0-2", "0-0-3", "0-1-2", "0-1-3", "0-2-3"]
    assert cleaning.counts == {RATED_TIES: labels[2]}
    decided = 0
    for row in rows.table.to_pylist():
        a, b = (scores[row[f"model_{side}"]] for side in "ab")
        assert row["response_a"] == [f"by {row['model_a']}"]
        assert row["label"] == (2 if abs(a - b) <= margin else int(a < b))
        decided += row["label"] != 2
    assert decided == labels[0]


def test_binarized_ultrafeedback_does_not_always_put_the_winner_first(tmp_path: Path) -> None:
    records = [
        {
            "prompt": f"p{i}", "prompt_id": f"id{i}",
            "chosen": [text("user", f"p{i}"), text("assistant", "good")],
            "rejected": [text("user", f"p{i}"), text("assistant", "bad")],
            "messages": [], "score_chosen": 8.0, "score_rejected": 3.0,
        }
        for i in range(40)
    ]  # fmt: skip
    rows, _ = read_source(write_jsonl(tmp_path / "t.jsonl", records))
    for row in rows.table.to_pylist():
        assert row[("response_a", "response_b")[row["label"]]] == ["good"]
    assert 8 <= (rows.labels == 0).sum() <= 32
    again, _ = read_source(write_jsonl(tmp_path / "u.jsonl", records))
    assert again.labels.tolist() == rows.labels.tolist()


def test_a_pseudo_label_set_brings_its_soft_labels(tmp_path: Path) -> None:
    records = [
        {"id": f"u{i}", "prompt": "p", "response_a": "a", "response_b": "b", "probs": probs}
        for i, probs in enumerate([[0.7, 0.2, 0.1], None])
    ]
    source = write_jsonl(tmp_path / "t.jsonl", records)
    rows, _ = read_source(source, SourceOptions(columns={"label_probs": "probs"}))
    assert rows.labels.tolist() == [-1, -1]
    assert rows.targets[0].round(6).tolist() == [0.7, 0.2, 0.1]


def test_a_directory_of_parquet_files_and_streaming(tmp_path: Path) -> None:
    home = tmp_path / "arena-human-preference-100k"
    home.mkdir()
    write_parquet(home / "train-0.parquet", [arena_100k(0, "tie")])
    write_parquet(home / "train-1.parquet", [arena_100k(1, "model_b")])
    for streaming in (False, True):
        rows, _ = read_source(str(home), SourceOptions(streaming=streaming))
        assert rows.row_ids == ["q0", "q1"]
        assert rows.labels.tolist() == [2, 1]
        assert set(rows.table["source"].to_pylist()) == {"arena-human-preference-100k"}


def test_packed_files_read_like_plain_ones(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "t.jsonl", [arena_100k(i, "tie") for i in range(3)])
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(Path(source).read_bytes()))
    plain, _ = read_source(source)
    packed, _ = read_source(source + ".gz")
    assert packed.content_hash == plain.content_hash
    (tmp_path / "t.csv").write_text("id,prompt,label\n1,p,0\n2,q,1\n")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    assert (
        read_source(str(tmp_path / "t.csv"))[0].content_hash
        == read_source(str(tmp_path / "t.csv.gz"))[0].content_hash
    )


def test_batches_and_scratch_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import data.sources.text_files

    records = [{"id": f"r{i}", "prompt": f"p{i}", "label": "xyz"[i % 3] if i else None} for i in range(50)]
    source = write_jsonl(tmp_path / "t.jsonl", records)
    whole, _ = read_source(source)
    monkeypatch.setattr(data.sources.text_files, "BATCH_ROWS", 7)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for kept in (None, scratch):
        for options, n in ((SourceOptions(), 50), (SourceOptions(limit=17), 17)):
            rows, _ = read_source(source, options, kept)
            assert rows.content_hash == whole.take(list(range(n))).content_hash
    assert len(list(scratch.iterdir())) == 2


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


def test_a_prompt_in_brackets_is_no_list(tmp_path: Path) -> None:
    record = {"id": "1", "prompt": "[INST] hello [/INST]", "response_a": "a", "response_b": "b"}
    rows, _ = read_source(write_jsonl(tmp_path / "t.jsonl", [record]))
    assert rows.table.column("prompt").to_pylist() == [["[INST] hello [/INST]"]]


def test_empty_soft_labels_of_a_csv_are_none(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('id,prompt,label,label_probs\n1,p,a,"[0.25, 0.75]"\n2,q,b,\n')
    rows, _ = read_source(str(tmp_path / "t.csv"))
    assert rows.targets.tolist() == [[0.25, 0.75], [0, 1]]


def test_instructions_without_a_pair_are_counted(tmp_path: Path) -> None:
    two = [completion("m", 1), completion("n", 2)]
    records = [{"instruction": f"i{n}", "completions": two[:n]} for n in (2, 1, 0)]
    rows, cleaning = read_source(write_jsonl(tmp_path / "t.jsonl", records))
    assert len(rows) == 1
    assert cleaning.counts[UNPAIRED] == 2


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


def test_a_row_table_given_as_a_file_keeps_its_classes(tmp_path: Path) -> None:
    """As a plain table its texts would have become pairs without responses, its classes preferences."""
    records = [{"id": i, "prompt": f"p{i}", "label": "xyz"[i % 3]} for i in range(6)]
    rows, _ = read_source(write_jsonl(tmp_path / "t.jsonl", records))
    write_rows(tmp_path / "kept.parquet", rows)
    again, _ = read_source(str(tmp_path / "kept.parquet"))
    assert again.classes == rows.classes
    assert again.content_hash == rows.content_hash


def test_models_that_cannot_be_told_apart_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches with and without model columns once could not be joined."""
    import data.sources.text_files

    monkeypatch.setattr(data.sources.text_files, "BATCH_ROWS", 1)
    record = {"instruction": "i", "input": 0, "response1": "a", "response2": "b"}
    keys = ["opt-7b_llama-7b", "my_model_llama-7b"]
    records = [{"idx": i, "cmp_key": key, **record} for i, key in enumerate(keys)]
    (tmp_path / "scratch").mkdir()
    rows, _ = read_source(write_jsonl(tmp_path / "t.jsonl", records), scratch=tmp_path / "scratch")
    assert rows.table.column("model_a").to_pylist() == ["opt-7b", None]
    assert rows.table.column("prompt").to_pylist() == [["i\n\n0"]] * 2
