"""What rows bring besides predictions: weights, soft labels, and features of the rows themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from stack_files import CLASSES, competition, prepared, write_csv, write_sets, write_store

from data.classes import PREFERENCE
from data.errors import UserError
from data.schema import make_rows
from data.softmax import softmax
from ensemble.methods.blend import SimplexBlend
from ensemble.methods.pool import LogPool
from ensemble.methods.trees import LightGBMStacker
from ensemble.output import write_result
from ensemble.predict import main as predict
from ensemble.reading.features import NAMES, row_features
from ensemble.reading.load import load_problem
from ensemble.scoring.results import evaluate
from ensemble.solvers.numbers import cross_entropy
from ensemble.stack import main


def weigh(folder: Path, weights: np.ndarray) -> Path:
    lines = (folder / "labels.csv").read_text(encoding="utf-8").split()[1:]
    rows = [[*line.split(","), w] for line, w in zip(lines, weights.tolist(), strict=True)]
    return write_csv(folder / "weighted.csv", ["id", "label", "weight"], rows)


def test_whole_weights_are_repeated_rows() -> None:
    P, y = competition(300)
    counts = np.random.default_rng(0).integers(0, 4, size=300)
    again = np.repeat(np.arange(300), counts)
    for method in (SimplexBlend, lambda: LogPool(strength=0.0, floor=1e-7)):
        weighted = method().fit(P, y, sample_weight=counts)
        repeated = method().fit(P[again], y[again])
        np.testing.assert_allclose(weighted.weights_, repeated.weights_, atol=1e-6)


def test_weights_count_in_every_score(tmp_path: Path) -> None:
    paths, labels = write_sets(tmp_path, n=200, members=2)
    weights = np.where(np.arange(200) % 4 == 0, 3.0, np.where(np.arange(200) % 4 == 1, 0.0, 1.0))
    plain = load_problem(paths, Path(labels))
    problem = load_problem(paths, weigh(tmp_path, weights))
    assert len(problem) == 150
    assert "50 rows of weight 0" in problem.notes[0]
    result = evaluate(problem, draws=200)
    kept = weights > 0
    losses = cross_entropy(plain.P.mean(axis=1), plain.y)[kept]
    wanted = np.average(losses, weights=weights[kept])
    assert result.score("mean").loss == pytest.approx(wanted, abs=1e-12)
    assert result.score("mean").ci.low < wanted < result.score("mean").ci.high


@pytest.mark.parametrize("weight", ["-1", "", "inf", "heavy"])
def test_a_weight_that_is_none_is_refused(tmp_path: Path, weight: str) -> None:
    paths, labels = write_sets(tmp_path, n=40)
    text = Path(labels).read_text(encoding="utf-8").split()
    lines = [f"{line},{'weight' if i == 0 else weight if i == 7 else 1}" for i, line in enumerate(text)]
    Path(labels).write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match="weight"):
        load_problem(paths, Path(labels))


def test_soft_labels_go_all_the_way(tmp_path: Path) -> None:
    paths, _ = write_sets(tmp_path, n=120)
    soft = np.random.default_rng(0).dirichlet(np.ones(3), size=120)
    lines = [[f"r{i:04d}", *p] for i, p in enumerate(soft.tolist())]
    labels = write_csv(tmp_path / "soft.csv", ["id", *CLASSES], lines)
    main(["--oof", *paths, "--labels", str(labels), "--out", str(tmp_path / "stack")])
    stack = json.loads((tmp_path / "stack" / "stack.json").read_text(encoding="utf-8"))
    problem = load_problem(paths, labels)
    wanted = cross_entropy(problem.P.mean(axis=1), soft).mean()
    assert next(m for m in stack["methods"] if m["name"] == "mean")["nested_log_loss"] == pytest.approx(
        wanted
    )


def test_features_tell_length_turns_scripts_and_code() -> None:
    rows = make_rows(
        {
            "row_id": ["a", "b", "c"],
            "prompt": [["hello", "again"], ["привет"], [""]],
            "response_a": [["x" * 99], ["```code```"], []],
            "response_b": [["x"], ["日本語"], []],
            "label": [0, 1, 2],
        },
        PREFERENCE,
        "test",
    )
    found = dict(zip(NAMES, row_features(rows).T, strict=True))
    assert found["turns"].tolist() == [2, 1, 1]
    assert found["log characters of response_a"][0] == pytest.approx(np.log(100))
    assert found["log ratio of the responses"][0] > 0
    assert found["share of letters: cyrillic"][1] > 0.2
    assert found["share of letters: east asian"].tolist()[::2] == [0, 0]
    assert found["code in response_a"].tolist() == [0, 1, 0]


def test_trees_use_features_where_they_help_and_only_there() -> None:
    rng = np.random.default_rng(0)
    P = softmax(1.2 * rng.normal(size=(1500, 2, 3)))
    X = rng.normal(size=(1500, 3))
    truth = np.where(X[:, :1] > 0, P[:, 1], P[:, 0])  # the member that is right is the one the feature says
    y = (rng.random((1500, 1)) > truth.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    fitted = LightGBMStacker().fit(P[:1000], y[:1000], X=X[:1000])
    assert fitted.needs_rows
    without = LightGBMStacker().fit(P[:1000], y[:1000])
    assert not without.needs_rows
    targets = np.eye(3)[y[1000:]]
    gain = cross_entropy(without.predict_known(P[1000:], None), targets) - cross_entropy(
        fitted.predict_known(P[1000:], X[1000:]), targets
    )
    assert gain.mean() > 0.02
    noise = LightGBMStacker().fit(P[:1000], rng.permutation(y[:1000]), X=X[:1000])
    assert not noise.needs_rows


def test_a_stack_that_looks_at_rows_asks_for_them(tmp_path: Path) -> None:
    home = tmp_path / "data"
    rows, P = prepared(home, n=160)
    stores = [str(write_store(tmp_path / f"m{m}", home, P[:, m])) for m in (0, 1)]
    problem = load_problem(stores)
    assert problem.features is not None
    assert problem.features.shape == (160, len(NAMES))
    result = evaluate(problem, draws=50)
    X = problem.features
    trees = LightGBMStacker()
    trees.fit(P, problem.y, X=np.c_[X[:, :-1], problem.labels])  # as if a feature told the label
    assert trees.needs_rows
    result.fitted[result.chosen] = trees
    write_result(tmp_path / "stack", problem, result)
    arguments = ["--stack", str(tmp_path / "stack"), "--oof", *stores, "--out", str(tmp_path / "p.csv")]
    with pytest.raises(UserError, match="--data"):
        predict(arguments)
    predict([*arguments, "--data", str(home)])
    assert (tmp_path / "p.csv").exists()
    assert len(rows) == 160
