"""Units of work: which there are, what they cost, how they are shown; and who may import Ray."""

from __future__ import annotations

import ast
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from data.dataset import load_prepared
from data.errors import UserError
from distill import student, teacher_oof
from distill.recipe import load_recipe
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
    assert "a product here, " in shown
    assert "time is that of this machine's CPU" in shown
    assert list(tmp_path.iterdir()) == []


TEACHER = "teachers.llama"
CHANGES = {
    "lora": (teacher_oof, f"{TEACHER}.lora.r=3"),
    "learning rate": (teacher_oof, f"{TEACHER}.train.lr=0.5"),
    "template": (teacher_oof, f"{TEACHER}.template=notebook"),
    "precision": (teacher_oof, f"{TEACHER}.backbone.precision=fp32"),
    "backbone": (teacher_oof, f"{TEACHER}.backbone.tiny.layers=1"),
    "loss": (student, "student.distill.weight=0.25"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_dry_run_refuses_what_the_run_would(name, tiny_recipe, trained, capsys):
    command, change = CHANGES[name]
    common = ["--recipe", str(tiny_recipe), "--data", str(trained), "--dry-run"]
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    assert command.main(common) == 0
    assert "finished" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds another run: its manifest differs in"):
        command.main([*common, change])
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


@pytest.mark.parametrize("change", ["path", "first_layers", "config", "gone", "none"])
def test_a_dry_run_makes_no_checkpoint_to_compare(change, spec, trained, tmp_path):
    """Of a run on a cut checkpoint: whatever it is to be cut from, the copy that is there is all there is."""
    loaded, source = load_prepared(trained), next((trained / "backbones").glob("tiny-llama-*"))
    backbone = replace(spec.model.backbone, tiny=None, path=str(source), first_layers=1)
    cut = replace(spec, model=replace(spec.model, backbone=backbone), out=tmp_path / "runs" / "llama")
    cut.plan(loaded).claim()
    (cut.out / "fold-0" / "adapter").mkdir(parents=True)
    other = shutil.copytree(source, tmp_path / "other")
    if change == "path":
        weights = load_file(other / "model.safetensors")
        save_file({key: value + 1 for key, value in weights.items()}, other / "model.safetensors")
    if change == "gone":
        shutil.rmtree(tmp_path / "runs" / "backbones")
    asked = replace(backbone, path=str(other))
    if change == "first_layers":
        asked = replace(asked, first_layers=None)
    if change == "config":
        asked = replace(asked, precision="fp32")
    before = set(tmp_path.rglob("*"))
    wanted = replace(cut, model=replace(spec.model, backbone=asked))
    if change in ("gone", "none"):
        assert wanted.foresee(loaded)(0).all()
    else:
        with pytest.raises(UserError, match=r"differs in (cut_from|backbone)"):
            wanted.foresee(loaded)
    assert set(tmp_path.rglob("*")) == before
