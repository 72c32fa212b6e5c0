"""Rows with candidates, from prepared rows to a blend: one number each, a softmax over the row's own set."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import csv

from data.candidates import ABSENT
from data.classes import place_classes
from data.dataset import load_prepared
from data.encoding.encode import Encoder, Truncation
from data.encoding.template import Template
from data.errors import UserError
from data.prepare import prepare_rows
from data.schema import make_rows
from data.softlabels import MANIFEST, OOF, read_store
from distill import average, cross_fit, load_run, predict, student, teacher_oof
from distill.config import BackboneConfig, LoraConfig, TinyConfig, TrainConfig
from distill.losses import LOSSES, cross_entropy, label_loss, named_terms
from distill.model.backbone import add_adapters, load_base, load_tokenizer
from distill.model.tiny import tiny_backbone
from distill.packing.cutting import Cutter
from distill.packing.examples import Examples
from distill.packing.steps import plan_steps
from distill.teaching.trust import check_store
from distill.training.keep_best import scaled_log_loss
from distill.training.predict import predict_logits
from distill.training.trainer import train
from ensemble import predict as blend
from ensemble import stack


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A tiny backbone and rows of 2 to 6 candidates, encoded for it."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 7, size=14)
    columns = {
        "row_id": [str(i) for i in range(14)],
        "prompt": [["word " * int(n)] for n in rng.integers(1, 12, size=14)],
        "candidates": [[f"option {k}{'!' * k}" for k in range(n)] for n in sizes],
        "label": [int(rng.integers(n)) for n in sizes],
    }
    rows = make_rows(columns, place_classes(int(sizes.max())), "here")
    shape = TinyConfig(hidden_size=64, intermediate_size=64, layers=1, vocab_size=300, pretrain_steps=0)
    path = str(tiny_backbone(shape, rows, Template(), 0, tmp_path_factory.mktemp("cache")))
    backbone = BackboneConfig(path=path, precision="fp32")
    encoded = Encoder(load_tokenizer(backbone, path), Template(), Truncation(64)).encode(rows)
    return backbone, rows, Examples(encoded, rows.targets, rows.classes.permutation, 0)


def fresh(setting):
    return add_adapters(load_base(setting[0], setting[0].path, 1), LoraConfig(r=4), 0)


def test_a_set_of_logits_is_laid_out_a_row_a_line(setting):
    _, rows, examples = setting
    chosen = np.array([5, 0, 9])
    flat = torch.arange(rows.sizes[chosen].sum()).float()[:, None]
    laid = examples.of_sets(flat, chosen)
    at = 0
    for line, n in zip(laid.tolist(), rows.sizes[chosen], strict=True):
        assert line[:n] == flat[at : at + n, 0].tolist()
        assert line[n:] == [ABSENT] * (len(line) - n)
        at += n


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.sets])
def test_losses_are_those_over_each_row_alone(name, setting):
    """Places that a row lacks change neither value nor gradient."""
    _, rows, _ = setting
    generator = torch.Generator().manual_seed(0)
    teachers = torch.randn(14, 2, rows.classes.n, generator=generator)
    logits = torch.randn(14, rows.classes.n, generator=generator)
    there = torch.arange(rows.classes.n) < torch.from_numpy(rows.sizes)[:, None]
    wide = logits.masked_fill(~there, ABSENT).requires_grad_()
    given = {
        "teacher_logits": teachers.masked_fill(~there[:, None], ABSENT),
        "teacher_weights": torch.tensor([0.3, 0.7]).expand(14, 2),
        "weight": 0.6,
        "temperature": 2.5,
    }
    targets = torch.from_numpy(rows.targets).float()
    whole = sum(named_terms(name, wide, targets, **given).values())
    whole.sum().backward()
    assert (wide.grad[~there] == 0).all()
    for i, n in enumerate(rows.sizes.tolist()):
        own = given | {
            "teacher_logits": given["teacher_logits"][i : i + 1, :, :n],
            "teacher_weights": given["teacher_weights"][i : i + 1],
        }
        alone = sum(named_terms(name, logits[i : i + 1, :n], targets[i : i + 1, :n], **own).values())
        torch.testing.assert_close(whole[i : i + 1].detach(), alone, rtol=1e-5, atol=1e-6)


def test_packs_hold_whole_rows(setting):
    _, rows, examples = setting
    encoded = examples.encoded
    steps = plan_steps(
        np.arange(14), encoded.row_lengths, epochs=2, rows_per_step=6, orders=1, both_orders=True, seed=0
    )
    seen = np.zeros(14, int)
    for step in steps:
        cutter = Cutter(int(encoded.row_lengths.max()), 0, 2)
        for share in cutter.packs(step.lengths(encoded)):
            for chosen in share:
                part = step.take(chosen)
                assert len(part.documents(encoded)) == rows.sizes[part.rows].sum()
                seen[part.rows] += 1
    assert (seen == 2).all()


def test_a_step_is_the_same_however_it_is_cut(setting, tmp_path):
    """One pack, a pack a row, and by hand with padding: the same weights."""
    _, rows, examples = setting
    found = []
    for tokens, micro in ((16384, 0), (1, 1)):
        classifier = fresh(setting)
        config = TrainConfig(
            epochs=1, lr=1e-2, rows_per_step=7, pack_tokens=tokens, micro_rows=micro, warmup=0, log_steps=1
        )
        out = tmp_path / str(micro)
        train(classifier, examples, np.arange(14), config, label_loss, out, "test")
        found.append({n: p.detach().clone() for n, p in classifier.named_parameters() if p.requires_grad})
        first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        steps = plan_steps(
            np.arange(14),
            examples.encoded.row_lengths,
            epochs=1,
            rows_per_step=7,
            orders=1,
            both_orders=True,
            seed=0,
        )
        # A fresh head is all zeros: every row costs the logarithm of its set's size.
        assert first == pytest.approx(np.log(rows.sizes[steps[0].rows]).mean(), abs=1e-4)
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_predictions_are_those_of_each_candidate_read_by_itself(setting):
    _, rows, examples = setting
    classifier = fresh(setting)
    torch.nn.init.normal_(classifier.inner.score.weight)
    chosen = np.array([3, 11, 4])
    logits = predict_logits(classifier, examples, chosen, 0, "test")
    assert logits.shape == (3, 1, rows.classes.n)
    for line, row in zip(logits[:, 0], chosen, strict=True):
        n = rows.sizes[row]
        for place, sequence in enumerate(examples.encoded.of_rows(np.array([row]))):
            ids = torch.from_numpy(examples.encoded[sequence].astype(np.int64))[None]
            with torch.no_grad():
                alone = classifier(ids, torch.ones_like(ids), torch.tensor([ids.shape[1] - 1]))
            assert line[place] == pytest.approx(float(alone), abs=1e-4)
        assert (line[n:] == ABSENT).all()


def test_stores_hold_each_rows_own_candidates(taught):
    rows, folds = load_prepared(taught / "data")
    for name in ("llama", "gemma2", "student"):
        store = read_store(taught / "data" / name)
        assert store.candidates == rows.candidates
        assert store.fold.tolist() == folds.fold.tolist()
        np.testing.assert_allclose(store.probs.sum(axis=1), 1)
        assert store.manifest["candidates"] == {"least": min(rows.sizes), "most": max(rows.sizes)}
        assert (store.probs[np.arange(rows.classes.n) >= rows.sizes[:, None]] == 0).all()
    assert read_store(taught / "data" / "student").manifest["leakage"] == "apart"
    # Started again, the command finds everything done and returns the same.
    again = cross_fit(taught / "data", recipe=str(taught / "recipe.yaml"), only=["llama"])["llama"]
    np.testing.assert_array_equal(again.logits, read_store(taught / "data" / "llama").logits)


def test_new_rows_are_predicted_from_their_questions_and_blended(taught, tmp_path, capsys):
    """The test file has no labels: the runs know the questions' candidates."""
    models = [str(taught / "data" / name) for name in ("llama", "gemma2", "student")]
    words = ["--data", str(taught / "test.csv"), "--out", str(tmp_path / "fresh")]
    predict.main(["--model", *models, *words])
    rows, _ = load_prepared(taught / "data")
    known = set(map(tuple, rows.candidates))
    table = csv.read_csv(tmp_path / "fresh" / "student.csv").to_pandas()
    assert set(table.groupby("row_id").candidate.agg(tuple)) <= known
    np.testing.assert_allclose(table.groupby("row_id").probability.sum(), 1)
    probs = load_run(models[2]).predict_proba(str(taught / "test.csv"))
    np.testing.assert_allclose(probs[probs > 0], table.probability)

    out = tmp_path / "stack"
    stack.main(["--data", str(taught / "data"), "--out", str(out)])
    capsys.readouterr()
    members = sorted(map(str, (tmp_path / "fresh").glob("*.csv")))
    blend.main(["--stack", str(out), "--oof", *members, "--out", str(tmp_path / "blend.csv")])
    told = re.search(r"28 rows by .* of gemma2, llama, student", capsys.readouterr().out)
    assert told is not None
    found = csv.read_csv(tmp_path / "blend.csv").to_pandas()
    assert found[["row_id", "candidate"]].equals(table[["row_id", "candidate"]])


def test_the_table_says_how_high_the_right_candidate_stands(taught, capsys):
    common = ["--recipe", str(taught / "recipe.yaml"), "--data", str(taught / "data")]
    teacher_oof.main([*common, "--only", "llama"])
    header = capsys.readouterr().out.splitlines()[0]
    assert re.findall(r"\S+", header)[:6] == ["teacher", "rows", "log-loss", "accuracy", "MAP@3", "MRR"]


def test_runs_of_sets_are_averaged(taught, tmp_path, capsys):
    shutil.copytree(taught / "data" / "backbones", tmp_path / "backbones")
    common = ["--recipe", str(taught / "recipe.yaml"), "--data", str(taught / "data"), "--only", "llama"]
    teacher_oof.main([*common, "--out", str(tmp_path), "teachers.llama.train.lr=5e-3"])
    runs = [taught / "data" / "llama", tmp_path / "llama"]
    capsys.readouterr()
    average.main(["--model", *map(str, runs), "--out", str(tmp_path / "mean")])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["run", "rows", "log-loss", "accuracy", "MAP@3", "MRR", "store"]
    assert [line.split()[0] for line in printed[2:6]] == ["llama", "llama", "mean", "average"]
    assert read_store(tmp_path / "mean").candidates == read_store(runs[0]).candidates


def test_a_stack_of_sets_teaches_nobody(taught, tmp_path):
    stack.main(["--data", str(taught / "data"), "--out", str(tmp_path / "stack")])
    common = ["--recipe", str(taught / "recipe.yaml"), "--data", str(taught / "data")]
    with pytest.raises(UserError, match="have candidates of their own"):
        student.main([*common, "--teachers", str(tmp_path / "stack"), "--out", str(tmp_path / "out")])


def test_a_store_of_other_candidates_teaches_nobody(taught, tmp_path):
    """The file as a whole says which candidate a logit is of; exchanged, its hash no longer fits."""
    other = tmp_path / "llama"
    shutil.copytree(taught / "data" / "llama", other)
    table = pq.read_table(other / OOF)
    names = table.column("candidate").to_pylist()
    names[0], names[1] = names[1], names[0]
    changed = table.set_column(2, "candidate", pa.array(names)).replace_schema_metadata(table.schema.metadata)
    pq.write_table(changed, other / OOF)
    words = ["--recipe", str(taught / "recipe.yaml"), "--data", str(taught / "data")]
    with pytest.raises(UserError, match="is not as it was written under"):
        student.main([*words, "--teachers", str(other), "--out", str(tmp_path / "out")])
    manifest = json.loads((other / MANIFEST).read_text())
    shutil.copy(taught / "data" / "llama" / OOF, other / OOF)
    (other / MANIFEST).write_text(json.dumps(manifest | {"rows_hash": "0" * 64}))
    with pytest.raises(UserError, match=r"is not as it was written|disagree on rows_hash"):
        student.main([*words, "--teachers", str(other), "--out", str(tmp_path / "out")])


def test_logits_in_another_order_than_the_rows_candidates_are_refused(taught):
    rows, folds = load_prepared(taught / "data")
    store = read_store(taught / "data" / "llama")
    check_store(store, rows, folds)
    turned = replace(store, candidates=[store.candidates[0][::-1], *store.candidates[1:]])
    with pytest.raises(UserError, match=f"row {store.row_ids[0]} has the candidates"):
        check_store(turned, rows, folds)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.distill.loss=mse", "loss mse counts every place alike.*kl, blackpearl, wsdm1, wsdm3, hard"),
        ("student.distill.loss=smoothing", "loss smoothing counts every place alike"),
        ("student.backbone.head=tokens", "backbone.head tokens reads the words of classes"),
    ],
)
def test_what_means_nothing_for_sets_is_refused(taught, tmp_path, override, message):
    words = ["--recipe", str(taught / "recipe.yaml"), "--data", str(taught / "data")]
    with pytest.raises(UserError, match=message):
        student.main([*words, "--out", str(tmp_path / "out"), override])


@pytest.mark.parametrize("recipe", ["map", "recipe.yaml"])
def test_a_plan_counts_every_candidate(taught, tmp_path, capsys, recipe):
    """Also of the shipped recipe, whose checkpoints are not here."""
    named = recipe if recipe == "map" else str(taught / recipe)
    words = [
        "--recipe",
        named,
        "--data",
        str(taught / "data"),
        "--out",
        str(tmp_path / "planned"),
        "--dry-run",
    ]
    teacher_oof.main(words)
    first = next(line for line in capsys.readouterr().out.splitlines() if "/fold-0" in line)
    rows, folds = load_prepared(taught / "data")
    predicted = int(re.findall(r"\S+", first)[2].replace(",", ""))
    assert predicted > 25 * rows.sizes[folds.fold == 0].sum()


def test_the_moment_to_keep_is_told_by_the_sets_alone(setting):
    """Wider lines make no difference to the temperature that suits best."""
    _, rows, _ = setting
    generator = np.random.default_rng(0)
    there = np.arange(rows.classes.n) < rows.sizes[:, None]
    logits = np.where(there, 3 * generator.normal(size=there.shape), ABSENT)[:, None]
    wide = np.concatenate([logits, np.full((14, 1, 40), ABSENT)], axis=2)
    targets = np.concatenate([rows.targets, np.zeros((14, 40))], axis=1)
    found = scaled_log_loss(logits, rows.targets, sets=True)
    assert found == pytest.approx(scaled_log_loss(wide, targets, sets=True), abs=1e-9)
    assert found < np.log(rows.sizes).mean()


def test_a_model_of_sets_refuses_rows_without(taught, tmp_path):
    (tmp_path / "plain.csv").write_text("id,text,label\n1,one,a\n2,two,b\n")
    words = ["--data", str(tmp_path / "plain.csv"), "--out", str(tmp_path / "x.csv")]
    with pytest.raises(UserError, match="the model's classes are the places of candidates"):
        predict.main(["--model", str(taught / "data" / "llama"), *words])


def test_human_labels_teach_within_the_set(taught, tmp_path):
    rows, _ = load_prepared(taught / "data")
    table = [
        {"id": i, "prompt": p, "candidates": own, "label_probs": [1 / len(own)] * len(own)}
        for i, p, own in zip(
            rows.row_ids, rows.table.column("prompt").to_pylist(), rows.candidates, strict=True
        )
    ]
    (tmp_path / "soft.json").write_text(json.dumps(table[:24]))
    prepare_rows(tmp_path / "soft.json", tmp_path / "data", folds=2)
    words = ["--recipe", str(taught / "recipe.yaml"), "--data", str(tmp_path / "data")]
    student.main(
        [*words, "student.distill.labels=human", "student.train.lr=1.0e-6", "student.train.head_lr=1.0e-6"]
    )
    store = read_store(tmp_path / "data" / "student")
    sizes = np.array([len(own) for own in store.candidates])
    loss = cross_entropy(torch.from_numpy(store.logits[:, 0]), torch.from_numpy(store.probs).float())
    np.testing.assert_allclose(loss, np.log(sizes), atol=1e-3)


def test_a_template_of_pairs_is_refused(taught, tmp_path):
    words = ["--recipe", str(taught / "recipe.yaml"), "--data", str(taught / "data"), "--out", str(tmp_path)]
    with pytest.raises(UserError, match="template winner lays out pairs"):
        teacher_oof.main([*words, "--only", "llama", "teachers.llama.template=winner"])
