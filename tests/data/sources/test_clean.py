"""What cleaning changes is counted."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from data.sources.clean import NULL_TURNS, SURROGATES, Cleaning, clean_turns
from data.sources.read import read_source


def test_json_lines_keep_lone_surrogates_out(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(
        '{"id": "a", "prompt": "x \\udc00", "label": "u"}\n{"id": "b", "label": "v"}'
    )
    rows, cleaning = read_source(str(tmp_path / "t.jsonl"))
    assert rows.table.column("prompt").to_pylist() == [["x \ufffd"], [""]]
    assert cleaning.counts == {SURROGATES: 1, NULL_TURNS: 1}


@given(st.lists(st.none() | st.text(st.characters(exclude_characters="\x00"))))
def test_cleaned_turns_are_utf8_and_every_change_is_counted(turns: list[str | None]) -> None:
    cleaning = Cleaning()
    cleaned = clean_turns(turns, cleaning, "here")
    "".join(cleaned).encode("utf-8")
    assert len(cleaned) == len(turns)
    assert cleaning.counts[NULL_TURNS] == turns.count(None)
    changed = sum(
        a != b for old, new in zip(turns, cleaned, strict=True) for a, b in zip(old or "", new, strict=True)
    )
    assert cleaning.counts[SURROGATES] == changed
