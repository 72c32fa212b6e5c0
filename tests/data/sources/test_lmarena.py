"""The LMArena sets of conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from source_files import arena_100k, parts, text, write_jsonl, write_parquet

from data.classes import PREFERENCE
from data.sources.clean import BOTH_BAD, IMAGES, UNANSWERED
from data.sources.read import read_source


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


def arena_140k(i: int, winner: str) -> dict[str, Any]:
    return {
        "id": f"v{i}", "model_a": "m", "model_b": "n", "winner": winner, "evaluation_session_id": "s",
        "evaluation_order": 1, "conversation_a": [parts("user", "Hi"), parts("assistant", "A")],
        "conversation_b": [parts("user", "Hi"), parts("assistant", "B")], "is_code": False,
    }  # fmt: skip


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
