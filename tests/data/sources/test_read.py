"""Sources of any format are read batch by batch; a row table of our own is one too."""

from __future__ import annotations

from pathlib import Path

import pytest
from source_files import LMSYS_HEADER, LMSYS_ROWS, write_csv, write_jsonl

from data.schema import write_rows
from data.sources.formats import SourceOptions
from data.sources.read import read_source


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


def test_our_own_row_table_is_a_source_too(tmp_path: Path) -> None:
    rows, _ = read_source(write_csv(tmp_path / "train.csv", LMSYS_HEADER, LMSYS_ROWS))
    write_rows(tmp_path / "made" / "rows.parquet", rows)
    again, _ = read_source(str(tmp_path / "made"))
    assert again.content_hash == rows.content_hash


def test_a_row_table_given_as_a_file_keeps_its_classes(tmp_path: Path) -> None:
    """As a plain table its texts would have become pairs without responses, its classes preferences."""
    records = [{"id": i, "prompt": f"p{i}", "label": "xyz"[i % 3]} for i in range(6)]
    rows, _ = read_source(write_jsonl(tmp_path / "t.jsonl", records))
    write_rows(tmp_path / "kept.parquet", rows)
    again, _ = read_source(str(tmp_path / "kept.parquet"))
    assert again.classes == rows.classes
    assert again.content_hash == rows.content_hash
