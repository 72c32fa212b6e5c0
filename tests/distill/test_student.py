"""The student: taught by stores that fit, refused by those that do not."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from stack_files import change_manifest

from data.dataset import load_prepared
from data.errors import UserError
from data.softlabels import read_store, write_logits
from distill import student
from distill.config import DistillConfig
from distill.teaching.lessons import weights_of
from distill.teaching.teachers import read_teachers


def test_the_student_leaves_a_store_and_a_deployable_model(trained):
    store = read_store(trained / "student")
    assert store.logits.shape == (96, 2, 3)
    assert store.manifest["kind"] == "student"
    assert set(store.manifest["teachers"]) == {"llama", "gemma2"}
    assert store.manifest["distill"]["teacher_weights"] == {"llama": 0.5, "gemma2": 0.5}
    assert (trained / "student" / "final" / "adapter" / "adapter_model.safetensors").exists()


def test_teachers_are_aligned_by_id_not_by_position(trained, tmp_path):
    rows, folds = load_prepared(trained)
    shuffled = tmp_path / "llama"
    shutil.copytree(trained / "llama", shuffled)
    store = read_store(shuffled)
    order = np.random.default_rng(0).permutation(len(store.row_ids))
    ids = [store.row_ids[i] for i in order]
    logits = store.logits[order]
    write_logits(shuffled / "oof.parquet", ids, store.fold[order], logits, store.classes, store.manifest)
    np.testing.assert_array_equal(
        read_teachers([shuffled], rows, folds).logits, read_teachers([trained / "llama"], rows, folds).logits
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("folds_hash", "0" * 64),
        ("rows_hash", "1" * 64),
        ("classes", ["a", "b", "c"]),
        ("label_kind", "in_sample"),
    ],
)
def test_a_store_that_does_not_fit_is_refused_by_name(trained, tmp_path, tiny_recipe, field, value):
    other = tmp_path / "llama"
    shutil.copytree(trained / "llama", other)
    change_manifest(other, **{field: value})
    if field == "classes":
        table = pq.read_table(other / "oof.parquet")
        renamed = table.rename_columns([*table.column_names[:3], "logit_a", "logit_b", "logit_c"])
        pq.write_table(renamed.replace_schema_metadata(table.schema.metadata), other / "oof.parquet")
    out = tmp_path / "out"
    command = [
        "--recipe",
        str(tiny_recipe),
        "--data",
        str(trained),
        "--teachers",
        str(other),
        "--out",
        str(out),
    ]
    with pytest.raises(UserError, match=field if field != "label_kind" else "in_sample"):
        student.main(command)
    assert not out.exists()


def test_a_truncated_store_is_named(trained, tmp_path):
    rows, folds = load_prepared(trained)
    other = tmp_path / "llama"
    shutil.copytree(trained / "llama", other)
    damaged = other / "oof.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"oof\.parquet.*truncated"):
        read_teachers([other], rows, folds)


def test_two_teachers_of_one_name_are_refused(trained):
    rows, folds = load_prepared(trained)
    with pytest.raises(UserError, match="also named llama"):
        read_teachers([trained / "llama", trained / "llama"], rows, folds)


def test_teacher_weights_are_normalised_and_checked():
    assert weights_of(DistillConfig(), ["a", "b"]) == [0.5, 0.5]
    assert weights_of(DistillConfig(teacher_weights={"a": 3.0, "b": 1.0}), ["b", "a"]) == [0.25, 0.75]
    with pytest.raises(UserError, match="the teachers are a, b"):
        weights_of(DistillConfig(teacher_weights={"a": 1.0}), ["a", "b"])
    with pytest.raises(UserError, match="negative"):
        weights_of(DistillConfig(teacher_weights={"a": -1.0, "b": 2.0}), ["a", "b"])


def test_a_student_without_teachers_says_what_to_run(tmp_path, tiny_recipe, trained):
    for name in ("rows.parquet", "folds.parquet", "manifest.json"):
        shutil.copy(trained / name, tmp_path / name)
    with pytest.raises(UserError, match=r"distill\.teacher_oof first"):
        student.main(["--recipe", str(tiny_recipe), "--data", str(tmp_path)])


def test_an_unfinished_teacher_is_not_left_out_without_a_word(trained, tmp_path, tiny_recipe):
    data = tmp_path / "arena"
    shutil.copytree(trained, data, ignore=shutil.ignore_patterns("student"))
    (data / "gemma2" / "oof.parquet").unlink()
    with pytest.raises(UserError, match=r"gemma2: this teacher is unfinished.*--teachers"):
        student.main(["--recipe", str(tiny_recipe), "--data", str(data)])
    (data / "gemma2" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"gemma2/manifest\.json: does not say of what kind"):
        student.main(["--recipe", str(tiny_recipe), "--data", str(data)])
