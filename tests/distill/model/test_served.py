"""A classifier made ready for prediction predicts what it did before."""

import copy

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import LlamaConfig, LlamaForCausalLM

from data.encoding.encode import Encoded
from data.errors import UserError
from distill.config import BackboneConfig, LoraConfig
from distill.model.backbone import add_adapters, load_base
from distill.model.served import check_fp8, serve
from distill.packing.pack import pack

LENGTHS = (9, 17, 5)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    torch.manual_seed(0)
    where = tmp_path_factory.mktemp("served") / "llama"
    LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=100,
        )
    ).save_pretrained(where)  # fmt: skip
    return str(where)


def classifier_of(path, precision):
    config = BackboneConfig(path=path, precision=precision, attention="eager")
    torch.manual_seed(0)
    classifier = add_adapters(load_base(config, path, 3), LoraConfig(r=4), 0).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in classifier.named_parameters():
        if "lora_B" in name or "score" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return config, classifier


def logits(classifier):
    ids = np.random.default_rng(0).integers(10, 90, size=sum(LENGTHS), dtype=np.int32)
    encoded = Encoded(ids, np.concatenate([[0], np.cumsum(LENGTHS)]), 1, 0)
    with torch.no_grad():
        device = next(classifier.parameters()).device
        return classifier(pack=pack(encoded, np.arange(len(LENGTHS)), 0).to(device)).cpu()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.05)])
def test_a_merged_adapter_predicts_what_it_did(path, precision, tolerance):
    config, classifier = classifier_of(path, precision)
    before = logits(classifier)
    serve(classifier, config)
    assert not any(isinstance(module, LoraLayer) for module in classifier.modules())
    torch.testing.assert_close(logits(classifier), before, atol=tolerance, rtol=0)
    assert before.std() > 0.1


@pytest.mark.parametrize("precision", ["nf4", "int8", "fp8"])
def test_a_quantised_base_keeps_its_adapter(path, precision):
    config, classifier = classifier_of(path, precision)
    before = logits(classifier)
    assert any(isinstance(module, LoraLayer) for module in serve(classifier, config).modules())
    torch.testing.assert_close(logits(classifier), before, atol=0, rtol=0)


def test_layers_in_fp8_predict_nearly_the_same(path):
    config, classifier = classifier_of(path, "bf16")
    before = logits(copy.deepcopy(classifier))
    serve(classifier, config, "fp8")
    kinds = {getattr(m, "kind", None) for m in classifier.inner.get_decoder().layers.modules()}
    assert "fp8" in kinds
    after = logits(classifier)
    assert 0 < (after - before).norm() < 0.15 * before.norm()


def test_fp8_is_refused_where_it_cannot_be(monkeypatch):
    with pytest.raises(UserError, match="bases in bf16, fp16 and fp32"):
        check_fp8(BackboneConfig(path="x", precision="nf4"), "run")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a GPU that multiplies in FP8"):
        check_fp8(BackboneConfig(path="x", precision="bf16"), "run")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(UserError, match="needs a GPU that multiplies in FP8"):
        check_fp8(BackboneConfig(path="x", precision="bf16"), "run")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    check_fp8(BackboneConfig(path="x", precision="bf16"), "run")
