"""Formats register themselves by name; an unknown name is refused with the list."""

from __future__ import annotations

from pathlib import Path

import pytest
from source_files import arena_100k, write_jsonl

from data.classes import PREFERENCE
from data.errors import UserError
from data.schema import Rows, make_rows
from data.sources.formats import FORMATS, SourceOptions, current_name, source_format
from data.sources.open import Columns
from data.sources.place import Place
from data.sources.read import read_source


def test_a_new_format_needs_no_line_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "quiz", FORMATS["table"])  # so that it is gone again after the test

    @source_format("quiz", lambda table: {"q", "good", "bad"} <= set(table.names))
    def read_quiz(columns: Columns, place: Place) -> Rows:
        ids = [str(place.start + i) for i in range(len(columns["q"]))]
        texts = {"prompt": "q", "response_a": "good", "response_b": "bad"}
        out = {**place.begin(ids), "label": [0] * len(ids)}
        out |= {name: place.turns(columns, ids, theirs) for name, theirs in texts.items()}
        return make_rows(out, PREFERENCE, place.where)

    source = write_jsonl(tmp_path / "t.jsonl", [{"q": "why", "good": "so", "bad": "no"}])
    for options in (SourceOptions(), SourceOptions(format="quiz")):
        rows, _ = read_source(source, options)
        assert rows.table["response_a"].to_pylist() == [["so"]]
    with pytest.raises(UserError, match="is read as quiz, where --classes has no meaning"):
        read_source(source, SourceOptions(format="quiz", classes=("a", "b")))


def test_unknown_names_are_refused_with_the_list_and_earlier_ones_understood(tmp_path: Path) -> None:
    known = "auto, candidates, chosen, lmarena, lmsys, map, pandalm, table, ultrafeedback, wsdm"
    with pytest.raises(UserError, match=f"format xml is unknown; choose one of {known}$"):
        current_name("xml")
    source = write_jsonl(tmp_path / "t.jsonl", [arena_100k(0, "tie")])
    contents = {
        read_source(source, SourceOptions(format=name))[0].content_hash for name in ("arena", "lmarena")
    }
    assert len(contents) == 1
