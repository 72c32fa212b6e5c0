"""Files of every kind are opened, and damaged ones are named."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import arena_100k, write_jsonl

from data.errors import UserError
from data.sources.read import read_source


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", b'[{"idx": 1, "instr', r"t\.json: row 0 .* not valid JSON"),
        ("t.json", b"null", r"t\.json: expected a list of objects, one a row, or one object a line"),
        ("t.jsonl", b'{"id": 1, "prompt": "p"}\n{"id": 2, "pro', r"t\.jsonl: line 2: not valid JSON"),
        ("t.parquet", b"PAR1", r"t\.parquet: not a readable Parquet file"),
        ("t.csv", b"id,prompt\n", r"t\.csv: holds no rows"),
        ("t.csv", b"id,prompt\n1,\xff\n", r"t\.csv: cannot be read as CSV"),
        ("t.xls", b"x", r"t\.xls: unknown kind of file"),
    ],
)
def test_damaged_sources_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_source(str(tmp_path / name))


def test_missing_file_is_not_taken_for_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.csv: no such source file"):
        read_source("gone.csv")
    with pytest.raises(UserError, match="no such source file"):
        read_source(str(tmp_path / "gone"))


@pytest.mark.parametrize("source", ["", " ", "https://huggingface.co/datasets/a/b", "s3://bucket/t.csv"])
def test_what_is_neither_file_nor_name_is_said_to_be(source: str) -> None:
    with pytest.raises(UserError, match=r"source '.*': give a file, a directory, or the name of a data set"):
        read_source(source)


def test_values_that_python_has_no_type_for_are_no_obstacle(tmp_path: Path) -> None:
    when = pa.array([10**12, None], pa.timestamp("s"))  # far beyond the year 9999
    table = pa.table({"id": ["1", "2"], "prompt": ["p", "q"], "label": [0, 1], "when": when})
    pq.write_table(table, tmp_path / "t.parquet")
    assert len(read_source(str(tmp_path / "t.parquet"))[0]) == 2


def test_packed_files_read_like_plain_ones(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "t.jsonl", [arena_100k(i, "tie") for i in range(3)])
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(Path(source).read_bytes()))
    plain, _ = read_source(source)
    packed, _ = read_source(source + ".gz")
    assert packed.content_hash == plain.content_hash
    (tmp_path / "t.csv").write_text("id,prompt,label\n1,p,0\n2,q,1\n")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    assert (
        read_source(str(tmp_path / "t.csv"))[0].content_hash
        == read_source(str(tmp_path / "t.csv.gz"))[0].content_hash
    )
