"""Blends over rows with candidates: exact within each set, whatever its size and order."""

import json
import shlex
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import csv
from scipy.optimize import minimize

from data.candidates import set_rows
from data.errors import UserError
from data.softmax import softmax
from ensemble import predict, stack
from ensemble.methods.base import Training, from_dict
from ensemble.reading.members import load_member
from ensemble.scoring.ranking import ranks, row_metrics
from ensemble.sets.fitting import left_out
from ensemble.sets.long import is_of_sets, read_member, write_sets
from ensemble.sets.pool import METHODS, SetPool, fit_set_methods, fit_weights, set_logs


def task(n=240, members=3, seed=0):
    """Members that see which candidate is right through noise; sets of 2 to 9."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 10, size=n)
    width = int(sizes.max())
    there = np.arange(width) < sizes[:, None]
    scores = 1.5 * rng.normal(size=(n, width))
    truth = softmax(np.where(there, scores, -1e30))
    label = np.array([rng.choice(width, p=p) for p in truth])
    P = np.stack(
        [
            softmax(np.where(there, (2 if m else 0.7) * (scores + rng.normal(size=(n, width))), -1e30))
            for m in range(members)
        ],
        axis=1,
    )
    P = np.where(there[:, None], np.maximum(P, 1e-12), 0)
    return P / P.sum(axis=2, keepdims=True), np.eye(width)[label], sizes


def candidates_of(sizes):
    return [[f"option {k} of {i}" for k in range(n)] for i, n in enumerate(sizes)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three members and labels as files; the second lists candidates and rows in another order."""
    folder = tmp_path_factory.mktemp("sets")
    P, y, sizes = task()
    names, ids = candidates_of(sizes), [f"r{i:03d}" for i in range(len(P))]
    for m, name in enumerate(("one", "two", "three")):
        own, probs, order = names, P[:, m], np.arange(len(P))
        if name == "two":
            order = order[::-1]
            own = [found[::-1] for found in names]
            probs = np.stack([np.r_[p[:n][::-1], p[n:]] for p, n in zip(probs, sizes, strict=True)])
        write_sets(folder / f"{name}.csv", [ids[i] for i in order], [own[i] for i in order], probs[order])
    lines = [f"{i},{own[k]}\n" for i, own, k in zip(ids, names, y.argmax(axis=1), strict=True)]
    (folder / "labels.csv").write_text("id,label\n" + "".join(lines))
    return folder


def test_what_a_stack_names_next_works_as_it_stands(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--oof", f"the one={files / 'one.csv'}", str(files / "two.csv"), "--labels"]
    stack.main([*words, str(files / "labels.csv"), "--out", "my stack"])
    for name, file in {"the one": "one", "two": "two"}.items():
        shutil.copy(files / f"{file}.csv", f"{name}_test.csv")
    line = capsys.readouterr().out.strip().splitlines()[-1].removeprefix("next: ")
    predict.main(shlex.split(line)[3:])
    assert is_of_sets(tmp_path / "blend.csv")


def test_every_method_gives_distributions_over_each_set_alone():
    P, y, _ = task()
    methods = fit_set_methods(Training.of(P, y, None, np.arange(len(P))))
    assert tuple(methods) == METHODS
    for name, method in methods.items():
        probs = method.predict_on(P)
        assert (probs[P.max(axis=1) == 0] == 0).all(), name
        np.testing.assert_allclose(probs.sum(axis=1), 1, err_msg=name)
        again = from_dict(json.loads(json.dumps(method.to_dict())))
        np.testing.assert_array_equal(again.predict_on(P), probs)


def test_predictions_follow_the_candidates_when_these_change_places():
    P, y, sizes = task()
    order = np.stack([np.r_[np.arange(n)[::-1], np.arange(n, P.shape[2])] for n in sizes])
    turned = np.take_along_axis(P, order[:, None], axis=2)
    targets = np.take_along_axis(y, order, axis=1)
    plain = fit_set_methods(Training.of(P, y, None, np.arange(len(P))))["log-pool"]
    other = fit_set_methods(Training.of(turned, targets, None, np.arange(len(P))))["log-pool"]
    found = np.take_along_axis(other.predict_on(turned), order, axis=1)
    np.testing.assert_allclose(found, plain.predict_on(P), atol=2e-6)


@pytest.mark.parametrize("strength", [np.inf, 30.0, 1.0])
def test_the_pool_is_the_penalised_conditional_logit(strength):
    P, y, sizes = task(120)
    logs, there = set_logs(P)
    rows = [(logs[i, :n], y[i, :n]) for i, n in enumerate(sizes)]

    def loss(weights):
        total = sum(-(own * np.log(softmax(found @ weights))).sum() for found, own in rows) / len(rows)
        away = weights - weights.mean()
        return total + (0 if np.isinf(strength) else strength) / len(rows) * (away @ away) / 2

    if np.isinf(strength):
        best = minimize(lambda t: loss(t[0] * np.ones(3)), [0.3], method="Nelder-Mead", tol=1e-12).fun
    else:
        best = minimize(loss, np.full(3, 1 / 3), tol=1e-10).fun
    found = fit_weights(logs, there, y, np.ones(len(P)), strength)
    assert loss(found) == pytest.approx(best, abs=1e-8)


def test_a_member_of_noise_counts_for_less():
    P, y, _ = task(400)
    there = P[:, 0] > 0
    noise = np.where(there, np.random.default_rng(1).random(there.shape) + 0.1, 0)
    P[:, 2] = noise / noise.sum(axis=1, keepdims=True)
    pool = SetPool().fit_on(Training.of(P, y, None, np.arange(400)))
    assert pool.strength_ > 0
    assert pool.weights_[2] < 0.3 * pool.weights_[:2].min()


def test_commands_for_shared_classes_refuse_the_long_layout(files):
    with pytest.raises(UserError, match=r"one.csv: its rows have candidates of their own"):
        load_member(files / "one.csv")


def test_a_second_width_makes_no_difference():
    P, y, _ = task(100)
    wide = np.concatenate([P, np.zeros((*P.shape[:2], 5))], axis=2)
    narrow = SetPool().fit_on(Training.of(P, y, None, np.arange(100)))
    np.testing.assert_allclose(narrow.predict_on(wide)[:, : P.shape[2]], narrow.predict_on(P))


def test_ranks_count_the_better_ones_and_ties_in_the_rows_own_order():
    probs = np.array(
        [[0.5, 0.3, 0.2, 0], [0.25, 0.25, 0.5, 0], [0.25, 0.25, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4]]
    )
    targets = np.array([[0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    assert ranks(probs, targets).tolist() == [2, 3, 1, 4]
    np.testing.assert_allclose(
        row_metrics(probs, targets, 3), [[0, 1 / 2, 1 / 2], [0, 1 / 3, 1 / 3], [1, 1, 1], [0, 0, 1 / 4]]
    )


def test_a_stack_of_files_is_scored_kept_and_applied(files, tmp_path, capsys):
    models = [str(files / f"{name}.csv") for name in ("one", "two", "three")]
    labels = ["--labels", str(files / "labels.csv")]
    words = ["--oof", *models, *labels, "--method", "log-pool", "--out", str(tmp_path / "stack"), "--all"]
    stack.main(words)
    told = capsys.readouterr().out
    assert "MAP@3" in told
    assert "verdict: the blend gains ." in told
    assert f"not tried, as they need the same classes in every row: {', '.join(left_out())}" in told
    content = json.loads((tmp_path / "stack" / "stack.json").read_text())
    scores = {entry["name"]: entry for entry in content["methods"]}
    best = scores[content["chosen"]]
    assert best["nested_log_loss"] < scores["mean"]["nested_log_loss"]
    assert best["metrics"]["MAP@3"]["ci95"][0] < best["metrics"]["MAP@3"]["mean"]
    assert content["weights"].keys() == {"one", "two", "three"}
    nested = pq.read_table(tmp_path / "stack" / "predictions.parquet").to_pandas()
    assert list(nested.columns) == ["row_id", "fold", "candidate", "probability"]
    np.testing.assert_allclose(nested.groupby("row_id").probability.sum(), 1)

    given = [f"{name}={files / name}.csv" for name in ("one", "two", "three")]
    out = tmp_path / "blend.csv"
    predict.main(["--stack", str(tmp_path / "stack"), "--oof", *given, "--out", str(out)])
    blend, first = csv.read_csv(out).to_pandas(), csv.read_csv(models[0]).to_pandas()
    assert blend[["row_id", "candidate"]].equals(first[["row_id", "candidate"]])
    np.testing.assert_allclose(blend.groupby("row_id").probability.sum(), 1)
    # In whatever order the members list a row's candidates.
    assert read_member(files / "two.csv").candidates[-1] == read_member(files / "one.csv").candidates[0][::-1]
    P, y, sizes = task()
    own = {r: dict(zip(g.candidate, g.probability, strict=True)) for r, g in blend.groupby("row_id")}
    names = candidates_of(sizes)
    flat = np.array([own[f"r{i:03d}"][name] for i, found in enumerate(names) for name in found])
    loss = -np.log((set_rows(flat, sizes, P.shape[2], 0.0) * y).sum(axis=1)).mean()
    assert loss < best["nested_log_loss"] + 0.02


def test_a_mean_that_nothing_beats_beyond_noise_is_chosen(files, tmp_path, capsys):
    """As of rows with the same classes; on the first 30 rows the best method may gain nothing."""
    for name in ("one", "two"):
        lines = (files / f"{name}.csv").read_text().splitlines(True)
        kept = [line for line in lines[1:] if int(line.split(",")[0].strip('"')[1:]) < 30]
        (tmp_path / f"{name}.csv").write_text("".join([lines[0], *kept]))
    words = ["--oof", str(tmp_path / "one.csv"), str(tmp_path / "two.csv"), "--labels"]
    stack.main([*words, str(files / "labels.csv"), "--out", str(tmp_path / "stack")])
    content = json.loads((tmp_path / "stack" / "stack.json").read_text())
    best = min(content["methods"], key=lambda entry: entry["nested_log_loss"])
    assert best["name"] != "mean"
    assert best["ci95"][1] >= 0
    assert content["chosen"] == "mean"
    mean = next(entry for entry in content["methods"] if entry["name"] == "mean")
    assert content["chosen_nested_log_loss_choice_included"] == mean["nested_log_loss"]
    said = f"verdict: the mean is chosen: nothing beats it beyond noise: {best['name']} gains "
    assert said in capsys.readouterr().out


def test_a_method_can_be_asked_for_and_an_unknown_one_is_refused(files, tmp_path):
    words = ["--oof", str(files / "one.csv"), str(files / "two.csv"), "--labels", str(files / "labels.csv")]
    stack.main([*words, "--method", "simplex", "--out", str(tmp_path / "a")])
    assert json.loads((tmp_path / "a" / "stack.json").read_text())["chosen"] == "simplex"
    with pytest.raises(UserError, match="is no method of rows with candidates; there are best single"):
        stack.main([*words, "--method", "lightgbm", "--out", str(tmp_path / "b")])
    with pytest.raises(UserError, match="--swap is of classes that rows share"):
        stack.main([*words, "--swap", "a=b", "--out", str(tmp_path / "b")])
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("row_id,candidate,probability\na,x,.5\na,y,.4\n", "row a sums to 0.9"),
        ("row_id,candidate,probability\na,x,.5\na,x,.5\n", "two or more, each once"),
        ("row_id,candidate,probability\na,x,1\n", "two or more, each once"),
        ("row_id,candidate,probability\na,x,2\na,y,-1\n", "has the probability 2 for x, which is none"),
        ("row_id,candidate,probability\na,x,\na,y,1\n", "which is none; give numbers"),
        ("id,a,b\n1,.5,.5\n", "is not of rows with candidates, as the other models are"),
    ],
)
def test_a_prediction_set_that_cannot_be_is_refused(tmp_path, text, message):
    path = tmp_path / "model.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_member(path)


def test_other_candidates_rows_or_labels_are_refused(files, tmp_path):
    one = files / "one.csv"
    assert is_of_sets(one)
    other = tmp_path / "other.csv"
    labels = ["--labels", str(files / "labels.csv")]
    other.write_text(one.read_text().replace('option 0 of 7"', 'something else"'))
    with pytest.raises(UserError, match=r"row r007 has other candidates than in .*one.csv"):
        stack.main(["--oof", str(one), str(other), *labels, "--out", str(tmp_path / "s")])
    kept = [line for line in one.read_text().splitlines(True) if "r007" not in line]
    other.write_text("".join(kept))
    with pytest.raises(UserError, match=r"predict different rows: 1 are in one alone, e.g. r007"):
        stack.main(["--oof", str(one), str(other), *labels, "--out", str(tmp_path / "s")])
    wrong = tmp_path / "labels.csv"
    wrong.write_text((files / "labels.csv").read_text().replace("r003,option", "r003,opinion"))
    with pytest.raises(UserError, match=r"row r003 has label opinion .*, none of its"):
        stack.main(["--oof", str(one), "--labels", str(wrong), "--out", str(tmp_path / "s")])
    wrong.write_text("id,label,weight\n1,x,2\n")
    with pytest.raises(UserError, match="has a column weight, and rows with candidates all count alike"):
        stack.main(["--oof", str(one), "--labels", str(wrong), "--out", str(tmp_path / "s")])
    with pytest.raises(UserError, match="no labels to score against"):
        stack.main(["--oof", str(one), "--out", str(tmp_path / "s")])
