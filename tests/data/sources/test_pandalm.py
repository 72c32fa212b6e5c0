"""PandaLM's votes become soft and hard labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_files import write_jsonl

from data.errors import UserError
from data.sources.clean import BARE_VALUES, TIED_VOTES
from data.sources.read import read_source


def pandalm(idx: int, votes: tuple[Any, Any, Any], **changes: Any) -> dict[str, Any]:
    return {
        "idx": idx, "motivation_app": "Gmail", "cmp_key": "bloom-7b_llama-7b", "instruction": f"Do {idx}.",
        "input": "", "response1": "one", "response2": "two",
        **{f"annotator{i}": vote for i, vote in enumerate(votes, start=1)}, **changes,
    }  # fmt: skip


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


def test_real_pandalm_rows(real_data: Path) -> None:
    rows, cleaning = read_source(str(real_data / "pandalm" / "testset-v1.json"))
    assert len(rows) == 999
    # Unanimous and two-to-one votes as counted in the file itself; no pair split its votes three ways.
    assert np.bincount(rows.labels).tolist() == [368 + 33 + 21, 426 + 36 + 10, 85 + 13 + 7]
    assert cleaning.counts == {BARE_VALUES: 6}
    assert rows.table.column("model_a").to_pylist()[:2] == ["bloom-7b", "bloom-7b"]
