"""Rows with candidates in the commands beside training: the doctor, races, exports, and what refuses them."""

import json
import re
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from data.candidates import ABSENT
from data.classes import place_classes
from data.dataset import load_prepared
from data.errors import UserError
from data.schema import make_rows
from data.softlabels import read_store
from distill import load_run, predict
from distill.doctor.__main__ import main as doctor
from distill.doctor.examine import diagnose, examine
from distill.doctor.subject import open_subjects
from distill.export import main as export
from distill.race.__main__ import main as race
from ensemble.route import main as route

COSTS = "--cost llama=1 gemma2=2 --budget 1.5"


@pytest.mark.parametrize(
    ("command", "words", "instead"),
    [
        (race, "--recipe {recipe} --data {data} --probe --out {out}", "race without it"),
        (doctor, "{llama} --cost --data {data}", "without --data"),
        (predict.main, "--cascade {llama} {gemma2} --data {test} --out {out}.csv", "as --model, and blend"),
        (predict.main, "--model {llama} --data {shards} --out {out}", "give one source, and a file as --out"),
        (predict.main, "--model {llama} --data {shards} --out {out} --launcher ray", "give one source"),
        (
            route,
            f"--cheap {{llama}} --dear {{gemma2}} --data {{data}} --out {{out}} {COSTS}",
            "ensemble.predict",
        ),
    ],
)
def test_what_does_not_serve_sets_says_what_does_before_it_loads_a_model(
    taught, tmp_path, monkeypatch, command, words, instead
):
    def loaded(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("distill.runs.loaded.load_trained", loaded)
    monkeypatch.setattr("distill.model.backbone.load_base", loaded)
    (tmp_path / "shards").mkdir()
    rows, _ = load_prepared(taught / "data")
    pq.write_table(rows.table, tmp_path / "shards" / "1.parquet")
    places = {name: taught / "data" / name for name in ("llama", "gemma2")}
    places |= {"recipe": taught / "recipe.yaml", "data": taught / "data", "test": taught / "test.csv"}
    places |= {"shards": tmp_path / "shards", "out": tmp_path / "out"}
    message = f"its rows have candidates of their own, which this does not serve; .*{instead}"
    with pytest.raises(UserError, match=message):
        command([word.format(**places) for word in words.split()])
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_the_doctor_examines_rows_of_sets(taught):
    found = {(result.subject, result.check): result for name in ("llama", "") for result in diagnose(
        taught / "data" / name
    )}  # fmt: skip
    assert {result.status for result in found.values()} <= {"pass", "warn"}, found
    checks = {check for _, check in found}
    wanted = {"soft_labels_are_out_of_fold", "store_fits_rows", "special_tokens_in_text", "verdict_cue_kept"}
    assert wanted | {"prompts_stay_in_one_fold", "truncated_share", "everything_trains"} <= checks
    assert not {"labels_are_balanced", "truncation_commutes", "order_symmetry"} & checks


def test_the_doctor_sees_labels_that_were_learnt_by_heart(taught, tmp_path):
    """A run whose store holds what its models say of rows that they were trained on, as if out of fold."""
    rows, _ = load_prepared(taught / "data")
    (subject,) = open_subjects(str(taught / "data" / "llama"), tmp_path)
    store = subject.store
    sharp = np.where(rows.targets > 0, 1.5, 0.0) + np.random.default_rng(0).normal(size=rows.targets.shape)
    there = np.arange(rows.classes.n) < rows.sizes[:, None]
    logits = np.where(there, 0.2 * sharp, ABSENT).astype(np.float32)[:, None]
    at = [rows.row_ids.index(row) for row in store.row_ids]
    subject.__dict__["store"] = replace(store, logits=logits[at])
    (found,) = examine(subject, ["soft_labels_are_out_of_fold"])
    assert found.status == "fail"
    assert "right far more often than it says" in found.seen


def test_a_run_of_sets_is_exported_and_predicts_as_it_did(taught, tmp_path):
    run, out = taught / "data" / "student", tmp_path / "plain"
    export(["--model", str(run), "--out", str(out), "--onnx"])
    said = json.loads((out / "distillstack.json").read_text())
    rows, _ = load_prepared(taught / "data")
    wanted, found = (load_run(path).predict(rows, "test") for path in (run, out))
    there = np.arange(rows.classes.n) < rows.sizes[:, None]
    folded = said["scores"]["folded"]
    np.testing.assert_allclose(found[:, 0][there], wanted[:, 0][there] / folded, atol=1e-3)
    words = ["--data", str(taught / "test.csv"), "--out", str(tmp_path / "new.csv")]
    predict.main(["--model", str(out), *words])  # which knows the questions' candidates
    table = csv.read_csv(tmp_path / "new.csv").to_pandas()
    np.testing.assert_allclose(table.groupby("row_id").probability.sum(), 1)
    card = (out / "README.md").read_text()
    assert "pipeline_tag: text-ranking" in card
    assert "| accuracy | MAP@3 | MRR |" in card
    store = read_store(run)
    assert said["scores"]["log_loss"] == pytest.approx(np.mean(-np.log(store.probs[rows.targets > 0])))
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.S)
    lines = lines.replace('path = "."', f"path = {str(out)!r}") + "\nanswer = numbers.tolist()"
    heard: dict = {}
    exec(lines, heard)
    one = make_rows(
        {"row_id": ["1"], "prompt": [["Hi"]], "candidates": [["Hello!", "No."]]}, place_classes(2), "here"
    )
    np.testing.assert_allclose(heard["answer"], load_run(out).predict(one, "test")[0, 0], atol=1e-4)
    again = tmp_path / "mean"
    export(["--model", str(taught / "data" / "llama"), "--out", str(again), "--average"])
    assert load_run(again).predict_proba(rows).shape == rows.targets.shape


def test_backbones_race_on_rows_of_sets(taught, tmp_path, capsys):
    words = ["--recipe", str(taught / "recipe.yaml"), "--data", str(taught / "data"), "--looks", "3"]
    race([*words, "--backbones", "llama", "gemma2", "--budget", "tokens", "--out", str(tmp_path / "race")])
    printed = capsys.readouterr().out
    assert "100%" in printed
    rows, folds = load_prepared(taught / "data")
    losses = pq.read_table(tmp_path / "race" / "llama" / "look-3.parquet").column("loss").to_numpy()
    inside = folds.fold == 0
    assert len(losses) == inside.sum()
    assert losses.mean() < np.log(rows.sizes[inside]).mean() + 0.2
    tokens = float(re.search(r"^llama( +\S+){4} +(\d+)", printed, re.M)[2])
    encoded = 60 * rows.sizes.mean()
    assert tokens > encoded / 2  # of all candidates, not of one
