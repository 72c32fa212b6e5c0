"""The commands as a user meets them: help, mistakes, and the whole way on shuffled labels."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from recipes import ROOT
from stack_files import change_manifest

import distillstack
from data.arena import ArenaConfig, simulate_arena
from data.dataset import prepare
from data.errors import is_disk_full
from data.schema import Rows
from data.softlabels import read_store
from distill import student, teacher_oof
from ensemble import stack
from ensemble.solvers.numbers import log_loss

COMMANDS = [module.removesuffix(".__main__") for module in distillstack.COMMANDS.values()]


def shell(*words, cwd=None, **how):
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, cwd=cwd, **how)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_printed_without_the_heavy_libraries(command):
    check = (
        f"import runpy, sys\nsys.argv = ['x', '--help']\n"
        f"try:\n    runpy.run_module({command!r}, run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'lightgbm', 'sklearn', 'pandas', 'pyarrow', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["distill.teacher_oof", "--recipe", "nonsense"], "no such recipe"),
        (["distill.teacher_oof", "teachers.llama.train.lrr=1"], "lrr"),
        (["distill.teacher_oof", "--data", "nowhere"], "nowhere"),
        (["distill.student", "--data", "nowhere"], "nowhere"),
        (["distill.predict", "--model", "nowhere", "--data", "x.csv", "--out", "y.csv"], "nowhere"),
        (["distill.average", "--model", "nowhere", "--out", "there"], "nowhere"),
        (["distill.export", "--model", "nowhere", "--out", "there"], "nowhere"),
        (["distill.doctor", "nowhere"], "nowhere"),
        (["distill.race", "--backbones", "llama"], "two or more"),
        (["ensemble.stack", "--data", "nowhere"], "nowhere"),
        (["ensemble.stack"], "teacher_oof"),
        (["ensemble.route", "--cheap", "x.csv", "--out", "r"], "--dear, --cost, --budget"),
        (["ensemble.route", "--router", "nowhere", "--cheap", "x.csv", "--out", "y.csv"], "nowhere"),
        (["data.prepare", "--source", "missing.csv", "--out", "there"], "missing.csv"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(words, message, tmp_path, tmp_path_factory):
    """Told at once: all but the doctor, whose checks are torch's, have not imported it by then."""
    path = tmp_path_factory.mktemp("path")
    if words[0] != "distill.doctor":
        (path / "torch.py").write_text("raise AssertionError('torch is imported')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    done = shell(*words, cwd=tmp_path, env=environment)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_damaged_inputs_are_named(trained, tmp_path):
    """A truncated row table, folds of other rows, and a foreign fold file end in one message each."""
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in ("rows.parquet", "folds.parquet", "manifest.json"):
        shutil.copy(trained / name, damaged / name)
    whole = (damaged / "rows.parquet").read_bytes()
    (damaged / "rows.parquet").write_bytes(whole[: len(whole) // 2])
    done = shell("distill.teacher_oof", "--data", str(damaged), cwd=tmp_path)
    assert done.returncode == 2
    assert "rows.parquet" in done.stderr
    assert "truncated" in done.stderr

    other = tmp_path / "other"
    prepare(simulate_arena(ArenaConfig(n_rows=96, seed=2)), other, n_folds=2)
    shutil.copy(other / "folds.parquet", damaged / "folds.parquet")
    (damaged / "rows.parquet").write_bytes(whole)
    done = shell("distill.teacher_oof", "--data", str(damaged), cwd=tmp_path)
    assert done.returncode == 2
    assert "folds.parquet" in done.stderr


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EACCES, os.strerror(errno.EACCES)), False),
        (RuntimeError("expected scalar type Half"), False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error, is_full):
    """Whether it is raised as it is, or a library wraps it in an error of its own."""
    wrapped = ValueError("cannot save")
    wrapped.__cause__ = error
    assert is_disk_full(error) == is_disk_full(wrapped) == is_full


def test_a_full_disk_in_training_is_one_message(trained, tiny_recipe, tmp_path):
    """A file-size limit stands for the full disk; with room again the same command finishes."""
    for name in ("rows.parquet", "folds.parquet", "manifest.json"):
        shutil.copy(trained / name, tmp_path / name)

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    command = (
        "distill.teacher_oof",
        "--recipe",
        str(tiny_recipe),
        "--data",
        str(tmp_path),
        "--only",
        "llama",
        "teachers.llama.train.epochs=0.5",
    )
    done = shell(*command, cwd=tmp_path, preexec_fn=small_files)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "make room, and the same command continues" in done.stderr
    assert not (tmp_path / "llama" / "manifest.json").exists()
    assert shell(*command, cwd=tmp_path).returncode == 0
    assert (tmp_path / "llama" / "manifest.json").exists()


def test_stores_of_other_folds_are_not_stacked(trained, tmp_path):
    other = tmp_path / "foreign"
    shutil.copytree(trained / "gemma2", other)
    change_manifest(other, folds_hash="0" * 64)
    done = shell("ensemble.stack", "--oof", str(trained / "llama"), str(other), "--out", str(tmp_path / "s"))
    assert done.returncode == 2
    assert "folds_hash" in done.stderr
    assert not (tmp_path / "s").exists()


def test_the_stack_of_a_small_run_has_the_contract_keys(trained, tmp_path):
    stack.main(["--data", str(trained), "--out", str(tmp_path / "stack")])
    content = json.loads((tmp_path / "stack" / "stack.json").read_text())
    assert set(content["members"]) == {"llama", "gemma2", "student"}
    assert {"classes", "methods", "chosen", "weights", "temperature"} <= set(content)
    assert (tmp_path / "stack" / "report.html").exists()


def test_shuffled_labels_teach_nothing(tmp_path, tiny_recipe):
    """Labels that belong to other rows: teachers learn them by heart, and nothing out of fold gains by it."""
    rows = simulate_arena(ArenaConfig(n_rows=120, seed=7))
    import pyarrow as pa

    order = np.random.default_rng(0).permutation(len(rows))
    labels = rows.table.column("label").take(pa.array(order))
    shuffled = rows.table.set_column(rows.table.column_names.index("label"), "label", labels)
    directory = tmp_path / "shuffled"
    prepare(Rows(shuffled.drop_columns(["true_probs"]), rows.classes), directory, n_folds=2)
    common = ["--recipe", str(tiny_recipe), "--data", str(directory)]
    models = ("teachers.llama", "teachers.gemma2", "student")
    longer = [f"{model}.train.{key}" for model in models for key in ("epochs=12", "lr=1e-2")]
    teacher_oof.main([*common, *longer, "--labels", "in_sample"])
    student.main([*common, *longer])
    stack.main(["--data", str(directory)])
    shares = np.bincount(rows.labels) / len(rows)
    prior = -(shares * np.log(shares)).sum()
    learnt = read_store(directory / "llama-in_sample")
    assert log_loss(learnt.probs, rows.labels[order]).mean() < prior - 0.1
    content = json.loads((directory / "stack" / "stack.json").read_text())
    scores = {method["name"]: method["nested_log_loss"] for method in content["methods"]}
    assert min(scores.values()) > prior - 0.01, scores
