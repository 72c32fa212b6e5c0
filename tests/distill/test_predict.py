"""Prediction with saved runs equals what the runs themselves stored."""

import json
import shutil
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
import torch

import distill.runs.loaded
from data.arena import ArenaConfig, simulate_arena
from data.dataset import prepare
from data.errors import UserError
from data.prepare import main as prepare_main
from data.schema import read_rows
from data.softlabels import read_store
from data.softmax import softmax
from distill import predict, teacher_oof
from distill.model.classifier import Classifier
from distill.packing.cutting import by_length
from distill.runs.loaded import predict_rows
from distill.runs.saved import Access, read_saved
from distill.training import predict as inference

CLASSES = ["winner_model_a", "winner_model_b", "winner_tie"]


def test_a_fold_model_predicts_what_its_store_holds(trained):
    """Restricted to one fold's model, saved runs give the very logits of the out-of-fold store."""
    store = read_store(trained / "llama")
    saved = read_saved(trained / "llama")
    rows = read_rows(trained)
    inside = np.flatnonzero(store.fold == 1)
    only = type(saved)(saved.path, saved.manifest, saved.model, [trained / "llama" / "fold-1" / "adapter"])
    logits = predict_rows(only, rows.take(inside))
    np.testing.assert_allclose(logits, store.logits[inside], atol=1e-3)


def test_folds_served_from_one_base_are_the_folds_loaded_one_by_one(trained, monkeypatch):
    saved, rows = read_saved(trained / "llama"), read_rows(trained).take(np.arange(12))
    each = [predict_rows(replace(saved, weights=[weights]), rows) for weights in saved.weights]
    loaded, load = [], distill.runs.loaded.load_trained
    monkeypatch.setattr(distill.runs.loaded, "load_trained", lambda *a: loaded.append(a) or load(*a))
    np.testing.assert_array_equal(predict_rows(saved, rows), np.mean(each, axis=0, dtype=np.float64))
    assert len(each) == 2
    assert len(loaded) == 1


def test_a_killed_prediction_goes_on_from_its_shards(trained, tmp_path, monkeypatch):
    """Killed while the second of two fold models predicts: the next call predicts only what is missing."""
    monkeypatch.setattr(inference, "SHARD_SECONDS", 0.0)
    monkeypatch.setattr(
        inference, "by_length", lambda lengths, budget, most=0: by_length(lengths, 2000, most)
    )
    predicted, original = [], inference.pack
    limit = [None]

    def counting(encoded, sequences, *rest):
        if limit[0] is not None and len(predicted) >= limit[0]:
            raise KeyboardInterrupt
        predicted.append(sequences)
        return original(encoded, sequences, *rest)

    monkeypatch.setattr(inference, "pack", counting)
    arguments = ["--model", str(trained / "llama"), "--data", str(trained / "rows.parquet"), "--out"]
    predict.main([*arguments, str(tmp_path / "whole.csv")])
    whole = len(predicted)
    limit[0] = whole + 3 * whole // 4
    with pytest.raises(KeyboardInterrupt):
        predict.main([*arguments, str(tmp_path / "killed.csv")])
    limit[0] = None
    predict.main([*arguments, str(tmp_path / "killed.csv")])
    # The pack that was on its way when the command was killed is predicted again, and nothing else is.
    assert len(predicted) <= 2 * whole + 2
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.csv", "whole.csv"]


def test_too_little_memory_makes_smaller_packs_and_the_same_logits(trained, monkeypatch, caplog):
    saved = read_saved(trained / "student")
    rows = read_rows(trained).take(np.arange(20))
    wanted = predict_rows(saved, rows)
    forward, sizes = Classifier.forward, []

    def tight(self, *args, pack=None, **options):
        sizes.append(pack.input_ids.shape[1])
        if sizes[-1] > 700:
            raise torch.OutOfMemoryError("CUDA out of memory, said the test")
        return forward(self, *args, pack=pack, **options)

    monkeypatch.setattr(Classifier, "forward", tight)
    np.testing.assert_allclose(predict_rows(saved, rows), wanted, atol=1e-5)
    assert "pack_tokens is lowered from 16384 to 8192" in caplog.text
    monkeypatch.setattr(Classifier, "forward", Mock(side_effect=torch.OutOfMemoryError("not even for one")))
    with pytest.raises(UserError, match="single row"):
        predict_rows(saved, rows)


def test_one_model_leaves_one_prediction_set(trained, tmp_path):
    out = tmp_path / "student.csv"
    predict.main(
        ["--model", str(trained / "student"), "--data", str(trained / "rows.parquet"), "--out", str(out)]
    )
    table = pc.read_csv(out)
    assert table.column_names == ["id", *CLASSES]
    probs = np.stack([table[c].to_numpy() for c in CLASSES], axis=1)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    logits = predict_rows(read_saved(trained / "student"), read_rows(trained))
    np.testing.assert_allclose(probs, softmax(logits.mean(axis=1)), atol=1e-6)


def test_unlabelled_rows_from_a_csv_are_predicted_by_several_models(trained, tmp_path):
    source = tmp_path / "test.csv"
    source.write_text('id,prompt,response_a,response_b\n7,"[""Hi""]","[""Hello""]","[""No, ""]"\n')
    out = tmp_path / "sets"
    models = [str(trained / "llama"), str(trained / "gemma2")]
    predict.main(["--model", *models, "--data", str(source), "--out", str(out)])
    assert sorted(path.name for path in out.iterdir()) == ["gemma2.csv", "llama.csv"]
    assert pc.read_csv(out / "llama.csv")["id"].to_pylist() == [7]


def test_columns_of_other_names_are_mapped(trained, tmp_path):
    """Columns `key`, `question`, `left` and `right` give what the usual names give."""
    usual, renamed = tmp_path / "usual.csv", tmp_path / "renamed.csv"
    row = "7,What is new?,Nothing much,A lot\n"
    usual.write_text("id,prompt,response_a,response_b\n" + row)
    renamed.write_text("key,question,left,right\n" + row)
    model = ["--model", str(trained / "llama")]
    predict.main([*model, "--data", str(usual), "--out", str(tmp_path / "a.csv")])
    given = ["row_id=key", "prompt=question", "response_a=left", "response_b=right"]
    predict.main([*model, "--data", str(renamed), "--out", str(tmp_path / "b.csv"), "--columns", *given])
    assert (tmp_path / "b.csv").read_text() == (tmp_path / "a.csv").read_text()
    with pytest.raises(UserError, match="--columns prompt=COLUMN"):
        predict.main([*model, "--data", str(renamed), "--out", str(tmp_path / "c.csv")])
    pq.write_table(pc.read_csv(renamed), tmp_path / "renamed.parquet")
    shards = ["--data", str(tmp_path / "renamed.parquet"), "--out", str(tmp_path / "parts")]
    with pytest.raises(UserError, match="shards are read by the names"):
        predict.main([*model, *shards, "--columns", *given])


def test_mistakes_are_named_and_nothing_is_written(trained, tmp_path):
    rows = str(trained / "rows.parquet")
    with pytest.raises(UserError, match=r"\.csv or \.parquet"):
        predict.main(["--model", str(trained / "llama"), "--data", rows, "--out", str(tmp_path / "x.txt")])
    models = [str(trained / "llama"), str(trained / "gemma2")]
    with pytest.raises(UserError, match="directory"):
        predict.main(["--model", *models, "--data", rows, "--out", str(tmp_path / "x.csv")])
    with pytest.raises(UserError, match="nothing: no such directory; give that of a finished run"):
        predict.main(["--model", str(tmp_path / "nothing"), "--data", rows, "--out", str(tmp_path / "x.csv")])
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run_is_refused(trained, tmp_path):
    other = tmp_path / "llama"
    shutil.copytree(trained / "llama", other)
    shutil.rmtree(other / "fold-1")
    with pytest.raises(UserError, match="1 of 2 fold models"):
        read_saved(other)


def test_exchanged_weights_are_refused(trained, tmp_path):
    manifest = json.loads((trained / "llama" / "manifest.json").read_text())
    shutil.copytree(manifest["backbone_path"], tmp_path / "backbone")
    weights = tmp_path / "backbone" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    access = Access(backbone=str(tmp_path / "backbone"))
    with pytest.raises(UserError, match="not the weights"):
        predict_rows(read_saved(trained / "llama", access), read_rows(trained))


def test_swapping_the_responses_swaps_the_prediction(trained):
    """Averaged over both orders, a model is exactly symmetric in A and B."""
    rows = read_rows(trained).take(np.arange(8))
    table = rows.table
    a, b = table.column("response_a"), table.column("response_b")
    exchanged = type(rows)(
        table.set_column(table.column_names.index("response_a"), "response_a", b).set_column(
            table.column_names.index("response_b"), "response_b", a
        ),
        rows.classes,
    )
    saved = read_saved(trained / "student")
    given = predict_rows(saved, rows).mean(axis=1)
    swapped = predict_rows(saved, exchanged).mean(axis=1)
    np.testing.assert_allclose(given, swapped[:, [1, 0, 2]], atol=2e-3)
    assert pq.read_table(trained / "rows.parquet").num_rows == 96


@pytest.mark.parametrize("budget", [0.0, 0.4, 1.0])
def test_a_cascade_shows_the_dear_models_what_its_budget_allows(trained, tmp_path, capsys, budget):
    rows = read_rows(trained)
    models = [str(trained / name) for name in ("student", "llama")]
    out = tmp_path / "out.csv"
    data = str(trained / "rows.parquet")
    predict.main(["--cascade", *models, "--budget", str(budget), "--data", data, "--out", str(out)])
    shown = capsys.readouterr().out
    routed = int(shown.split("rows, ")[1].split(" of them")[0])
    assert (routed == 0) if budget == 0 else (routed == len(rows)) if budget == 1 else 0 < routed < 60
    assert f"{budget:.2f} <-" in shown
    table = pc.read_csv(out)
    probs = np.stack([table[c].to_numpy() for c in CLASSES], axis=1)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)

    from ensemble.routing.cascade import fit_cascade

    stores = [read_store(trained / name).probs for name in ("student", "llama")]
    cascade = fit_cascade(np.stack(stores, axis=1), rows.targets)
    fresh = [
        softmax(predict_rows(read_saved(path), rows).mean(axis=1))
        for path in map(trained.joinpath, ("student", "llama"))
    ]
    if budget == 0:
        np.testing.assert_allclose(probs, cascade.cheap(fresh[0]), atol=1e-4)
    if budget == 1:
        np.testing.assert_allclose(probs, cascade.all_models(np.stack(fresh, axis=1)), atol=1e-4)


def test_what_cannot_be_a_cascade_is_refused(trained, tmp_path):
    student, rows = str(trained / "student"), str(trained / "rows.parquet")
    common = ["--data", rows, "--out", str(tmp_path / "x.csv")]
    with pytest.raises(UserError, match="at least one dear"):
        predict.main(["--cascade", student, *common])
    with pytest.raises(UserError, match="between 0 and 1"):
        predict.main(["--cascade", student, student, "--budget", "2", *common])


@pytest.mark.parametrize("kind", ["two classes", "plain text"])
def test_rows_that_name_no_classes_have_those_of_the_model(tmp_path, tiny_recipe, kind):
    """Only three-class pairs used to be readable without labels."""
    source, given = tmp_path / "train.csv", tmp_path / "new.csv"
    if kind == "two classes":
        lines = ["id,prompt,response_a,response_b,label"]
        lines += [f"r{i},question {i} is,yes {i},no {i},{'AB'[i % 2]}" for i in range(24)]
        options = ["--classes", "A,B", "--swap", "1,0"]
        fresh = ["id,prompt,response_a,response_b", "n1,what is,this,that", "n2,who is,she,he"]
        names = ["A", "B"]
    else:
        lines = ["id,prompt,label", *(f"r{i},text number {i},c{i % 5}" for i in range(30))]
        names = [f"c{k}" for k in range(5)]
        options = ["--classes", ",".join(names)]
        fresh = ["id,prompt", "n1,some text", "n2,another"]
    source.write_text("\n".join(lines) + "\n")
    given.write_text("\n".join(fresh) + "\n")
    common = ["--folds", "2", "--near", "off"]
    prepare_main(["--source", str(source), "--out", str(tmp_path / "data"), *common, *options])
    recipe = ["--recipe", str(tiny_recipe), "teachers.llama.train.epochs=0.2"]
    teacher_oof.main([*recipe, "--data", str(tmp_path / "data"), "--only", "llama"])
    model, out = tmp_path / "data" / "llama", tmp_path / "out.csv"
    predict.main(["--model", str(model), "--data", str(given), "--out", str(out)])
    header, *body = out.read_text().splitlines()
    assert header.replace('"', "").split(",") == ["id", *names]
    assert [line.replace('"', "").split(",")[0] for line in body] == ["n1", "n2"]


def test_an_output_that_is_a_directory_is_refused_before_anything_is_predicted(trained, tmp_path):
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        predict.main(
            ["--model", str(trained / "llama"), "--data", str(trained), "--out", str(tmp_path / "out.csv")]
        )


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("config.yaml", "max_length: 192", "max_length: 100", "config.yaml: was changed or damaged"),
        ("manifest.json", '"winner_tie"', '"winner_ties"', "changed or damaged after fold-0"),
        ("manifest.json", '"template":', '"temp":', "says nothing of template"),
        ("fold-1/adapter/adapter_config.json", '"lora_alpha": 8', '"lora_alpha": 9', "changed or damaged"),
    ],
)
def test_a_run_that_was_changed_is_not_used(trained, tmp_path, file, old, new, words):
    run = tmp_path / "llama"
    shutil.copytree(trained / "llama", run)
    text = (run / file).read_text()
    assert old in text
    (run / file).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=words):
        predict.main(["--model", str(run), "--data", str(trained), "--out", str(tmp_path / "out.csv")])
    assert not (tmp_path / "out.csv").exists()


def test_a_prediction_that_is_no_number_is_not_written(trained, tmp_path, monkeypatch):
    def broken(saved, rows, shards=None):
        return np.full((len(rows), 2, 3), np.nan)

    monkeypatch.setattr("distill.runs.loaded.predict_rows", broken)
    with pytest.raises(UserError, match=r"prediction of row .* is not finite"):
        predict.main(
            ["--model", str(trained / "llama"), "--data", str(trained), "--out", str(tmp_path / "out.csv")]
        )
    assert list(tmp_path.iterdir()) == []


def test_a_cascade_whose_data_were_changed_is_refused(trained, tmp_path):
    for name in ("llama", "student", "backbones"):
        shutil.copytree(trained / name, tmp_path / "arena" / name)
    rows = simulate_arena(ArenaConfig(n_rows=96, seed=1))
    prepare(rows, tmp_path / "arena", n_folds=2, seed=2)
    runs = [str(tmp_path / "arena" / name) for name in ("student", "llama")]
    with pytest.raises(UserError, match="disagree on folds_hash"):
        predict.main(["--cascade", *runs, "--data", str(trained), "--out", str(tmp_path / "out.csv")])
