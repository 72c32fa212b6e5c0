"""The label-token head: the very logits of the verdict tokens that plain libraries compute."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.arena import ArenaConfig, simulate_arena
from data.encoding.encode import Encoder, Truncation, pad_token_id
from data.encoding.template import Template
from data.errors import UserError
from data.schema import read_rows
from data.softlabels import read_store
from distill import teacher_oof
from distill.config import BackboneConfig, LoraConfig, ModelConfig, TinyConfig, TrainConfig
from distill.doctor.attention import head_stays_float32
from distill.doctor.subject import Subject
from distill.doctor.training import first_loss_is_uniform, head_is_saved
from distill.losses import label_loss
from distill.model.backbone import add_adapters, load_base, load_tokenizer, load_trained
from distill.model.tiny import tiny_backbone
from distill.model.verdict import VerdictClassifier, verdict_ids
from distill.packing.examples import Examples, pad
from distill.prediction.merge import merged_model
from distill.recipe import load_recipe
from distill.runs.loaded import examples_of, predict_rows
from distill.runs.saved import read_saved
from distill.training.predict import predict_logits
from distill.training.trainer import train


@pytest.fixture(scope="module")
def rows():
    return simulate_arena(ArenaConfig(n_rows=21, seed=5))


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def setting(request, rows, tmp_path_factory):
    shape = TinyConfig(request.param, 64, 64, layers=2, vocab_size=300, pretrain_steps=0)
    path = str(tiny_backbone(shape, rows, Template(), 0, tmp_path_factory.mktemp("cache")))
    backbone = BackboneConfig(path=path, precision="fp32", head="tokens")
    tokenizer = load_tokenizer(backbone, path)
    encoded = Encoder(tokenizer, Template(), Truncation(192)).encode(rows)
    return backbone, tokenizer, Examples(encoded, rows.targets, [1, 0, 2], pad_token_id(tokenizer))


def test_it_learns_and_plain_libraries_read_the_same_logits_from_what_it_saves(setting, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    backbone, tokenizer, examples = setting
    classifier = add_adapters(load_base(backbone, backbone.path, 3), LoraConfig(r=4), 0)
    assert isinstance(classifier, VerdictClassifier)
    config = TrainConfig(epochs=15, lr=2e-2, rows_per_step=7, log_steps=3)
    train(classifier, examples, np.arange(21), config, label_loss, tmp_path, "test")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.05  # a frozen, random head of 64 dimensions can do no wonders
    classifier.save(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"

    plain = AutoModelForCausalLM.from_pretrained(backbone.path, attn_implementation="eager")
    plain = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    ids = verdict_ids(tokenizer, [], 3)
    assert tokenizer.convert_ids_to_tokens(ids) == ["A", "B", "C"]
    wanted = []
    for row in range(4):
        batch = pad(examples.encoded, np.array([2 * row]), examples.pad_id)
        with torch.no_grad():
            wanted.append(plain(input_ids=batch["input_ids"]).logits[0, -1, ids].numpy())
    found = predict_logits(classifier, examples, np.arange(4), 0, "test")[:, 0]
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    again = load_trained(backbone, backbone.path, tmp_path / "adapter", True, 3)
    np.testing.assert_array_equal(predict_logits(again, examples, np.arange(4), 0, "test")[:, 0], found)


def test_built_weight_by_weight_it_is_the_same_model(setting):
    """The loader of quantised bases finds the head where it is tied to the embedding."""
    backbone, _, examples = setting
    logits = []
    for change in ({}, {"shard": True}, {"precision": "int8"}):
        base = replace(backbone, **change)
        classifier = add_adapters(load_base(base, base.path, 3), LoraConfig(), 0)
        logits.append(predict_logits(classifier, examples, np.arange(3), 0, "test"))
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)
    np.testing.assert_allclose(logits[0], logits[2], atol=0.1)


def test_words_that_are_not_tokens_are_refused(setting):
    tokenizer = setting[1]
    with pytest.raises(UserError, match="there are 3 classes"):
        verdict_ids(tokenizer, ["A", "B"], 3)
    with pytest.raises(UserError, match="single, distinct tokens"):
        verdict_ids(tokenizer, ["A", "B", "neither of them"], 3)
    with pytest.raises(UserError, match="single, distinct tokens"):
        verdict_ids(tokenizer, ["A", "B", "A"], 3)


def test_a_recipe_asks_for_it_and_its_teacher_is_stored_and_exported(trained, tiny_recipe, tmp_path):
    override = "teachers.llama.backbone.head=tokens"
    common = ["--recipe", str(tiny_recipe), "--data", str(trained), "--out", str(tmp_path), "--only", "llama"]
    teacher_oof.main([*common, override, "teachers.llama.train.epochs=1"])
    store = read_store(tmp_path / "llama")
    assert store.manifest["backbone"]["head"] == "tokens"
    assert np.isfinite(store.logits).all()

    saved = read_saved(tmp_path / "llama")
    one = replace(saved, weights=saved.weights[:1])
    plain = merged_model(saved.model, saved.manifest["backbone_path"], one.weights, 3, torch.float32)
    some = read_rows(trained).take(np.arange(3))
    batch = pad(examples_of(saved, some).encoded, np.arange(0, 6, 2), 0)
    hidden = plain.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    logits = plain.score(hidden[torch.arange(3), batch["last"]]).detach().numpy()
    np.testing.assert_allclose(logits, predict_rows(one, some)[:, 0], atol=1e-3)
    with pytest.raises(UserError, match="one of score, tokens"):
        load_recipe(str(tiny_recipe), ["teachers.llama.backbone.head=lm"])


def test_the_doctor_knows_that_such_a_model_has_no_head_of_its_own(setting, tmp_path):
    backbone = setting[0]
    classifier = add_adapters(load_base(backbone, backbone.path, 3), LoraConfig(r=4), 0)
    classifier.save(tmp_path / "adapter")
    subject = Subject("it", tmp_path, backbone.path, ModelConfig(backbone), adapter=tmp_path / "adapter")
    for check in (head_is_saved, head_stays_float32, first_loss_is_uniform):
        finding = check(subject)
        assert finding.status == "pass", finding
