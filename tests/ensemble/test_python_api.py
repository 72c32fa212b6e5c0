"""The stack in Python: arrays, lists and frames in, the command's own result out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import check_estimator
from stack_files import CLASSES, competition, write_sets

import ensemble
from data.errors import UserError
from ensemble import LinearScaling, LogPool, SimplexBlend, Stack, TemperatureScaling, blend, read_stack, stack

N = 120
FEW = {"log-pool", "mean", "simplex"}


@pytest.fixture(scope="module")
def task() -> tuple[np.ndarray, np.ndarray]:
    return competition(N)


@pytest.fixture(scope="module")
def fitted(task: tuple[np.ndarray, np.ndarray]) -> Stack:
    return blend(*task)


def frames(P: np.ndarray, ids: list[str] | None = None) -> dict[str, pd.DataFrame]:
    return {f"m{m + 1}": pd.DataFrame(P[:, m], columns=CLASSES, index=ids) for m in range(P.shape[1])}


def test_blend_is_what_the_command_does(task: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    P, y = task
    files, labels = write_sets(tmp_path, N)
    stack.main(["--oof", *files, "--labels", labels, "--out", str(tmp_path / "stack")])
    said = json.loads((tmp_path / "stack" / "stack.json").read_text())
    ids = [f"r{i:04d}" for i in range(N)]
    found = blend(frames(P, ids), pd.Series(y, index=ids))
    assert found.score_ == said["chosen_nested_log_loss_choice_included"]
    for key in ("classes", "swap", "members", "chosen", "methods", "weights", "verdict", "temperature"):
        assert found.content[key] == said[key], key
    found.save(tmp_path / "mine")
    names = {path.name for path in (tmp_path / "stack").iterdir()}
    assert {path.name for path in (tmp_path / "mine").iterdir()} == names
    again = read_stack(tmp_path / "mine")
    np.testing.assert_array_equal(again.predict_proba(frames(P)), found.predict_proba(frames(P)))
    assert again.verdict == found.verdict
    with pytest.raises(UserError, match="saved already"):
        again.report(tmp_path / "page.html")


def test_every_form_of_members_gives_the_same(fitted: Stack, task: tuple[np.ndarray, np.ndarray]) -> None:
    P, _ = task
    wanted = fitted.predict_proba(P)
    assert wanted.shape == (N, 3)
    parts = [P[:, 0], P[:, 1]]
    for given in (parts, {"member2": P[:, 1], "member1": P[:, 0]}):
        np.testing.assert_array_equal(fitted.predict_proba(given), wanted)
    labels = np.array(fitted.classes_)[wanted.argmax(axis=1)]
    np.testing.assert_array_equal(fitted.predict(P), labels)


def test_frames_are_matched_by_their_ids(task: tuple[np.ndarray, np.ndarray]) -> None:
    P, y = task
    ids = [f"r{i:04d}" for i in range(N)]
    straight = SimplexBlend().fit(frames(P, ids), y)
    mixed = frames(P, ids)
    mixed["m2"] = mixed["m2"].sample(frac=1, random_state=0)
    again = SimplexBlend().fit(mixed, y)
    np.testing.assert_array_equal(straight.weights_, again.weights_)
    renamed = {name: frame.reset_index(names="id") for name, frame in mixed.items()}
    np.testing.assert_array_equal(straight.weights_, SimplexBlend().fit(renamed, y).weights_)
    np.testing.assert_array_equal(
        straight.predict_proba(dict(reversed(mixed.items()))),
        straight.predict_proba(frames(P, ids))[[ids.index(i) for i in mixed["m1"].index]],
    )


def test_labels_are_indices_texts_or_soft(task: tuple[np.ndarray, np.ndarray]) -> None:
    P, y = task
    names = np.array(CLASSES)
    by_index = SimplexBlend().fit(P, y)
    np.testing.assert_array_equal(by_index.classes_, [0, 1, 2])
    texts = SimplexBlend().fit(P, names[y])  # they happen to be sorted as the columns are
    soft = SimplexBlend().fit(P, np.eye(3)[y])
    named = SimplexBlend().fit(frames(P[:, :, [2, 0, 1]][:, :, [1, 2, 0]]), names[y])
    for other in (texts, soft, named):
        np.testing.assert_allclose(other.weights_, by_index.weights_)
    assert set(named.predict(frames(P))) <= set(CLASSES)
    assert by_index.score(P, y) == pytest.approx(texts.score(P, names[y]))
    assert by_index.score(P, y) > by_index.score(P, (y + 1) % 3)


def test_columns_of_frames_are_found_by_name(task: tuple[np.ndarray, np.ndarray]) -> None:
    P, y = task
    plain = LogPool().fit(frames(P), y)
    turned = {name: frame[list(reversed(CLASSES))] for name, frame in frames(P).items()}
    np.testing.assert_array_equal(plain.predict_proba(turned), plain.predict_proba(frames(P)))


def test_arrow_tables_are_frames(task: tuple[np.ndarray, np.ndarray]) -> None:
    import pyarrow as pa

    P, y = task
    tables = {name: pa.table({k: frame[k] for k in CLASSES}) for name, frame in frames(P).items()}
    np.testing.assert_array_equal(
        SimplexBlend().fit(tables, y).weights_, SimplexBlend().fit(frames(P), y).weights_
    )


def test_groups_share_a_fold_and_weights_count(task: tuple[np.ndarray, np.ndarray]) -> None:
    P, y = task
    groups = np.arange(N) // 3
    found = blend(P, y, groups=groups, sample_weight=np.r_[np.zeros(3), np.ones(N - 3)], method="mean")
    assert found.problem is not None
    assert len(found.problem) == N - 3
    assert all(len(set(found.problem.fold[groups[3:] == g])) == 1 for g in range(1, N // 3))
    assert "3 rows of weight 0 are left out" in found.notes


def test_labels_of_words_name_the_classes_of_arrays() -> None:
    P, y = competition(60, 2)
    found = blend(P, np.array(["no", "yes"])[y], method="mean")
    assert found.classes_ == ("no", "yes")
    assert set(found.predict(P)) <= {"no", "yes"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda P, y: (P * 100, y), "divide percentages by 100"),
        (lambda P, y: (P, y[:-1]), "119 rows where there are 120"),
        (lambda P, y: (P[:, 0], y), "put a single prediction in a list"),
        (lambda P, y: (P, y + 3), "none of the 3 classes"),
        (lambda P, y: ([P[:, 0], P[:-1, 1]], y), r"members\['member2'\]: has 119 rows"),
        (lambda P, y: ([P[:, 0], P[:, 1, :2]], y), "has 2 columns, and there are 3 classes"),
    ],
)
def test_a_mistake_says_what_is_wrong(change, message: str, task: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(UserError, match=message):
        blend(*change(*task))


def test_members_that_are_missing_or_unknown_are_named(
    fitted: Stack, task: tuple[np.ndarray, np.ndarray]
) -> None:
    P, _ = task
    with pytest.raises(UserError, match="no predictions of member2; other is no member"):
        fitted.predict_proba({"member1": P[:, 0], "other": P[:, 1]})
    with pytest.raises(ValueError, match="no predictions of m2"):
        SimplexBlend().fit(frames(P), np.zeros(N, int)).predict_proba({"m1": P[:, 0]})


def test_estimators_are_cloned_and_set_like_scikit_learns(task: tuple[np.ndarray, np.ndarray]) -> None:
    pool = LogPool(strength=3.0).fit(*task)
    other = clone(pool)
    assert other.get_params() == pool.get_params()
    assert not hasattr(other, "weights_")
    assert other.set_params(strength=5.0).strength == 5.0
    with pytest.raises(ValueError, match="nonsense"):
        other.set_params(nonsense=1)


class AfterRegression(TemperatureScaling):
    """Scikit-learn's checks feed features, and a calibrator takes probabilities: a regression makes them."""

    def fit(self, X, y, sample_weight=None):
        self.first_ = LogisticRegression().fit(X, y, sample_weight)
        super().fit(self.first_.predict_proba(X), y, sample_weight)
        self.n_features_in_ = self.first_.n_features_in_
        return self

    def predict_proba(self, X):
        return (
            self.predict_on(self.first_.predict_proba(X))
            if hasattr(self, "first_")
            else super().predict_proba(X)
        )


@pytest.mark.filterwarnings("ignore")
def test_a_calibrator_behind_a_regression_passes_scikit_learns_checks() -> None:
    expected = {"check_estimator_sparse_tag": "the regression takes sparse features"}
    check_estimator(AfterRegression(), expected_failed_checks=expected, on_skip=None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "calibrator", [TemperatureScaling(), LinearScaling()], ids=lambda c: type(c).__name__
)
def test_of_scikit_learns_checks_only_those_fail_that_feed_no_probabilities(calibrator) -> None:
    """What they feed is refused for one reason: rows that are no distributions over the classes of ``y``."""
    found = check_estimator(calibrator, on_fail=None, on_skip=None)
    failed = {check["check_name"]: check["exception"] for check in found if check["status"] == "failed"}
    refused = {"no distribution", "the last axis is the classes", "0 sample(s)", "type pandas.Series"}
    worded = {
        "check_positive_only_tag_during_fit": "asks that negative features be taken",
        "check_requires_y_none": "the features are refused before it is seen that y is missing",
        "check_classifiers_regression_target": "the features are refused before the target",
    }
    for name, why in failed.items():
        assert name in worded or any(words in str(why) for words in refused), (name, why)
    assert sum(check["status"] == "passed" for check in found) >= 20


def test_every_public_name_is_there_and_said_to_be() -> None:
    assert set(ensemble.__all__) <= set(dir(ensemble))
    for name in ensemble.__all__:
        assert getattr(ensemble, name).__doc__, name
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = ensemble.nothing_such


def test_paths_in_a_list_are_named_by_their_files(tmp_path: Path) -> None:
    files, labels = write_sets(tmp_path, 60)
    found = blend(files, labels, method="mean")
    assert found.members_ == ("m1", "m2")
    assert found.predict_proba(files).shape == (60, 3)
