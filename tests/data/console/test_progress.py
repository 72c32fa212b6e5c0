"""Off a terminal a long run writes a line a minute, and a short one none."""

from __future__ import annotations

import re

import pytest

from data.console import progress
from data.console.progress import Lines, progress_of_tokens, stage


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [0.0]
    monkeypatch.setattr(Lines, "_told", None)
    monkeypatch.setattr("data.console.progress.time.monotonic", lambda: now[0])
    return now


def test_a_line_a_minute_says_how_far_it_is_and_how_long_yet(clock, capsys):
    with stage("unit 2 of 4"):
        lines = Lines("llama, fold 1", 100, "steps", done=10)
        for step in range(11, 101):
            clock[0] += 2
            lines.tell(step, "loss 0.6931")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3
    assert re.fullmatch(
        r"\d\d:\d\d unit 2 of 4: llama, fold 1: 40 of 100 steps, loss 0\.6931, 2 min left", told[0]
    )
    assert told[1].endswith("70 of 100 steps, loss 0.6931, 60 s left")


@pytest.mark.parametrize(("unit", "many"), [("batch", "batches"), ("step", "steps"), ("it", "items")])
def test_many_of_a_unit_are_named_in_the_plural(clock, capsys, unit, many):
    for _ in progress.progress(range(4), "reading", unit=unit):
        clock[0] += 40
    assert f"of 4 {many}" in capsys.readouterr().err


def test_what_takes_less_than_a_minute_is_silent(clock, capsys):
    for _ in progress.progress(range(5), "reading"):
        clock[0] += 10
    assert capsys.readouterr().err == ""


def test_many_short_things_one_after_another_are_told_of_once_a_minute(clock, capsys):
    for rate in range(9):
        for _ in progress.progress(range(2), f"rate {rate}"):
            clock[0] += 10
    told = capsys.readouterr().err.splitlines()
    assert [line[6:12] for line in told] == ["rate 3", "rate 6"]


def test_loops_and_tokens_tell_too(clock, capsys):
    for _ in progress.progress(iter(range(5)), "reading", unit="rows"):
        clock[0] += 61
    list_of_rows = [[1, 2], [3]]
    for _ in progress_of_tokens(list_of_rows, "llama predicts", [200, 100]):
        clock[0] += 61
    told = [line[6:] for line in capsys.readouterr().err.splitlines()]
    assert told[0] == "reading: 1 rows"
    assert told[4] == "llama predicts: 200 of 300 tokens, 30 s left"


@pytest.mark.parametrize("why", ["terminal", "another process"])
def test_on_a_terminal_and_in_other_processes_there_are_no_lines(why, clock, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1" if why == "another process" else "0")
    monkeypatch.setattr("sys.stderr.isatty", lambda: why == "terminal")
    lines = Lines("reading", 10, "rows")
    clock[0] += 1000
    lines.tell(5)
    assert capsys.readouterr().err == ""
