"""Small source files in exactly the schemas of published sets."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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


def write_parquet(path: Path, records: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(records), path)
    return str(path)


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
