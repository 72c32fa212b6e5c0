"""Rows pinned to every training: every fold's model learns from them, none predicts them, stacks join."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from data.arena import ArenaConfig, simulate_arena
from data.dataset import check_prepared, load_prepared, prepare
from data.errors import UserError
from data.schema import Rows
from data.softlabels import read_store, write_logits
from data.sources.combine import combine
from distill import export, student, teacher_oof
from distill.config import DistillConfig
from distill.losses import LOSSES, cross_entropy
from distill.runs.run import Run
from distill.runs.run_directory import Part
from distill.teaching.lessons import StudentLoss, lessons
from distill.teaching.teachers import read_teachers
from ensemble.reading.load import load_problem


def named(rows: Rows, name: str) -> Rows:
    column = pa.array([name] * len(rows), pa.string())
    return Rows(
        rows.table.set_column(rows.table.column_names.index("source"), "source", column), rows.classes
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path) -> tuple[Path, list[np.ndarray]]:
    """A teacher trained on arena rows beside pinned ones, and the rows each fold was trained on."""
    from distill.runs import crossfit

    directory = tmp_path_factory.mktemp("pinned") / "data"
    main = named(simulate_arena(ArenaConfig(n_rows=64, seed=1)), "main")
    extra = named(simulate_arena(ArenaConfig(n_rows=32, seed=2)), "extra")
    rows, _ = combine([("main", main), ("extra", extra)])
    prepare(rows, directory, n_folds=2, pin=["extra"])
    seen: list[np.ndarray] = []
    trained = crossfit.trained

    def watched(run: Run, part: Part, report_to: str):
        seen.append(np.flatnonzero(~part.held_out(run.folds)))
        return trained(run, part, report_to)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossfit, "trained", watched)
        teacher_oof.main(["--recipe", str(tiny_recipe), "--data", str(directory), "--only", "llama"])
    return directory, seen


def test_every_fold_learns_from_pinned_rows_and_none_predicts_them(run) -> None:
    directory, seen = run
    rows, folds, _ = check_prepared(directory)
    pinned = np.flatnonzero(folds.pinned)
    assert 0 < len(pinned) <= 32
    assert len(seen) == 2
    for fold, train_rows in enumerate(seen):
        assert set(train_rows.tolist()) == set(np.flatnonzero(folds.fold != fold).tolist())
        assert set(pinned.tolist()) <= set(train_rows.tolist())
    store = read_store(directory / "llama")
    held = [row_id for row_id, out in zip(rows.row_ids, folds.pinned, strict=True) if not out]
    assert store.row_ids == held
    assert set(store.fold.tolist()) == {0, 1}


def test_a_stack_joins_such_a_store_with_its_data(run) -> None:
    directory, _ = run
    problem = load_problem([str(directory / "llama")], data=directory)
    _, folds = load_prepared(directory)
    assert len(problem) == int((~folds.pinned).sum())
    assert set(problem.fold.tolist()) == {0, 1}
    assert any("labelled rows that no model predicts are left out" in note for note in problem.notes)


def test_pinned_rows_teach_by_hard_labels_alone(run, tiny_recipe: Path, tmp_path, capsys) -> None:
    """The student's manifest, table and card say so; no weight of a teacher rests on them."""
    directory, _ = run
    out = tmp_path / "student"
    rows, folds = load_prepared(directory)
    n = int(folds.pinned.sum())
    teachers = read_teachers([directory / "llama"], rows, folds)
    student.main(["--recipe", str(tiny_recipe), "--data", str(directory), "--out", str(out)])
    assert f"oof, standard leakage; {n} pinned rows by hard labels" in capsys.readouterr().out
    assert json.loads((out / "manifest.json").read_text())["hard_labels_only"] == n
    assert set(read_store(out).fold.tolist()) == {0, 1}
    export.main(["--model", str(out), "--out", str(tmp_path / "plain"), "--license", "mit"])
    assert (
        f"{n} rows pinned to training by their hard labels" in (tmp_path / "plain" / "README.md").read_text()
    )

    held = np.flatnonzero(~folds.pinned)
    for weighting in ("equal", "fitted", "confidence"):
        config = DistillConfig(weighting=weighting)
        for fold in (0, 1, folds.n_folds):
            lesson = lessons(config, teachers, rows, folds, fold)
            assert np.isnan(lesson.teacher_logits[folds.pinned]).all()
            assert np.isfinite(lesson.teacher_logits[held]).all()
            np.testing.assert_array_equal(lesson.targets, rows.targets)
            np.testing.assert_allclose(lesson.teacher_weights.sum(axis=1), 1)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_row_without_teachers_is_learnt_by_cross_entropy(name: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 3, requires_grad=True)
    teachers, weights = torch.randn(4, 2, 3), torch.full((4, 2), 0.5)
    targets = torch.eye(3)[[0, 1, 2, 0]]
    loss = StudentLoss(DistillConfig(loss=name))
    whole = loss(logits, {"targets": targets, "teacher_logits": teachers, "teacher_weights": weights})
    teachers[1] = float("nan")
    part = loss(logits, {"targets": targets, "teacher_logits": teachers, "teacher_weights": weights})
    torch.testing.assert_close(part[[0, 2, 3]], whole[[0, 2, 3]])
    torch.testing.assert_close(part[1], cross_entropy(logits, targets)[1])
    (gradient,) = torch.autograd.grad(part.sum(), logits)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient[1], (logits.softmax(-1) - targets)[1].detach())


def test_only_pinned_rows_may_go_without_a_label(run, tmp_path: Path) -> None:
    """A row that some fold validates and the store lacks is still an error."""
    directory, _ = run
    rows, folds = load_prepared(directory)
    short = tmp_path / "llama"
    shutil.copytree(directory / "llama", short)
    store = read_store(short)
    rest = store.row_ids[1:], store.fold[1:], store.logits[1:]
    write_logits(short / "oof.parquet", *rest, rows.classes, store.manifest)
    with pytest.raises(UserError, match=f"no soft labels for 1 rows: {store.row_ids[0]}"):
        read_teachers([short], rows, folds)
