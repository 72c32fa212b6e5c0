"""A stack teaches a student by its nested out-of-fold blend, of these very rows and folds, or not at all."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.dataset import load_prepared
from data.errors import UserError
from distill import student
from distill.config import DistillConfig
from distill.teaching.teachers import open_teachers
from ensemble import stack


@pytest.fixture(scope="module")
def stacked(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("stacked") / "blend"
    members = [str(trained / name) for name in ("llama", "gemma2")]
    stack.main(["--oof", *members, "--data", str(trained), "--out", str(out)])
    return out


def opened(trained, path, leakage="standard", **config):
    rows, folds = load_prepared(trained)
    paths = (path,) if not isinstance(path, tuple) else path
    return open_teachers(DistillConfig(**config), paths, rows, folds, trained, leakage)


def test_the_teacher_is_the_nested_blend(trained, stacked):
    teachers = opened(trained, stacked)
    assert (teachers.names, teachers.kind, teachers.leakage) == (["blend"], "stack", "standard")
    table = pq.read_table(stacked / "predictions.parquet")
    rows, _ = load_prepared(trained)
    at = [table.column("row_id").to_pylist().index(row_id) for row_id in rows.row_ids]
    wanted = np.stack([table.column(name).to_numpy() for name in rows.classes.names], axis=1)[at]
    np.testing.assert_allclose(np.exp(teachers.logits[:, 0]), wanted, rtol=1e-6)


def test_a_student_is_taught_by_it_and_says_so(trained, stacked, tiny_recipe, tmp_path, capsys):
    shutil.copytree(trained / "backbones", tmp_path / "backbones")
    out = tmp_path / "second"
    words = ["--recipe", str(tiny_recipe), "--data", str(trained), "--teachers", str(stacked)]
    student.main([*words, "--out", str(out)])
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["teacher_label_kind"] == "stack"
    assert list(manifest["teachers"]) == ["blend"]
    shown = capsys.readouterr().out
    assert "stack, standard leakage" in shown
    assert "this score flatters the student" in shown


def test_what_a_stack_cannot_give_is_refused(trained, stacked, tmp_path):
    def refused(words, path=stacked, **given):
        with pytest.raises(UserError, match=words):
            opened(trained, path, **given)

    refused("cannot be had from it", leakage="apart")
    refused("cannot be had from it", leakage="strict")
    refused("cannot be had from it", labels="in_sample")
    refused("of which a stack has none", pseudo_labels=0.9)
    refused("is no stack", path=(stacked, trained / "llama"))
    changed = tmp_path / "changed"
    shutil.copytree(stacked, changed)
    table = pq.read_table(changed / "predictions.parquet")
    pq.write_table(table.slice(1), changed / "predictions.parquet")
    refused("predictions.parquet", path=changed)


def test_a_stack_of_other_rows_or_of_unknown_ones_is_refused(trained, stacked, tmp_path):
    rows, folds = load_prepared(trained)
    other = rows.take(np.arange(len(rows))[::-1])
    with pytest.raises(UserError, match="disagree on rows_hash"):
        open_teachers(
            DistillConfig(), (stacked,), other, folds.aligned_to(other.row_ids), trained, "standard"
        )
    table = pq.read_table(stacked / "predictions.parquet")
    for name in ("one", "two"):
        pq.write_table(table.drop_columns(["fold"]), tmp_path / f"{name}.parquet")
    labels = tmp_path / "labels.csv"
    text = "\n".join(f"{i},{k}" for i, k in zip(rows.row_ids, rows.labels.tolist(), strict=True))
    labels.write_text(f"id,label\n{text}\n")
    members = [str(tmp_path / f"{name}.parquet") for name in ("one", "two")]
    stack.main(["--oof", *members, "--labels", str(labels), "--out", str(tmp_path / "unknown")])
    with pytest.raises(UserError, match="make the stack again with --data"):
        opened(trained, tmp_path / "unknown")
