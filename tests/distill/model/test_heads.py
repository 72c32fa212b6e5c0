"""Checkpoints with a head of their own, and checkpoints saved quantised: the same in all precisions."""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from data.errors import UserError
from distill.config import BackboneConfig, ModelConfig
from distill.model.backbone import load_base, tell_replaced_head
from distill.runs.units import ModelSpec

PRECISIONS = ("fp32", "bf16", "nf4", "int8", "fp8")
SHAPE = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 100,
}  # fmt: skip


def saved(kind, where, **options):
    torch.manual_seed(0)
    kind(LlamaConfig(**SHAPE, **options)).save_pretrained(where)
    return str(where)


def loaded(path, precision):
    return load_base(BackboneConfig(path=path, precision=precision, attention="eager"), path, 3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_reward_models_head_is_replaced(tmp_path, caplog, precision):
    path = saved(LlamaForSequenceClassification, tmp_path / "reward", num_labels=1)
    model = loaded(path, precision)
    assert "head" not in caplog.text  # who trains it says so, who only loads it has nothing to say
    assert model.score.weight.shape == (3, 64)
    assert not model.score.weight.any()
    assert model.config.num_labels == 3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_head_of_the_right_size_is_replaced_too(tmp_path, precision):
    path = saved(LlamaForSequenceClassification, tmp_path / "classifier", num_labels=3)
    assert not loaded(path, precision).score.weight.any()


def test_a_training_says_that_a_head_is_replaced_by_the_name_that_its_user_gave(tmp_path, trained, caplog):
    path = next((trained / "backbones").glob("tiny-llama-*"))
    reward = tmp_path / "reward"
    config = AutoConfig.from_pretrained(path, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(reward)
    AutoTokenizer.from_pretrained(path).save_pretrained(reward)
    for layers in (None, 1):
        tell_replaced_head.cache_clear()
        caplog.clear()
        model = ModelConfig(backbone=BackboneConfig(path=str(reward), precision="fp32", first_layers=layers))
        run = ModelSpec("reward", model, trained, tmp_path / f"run-{layers}").plan()
        run.untrained(0)
        assert f"{reward}: has a head of 1 outputs; it is replaced by a fresh one of 3" in caplog.text


def test_nothing_is_said_of_a_language_model(tmp_path, caplog):
    path = saved(LlamaForCausalLM, tmp_path / "plain")
    tell_replaced_head(path, None, path, 3)
    assert "head" not in caplog.text


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_checkpoint_saved_quantised_is_refused_in_one_message(tmp_path, precision):
    path = saved(LlamaForCausalLM, tmp_path / "quantised")
    config = json.loads((tmp_path / "quantised" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "quantised" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"saved quantised \(bitsandbytes\); give the original checkpoint"):
        loaded(path, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_model_of_another_kind_is_refused_in_one_message(tmp_path, precision):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(UserError) as refused:
        loaded(str(tmp_path), precision)
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value) or "clip" in str(refused.value)
