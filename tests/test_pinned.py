"""Rows pinned to every training: every fold's model learns from them, none predicts them, stacks join."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data.arena import ArenaConfig, simulate_arena
from data.combine import combine
from data.dataset import check_prepared, load_prepared, prepare
from data.errors import UserError
from data.schema import Rows
from data.softlabels import read_store
from distill import student, teacher_oof
from distill.crossfit import Run
from ensemble.problem import load_problem


def named(rows: Rows, name: str) -> Rows:
    column = pa.array([name] * len(rows), pa.string())
    return Rows(
        rows.table.set_column(rows.table.column_names.index("source"), "source", column), rows.classes
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path) -> tuple[Path, list[np.ndarray]]:
    """A teacher trained on arena rows beside pinned ones, and the rows each fold was trained on."""
    from distill import crossfit

    directory = tmp_path_factory.mktemp("pinned") / "data"
    main = named(simulate_arena(ArenaConfig(n_rows=64, seed=1)), "main")
    extra = named(simulate_arena(ArenaConfig(n_rows=32, seed=2)), "extra")
    rows, _ = combine([("main", main), ("extra", extra)])
    prepare(rows, directory, n_folds=2, pin=["extra"])
    seen: list[np.ndarray] = []
    trained = crossfit.trained

    def watched(run: Run, path: Path, allowed: np.ndarray, *rest):
        seen.append(np.flatnonzero(allowed))
        return trained(run, path, allowed, *rest)

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


def test_a_student_says_why_it_cannot_use_them_yet(run, tiny_recipe: Path) -> None:
    directory, _ = run
    with pytest.raises(UserError, match="rows pinned to every training have no out-of-fold label"):
        student.main(["--recipe", str(tiny_recipe), "--data", str(directory)])
