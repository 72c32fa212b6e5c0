"""Units of work: which there are, what they cost, how they are shown; and who may import Ray."""

from __future__ import annotations

import ast
import json
import resource
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data.dataset import load_prepared
from data.errors import UserError
from distill import student, teacher_oof
from distill.cluster.board import FAILED, FINISHED, RUNNING, Board
from distill.config import BackboneConfig
from distill.recipe import load_recipe
from distill.runs.estimate import estimates, linear_parameters
from distill.runs.units import ModelSpec, Unit, units_of

ROOT = Path(__file__).resolve().parents[3]

ALL_BUT_RAY = """
import sys
import distill.runs.units, distill.prediction.labelling, distill.cluster.launch, distill.predict
assert not [name for name in sys.modules if name.split(".")[0] == "ray"]
"""


def test_nothing_but_its_own_room_imports_ray():
    done = subprocess.run(
        [sys.executable, "-c", ALL_BUT_RAY], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    importing = set()
    for path in (path for room in ("data", "ensemble", "distill") for path in ROOT.glob(f"{room}/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "ray" for name in names):
                importing.add(path.parent.name)
    assert importing == {"cluster"}


@pytest.fixture
def spec(tiny_recipe, trained):
    recipe = load_recipe(str(tiny_recipe))
    return ModelSpec("llama", recipe.teachers["llama"], trained, trained / "llama")


def test_a_models_units(spec):
    assert [unit.name for unit in units_of(spec, 2, final=True)] == [
        "llama/final",
        "llama/fold-0",
        "llama/fold-1",
    ]
    strict = units_of(spec, 3, strict=True, everywhere=True)
    assert [unit.part for unit in strict[3:]] == ["without-0-1", "without-0-2", "without-1-2"]
    assert [unit.everywhere for unit in strict] == [True] * 3 + [False] * 3


def test_a_finished_unit_is_left_as_it_is(spec, trained):
    before = (trained / "llama" / "fold-0" / "oof.parquet").stat().st_mtime_ns
    unit = Unit(spec, "fold-0")
    assert unit.finished()
    unit.run()
    assert (trained / "llama" / "fold-0" / "oof.parquet").stat().st_mtime_ns == before
    assert not Unit(spec, "fold-0", everywhere=True).finished()
    assert not Unit(spec, "final").finished()


def test_a_full_disk_in_training_is_survived_by_starting_again(spec, trained, tmp_path):
    (tmp_path / "home").mkdir()
    for name in ("rows.parquet", "folds.parquet", "backbones"):
        copy = shutil.copytree if (trained / name).is_dir() else shutil.copy
        copy(trained / name, tmp_path / "home" / name)
    unit = Unit(replace(spec, data=tmp_path / "home", out=tmp_path / "home" / "llama"), "fold-0")
    planned = unit.model.plan()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, before[1]))
    try:
        with pytest.raises(Exception, match=r"(?i)file too large|write|i/o"):
            unit.run(planned)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not unit.finished()
    unit.run(planned)
    made, whole = (
        (at / "llama" / "fold-0" / "oof.parquet").read_bytes() for at in (tmp_path / "home", trained)
    )
    assert made == whole


@pytest.mark.parametrize("command", [teacher_oof, student])
def test_a_dry_run_prints_the_units_and_leaves_nothing(command, tiny_recipe, trained, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--recipe", str(tiny_recipe), "--data", str(trained), "--out", str(out), "--dry-run"]
    assert command.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "fold-1" in shown
    assert "a guess for small models on a CPU" in shown
    assert list(tmp_path.iterdir()) == []


def test_an_estimate_counts_tokens_and_names_the_source_of_its_rate(spec, trained, tmp_path):
    rows, folds = load_prepared(trained)
    (finished,) = estimates([Unit(spec, "fold-0")], rows, folds)
    assert finished.source == "finished"
    assert finished.seconds == 0

    recipe = load_recipe("lmsys")
    model = recipe.teachers["llama31-8b"]
    fresh = ModelSpec("llama31-8b", model, trained, tmp_path / "llama31-8b")
    fold, other = estimates(units_of(fresh, 2), rows, folds)
    assert "benchmarks/gpu_training.md" in fold.source
    assert fold.gpus == 1
    assert fold.gib is not None
    assert 9 < fold.gib[0] < 13
    assert 60 < fold.gib[1] < 75
    assert fold.train_tokens + fold.predict_tokens == pytest.approx(other.train_tokens + other.predict_tokens)
    assert 17000 < fold.rate < 19000

    model.resources.tokens_per_second = 100.0
    model.resources.gpus = 0.5
    (told, _) = estimates(units_of(fresh, 2), rows, folds)
    assert told.source == "the recipe"
    assert told.seconds > fold.train_tokens / 100
    assert told.gpus == 0.5

    (fresh.out / "fold-1").mkdir(parents=True)
    (fresh.out / "fold-1" / "metrics.jsonl").write_text(json.dumps({"step": 9, "train_runtime": 50.0}) + "\n")
    (measured, _) = estimates(units_of(fresh, 2), rows, folds)
    assert measured.source == "fold-1 of this store"
    assert measured.rate == pytest.approx(measured.train_tokens / 50)


def test_the_size_of_a_model_that_is_not_here_comes_from_its_name():
    linear, family = linear_parameters(BackboneConfig(path="google/gemma-2-9b-it"))
    assert (round(linear / 1e9, 1), family) == (7.8, "gemma2")
    with pytest.raises(UserError, match="its name does not say its size"):
        linear_parameters(BackboneConfig(path="somebody/something"))


def test_resources_that_cannot_be_are_refused(tiny_recipe):
    with pytest.raises(UserError, match=r"teachers\.llama\.resources\.cpus is 0"):
        load_recipe(str(tiny_recipe), ["teachers.llama.resources.cpus=0"])


def test_the_board_counts_keeps_and_estimates(tmp_path, monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    board = Board(["a/fold-0", "a/fold-1", "b/fold-0"], tmp_path / "units" / "teacher_oof")
    board.update({"a/fold-0": {"where": "n1:7", "starts": 1, "step": 10, "steps": 100, "loss": 1.25}})
    now[0] += 60
    board.update({"a/fold-0": {"where": "n1:7", "starts": 1, "step": 40, "steps": 100, "loss": 1.05}})
    line = board.lines["a/fold-0"]
    assert line.state == RUNNING
    assert line.time_left(now[0]) == pytest.approx(120)
    # Started again elsewhere from a checkpoint: the rate is that of the new attempt alone.
    now[0] += 100
    board.update({"a/fold-0": {"where": "n2:9", "starts": 2, "step": 20, "steps": 100}})
    assert board.lines["a/fold-0"].time_left(now[0]) is None
    assert "running, start 2" in board.table()
    board.end("a/fold-0", FINISHED)
    board.end("a/fold-1", FAILED, "the loss is nan")
    board.stop()
    board.show()
    assert board.counts() == "1 finished, 1 failed, 1 stopped"
    assert [line.unit for line in board.failures()] == ["a/fold-1"]
    kept = json.loads((tmp_path / "units" / "teacher_oof.json").read_text())
    assert [line["state"] for line in kept] == ["finished", "failed", "stopped"]
    assert kept[1]["message"] == "the loss is nan"
    assert "20 of 100" in (tmp_path / "units" / "teacher_oof.txt").read_text()
    assert "a/fold-1: failed, not started: the loss is nan" in capsys.readouterr().err
    assert "… and 2 more" in board.table(most=1)


def test_the_board_redraws_itself_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("distill.cluster.board.is_terminal", lambda: True)
    board = Board(["a/fold-0", "a/fold-1"], tmp_path / "units" / "x")
    board.show()
    board.show()
    board.clear()
    drawn = capsys.readouterr().err
    assert drawn.count("a/fold-1") == 2
    assert drawn.count("\x1b[5A") == 2  # header, rule, two units and the counts are overwritten, then removed


def test_a_note_of_a_cluster_that_is_gone_is_not_waited_for(tmp_path):
    from distill.cluster.connect import _is_stale

    note = tmp_path / "ray_current_cluster"
    assert not _is_stale(note)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        note.write_text(f"127.0.0.1:{listening.getsockname()[1]}")
        assert not _is_stale(note)
    assert _is_stale(note)
