"""Unlabelled rows in rounds: labelled by all of a teacher's models, never by one that the score forbids."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

from data.arena import ArenaConfig, simulate_arena
from data.dataset import load_prepared, prepare
from data.errors import UserError
from data.schema import Rows
from data.softlabels import read_store
from distill import student, teacher_oof
from distill.config import DistillConfig
from distill.teaching.lessons import lessons
from distill.teaching.teachers import open_teachers

SURE = 0.34


@pytest.fixture(scope="module")
def home(tiny_recipe, tmp_path_factory):
    """Rows of which two in five have no label, a teacher of all its labels, and a student of them."""
    home = tmp_path_factory.mktemp("unlabelled")
    rows = simulate_arena(ArenaConfig(n_rows=80, seed=3))
    labels = [k if i % 5 < 3 else None for i, k in enumerate(rows.labels.tolist())]
    at = rows.table.column_names.index("label")
    table = rows.table.set_column(at, "label", pa.array(labels, rows.table.schema.field("label").type))
    prepare(Rows(table, rows.classes), home, n_folds=2, seed=1)
    common = words(tiny_recipe, home)
    teacher_oof.main([*common, "--only", "llama"])
    student.main(common)
    return home


def words(recipe, home, *more):
    short = ["teachers.llama.train.epochs=1", "student.train.epochs=1"]
    return [
        "--recipe",
        str(recipe),
        "--data",
        str(home),
        *short,
        f"student.distill.pseudo_labels={SURE}",
        *more,
    ]


def test_all_models_of_a_teacher_label_rows_that_none_was_trained_on(home):
    rows, folds = load_prepared(home)
    config = DistillConfig(pseudo_labels=SURE)
    teachers = open_teachers(config, (home / "llama",), rows, folds, home, "standard")
    own, mean = (read_store(home / name).mean_logits for name in ("llama", "llama-fold_mean"))
    known = rows.labelled
    np.testing.assert_array_equal(teachers.logits[known, 0], own[known])
    np.testing.assert_array_equal(teachers.logits[~known, 0], mean[~known])
    assert np.abs(own - mean)[~known].max() > 1e-4
    plain = open_teachers(DistillConfig(), (home / "llama",), rows, folds, home, "standard")
    np.testing.assert_array_equal(plain.logits[:, 0], own)
    assert plain.hashes != teachers.hashes
    taught = np.isfinite(lessons(config, teachers, rows, folds, 0).targets).all(axis=1)
    assert taught[~known].any()
    assert not taught[folds.fold == 0][~known[folds.fold == 0]].any()


def test_the_student_says_how_many_it_learnt(home):
    manifest = json.loads((home / "student" / "manifest.json").read_text())
    told = manifest["pseudo_labelled"]
    assert (told["of"], told["label_kind"]) == (32, "fold_mean")
    assert 0 < told["rows"] <= 32
    record = json.loads((home / "student" / "final" / "trained_on.json").read_text())
    assert (record["n_rows"], record["n_unlabelled"]) == (48, told["rows"])


def test_a_dry_run_counts_them(home, tiny_recipe, tmp_path, capsys):
    def trained_on(place, *more):
        out = ["--out", str(tmp_path / "planned"), "--dry-run"]
        student.main(words(tiny_recipe, place, *out, *more))
        shown = capsys.readouterr().out
        (line,) = [line for line in shown.splitlines() if line.startswith("student/final")]
        return int(line.split()[1].replace(",", "")), shown

    taught = json.loads((home / "student" / "manifest.json").read_text())["pseudo_labelled"]["rows"]
    plain, _ = trained_on(home, "student.distill.pseudo_labels=null")
    assert trained_on(home)[0] == pytest.approx(plain * (48 + taught) / 48, rel=0.01)
    for name in ("rows.parquet", "folds.parquet", "manifest.json"):
        (tmp_path / "early").mkdir(exist_ok=True)
        shutil.copy(home / name, tmp_path / "early" / name)
    most, shown = trained_on(tmp_path / "early")
    assert most == pytest.approx(plain * 80 / 48, rel=0.01)
    assert "before that: " in shown
    assert "run distill.teacher_oof first" in shown


def test_a_second_round_is_taught_by_the_first_rounds_student(home, tiny_recipe, tmp_path, capsys):
    shutil.copytree(home / "backbones", tmp_path / "backbones")
    both = ["--teachers", str(home / "student"), str(home / "llama")]
    student.main(words(tiny_recipe, home, *both, "--out", str(tmp_path / "round2")))
    assert "unlabelled rows by soft labels" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "round2" / "manifest.json").read_text())
    assert list(manifest["teachers"]) == ["student", "llama"]
    assert manifest["pseudo_labelled"]["label_kind"] == "oof"  # a student has no others
    with pytest.raises(UserError, match="is a student's store"):
        student.main(words(tiny_recipe, home, *both, "--out", str(tmp_path / "apart"), "--leakage", "apart"))
