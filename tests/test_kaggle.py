"""A notebook session without a network: the bundle, the notebook on tiny models, the recipe's hours."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from packaged import build_wheel
from recipes import ROOT

from distill.cluster import launch
from distill.recipe import load_recipe
from distill.runs.devices import CARDS, Device
from docs.kaggle import needed

NOTEBOOK = ROOT / "notebooks" / "kaggle.ipynb"
LMSYS_ROWS, LMSYS_CHARS, SESSION_HOURS = 57_477, 2_600, 9


def no_network() -> list[str]:
    """What cuts a command off from the network, where this user may."""
    cut = ["unshare", "--net"]
    able = shutil.which("unshare") and subprocess.run([*cut, "true"], capture_output=True).returncode == 0
    return cut if able else []


def test_the_bundle_has_what_training_needs_and_no_torch() -> None:
    found = needed("3.12")
    assert {"peft", "bitsandbytes", "accelerate", "transformers", "tokenizers", "omegaconf"} <= set(found)
    assert not {name for name in found if name == "torch" or name.startswith(("nvidia", "triton"))}
    assert found["peft"] == version("peft")


def test_the_notebook_leaves_a_whole_submission_without_a_network(trained: Path, tmp_path: Path) -> None:
    given, work, site = (tmp_path / name for name in ("input", "working", "site"))
    shutil.copytree(trained, given / "runs" / "arena", ignore=shutil.ignore_patterns("backbones"))
    shutil.copytree(trained / "backbones", given / "models")
    (given / "wheels").mkdir()
    build_wheel(given / "wheels")
    work.mkdir()
    rows = pq.read_table(trained / "rows.parquet").to_pylist()
    with open(given / "test.csv", "w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["id", "prompt", "response_a", "response_b"])
        for row in rows[:40]:
            turns = (json.dumps(row[name]) for name in ("prompt", "response_a", "response_b"))
            out.writerow([row["row_id"], *turns])
    ids = [row["row_id"] for row in rows[:40]][::-1]
    names = ["winner_tie", "winner_model_a", "winner_model_b"]
    with open(given / "sample_submission.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", *names], *([i, 0.3, 0.3, 0.4] for i in ids)])
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "PYTHONPATH": str(site),
        "PIP_TARGET": str(site),
        "PIP_NO_DEPS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DISTILLSTACK_INPUT": str(given),
        "DISTILLSTACK_TEST": str(given / "test.csv"),
        "DISTILLSTACK_MINUTES": "20",
        "DISTILLSTACK_CHEAP": "llama",
        "DISTILLSTACK_DEAR": "gemma2",
    }
    done = subprocess.run(
        [*no_network(), sys.executable, "-c", source],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "finished" in done.stdout
    assert "of them also gemma2" in done.stdout
    with open(work / "submission.csv", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    assert header == ["id", *names]
    assert [line[0] for line in lines] == ids
    probs = np.array([line[1:] for line in lines], dtype=float)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    assert (site / "distill" / "predict.py").exists()


def test_the_recipe_trains_in_one_session_on_two_t4(tmp_path: Path, capsys, monkeypatch) -> None:
    """By the dry run's estimate for LMSYS, half of the time to spare."""
    from distill import student, teacher_oof

    recipe = load_recipe("kaggle-t4")
    assert {model.backbone.precision for model in (*recipe.teachers.values(), recipe.student)} == {"nf4"}
    word, n = "question ", 200
    source = tmp_path / "train.csv"
    with open(source, "w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["id", "prompt", "response_a", "response_b", "label"])
        turns = ["".join(np.random.default_rng(i).permutation(list(word * 98))) for i in range(3)]
        out.writerows([[i, f"{i} {turns[0]}", turns[1], turns[2], i % 3] for i in range(n)])
    from data.prepare import main as prepare

    prepare(["--source", str(source), "--out", str(tmp_path / "d"), "--folds", "2", "--near", "off"])
    t4 = Device("Tesla T4", True, CARDS["T4"], "its maker")
    monkeypatch.setattr(launch, "device_here", lambda: t4)
    kept = []
    monkeypatch.setattr(launch, "table_of", lambda found, device: kept.extend(found) or ([], []))
    for command in (teacher_oof.main, student.main):
        command(["--recipe", "kaggle-t4", "--data", str(tmp_path / "d"), "--dry-run"])
    hours = sum(e.seconds for e in kept) * LMSYS_ROWS / n / 3600
    assert 0 < hours / 2 < SESSION_HOURS / 2
    assert all(e.gib is not None and e.gib[0] < 14 for e in kept)


@pytest.mark.skipif(not (ROOT / "dist" / "kaggle").is_dir(), reason="no bundle; make kaggle leaves one")
def test_the_bundle_is_small_enough() -> None:
    wheels = list((ROOT / "dist" / "kaggle").glob("*.whl"))
    assert sum(path.stat().st_size for path in wheels) < 400e6
    assert not [path.name for path in wheels if path.name.startswith(("torch", "nvidia"))]
