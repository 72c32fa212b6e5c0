"""How units that run elsewhere are shown, and what is kept of it."""

from __future__ import annotations

import json

import pytest

from distill.cluster.board import FAILED, FINISHED, RUNNING, Board


def test_the_board_counts_keeps_and_estimates(tmp_path, monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    board = Board(["a/fold-0", "a/fold-1", "b/fold-0"], tmp_path / "units" / "teacher_oof")
    board.update({"a/fold-0": {"where": "n1:7", "starts": 1, "step": 10, "steps": 100, "loss": 1.25}})
    now[0] += 60
    board.update({"a/fold-0": {"where": "n1:7", "starts": 1, "step": 40, "steps": 100, "loss": 1.05}})
    line = board.lines["a/fold-0"]
    assert line.state == RUNNING
    assert line.time_left(now[0]) == pytest.approx(120)
    # Started again elsewhere from a checkpoint: the rate is that of the new attempt alone.
    now[0] += 100
    board.update({"a/fold-0": {"where": "n2:9", "starts": 2, "step": 20, "steps": 100}})
    assert board.lines["a/fold-0"].time_left(now[0]) is None
    assert "running, start 2" in board.table()
    board.end("a/fold-0", FINISHED)
    board.end("a/fold-1", FAILED, "the loss is nan")
    board.stop()
    board.show()
    assert board.counts() == "1 finished, 1 failed, 1 stopped"
    assert [line.unit for line in board.failures()] == ["a/fold-1"]
    kept = json.loads((tmp_path / "units" / "teacher_oof.json").read_text())
    assert [line["state"] for line in kept] == ["finished", "failed", "stopped"]
    assert kept[1]["message"] == "the loss is nan"
    assert "20 of 100" in (tmp_path / "units" / "teacher_oof.txt").read_text()
    assert "a/fold-1: failed, not started: the loss is nan" in capsys.readouterr().err
    assert "… and 2 more" in board.table(most=1)


def test_the_board_redraws_itself_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("distill.cluster.board.is_terminal", lambda: True)
    board = Board(["a/fold-0", "a/fold-1"], tmp_path / "units" / "x")
    board.show()
    board.show()
    board.clear()
    drawn = capsys.readouterr().err
    assert drawn.count("a/fold-1") == 2
    assert drawn.count("\x1b[5A") == 2  # header, rule, two units and the counts are overwritten, then removed
