"""What the pretrained models' chain carries between machines, and how it scores."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import pretrained_parts
from benchmarks.pretrained_parts import collect, restore
from benchmarks.pretrained_scores import Judge, calibration_error
from data.classes import PREFERENCE
from data.schema import make_rows


def test_a_home_travels_in_parts_without_the_teachers_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    weights = os.urandom(5000)
    kept = ["recipe.yaml", "data/teacher/oof.parquet", "data/student/final/adapter/weights"]
    dropped = [
        "data/teacher/fold-0/adapter/weights",
        "data/student/fold-0/checkpoint-20/weights",
        "data/backbones/first-2/weights",
        "exported/weights",
    ]
    for name in (*kept, *dropped):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(weights)
    monkeypatch.setattr(pretrained_parts, "PART_BYTES", 2000)
    parts = tmp_path / "parts"
    parts.mkdir()
    made = collect(home, parts)
    assert len(made) > 1
    assert all(path.stat().st_size <= 2000 for path in made)
    restore(made[::-1], tmp_path / "there")
    found = sorted(str(path.relative_to(tmp_path / "there")) for path in (tmp_path / "there").rglob("*"))
    assert [name for name in found if (tmp_path / "there" / name).is_file()] == sorted(kept)
    assert (tmp_path / "there" / kept[-1]).read_bytes() == weights


def test_a_judge_scores_by_debate_and_the_sides_alone_on_strict_rows() -> None:
    columns = {
        "row_id": list("abcd"),
        "prompt": [["p"], ["p"], ["q"], ["q"]],
        "response_a": [["x"]] * 4,
        "response_b": [["y"]] * 4,
        "label": [0, 1, 0, 2],
    }
    rows = make_rows(columns, PREFERENCE, "test")
    judge = Judge(rows, np.array(["p", "p", "q", "q"]), np.array([True, True, True, False]))
    probs = np.array([[0.7, 0.2, 0.1], [0.2, 0.3, 0.5], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])
    even = np.full((4, 3), 1 / 3)
    score = judge.score(probs, even)
    assert score["accuracy"] == pytest.approx(2 / 4)
    assert score["strict"] == pytest.approx(2 / 3)
    assert score["log_loss"] == pytest.approx(-np.log([0.7, 0.3, 0.1, 0.6]).mean())
    assert score["gap"] == pytest.approx(score["log_loss"] - np.log(3))
    assert score["gap_debates"] == 1
    assert score["gap_ci"][0] <= score["gap"] <= score["gap_ci"][1]


def test_calibration_error_is_the_gap_between_sureness_and_hits() -> None:
    probs = np.tile([0.8, 0.1, 0.1], (30, 1))
    assert calibration_error(probs, np.zeros(30, dtype=int)) == pytest.approx(0.2)
    assert calibration_error(probs, np.ones(30, dtype=int)) == pytest.approx(0.8)
