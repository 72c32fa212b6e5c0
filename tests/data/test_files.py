"""Files: nothing is half-written, and damage is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError, listing
from data.files import (
    atomic_write,
    read_json,
    read_parquet,
    read_table,
    require_columns,
    sha256_files,
    sha256_text,
    write_json,
    write_parquet,
    write_text,
)
from data.shards import open_parquet


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail_half_way() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half of the ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    code = (
        "import sys, time; from pathlib import Path; from data.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


def test_readers_never_see_a_half_written_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    sizes = {100_000, 200_000}
    write_text(path, "x" * 100_000)
    pid = os.fork()
    if pid == 0:
        for i in range(100):
            write_text(path, "x" * (100_000 if i % 2 else 200_000))
        os._exit(0)
    seen = set()
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        seen.add(len(path.read_bytes()))
        time.sleep(0)
    assert seen
    assert seen <= sizes


def test_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="out: cannot be made a directory"):
        write_text(tmp_path / "out" / "file.txt", "text")


def test_json_round_trip_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": [1, "ü"]})
    assert read_json(path) == {"a": [1, "ü"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, float("nan"))
    assert read_json(path) == {"a": [1, "ü"]}
    path.write_text('{"a": [1,')
    with pytest.raises(UserError, match=r"value\.json: not valid JSON"):
        read_json(path)
    with pytest.raises(UserError, match=r"gone\.json: no such manifest"):
        read_json(tmp_path / "gone.json", "manifest")
    with pytest.raises(UserError, match="is a directory where a manifest was expected"):
        read_json(tmp_path, "manifest")


def test_parquet_cut_at_any_point_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    write_parquet(path, pa.table({"a": list(range(1000))}))
    assert read_parquet(path).num_rows == 1000
    whole = path.read_bytes()
    for cut in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"table\.parquet: not a readable Parquet file"):
            read_parquet(path)


def test_arrow_opens_parquet_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow's threads hold on to a Python handle; an interpreter that ends meanwhile aborts, status 134."""
    path = tmp_path / "rows.parquet"
    write_parquet(path, pa.table({"row_id": ["a", "b"]}))
    opened: list[object] = []
    monkeypatch.setattr("builtins.open", lambda *args, **kwargs: opened.append(args))
    table = read_parquet(path)
    with open_parquet(str(path)) as file:
        assert next(file.iter_batches()).num_rows == 2
    monkeypatch.undo()
    assert table.num_rows == 2
    assert not opened


def test_tables_of_every_kind_read_alike(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t.parquet", pa.table({"id": [1, 2], "text": ["a,b\nc", 'say "x"']}))
    (tmp_path / "t.csv").write_text('id,text\n1,"a,b\nc"\n2,"say ""x"""\n')
    (tmp_path / "t.jsonl").write_text('{"id": 1, "text": "a,b\\nc"}\n\n{"id": 2, "text": "say \\"x\\""}\n')
    expected = [{"id": 1, "text": "a,b\nc"}, {"id": 2, "text": 'say "x"'}]
    for name in ("t.parquet", "t.csv", "t.jsonl"):
        assert read_table(tmp_path / name).to_pylist() == expected


def test_csv_as_text_keeps_leading_zeros(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,n\n007,1\n008,\n")
    assert read_table(tmp_path / "t.csv", as_text=True).to_pylist() == [
        {"id": "007", "n": "1"},
        {"id": "008", "n": ""},
    ]
    assert read_table(tmp_path / "t.csv").column("id").to_pylist() == [7, 8]


def test_json_lines_keep_columns_the_first_line_lacks(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": 1}\n{"id": 2, "label": 0}\n')
    assert read_table(tmp_path / "t.jsonl").to_pylist() == [{"id": 1, "label": None}, {"id": 2, "label": 0}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "a,b\n1\n", "cannot be read as CSV"),
        ("t.csv", "a,a\n1,2\n", "a column name appears twice: a, a"),
        ("t.jsonl", '{"a": 1}\n{"a": ', "cannot be read as JSONL"),
        ("t.jsonl", "[1]\n", "cannot be read as JSONL"),
        ("t.jsonl", "1\n", "cannot be read as JSONL"),
        ("t.xls", "", "unknown kind of file"),
    ],
)
def test_damaged_tables_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_table(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_required_columns(tmp_path: Path) -> None:
    table = pa.table({"a": [1], "b": [2]})
    require_columns(table, ["a", "b"], "t")
    with pytest.raises(UserError, match="t: no column c, d; the file has a, b"):
        require_columns(table, ["a", "c", "d"], "t")


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=4), st.data())
def test_text_hash_tells_parts_apart(parts: list[str], data: st.DataObject) -> None:
    assert sha256_text(*parts) == sha256_text(*parts)
    if len(parts) > 1:
        i = data.draw(st.integers(0, len(parts) - 2))
        joined = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]
        assert sha256_text(*parts) != sha256_text(*joined)


def test_file_hash_sees_names_and_bytes(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("x")
    b.write_text("x")
    assert sha256_files([a]) != sha256_files([b])
    before = sha256_files([a])
    a.write_text("y")
    assert sha256_files([a]) != before


def test_listing_counts_what_it_leaves_out() -> None:
    assert listing([1, 2], 2) == "1, 2"
    assert listing(range(7), 5) == "0, 1, 2, 3, 4 and 2 more"
    assert listing(["not generated", "generated", "a,b", ""]) == "'not generated', generated, 'a,b', ''"
    assert listing(["not b (fold 1)"], names=False) == "not b (fold 1)"


def test_a_byte_changed_in_a_parquet_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    numbers = np.random.default_rng(0).random(500)
    write_parquet(path, pa.table({"x": numbers}))
    whole = path.read_bytes()
    assert read_parquet(path).column("x").to_pylist() == numbers.tolist()
    at = whole.index(numbers[100].tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(UserError, match=r"t\.parquet: not a readable Parquet file .*damaged"):
        read_parquet(path)
