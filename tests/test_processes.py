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

from data.softlabels import read_store

SHARDED = ["sharded-fp32", "sharded-nf4", "sharded-int8"]
HERE = Path(__file__).parent


def launch(processes, *command, fails=False):
    """Run ``command`` in so many processes, one thread each."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        [*start, *map(str, command)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert bool(done.returncode) == fails, done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same script's evidence, of one process and of two."""
    places = {}
    for processes in (1, 2):
        places[processes] = tmp_path_factory.mktemp(f"processes-{processes}")
        launch(processes, HERE / "two_processes.py", places[processes])
    return places


@pytest.mark.parametrize("name", ["plain", "pairs", "one-row-a-step", "out-of-memory", *SHARDED])
def test_two_processes_take_the_steps_of_one(both, name):
    """With plain gradient descent, equal weights after several steps are equal gradients."""
    one = np.load(both[1] / f"{name}-0.npz")
    first, second = (np.load(both[2] / f"{name}-{rank}.npz") for rank in range(2))
    moved = 0.0
    for key in one:
        np.testing.assert_array_equal(first[key], second[key])
        np.testing.assert_allclose(first[key], one[key], atol=2e-6, rtol=1e-4)
        moved = max(moved, np.abs(one[key]).max() if "score" in key else 0.0)
    assert moved > 1e-2


@pytest.mark.parametrize("name", ["plain", "out-of-memory"])
def test_the_logged_loss_is_the_whole_steps(both, name):
    def losses(place):
        lines = (place / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]

    one, two = losses(both[1]), losses(both[2])
    assert len(one) == len(two) == 2
    np.testing.assert_allclose(one, two, atol=1e-5)
    looks = [json.loads((both[n] / name / "selection.json").read_text())["looks"] for n in (1, 2)]
    assert [look["step"] for look in looks[0]] == [look["step"] for look in looks[1]]


def test_every_sequence_is_predicted_by_exactly_one_process(both):
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

    launch(2, "-m", "distill.student", *common, "--teachers", trained / "llama", "--out", tmp_path / "pupil")
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


def test_a_mistake_in_two_processes_is_told_once(trained, tiny_recipe):
    command = ["distill.teacher_oof", "--recipe", tiny_recipe, "--data", trained, "--only", "llama"]
    done = launch(2, "-m", *command, "teachers.llama.train.lr=0.5", fails=True)
    assert done.stderr.count("train.lr (0.001 there, 0.5 asked for)") == 1
