"""Two processes, as ``torchrun`` starts them, do what one does: same steps, same logits, every row once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.console.command import run
from data.errors import UserError
from data.softlabels import read_store
from distill import export
from distill.race import __main__ as race

SHARDED = ["sharded-uncut", "sharded-fp32", "sharded-nf4"]
ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "tests" / "helpers"


def launch(processes, *command):
    """Run ``command`` in so many processes, one thread each."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*start, *map(str, command)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def test_two_processes_do_what_one_does(tmp_path):
    """One test, for the parts share the costly evidence, and tests of one file may run on several workers."""
    both = {processes: tmp_path / str(processes) for processes in (1, 2)}
    for processes, place in both.items():
        place.mkdir()
        launch(processes, HELPERS / "two_processes.py", place)
    for name in ("plain", "pairs", "one-row-a-step", "out-of-memory", "killed", *SHARDED):
        assert_same_steps(both, name)
    for name in ("plain", "out-of-memory"):
        assert_same_losses(both, name)
    for place in both.values():
        whole, resumed = (np.load(place / f"{name}-0.npz") for name in ("whole", "killed"))
        for key in whole:
            np.testing.assert_array_equal(resumed[key], whole[key])
    assert_every_sequence_once(both)


def assert_same_steps(both, name):
    """With plain gradient descent, equal weights after several steps are equal gradients."""
    one = np.load(both[1] / f"{name}-0.npz")
    first, second = (np.load(both[2] / f"{name}-{rank}.npz") for rank in range(2))
    moved = 0.0
    for key in one:
        np.testing.assert_array_equal(first[key], second[key], err_msg=name)
        np.testing.assert_allclose(first[key], one[key], atol=5e-6, rtol=1e-4, err_msg=name)
        moved = max(moved, np.abs(one[key]).max() if "score" in key else 0.0)
    assert moved > 1e-2


def assert_same_losses(both, name):
    """What is logged, and when a training was looked at, in the first process alone."""

    def losses(place):
        lines = (place / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]

    one, two = losses(both[1]), losses(both[2])
    assert len(one) == len(two) == 2
    np.testing.assert_allclose(one, two, atol=1e-5)
    looks = [json.loads((both[n] / name / "selection.json").read_text())["looks"] for n in (1, 2)]
    assert [look["step"] for look in looks[0]] == [look["step"] for look in looks[1]]


def assert_every_sequence_once(both):
    one = np.load(both[1] / "predicted-0.npz")
    first, second = (np.load(both[2] / f"predicted-{rank}.npz") for rank in range(2))
    np.testing.assert_array_equal(first["logits"], second["logits"])
    np.testing.assert_allclose(first["logits"], one["logits"], atol=1e-5)
    assert sorted([*first["seen"], *second["seen"]]) == sorted(one["seen"]) == list(range(42))
    assert min(len(first["seen"]), len(second["seen"])) >= 18


def test_the_commands_in_two_processes_leave_what_they_leave_in_one(trained, tiny_recipe, tmp_path):
    shutil.copytree(trained / "backbones", tmp_path / "backbones")
    common = ["--recipe", tiny_recipe, "--data", trained]
    done = launch(2, "-m", "distill.teacher_oof", *common, "--out", tmp_path, "--only", "llama")
    assert done.stdout.count("log-loss") == 1
    two, one = read_store(tmp_path / "llama"), read_store(trained / "llama")
    assert two.row_ids == one.row_ids
    np.testing.assert_allclose(two.logits, one.logits, atol=5e-3)
    assert sorted(p.name for p in (tmp_path / "llama").iterdir()) == sorted(
        p.name for p in (trained / "llama").iterdir()
    )
    assert not list((tmp_path / "llama").glob("fold-*/checkpoint-*"))

    launch(
        2,
        "-m",
        "distill.student",
        *common,
        "--teachers",
        trained / "llama",
        "--out",
        tmp_path / "pupil",
        "student.train.epochs=1",
    )
    assert np.isfinite(read_store(tmp_path / "pupil").logits).all()
    models = [tmp_path / "llama", tmp_path / "pupil"]
    launch(
        2,
        "-m",
        "distill.predict",
        "--model",
        *models,
        "--data",
        trained / "rows.parquet",
        "--out",
        tmp_path / "p",
    )
    for model in models:
        table = pd.read_csv(tmp_path / "p" / f"{model.name}.csv")
        assert table.iloc[:, 0].tolist() == one.row_ids
        np.testing.assert_allclose(table.iloc[:, 1:].sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("told", [False, True])
def test_a_mistake_of_all_processes_is_told_by_the_first(told, capsys):
    """``two_processes.py`` sees to it that it is marked as told in the others."""

    def main(argv):
        mistake = UserError("no such file")
        mistake.told = told
        raise mistake

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == ("" if told else "error: no such file\n")


@pytest.mark.parametrize("command", [race, export])
def test_commands_for_one_process_refuse_to_be_several(command, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = (
        ["--backbones", "a", "b"] if command is race else ["--model", "a", "--out", str(tmp_path / "b")]
    )
    with pytest.raises(UserError, match="runs in one process; start it with python -m"):
        command.main(arguments)
