"""Planted faults in a teacher's store are caught before a student learns from it, each by its name."""

import json
import shutil

import numpy as np
import pytest

from data.arena import ArenaConfig, simulate_arena
from data.classes import PREFERENCE
from data.errors import UserError
from data.files import write_json
from data.folds import Folds, make_folds
from data.softlabels import write_logits
from distill.config import DistillConfig
from distill.teaching.lessons import lessons, row_weights
from distill.teaching.teachers import LABELS, find_teachers, human_labels, read_teachers
from distill.teaching.trust import write_trained_on

N, FOLDS = 300, 3


@pytest.fixture(scope="module")
def data():
    rows = simulate_arena(ArenaConfig(n_rows=N, seed=11))
    return rows, make_folds(rows, FOLDS, 0)


def logits_of(rows, noise=0.7, seed=0):
    """A fair teacher's logits in both orders, in the row's own class order."""
    truth = np.array(rows.table.column("true_probs").to_pylist())
    noise = noise * np.random.default_rng(seed).normal(size=(len(rows), 2, 3))
    return (np.log(truth)[:, None] + noise).astype(np.float32)


def write(path, rows, folds, logits, kind="oof"):
    """A store as distill.teacher_oof leaves it, less the models."""
    path.mkdir(parents=True, exist_ok=True)
    manifest = {
        "kind": "teacher",
        "label_kind": kind,
        "classes": list(rows.classes.names),
        "swap": list(rows.classes.swap),
        "rows_hash": rows.content_hash,
        "folds_hash": folds.content_hash,
    }
    write_json(path / "manifest.json", manifest)
    write_logits(path / "oof.parquet", rows.row_ids, folds.fold, logits, PREFERENCE)
    ids = np.array(rows.row_ids)
    for fold in range(FOLDS):
        inside = folds.fold == fold
        part = path / f"fold-{fold}"
        write_logits(
            part / "oof.parquet", ids[inside].tolist(), folds.fold[inside], logits[inside], PREFERENCE
        )
        write_trained_on(part, ids[~inside].tolist())
    return path


@pytest.fixture
def store(tmp_path, data):
    return write(tmp_path / "teacher", *data, logits_of(data[0]))


def test_an_honest_store_is_taken(store, data):
    teachers = read_teachers([store], *data)
    np.testing.assert_allclose(teachers.logits[:, 0], logits_of(data[0]).mean(axis=1), atol=1e-6)


def test_a_teacher_that_learnt_nothing_but_the_place_is_no_fault(tmp_path, data):
    rows, folds = data
    content = np.random.default_rng(0).normal(size=N)
    logits = np.zeros((N, 2, 3), dtype=np.float32)
    logits[:, 0, 0], logits[:, 1, 1] = content, content  # whatever stands first, in either order
    read_teachers([write(tmp_path / "biased", rows, folds, logits)], rows, folds)


def test_exchanged_fold_files_are_caught(store, data):
    a, b = (store / f"fold-{k}" / "oof.parquet" for k in (0, 1))
    shutil.move(a, store / "kept")
    shutil.move(b, a)
    shutil.move(store / "kept", b)
    with pytest.raises(UserError, match="were fold files exchanged"):
        read_teachers([store], *data)


def test_rows_predicted_under_other_folds_are_caught(store, data):
    rows, folds = data
    other = Folds(folds.row_ids, folds.group_ids, (folds.fold + 1) % FOLDS)
    manifest = json.loads((store / "manifest.json").read_text())
    write_json(store / "manifest.json", {**manifest, "folds_hash": other.content_hash})
    with pytest.raises(UserError, match="not out of fold here"):
        read_teachers([store], rows, other)


def test_a_teacher_retrained_on_all_rows_is_caught_by_its_record(store, data):
    write_trained_on(store / "fold-1", data[0].row_ids)
    with pytest.raises(UserError, match="fold 1 was trained on all rows"):
        read_teachers([store], *data)


def test_joined_labels_of_another_model_are_caught(store, data):
    """In-sample predictions laid over the joined file, the parts left as they were."""
    rows, folds = data
    write_logits(store / "oof.parquet", rows.row_ids, folds.fold, logits_of(rows, 0.1, 1), PREFERENCE)
    with pytest.raises(UserError, match="other logits than"):
        read_teachers([store], rows, folds)


@pytest.mark.parametrize(("order", "words"), [(1, "put back after the swap"), (0, "in another order")])
def test_an_inverted_order_flag_is_caught(tmp_path, data, order, words):
    """The swapped rows' classes left as the model saw them; or the given rows' exchanged instead."""
    rows, folds = data
    logits = logits_of(rows)
    logits[:, order] = logits[:, order][:, [1, 0, 2]]
    with pytest.raises(UserError, match=words):
        read_teachers([write(tmp_path / "inverted", rows, folds, logits)], rows, folds)


@pytest.mark.parametrize("reading", [[2, 0, 1], [0, 2, 1], [1, 0, 2]])
def test_a_permuted_class_order_is_caught(tmp_path, data, reading):
    rows, folds = data
    logits = logits_of(rows)[:, :, reading]
    with pytest.raises(UserError, match="in another order"):
        read_teachers([write(tmp_path / "permuted", rows, folds, logits)], rows, folds)


def strict_labels(store, rows, folds, kind="oof"):
    for k in range(FOLDS):
        outside = folds.fold != k
        ids = np.array(rows.row_ids)[outside].tolist()
        by = folds.fold[outside] if kind == "oof" else np.full(outside.sum(), k)
        write_logits(store / f"fold-{k}" / LABELS, ids, by, logits_of(rows, seed=k)[outside], PREFERENCE)


def test_strict_labels_come_from_the_folds_own_files(store, data):
    rows, folds = data
    with pytest.raises(UserError, match=r"--leakage strict"):
        read_teachers([store], rows, folds, leakage="strict")
    strict_labels(store, rows, folds)
    teachers = read_teachers([store], rows, folds, leakage="strict")
    for k in range(FOLDS):
        found = lessons(DistillConfig(), teachers, rows, folds, k).teacher_logits[folds.fold != k, 0]
        np.testing.assert_allclose(found, logits_of(rows, seed=k).mean(axis=1)[folds.fold != k], atol=1e-6)
    everything = lessons(DistillConfig(), teachers, rows, folds, FOLDS)
    np.testing.assert_allclose(everything.teacher_logits, teachers.logits)


def test_labels_by_a_teacher_that_saw_the_scored_fold_are_refused(store, data):
    rows, folds = data
    strict_labels(store, rows, folds)
    shutil.copy(store / "fold-1" / LABELS, store / "fold-0" / LABELS)
    with pytest.raises(UserError, match="of fold 0, on which the student is scored"):
        read_teachers([store], rows, folds, leakage="strict")
    strict_labels(store, rows, folds, kind="in_sample")  # by models that saw the labelled rows
    with pytest.raises(UserError, match="that saw it or fold 0"):
        read_teachers([store], rows, folds, leakage="strict")


def test_in_sample_labels_need_a_teacher_for_each_fold(tmp_path, data):
    rows, folds = data
    path = write(tmp_path / "all-rows", rows, folds, logits_of(rows, 0.1), "in_sample")
    with pytest.raises(UserError, match="may come from a teacher that saw fold 0"):
        read_teachers([path], rows, folds, "in_sample")
    strict_labels(path, rows, folds, "in_sample")
    assert set(read_teachers([path], rows, folds, "in_sample").by_fold) == set(range(FOLDS))
    with pytest.raises(UserError, match="--labels fold_mean"):
        find_teachers(tmp_path, "fold_mean")
    assert find_teachers(tmp_path, "in_sample") == [path]


def test_lessons_do_not_depend_on_the_labels_of_the_scored_fold(store, data):
    """Fitted weights and pseudo-labels included: other labels in fold 0 leave its student's lessons alone."""
    rows, folds = data
    second = write(store.parent / "second", rows, folds, logits_of(rows, 1.5, 3))
    teachers = read_teachers([store, second], rows, folds)
    config = DistillConfig(weighting="fitted", pseudo_labels=0.5)
    names = rows.table.column_names
    labels = rows.labels.copy()
    labels[::7] = -1
    changed = np.where(folds.fold == 0, (labels + 1) % 3, labels)

    def with_labels(values):
        import pyarrow as pa

        column = pa.array([None if v < 0 else int(v) for v in values], pa.int8())
        return type(rows)(rows.table.set_column(names.index("label"), "label", column), rows.classes)

    first, other = (lessons(config, teachers, with_labels(v), folds, 0) for v in (labels, changed))
    outside = folds.fold != 0
    np.testing.assert_array_equal(first.teacher_weights, other.teacher_weights)
    np.testing.assert_array_equal(first.targets[outside], other.targets[outside])
    assert first.teacher_weights[0, 0] > 0.5  # the better teacher
    pseudo = (labels < 0) & np.isfinite(first.targets).all(axis=1)
    assert pseudo.any()
    assert not pseudo[folds.fold == 0].any()
    blend = first.targets[pseudo].max(axis=1)
    assert (blend >= 0.5).all()
    assert np.isnan(first.targets[(labels < 0) & ~pseudo]).all()


def test_confidence_gives_the_surer_teacher_more():
    logits = np.array([[[5.0, 0, 0], [0.1, 0, 0]], [[0, 0, 0], [0, 0, 0]]])
    weights = row_weights(DistillConfig(weighting="confidence"), ["a", "b"], logits, None, None)
    assert weights[0, 0] > 0.6
    np.testing.assert_allclose(weights[1], 0.5)
    np.testing.assert_allclose(weights.sum(axis=1), 1)


def test_human_soft_labels_teach_as_a_teacher_does(data):
    import pyarrow as pa

    rows, folds = data
    with pytest.raises(UserError, match="no label_probs"):
        human_labels(rows)
    votes = np.tile([[2 / 3, 0, 1 / 3]], (N, 1)).astype(np.float32)
    table = rows.table.append_column("label_probs", pa.FixedSizeListArray.from_arrays(votes.ravel(), 3))
    voted = type(rows)(table, rows.classes)
    found = lessons(DistillConfig(labels="human"), human_labels(voted), voted, folds, 0)
    probs = np.exp(found.teacher_logits[0, 0])
    np.testing.assert_allclose(probs / probs.sum(), [2 / 3, 0, 1 / 3], atol=0.02)
    np.testing.assert_array_equal(found.targets.argmax(axis=1), rows.labels)
    assert set(found.targets.ravel()) == {0.0, 1.0}
