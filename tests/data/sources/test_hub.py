"""Data sets through the library: directories, saved ones, names on the hub."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import arena_100k, write_parquet

from data.errors import UserError
from data.sources.formats import SourceOptions
from data.sources.read import read_source


def test_unknown_data_set_is_a_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("cannot reach the hub\nmore detail")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(
        UserError, match=r"nobody/no-such-set: .* \(split train\): cannot reach the hub; check"
    ):
        read_source("nobody/no-such-set")


def test_a_directory_of_csv_files_keeps_its_text(tmp_path: Path) -> None:
    """The library would read 007 as 7 and NA as missing, and fail on a test file without the label."""
    (tmp_path / "train.csv").write_text("id,prompt,label\n007,NA,a\n1.0,12,b\n")
    (tmp_path / "test.csv").write_text("id,prompt\nt1,hello\n")
    rows, cleaning = read_source(str(tmp_path))
    assert rows.row_ids == ["007", "1.0"]
    assert rows.table.column("prompt").to_pylist() == [["NA"], ["12"]]
    assert cleaning.lines() == ["nothing was changed"]
    rows, _ = read_source(str(tmp_path), SourceOptions(split="test", classes=("a", "b")))
    assert rows.row_ids == ["t1"]
    with pytest.raises(UserError, match="no split dev; it has train, test"):
        read_source(str(tmp_path), SourceOptions(split="dev"))
    (tmp_path / "train.csv").rename(tmp_path / "train-0.csv")
    (tmp_path / "train-1.csv").write_text("id,prompt,label\n9,x,a\n")
    assert read_source(str(tmp_path))[0].row_ids == ["007", "1.0", "9"]
    (tmp_path / "train-1.csv").write_text("id,text\n9,x\n")
    with pytest.raises(UserError, match=r"train-1\.csv: has the columns id, text and .*train-0\.csv"):
        read_source(str(tmp_path))


def test_a_directory_of_parquet_files_is_read_one_split_alone(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": ["1", "2"], "prompt": ["p", "q"], "label": [0, 1]}),
        tmp_path / "train [1] #2%20.parquet",
    )
    pq.write_table(pa.table({"id": ["1"], "scored": [True]}), tmp_path / "test.parquet")
    for streaming in (False, True):
        assert len(read_source(str(tmp_path), SourceOptions(streaming=streaming))[0]) == 2
    (tmp_path / "train [1] #2%20.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(UserError, match=r"data set \(split train\): .*[Pp]arquet.*; give one of its"):
        read_source(str(tmp_path))


def test_a_directory_of_parquet_files_and_streaming(tmp_path: Path) -> None:
    home = tmp_path / "arena-human-preference-100k"
    home.mkdir()
    write_parquet(home / "train-0.parquet", [arena_100k(0, "tie")])
    write_parquet(home / "train-1.parquet", [arena_100k(1, "model_b")])
    for streaming in (False, True):
        rows, _ = read_source(str(home), SourceOptions(streaming=streaming))
        assert rows.row_ids == ["q0", "q1"]
        assert rows.labels.tolist() == [2, 1]
        assert set(rows.table["source"].to_pylist()) == {"arena-human-preference-100k"}


@pytest.mark.parametrize("streaming", [False, True])
def test_csv_on_the_hub_is_asked_for_as_text(tmp_path: Path, streaming: bool) -> None:
    """A local file stands for the hub's: the library takes either by its address."""
    from data.sources.hub import csv_as_text

    (tmp_path / "x.csv").write_text("id,prompt\n007,NA\n1.0,\n")
    found = csv_as_text([str(tmp_path / "x.csv")], "train", ",", streaming)
    assert list(found) == [{"id": "007", "prompt": "NA"}, {"id": "1.0", "prompt": ""}]


def test_saved_data_set_with_splits_and_named_classes(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"id": datasets.Value("int64"), "text": datasets.Value("string"),
         "label": datasets.ClassLabel(names=["world", "sport"])}
    )  # fmt: skip
    data = datasets.Dataset.from_dict(
        {"id": [1, 2, 3], "text": ["a", "b", "c"], "label": [0, 1, -1]}, features
    )
    datasets.DatasetDict({"fit": data}).save_to_disk(tmp_path / "saved")
    options = SourceOptions(columns={"prompt": "text"}, split="fit")
    rows, _ = read_source(str(tmp_path / "saved"), options)
    assert rows.classes.names == ("sport", "world")
    assert rows.labels.tolist() == [1, 0, -1]
    with pytest.raises(UserError, match="no split train; it has fit"):
        read_source(str(tmp_path / "saved"), SourceOptions(columns={"prompt": "text"}))
