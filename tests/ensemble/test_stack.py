"""The stack command: what it prints and writes, and what it refuses, as a user meets it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from stack_files import prepared, write_sets, write_store

from data.errors import UserError
from ensemble.methods.catalogue import METHODS, MIXTURE
from ensemble.reading.load import load_problem
from ensemble.stack import main

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ensemble.stack", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=_environment())


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    "classes", [["no", "yes"], ["winner_model_a", "winner_model_b", "winner_tie"], list("wxyz")]
)
def test_writes_the_contract_for_any_number_of_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], classes: list[str]
) -> None:
    paths, labels = write_sets(tmp_path, n=150, classes=classes, members=3)
    out = tmp_path / "stack"
    main(["--oof", *paths, "--labels", labels, "--out", str(out)])
    printed = capsys.readouterr().out
    assert f"page: {out / 'report.html'}" in printed.splitlines()
    for word in ("m1", "m3", "mean", "verdict: "):
        assert word in printed
    assert len(printed.splitlines()) < 16
    assert "logit+lightgbm" not in printed
    stack = json.loads((out / "stack.json").read_text(encoding="utf-8"))
    assert stack["classes"] == classes
    assert stack["swap"] == ([1, 0, 2] if len(classes) == 3 else None)
    assert stack["members"] == ["m1", "m2", "m3"]
    names = [method["name"] for method in stack["methods"]]
    best = stack["chosen_methods"]
    assert [name for name in names if name != MIXTURE] == list(METHODS)
    for method in stack["methods"]:
        assert {"nested_log_loss", "in_sample_log_loss", "ci95", "ci95_vs_best_single"} <= set(method)
    scores = {method["name"]: method["nested_log_loss"] for method in stack["methods"]}
    assert stack["chosen"] == (MIXTURE if len(best) > 1 else best[0])
    assert stack["chosen"] in (MIXTURE, "log-pool", "mean")
    assert sum(stack["chosen_shares"]) == pytest.approx(1)
    assert stack["chosen_nested_log_loss"] == scores[stack["chosen"]]
    assert set(stack["weights"]) == {"m1", "m2", "m3"}
    assert stack["temperature"] > 0
    table = pq.read_table(out / "predictions.parquet")
    assert table.column_names == ["row_id", "fold", *classes]
    nested = np.stack([table.column(name).to_numpy() for name in classes], axis=1)
    np.testing.assert_allclose(nested.sum(axis=1), 1, atol=1e-12)
    truth = dict(line.split(",") for line in Path(labels).read_text(encoding="utf-8").split()[1:])
    y = np.array([int(truth[row_id]) for row_id in table.column("row_id").to_pylist()])
    assert -np.log(nested[np.arange(len(y)), y]).mean() == pytest.approx(scores[stack["chosen"]], abs=1e-12)
    assert (out / "report.html").exists()
    assert not list(out.glob(".*"))


def test_the_same_command_writes_the_same_bytes(tmp_path: Path) -> None:
    paths, labels = write_sets(tmp_path)
    arguments = ["--oof", *paths, "--labels", labels, "--out"]
    done = run(*arguments, tmp_path / "one")
    assert done.returncode == 0, done.stderr
    main([*arguments, str(tmp_path / "two")])
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "two").iterdir())
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_order_of_the_members_makes_no_difference(tmp_path: Path) -> None:
    paths, labels = write_sets(tmp_path, classes=["no", "yes"], members=3)
    for out, order in (("one", paths), ("two", paths[::-1])):
        main(["--oof", *order, "--labels", labels, "--out", str(tmp_path / out)])
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_row_order_of_the_files_makes_no_difference(tmp_path: Path) -> None:
    paths, labels = write_sets(tmp_path)
    main(["--oof", *paths, "--labels", labels, "--out", str(tmp_path / "one")])
    for path in (*paths, labels):
        head, *lines = Path(path).read_text(encoding="utf-8").splitlines()
        Path(path).write_text("\n".join([head, *reversed(lines)]), encoding="utf-8")
    main(["--oof", *paths, "--labels", labels, "--out", str(tmp_path / "two")])
    stacks = [
        json.loads((tmp_path / name / "stack.json").read_text(encoding="utf-8")) for name in ("one", "two")
    ]
    assert stacks[0]["methods"] == stacks[1]["methods"]
    assert stacks[0]["fitted"] == stacks[1]["fitted"]


def test_without_arguments_it_stacks_the_demo(tmp_path: Path) -> None:
    empty = run(cwd=tmp_path)
    assert empty.returncode == 2
    assert "distill.teacher_oof" in empty.stderr
    assert "Traceback" not in empty.stderr
    demo = tmp_path / "runs" / "demo"
    _, P = prepared(demo)
    for m, name in enumerate(("gemma", "llama")):
        write_store(demo / name, demo, P[:, m])
    done = run(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Bayes optimum" in done.stdout
    assert "page: runs/demo/stack/report.html" in done.stdout.splitlines()
    assert json.loads((demo / "stack" / "stack.json").read_text(encoding="utf-8"))["members"] == [
        "gemma",
        "llama",
    ]


def test_data_alone_stacks_every_store_under_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "arena"
    _, P = prepared(data)
    write_store(data / "t", data, P[:, 0])
    main(["--data", str(data)])
    assert str(data / "stack" / "report.html") in capsys.readouterr().out
    stack = json.loads((data / "stack" / "stack.json").read_text(encoding="utf-8"))
    assert stack["rows"]["groups"] == 60
    assert stack["rows"]["folds"] == 3


@pytest.mark.parametrize(
    ("taught", "flattered"),
    [
        ({"teacher_label_kind": "oof", "leakage": "standard"}, True),
        ({"teacher_label_kind": "fold_mean", "leakage": "standard"}, True),
        ({"teacher_label_kind": "oof", "leakage": "strict"}, False),
        ({"teacher_label_kind": "in_sample", "leakage": "standard"}, False),
        ({"teacher_label_kind": "human", "leakage": "standard"}, False),
        ({"teacher_label_kind": None, "leakage": None}, False),
        ({}, False),
    ],
)
def test_a_student_whose_teachers_saw_the_scored_folds_is_named(
    tmp_path: Path, taught: dict, flattered: bool
) -> None:
    data = tmp_path / "arena"
    _, P = prepared(data)
    stores = [write_store(data / "t", data, P[:, 0]), write_store(data / "student", data, P[:, 1], **taught)]
    notes = load_problem([str(store) for store in stores], data=data).notes
    assert any("student learnt from teachers that saw the folds" in note for note in notes) == flattered


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "m1.csv").unlink(), "m1.csv"),
        (lambda folder: (folder / "labels.csv").unlink(), "labels.csv"),
        (lambda folder: (folder / "m2.csv").write_text("id,a\n1,1\n", encoding="utf-8"), "m2.csv"),
    ],
)
def test_a_mistake_ends_in_one_line_and_leaves_nothing(tmp_path: Path, damage: object, words: str) -> None:
    paths, labels = write_sets(tmp_path)
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(UserError, match=re.escape(words)) as mistake:
        main(["--oof", *paths, "--labels", labels, "--out", str(tmp_path / "stack")])
    assert "\n" not in str(mistake.value)
    assert not (tmp_path / "stack").exists()


def test_a_new_stack_leaves_no_trees_of_the_old_one(tmp_path: Path) -> None:
    paths, labels = write_sets(tmp_path)
    out = tmp_path / "stack"
    out.mkdir()
    (out / "lightgbm-0000000000000000.txt").write_text("old", encoding="utf-8")
    main(["--oof", *paths, "--labels", labels, "--out", str(out)])
    text = (out / "stack.json").read_text(encoding="utf-8")
    for file in out.glob("lightgbm-*"):
        assert file.name in text


def test_two_real_models(tmp_path: Path, real_data: Path) -> None:
    """On a quarter of the rows, which takes a quarter of the time."""
    tables = {}
    for name in ("teacher_m1_predictions.csv", "teacher_m2_predictions.csv", "teacher_labels.csv"):
        header, *lines = (real_data / "lmsys" / name).read_text(encoding="utf-8").splitlines()
        some = [line for line in lines if int(line.partition(",")[0]) % 4 == 1]
        (tmp_path / name).write_text("\n".join([header, *some]), encoding="utf-8")
        tables[name] = {line.partition(",")[0]: line.split(",")[1:] for line in some}
    *members, labels = (str(tmp_path / name) for name in tables)
    main(["--oof", *members, "--labels", labels, "--out", str(tmp_path / "stack")])
    stack = json.loads((tmp_path / "stack" / "stack.json").read_text(encoding="utf-8"))
    scores = {method["name"]: method["nested_log_loss"] for method in stack["methods"]}
    first, second, truth = tables.values()
    likely = [(float(first[i][int(k)]) + float(second[i][int(k)])) / 2 for i, (k,) in truth.items()]
    assert scores["mean"] == pytest.approx(-np.log(likely).mean(), abs=1e-4)
    assert stack["chosen_nested_log_loss"] <= scores["mean"] - 0.002
    assert stack["chosen_nested_log_loss_choice_included"] <= scores["mean"] - 0.002
    chosen = next(method for method in stack["methods"] if method["name"] == stack["chosen"])
    assert chosen["ci95"][1] < 0
    shutil.rmtree(tmp_path / "stack")
