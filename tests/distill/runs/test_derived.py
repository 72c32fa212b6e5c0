"""In-sample, fold-mean and strict labels, made by real teachers and learnt by real students."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from stack_files import change_manifest

from data.arena import ArenaConfig, simulate_arena
from data.classes import PREFERENCE
from data.dataset import load_prepared, prepare
from data.errors import UserError
from data.softlabels import read_logits, read_store
from distill import student, teacher_oof
from distill.config import DistillConfig
from distill.recipe import load_recipe
from distill.teaching.lessons import lessons
from distill.teaching.teachers import LABELS, read_teachers
from ensemble.reading.load import load_problem

ONE_STEP = ["teachers.llama.train.epochs=1", "student.train.epochs=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_recipe):
    """Three folds, one teacher, every kind of soft label."""
    directory = tmp_path_factory.mktemp("labels") / "arena"
    prepare(simulate_arena(ArenaConfig(n_rows=45, seed=4)), directory, n_folds=3)
    command = ["--recipe", str(tiny_recipe), "--data", str(directory), "--only", "llama", *ONE_STEP]
    teacher_oof.main([*command, "--labels", "in_sample", "fold_mean", "--leakage", "strict"])
    return directory


def test_every_kind_is_a_mean_of_the_fold_models_it_names(made):
    """Each fold's model predicts all rows; kinds differ only in which of them they use."""
    rows, folds = load_prepared(made)
    every = np.empty((3, len(rows), 2, 3), dtype=np.float32)
    position = {row_id: i for i, row_id in enumerate(rows.row_ids)}
    for k in range(3):
        for name in ("oof", "elsewhere"):
            ids, _, logits = read_logits(made / "llama" / f"fold-{k}" / f"{name}.parquet", PREFERENCE)
            every[k, [position[i] for i in ids]] = logits
    stores = {kind: read_store(made / f"llama{kind}") for kind in ("", "-in_sample", "-fold_mean")}
    own = every[folds.fold, np.arange(len(rows))]
    np.testing.assert_array_equal(stores[""].logits, own)
    np.testing.assert_allclose(stores["-fold_mean"].logits, every.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(stores["-in_sample"].logits, (every.sum(axis=0) - own) / 2, atol=1e-6)
    assert {k: s.manifest["label_kind"] for k, s in stores.items()} == {
        "": "oof", "-in_sample": "in_sample", "-fold_mean": "fold_mean",
    }  # fmt: skip
    for k in range(3):
        ids, _, logits = read_logits(made / "llama-in_sample" / f"fold-{k}" / LABELS, PREFERENCE)
        np.testing.assert_array_equal(logits, every[k][[position[i] for i in ids]])


def test_strict_teachers_were_trained_without_both_folds(made):
    from distill.teaching.trust import _hash

    rows, folds = load_prepared(made)
    ids = np.array(rows.row_ids)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        directory = made / "llama" / f"without-{i}-{j}"
        record = json.loads((directory / "trained_on.json").read_text())
        assert record["rows_hash"] == _hash(ids[(folds.fold != i) & (folds.fold != j)].tolist())
        labelled, _, logits = read_logits(directory / "oof.parquet", PREFERENCE)
        for k, other in ((i, j), (j, i)):
            taken, _, values = read_logits(made / "llama" / f"fold-{k}" / LABELS, PREFERENCE)
            for n, row_id in enumerate(taken):
                if folds.fold[rows.row_ids.index(row_id)] == other:
                    np.testing.assert_array_equal(values[n], logits[labelled.index(row_id)])


@pytest.mark.parametrize(
    ("options", "flags", "mode"),
    [
        (["student.distill.loss=blackpearl"], ["--leakage", "strict"], ("oof", "strict")),
        (["student.distill.leakage=apart"], [], ("oof", "apart")),
        (["student.distill.leakage=strict"], ["--leakage", "apart"], ("oof", "apart")),
        ([], [], ("oof", "standard")),
        (["student.distill.labels=in_sample"], [], ("in_sample", "standard")),
        (["student.distill.labels=fold_mean"], [], ("fold_mean", "standard")),
        (["student.distill.loss=smoothing"], [], (None, None)),
    ],
)
def test_a_student_says_what_its_score_rests_on(
    made, tiny_recipe, tmp_path, capsys, monkeypatch, options, flags, mode
):
    from distill.runs import units

    folds_alone = partial(units.units_of, final=False)  # scored, not deployed
    monkeypatch.setattr(units, "units_of", lambda model, n, final, report_to: folds_alone(model, n))
    command = ["--recipe", str(tiny_recipe), "--data", str(made), "--out", str(tmp_path / "student")]
    student.main([*command, *ONE_STEP, *options, *flags])
    manifest = json.loads((tmp_path / "student" / "manifest.json").read_text())
    assert (manifest["teacher_label_kind"], manifest["leakage"]) == mode
    shown = capsys.readouterr().out
    assert "smoothing, no teacher" in shown if mode[0] is None else f"{mode[0]}, {mode[1]} leakage" in shown
    leaks = mode in {("oof", "standard"), ("fold_mean", "standard")}
    assert ("flatters the student" in shown) == leaks
    notes = load_problem([str(tmp_path / "student")], data=made).notes
    assert any("student learnt from teachers that saw" in note for note in notes) == leaks


def test_apart_a_folds_student_hears_only_the_model_that_never_saw_the_fold(made):
    rows, folds = load_prepared(made)
    teachers = read_teachers([made / "llama"], rows, folds, leakage="apart")
    plain = read_teachers([made / "llama"], rows, folds)
    position = {row_id: i for i, row_id in enumerate(rows.row_ids)}
    for k in range(3):
        ids, _, logits = read_logits(made / "llama" / f"fold-{k}" / "elsewhere.parquet", PREFERENCE)
        found = lessons(DistillConfig(), teachers, rows, folds, k).teacher_logits[:, 0]
        np.testing.assert_allclose(found[[position[i] for i in ids]], logits.mean(axis=1), atol=1e-6)
    final = lessons(DistillConfig(), teachers, rows, folds, 3).teacher_logits
    np.testing.assert_array_equal(final, plain.logits)
    assert teachers.hashes != plain.hashes


BOTH = ["in_sample", "fold_mean"]


@pytest.mark.parametrize(
    ("asked", "flags", "wanted"),
    [
        ({}, ([], "standard"), ([], False)),
        ({"leakage": "apart"}, ([], "standard"), (["in_sample"], False)),
        ({"leakage": "apart"}, (BOTH, "strict"), (BOTH, True)),
        ({"leakage": "apart", "labels": "fold_mean"}, ([], "standard"), (BOTH, False)),
        ({"leakage": "apart", "labels": "human"}, ([], "standard"), ([], False)),
        ({"leakage": "strict"}, ([], "standard"), ([], True)),
        ({"leakage": "apart", "loss": "hard"}, ([], "standard"), ([], False)),
    ],
)
def test_teachers_leave_what_the_recipes_student_asks_for(tiny_recipe, asked, flags, wanted):
    overrides = [f"student.distill.{key}={value}" for key, value in asked.items()]
    assert teacher_oof.wanted(load_recipe(str(tiny_recipe), overrides), *flags) == wanted


def test_apart_needs_in_sample_labels_of_the_same_teacher(made, tmp_path):
    rows, folds = load_prepared(made)
    shutil.copytree(made / "llama", tmp_path / "llama", ignore=shutil.ignore_patterns("without-*", "adapter"))
    with pytest.raises(UserError, match=r"llama-in_sample: missing; run distill.teacher_oof with --labels"):
        read_teachers([tmp_path / "llama"], rows, folds, leakage="apart")
    other = shutil.copytree(made / "llama-in_sample", tmp_path / "llama-in_sample")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["train"]["seed"] += 1
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is not as it was written under the manifest"):
        read_teachers([tmp_path / "llama"], rows, folds, leakage="apart")
    change_manifest(other)
    with pytest.raises(UserError, match=r"is not of the teacher .* differs in train"):
        read_teachers([tmp_path / "llama"], rows, folds, leakage="apart")


def test_kinds_are_not_taken_for_each_other(made):
    rows, folds = load_prepared(made)
    with pytest.raises(UserError, match="its soft labels are fold_mean"):
        read_teachers([made / "llama-fold_mean"], rows, folds)
    with pytest.raises(UserError, match="teacher that saw fold 0"):
        read_teachers([made / "llama-fold_mean"], rows, folds, "fold_mean", "strict")


def test_the_stack_takes_no_lessons_for_members(made):
    from argparse import Namespace

    from ensemble.stack import resolve

    stores, *_ = resolve(Namespace(oof=None, data=made, out=None))
    assert [s.rsplit("/", 1)[-1] for s in stores] == ["llama"]
