"""CSV, JSON and JSON-lines files: odd but good ones are read, whatever the size of the pieces."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import data.sources.text_files
from data.errors import UserError
from data.sources.open import open_table
from data.sources.text_files import open_csv, open_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def rows_of(path: Path) -> list[dict[str, Any]]:
    table = open_table(str(path))
    return [
        dict(zip(batch, cells, strict=True))
        for batch in table.batches()
        for cells in zip(*batch.values(), strict=True)
    ]


@given(
    st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=5),
    st.sampled_from([None, 1]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_a_json_list_read_element_by_element_is_the_list(
    tmp_path_factory: pytest.TempPathFactory, records: list, indent: int | None, encoding: str
) -> None:
    path = tmp_path_factory.mktemp("json") / "t.json"
    path.write_bytes(json.dumps(records, indent=indent, ensure_ascii=False).encode(encoding, "surrogatepass"))
    assert list(data.sources.text_files._list_of(path)) == records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1} {"a": 2}]', "row 1 .*a comma or the list's end is missing before it"),
        ('[{"a": 1}, ]', "row 1 .*Expecting value"),
        ('[{"a": 1}] x', "row 1 .*text follows the list's end"),
        ('[{"a": 1}', "row 1 .*a comma or the list's end is missing"),
        ("[", "row 0 .*Expecting value"),
        ('[{"a": 1, "a": 2}]', "row 0 .*the key a twice"),
        ("3", "expected a list of objects"),
        ("[3]", r"row 0 \(counted from 0\) is '3'"),
    ],
)
def test_a_damaged_json_list_is_named_with_its_row(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(UserError, match=message):
        rows_of(tmp_path / "t.json")


def test_the_objects_of_a_json_list_are_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps([{"id": i, "prompt": f"x{i}"} for i in range(100_000)]))
    tracemalloc.start()
    names, batches = open_json(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert names == ["id", "prompt"]
    assert peak < 3 * path.stat().st_size
    assert sum(len(batch["id"]) for batch in batches()) == 100_000


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_csv_keeps_text_as_it_is(tmp_path: Path, end: str) -> None:
    path = tmp_path / "t.CSV"
    lines = ["id,text", "007,NA", "", '1.0,"a,\nb ""c"""', 'null,say "hi"', " x ,"]
    path.write_bytes(end.join(lines).encode("utf-8-sig"))
    kept = [["007", "NA"], ["1.0", 'a,\nb "c"'], ["null", 'say "hi"'], [" x ", ""]]
    assert [list(row.values()) for row in rows_of(path)] == kept
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()[:20]) + gzip.compress(path.read_bytes()[20:]))
    assert rows_of(packed) == rows_of(path)


def test_csv_batches_are_of_the_stated_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.sources.text_files, "BATCH_ROWS", 3)
    path = tmp_path / "t.tsv"
    path.write_text("id\ttext\n" + "".join(f"{i}\t\n" for i in range(8)))
    _, batches = open_csv(path, "\t")
    assert [batch["id"] for batch in batches()] == [["0", "1", "2"], ["3", "4", "5"], ["6", "7"]]


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b" \n\n"])
def test_a_json_file_of_one_object_a_line_is_read_as_such(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "t.json").write_bytes(start + b'{"id": 1}\n{"id": 2, "x": null}\n')
    assert rows_of(tmp_path / "t.json") == [{"id": 1, "x": None}, {"id": 2, "x": None}]
