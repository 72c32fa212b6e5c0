"""What ``data.prepare --check`` proves of prepared data, and what it and the next run find changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tables import STORY, distinct, tokenizer_file, write_table

from data.arena import ArenaConfig, simulate_arena
from data.dataset import prepare
from data.errors import UserError
from data.folds import Folds, read_folds, write_folds
from data.prepare import main
from data.schema import Rows, read_rows, write_rows


@pytest.fixture(scope="module")
def rows() -> Rows:
    return simulate_arena(ArenaConfig(n_rows=60))


def check(path: Path) -> None:
    main(["--check", str(path)])


def test_check_proves_and_prints_balance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_table(tmp_path / "t.csv", distinct(40))
    out = tmp_path / "out"
    main(["--source", source, "--out", str(out), "--tokenizer", tokenizer_file(tmp_path)])
    capsys.readouterr()
    check(out)
    shown = capsys.readouterr().out
    assert "no group of equal prompts and near-duplicates (similarity 0.8 and above) is split" in shown
    assert "every byte as it was written" in shown
    assert len([line for line in shown.splitlines() if line[:1].isdigit()]) == 5


def tamper_fold(out: Path) -> None:
    folds = read_folds(out)
    fold = folds.fold.copy()
    fold[0] = (fold[0] + 1) % 5
    write_folds(out, Folds(folds.row_ids, folds.group_ids, fold))


def tamper_label(out: Path) -> None:
    rows = read_rows(out)
    label = np.where(np.arange(len(rows)) == 0, (rows.labels + 1) % 3, rows.labels)
    column = rows.table.column_names.index("label")
    write_rows(
        out / "rows.parquet",
        Rows(rows.table.set_column(column, "label", [label.astype(np.int8)]), rows.classes),
    )


def tamper_manifest(out: Path) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "n_groups": 3}))


def tamper_near(out: Path) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "near": {"threshold": "x"}}))


def tamper_tokens(out: Path) -> None:
    (path,) = out.glob("tokens-*/ids.u32")
    content = bytearray(path.read_bytes())
    content[9] ^= 1
    path.write_bytes(content)


def tamper_one_byte(name: str):
    def tamper(out: Path) -> None:
        content = bytearray((out / name).read_bytes())
        content[-20] ^= 1  # in what Parquet says of its writer, which no reader looks at
        (out / name).write_bytes(content)

    return tamper


def tamper_column(out: Path) -> None:
    rows = read_rows(out)
    write_rows(
        out / "rows.parquet", Rows(rows.table.append_column("judge", [["x"] * len(rows)]), rows.classes)
    )


def tamper(**changes):
    def change(out: Path) -> None:
        manifest = json.loads((out / "manifest.json").read_text())
        (out / "manifest.json").write_text(json.dumps({**manifest, **changes}))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tamper_fold, "group .* is split over folds|near-duplicate group"),
        (tamper_label, "manifest.json: (rows_hash|label_counts) is"),
        (tamper_manifest, "manifest.json: n_groups is 3 there"),
        (tamper_near, "near-duplicate threshold is damaged"),
        (tamper_one_byte("rows.parquet"), "rows.parquet: was changed|not a readable"),
        (tamper_one_byte("folds.parquet"), "folds.parquet: was changed|not a readable"),
        (tamper_column, "rows.parquet: was changed after it was written"),
        (tamper(pin=5), "manifest.json: its list of pinned sources is damaged"),
        (tamper(pin=[1, "a"]), "manifest.json: its list of pinned sources is damaged"),
        (tamper(pin=["t.csv"]), "folds.parquet: pins other rows to every training"),
        (tamper(files=7), "rows.parquet: was changed"),
        (lambda out: (out / "manifest.json").unlink(), "manifest.json: no such manifest"),
        (tamper_tokens, r"tokens-.*ids\.u32 is damaged"),
        (lambda out: (out / "folds.parquet").unlink(), "no such fold file"),
        (lambda out: (out / "rows.parquet").write_bytes(b"PAR1"), "not a readable Parquet file"),
        (lambda out: (out / "manifest.json").write_text("[]"), "is not the manifest"),
    ],
)
def test_check_finds_what_was_tampered_with(tmp_path: Path, change, message: str) -> None:
    source = write_table(tmp_path / "t.csv", [*distinct(20), STORY, STORY + "!"])
    out = tmp_path / "out"
    main(["--source", source, "--out", str(out), "--tokenizer", tokenizer_file(tmp_path)])
    change(out)
    if change is tamper_fold:  # row 0 stands alone: split a group of two instead
        folds = read_folds(out)
        fold = folds.fold.copy()
        fold[-1] = (fold[-2] + 1) % 5
        write_folds(out, Folds(folds.row_ids, folds.group_ids, fold))
    with pytest.raises(UserError, match=message):
        check(out)


@pytest.mark.parametrize("content", ["[]", "null", '{"kind": "data"}', '{"kind": "data", "near": "x"}'])
def test_a_damaged_manifest_is_named_by_the_next_run(tmp_path: Path, rows: Rows, content: str) -> None:
    prepare(rows, tmp_path)
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(
        UserError, match=r"manifest\.json: (is not the manifest|its near-duplicate threshold)"
    ):
        prepare(rows, tmp_path)


def test_rows_changed_since_are_not_taken_for_those_written(tmp_path: Path, rows: Rows) -> None:
    prepare(rows, tmp_path)
    tamper_column(tmp_path)
    with pytest.raises(UserError, match=r"rows\.parquet: was changed after it was written"):
        prepare(rows, tmp_path)


def test_a_manifest_without_hashes_is_of_an_earlier_version(tmp_path: Path, rows: Rows) -> None:
    prepare(rows, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["files"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    check(tmp_path)
