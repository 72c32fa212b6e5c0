"""The WSDM Cup's Parquet."""

from __future__ import annotations

from pathlib import Path

from source_files import write_parquet

from data.classes import PREFERENCE_NO_TIE
from data.sources.formats import SourceOptions
from data.sources.read import read_source


def test_wsdm_cup(tmp_path: Path) -> None:
    records = [
        {"id": f"h{i}", "prompt": "[not a list", "response_a": "a", "response_b": "b", "winner": winner,
         "model_a": "m", "model_b": "n", "language": "English"}
        for i, winner in enumerate(["model_a", "model_b"])
    ]  # fmt: skip
    rows, _ = read_source(write_parquet(tmp_path / "train.parquet", records))
    assert rows.classes == PREFERENCE_NO_TIE
    assert rows.labels.tolist() == [0, 1]
    assert rows.table["prompt"].to_pylist() == [["[not a list"]] * 2
    unlabelled = [{name: r[name] for name in ("id", "prompt", "response_a", "response_b")} for r in records]
    test, _ = read_source(write_parquet(tmp_path / "test.parquet", unlabelled), SourceOptions(format="wsdm"))
    assert test.classes == PREFERENCE_NO_TIE
    assert test.labels.tolist() == [-1, -1]
