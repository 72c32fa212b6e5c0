"""Bad input to the ensemble commands: exit status 2, one message that names it, and nothing left behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stack_files import CLASSES, write_sets

from data.console.command import run
from ensemble import predict, stack
from ensemble.methods.blend import SimplexBlend
from ensemble.saved import save_stack

N = 40
IDS = [f"r{i:04d}" for i in range(N)]
THIRDS = [0.25, 0.25, 0.5]


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data) and None


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


def parquet(name: str, **columns: Any) -> Callable[[Path], None]:
    return lambda folder: pq.write_table(pa.table(columns), folder / name)


def probabilities(**changes: Any) -> dict[str, Any]:
    return {"id": IDS, **{c: [p] * N for c, p in zip(CLASSES, THIRDS, strict=True)}, **changes}


def folds(**changes: Any) -> Callable[[Path], None]:
    columns = {"row_id": IDS, "group_id": IDS, "fold": [i % 4 for i in range(N)], **changes}
    return parquet("f.parquet", **{name: values for name, values in columns.items() if values is not None})


def array(values: Any) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        np.save(folder / "a.npy", values, allow_pickle=True)
        (folder / "a.ids.txt").write_text("\n".join(IDS), encoding="utf-8")

    return save


def lines(header: str, *values: str) -> str:
    return "\n".join([header, *(f"{i},{v}" for i, v in zip(IDS, values or ["0,1"] * N, strict=False))])


HEAD = "id," + ",".join(CLASSES)
SETS, LABELS, OUT = ["--oof", "m1.csv", "m2.csv"], ["--labels", "labels.csv"], ["--out", "out"]
USUAL = [*SETS, *LABELS, *OUT]
FOLDS = [*USUAL, "--folds", "f.parquet"]

# what is done to good files, the arguments, what the message says
STACK: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "empty set": (write("m2.csv", b""), USUAL, r"m2\.csv"),
    "binary set": (write("m2.csv", b"\x00\xff\xfe" * 200), USUAL, r"m2\.csv"),
    "utf-16 set": (write("m2.csv", lines(HEAD).encode("utf-16")), USUAL, r"m2\.csv"),
    "too few cells": (write("m2.csv", HEAD + "\nr0000,0.5,0.5\n"), USUAL, r"m2\.csv.*4 columns"),
    "column twice": (write("m2.csv", "id,a,a\n1,0.5,0.5\n"), USUAL, r"m2\.csv.*appears twice"),
    "semicolons": (write("m2.csv", lines(HEAD).replace(",", ";")), USUAL, r"m2\.csv: cannot be read as"),
    "one class": (write("m1.csv", lines("id,yes", *["1"] * N)), USUAL, r"m2\.csv: no probability col"),
    "class renamed": (edit("m2.csv", "winner_tie", "Tie"), USUAL, r"m2\.csv: .*column winner_tie"),
    "percentages": (write("m2.csv", lines(HEAD, "25,25,50")), USUAL, "row r0000 has 25 in column winner_mod"),
    "decimal commas": (
        write("m2.csv", lines(HEAD, '"0,2,5","0,25","0,5"')), USUAL,
        r"m2\.csv: row r0000 has '0.2.5' in column winner_model_a",
    ),
    "zeros alone": (write("m2.csv", lines(HEAD, "0,0,0")), USUAL, r"m2\.csv.*row r0000 sums to 0"),
    "text in Parquet": (
        parquet("b.parquet", **probabilities(winner_tie=["0.5"] * (N - 1) + ["half"])),
        [*USUAL, "--oof", "b.parquet"], r"b\.parquet: row r0039 has 'half' in column",
    ),
    "lists in Parquet": (
        parquet("b.parquet", **probabilities(winner_tie=[[0.5]] * N)),
        [*USUAL, "--oof", "b.parquet"], r"b\.parquet: column winner_tie holds list",
    ),
    "truths in Parquet": (
        parquet("b.parquet", **probabilities(winner_tie=[True] * N)),
        [*USUAL, "--oof", "b.parquet"], r"b\.parquet: column winner_tie holds bool",
    ),
    "null id": (
        parquet("b.parquet", **probabilities(id=[*IDS[:2], None, *IDS[3:]])),
        [*USUAL, "--oof", "b.parquet"], r"b\.parquet: line 3 of the data has no id",
    ),
    "JSON cut off": (write("b.jsonl", '{"id": "r0000", '), [*USUAL, "--oof", "b.jsonl"], r"b\.jsonl: cannot"),
    "JSON of numbers": (write("b.jsonl", "1\n2\n"), [*USUAL, "--oof", "b.jsonl"], r"b\.jsonl: cannot"),
    "pickled array": (
        array(np.array([object()] * N)), ["--oof", "m1.csv", "a.npy", *LABELS, *OUT], r"a\.npy: cannot be",
    ),
    "array of four classes": (
        array(np.full((N, 4), 0.25)), ["--oof", "m1.csv", "a.npy", *LABELS, *OUT],
        r"a\.npy: has 4 columns, and there are 3 classes",
    ),
    "named set gone": (lambda folder: None, [*USUAL, "--oof", "x=gone.csv"], r"gone\.csv: no such"),
    "labels empty": (write("labels.csv", b""), USUAL, r"labels\.csv"),
    "labels without rows": (write("labels.csv", "id,label\n"), USUAL, r"labels\.csv: holds no rows"),
    "label twice": (write("labels.csv", "id,label\n1,0\n1,0\n"), USUAL, r"labels\.csv: 1 ids .*once: 1"),
    "labels of no id": (write("labels.csv", "label\n0\n"), USUAL, r"labels\.csv: no id column"),
    "no label known": (write("labels.csv", lines("id,label", *[""] * N)), USUAL, r"labels\.csv: 0 rows"),
    "few labels known": (
        write("labels.csv", lines("id,label", *["1"] * 9, *[""] * (N - 9))), USUAL, r"labels\.csv: 9 rows",
    ),
    "soft labels off": (write("labels.csv", lines(HEAD, "0.5,0.5,0.5")), USUAL, r"labels\.csv: .*r0000 sums"),
    "soft label negative": (
        write("labels.csv", lines(HEAD, "-0.5,0.5,1")), USUAL, r"labels\.csv: row r0000 has -0\.5",
    ),
    "soft label missing": (
        write("labels.csv", lines(HEAD, "1,,0")), USUAL, r"labels\.csv: row r0000 .* column winner_model_b",
    ),
    "no row weighs": (
        write("labels.csv", lines("id,label,weight", *["1,0"] * N)), USUAL, r"labels\.csv: .* weight 0",
    ),
    "labels a bare directory": (
        lambda folder: (folder / "d").mkdir(), [*SETS, "--labels", "d", *OUT], r"\bd\b.*rows\.parquet",
    ),
    "data nowhere": (lambda folder: None, [*SETS, "--data", "gone", *OUT], "gone"),
    "folds nowhere": (lambda folder: None, FOLDS, r"f\.parquet"),
    "folds as text": (write("f.parquet", "row_id,group_id,fold\n"), FOLDS, r"f\.parquet"),
    "folds without groups": (folds(group_id=None), FOLDS, r"f\.parquet: no column group_id"),
    "group missing": (folds(group_id=[None, *IDS[1:]]), FOLDS, r"f\.parquet: column group_id has empty"),
    "half a fold": (folds(fold=[0.5] * N), FOLDS, r"f\.parquet: column fold must hold whole numbers"),
    "row in two folds": (folds(row_id=[IDS[1], *IDS[1:]]), FOLDS, r"f\.parquet: 1 rows .*once: r0001"),
    "output is a file": (write("out", "mine"), USUAL, r"\bout\b"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_sets(tmp_path, n=N)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(command: Any, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    with pytest.raises(SystemExit) as ended:
        run(lambda _: command.main(arguments))
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1
    assert re.search(words, captured.err), captured.err
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


@pytest.mark.parametrize("case", STACK)
def test_stack_refuses(folder: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, arguments, words = STACK[case]
    damage(folder)
    if arguments.count("--oof") > 1:  # argparse keeps the last; here it means one set more
        extra = arguments[arguments.index("--oof", 1) + 1 :]
        arguments = ["--oof", "m1.csv", *extra, *LABELS, *OUT]
    refused(stack, arguments, words, capsys)


def rewrite(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "stack" / "stack.json"
        content = {**json.loads(file.read_text(encoding="utf-8")), **changes}
        kept = {name: value for name, value in content.items() if value is not None}
        file.write_text(json.dumps(kept), encoding="utf-8")

    return change


PREDICT: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "stack is a file": (lambda folder: None, ["--stack", "m1.csv"], r"m1\.csv: no such stack"),
    "stack a list": (write("stack/stack.json", "[1]"), [], r"stack\.json: has no"),
    "stack gone": (lambda folder: (folder / "stack/stack.json").unlink(), [], r"stack\.json"),
    "stack without members": (rewrite(members=None), [], r"stack\.json: has no members"),
    "stack without a method": (rewrite(fitted=None), [], r"stack\.json: has no fitted"),
    "method unknown": (
        rewrite(fitted={"kind": "Magic"}, content_hash=None), [], r"stack\.json: holds no method",
    ),
    "method half there": (
        rewrite(fitted={"kind": "SimplexBlend"}, content_hash=None), [], r"stack\.json: holds no method",
    ),
    "fresh value missing": (
        write("m2.csv", lines(HEAD, "0.5,,0.5")), [], r"m2\.csv: row r0000 .* column winner_model_b",
    ),
    "fresh id twice": (edit("m2.csv", "r0001", "r0000"), [], r"m2\.csv: 1 ids .*once: r0000"),
    "fresh class missing": (edit("m2.csv", "winner_tie", "tie"), [], r"m2\.csv: .*column winner_tie"),
    "fresh set without rows": (write("m1.csv", HEAD + "\n"), [], r"m1\.csv: holds no rows"),
    "output is a directory": (lambda folder: (folder / "o.csv").mkdir(), ["--out", "o.csv"], r"o\.csv"),
}  # fmt: skip


@pytest.mark.parametrize("case", PREDICT)
def test_predict_refuses(folder: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    P = np.random.default_rng(0).dirichlet([1, 1, 1], size=(N, 2))
    content = {"classes": list(CLASSES), "members": ["m1", "m2"], "chosen": "simplex"}
    save_stack(folder / "stack", content, SimplexBlend().fit(P, np.arange(N) % 3))
    damage, arguments, words = PREDICT[case]
    damage(folder)
    usual = ["--stack", "stack", "--oof", "m1.csv", "m2.csv", "--out", "blend.csv"]
    refused(predict, [*usual, *arguments], words, capsys)
