"""UltraFeedback: rated completions become pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from source_files import text, write_jsonl, write_parquet

from data.sources.clean import RATED_TIES, UNPAIRED
from data.sources.formats import SourceOptions
from data.sources.read import read_source


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


def test_instructions_without_a_pair_are_counted(tmp_path: Path) -> None:
    two = [completion("m", 1), completion("n", 2)]
    records = [{"instruction": f"i{n}", "completions": two[:n]} for n in (2, 1, 0)]
    rows, cleaning = read_source(write_jsonl(tmp_path / "t.jsonl", records))
    assert len(rows) == 1
    assert cleaning.counts[UNPAIRED] == 2
