"""A run killed at any moment and started again ends exactly as one that was never killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from data.dataset import load_prepared, prepare
from data.errors import UserError
from data.files import locked, read_parquet
from data.softlabels import read_store
from distill import student, teacher_oof

DEADLINE_S = 300


def command(recipe, data, out):
    return ["--recipe", str(recipe), "--data", str(data), "--out", str(out), "--only", "llama"]


def kill_when(arguments, reached):
    """Start the command in a process of its own and SIGKILL it as soon as ``reached()`` holds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "distill.teacher_oof", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + DEADLINE_S
    while not reached():
        assert process.poll() is None, (
            f"ended before it could be killed: {process.stderr.read().decode()[-2000:]}"
        )
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def out(trained, tmp_path):
    """A place for a run that shares the finished one's backbone."""
    shutil.copytree(trained / "backbones", tmp_path / "backbones")
    return tmp_path


@pytest.mark.parametrize("where", ["within a fold", "between folds"])
def test_a_killed_run_continues_to_the_same_result(trained, tiny_recipe, out, where):
    run = out / "llama"
    reached = {
        "within a fold": lambda: (run / "fold-0" / "checkpoint-3" / "trainer_state.json").exists(),
        "between folds": lambda: (run / "fold-0" / "oof.parquet").exists(),
    }[where]
    arguments = command(tiny_recipe, trained, out)
    kill_when(arguments, reached)
    assert not (run / "oof.parquet").exists()
    finished_before = (run / "fold-0" / "oof.parquet").exists()
    assert finished_before == (where == "between folds")

    teacher_oof.main(arguments)

    resumed, whole = read_store(run), read_store(trained / "llama")
    assert resumed.row_ids == whole.row_ids
    np.testing.assert_array_equal(resumed.logits, whole.logits)
    for fold in range(2):
        mine, theirs = (
            [
                line.split(', "epoch"')[0]
                for line in (base / f"fold-{fold}" / "metrics.jsonl").read_text().splitlines()[:-1]
            ]
            for base in (run, trained / "llama")
        )
        assert mine == theirs  # every step's loss once, and the same


def test_a_half_written_checkpoint_is_not_resumed(tmp_path):
    from distill.training.trainer import last_checkpoint

    for step, state in ((3, '{"global_step": 3}'), (6, '{"glob'), (9, None)):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        if state is not None:
            (checkpoint / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    assert not (tmp_path / "checkpoint-9").exists()


def test_a_finished_run_is_left_as_it_is(trained, tiny_recipe):
    before = (trained / "llama" / "oof.parquet").stat().st_mtime_ns
    teacher_oof.main(["--recipe", str(tiny_recipe), "--data", str(trained), "--only", "llama"])
    assert (trained / "llama" / "oof.parquet").stat().st_mtime_ns == before


def test_another_recipe_is_refused_and_the_difference_named(trained, tiny_recipe):
    arguments = ["--recipe", str(tiny_recipe), "--data", str(trained), "--only", "llama"]
    with pytest.raises(UserError, match=r"train\.lr \(0\.001 there, 0\.5 asked for\)"):
        teacher_oof.main([*arguments, "teachers.llama.train.lr=0.5"])


def test_a_directory_of_something_else_is_not_touched(trained, tiny_recipe, tmp_path):
    precious = tmp_path / "llama" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        teacher_oof.main(command(tiny_recipe, trained, tmp_path))
    assert [path.name for path in precious.parent.iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "backbones").exists()


@pytest.mark.parametrize("other", ["rows", "seed", "shape"])
def test_a_refused_command_has_made_no_backbone(trained, tiny_recipe, tmp_path, other):
    """Another run's directory is told before anything is made for what will not be trained."""
    home, change = tmp_path / "home", []
    for name in ("llama", "backbones"):
        shutil.copytree(trained / name, home / name)
    rows, folds = load_prepared(trained)
    if other == "rows":
        table = rows.table.set_column(
            rows.table.column_names.index("response_b"),
            "response_b",
            pa.array([["another answer"]] * len(rows), rows.table.schema.field("response_b").type),
        )
        rows = replace(rows, table=table)
    else:
        change = [f"teachers.llama.{'train.seed=7' if other == 'seed' else 'backbone.tiny.pretrain_steps=3'}"]
    prepare(rows, home, folds.n_folds, seed=1)
    before = sorted(home.rglob("*"))
    with pytest.raises(UserError, match="holds another run: its manifest differs in"):
        teacher_oof.main([*command(tiny_recipe, home, home), *change])
    assert sorted(home.rglob("*")) == before


def test_a_recipes_mistake_that_training_shows_leaves_the_directory_free(trained, tiny_recipe, tmp_path):
    shutil.copytree(trained / "backbones", tmp_path / "backbones")
    command_ = command(tiny_recipe, trained, tmp_path)
    with pytest.raises(UserError, match=r"lora\.targets names wrong_proj"):
        teacher_oof.main([*command_, "teachers.llama.lora.targets=[wrong_proj]"])
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step"):
        teacher_oof.main(
            [*command_, "teachers.llama.train.lr=1e30", "teachers.llama.train.checkpoint_steps=0"]
        )
    teacher_oof.main(command_)
    stored = [read_parquet(home / "llama" / "oof.parquet") for home in (tmp_path, trained)]
    assert stored[0].equals(stored[1])


def test_two_commands_cannot_train_in_one_directory(trained, tiny_recipe, tmp_path):
    (tmp_path / "llama").mkdir()
    with locked(tmp_path / "llama"), pytest.raises(UserError, match="another command is writing there"):
        teacher_oof.main(command(tiny_recipe, trained, tmp_path))
    with (
        locked(trained / "student"),
        pytest.raises(UserError, match="student: another command is writing there"),
    ):
        student.main(["--recipe", str(tiny_recipe), "--data", str(trained)])


def test_weights_damaged_after_training_are_not_used(trained, tiny_recipe, tmp_path):
    for name in ("llama", "backbones"):
        shutil.copytree(trained / name, tmp_path / name)
    store = tmp_path / "llama"
    weights = store / "fold-0" / "adapter" / "adapter_model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 8
    weights.write_bytes(bytes(damaged))
    (store / "oof.parquet").unlink()
    (store / "fold-0" / "oof.parquet").unlink()
    with pytest.raises(UserError, match=r"fold-0/adapter: was changed or damaged after fold-0 was trained"):
        teacher_oof.main(command(tiny_recipe, trained, tmp_path))


def test_a_flipped_byte_of_a_store_is_seen(trained, tmp_path):
    file = trained / "llama" / "oof.parquet"
    content = file.read_bytes()
    for place in range(100, len(content) // 2, len(content) // 20):
        damaged = bytearray(content)
        damaged[place] ^= 8
        (tmp_path / "oof.parquet").write_bytes(bytes(damaged))
        with pytest.raises(UserError, match=r"oof\.parquet"):
            read_parquet(tmp_path / "oof.parquet")
