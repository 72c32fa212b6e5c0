"""Backbones of the true architectures, loaded the real way: NF4, head, adapters, attention."""

import json
import shutil

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig

from data.arena import ArenaConfig, simulate_arena
from data.encoding.template import Template
from data.errors import UserError
from distill.config import BackboneConfig, LoraConfig, TinyConfig
from distill.kernels.attention import sdpa
from distill.kernels.choice import attention_for
from distill.model.backbone import (
    add_adapters,
    attention_name,
    check_vocabulary,
    load_base,
    lora_targets,
    weight_hash,
)
from distill.model.tiny import tiny_backbone
from distill.packing.examples import pad

PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def tiny(family, **changes):
    shape = {"hidden_size": 64, "intermediate_size": 64, "layers": 4, "vocab_size": 400, "pretrain_steps": 0}
    return TinyConfig(family=family, **(shape | changes))


@pytest.fixture(scope="module")
def rows():
    return simulate_arena(ArenaConfig(n_rows=24, seed=5))


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def checkpoint(request, rows, tmp_path_factory):
    return tiny_backbone(tiny(request.param), rows, Template(), 0, tmp_path_factory.mktemp("cache"))


def base(checkpoint, precision="fp32", **options):
    return load_base(BackboneConfig(path=str(checkpoint), precision=precision, **options), str(checkpoint), 3)


def test_tiny_checkpoints_have_the_true_architecture(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    layer = base(checkpoint).get_decoder().layers[0]
    norms = [name for name, _ in layer.named_children() if "norm" in name]
    if config["model_type"] == "llama":
        assert config["rope_parameters"]["rope_type"] == "llama3"
        assert len(norms) == 2
    else:
        assert config["attn_logit_softcapping"] == 50.0
        assert config["final_logit_softcapping"] == 30.0
        assert config["layer_types"][:2] == ["sliding_attention", "full_attention"]
        assert len(norms) == 4


def test_a_tiny_checkpoint_is_made_once(rows, tmp_path):
    first = tiny_backbone(tiny("llama"), rows, Template(), 0, tmp_path)
    made = (first / "model.safetensors").stat().st_mtime_ns
    assert tiny_backbone(tiny("llama"), rows, Template(), 0, tmp_path) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made
    assert tiny_backbone(tiny("llama"), rows, Template(), 1, tmp_path) != first


def test_pretraining_lowers_the_next_token_loss(rows, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def loss(steps):
        path = tiny_backbone(tiny("gemma2", layers=1, pretrain_steps=steps), rows, Template(), 0, tmp_path)
        model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
        text = rows.table.column("response_a")[0].as_py()[0]
        ids = torch.tensor([AutoTokenizer.from_pretrained(path)(text)["input_ids"]])
        return model(input_ids=ids, labels=ids).loss.item()

    assert loss(30) < loss(0) - 0.5


def test_nf4_quantises_the_decoder_and_not_the_head(checkpoint):
    model = base(checkpoint, "nf4")
    modules = dict(model.named_modules())
    quantised = {name.rsplit(".", 1)[-1] for name, m in modules.items() if isinstance(m, bnb.nn.Linear4bit)}
    assert quantised == PROJECTIONS
    weight = model.get_decoder().layers[0].mlp.up_proj.weight
    assert weight.quant_type == "nf4"
    assert type(model.score) is nn.Linear
    assert model.score.weight.dtype == torch.float32


def test_only_adapters_and_head_are_trained(checkpoint):
    classifier = add_adapters(base(checkpoint, "nf4"), LoraConfig(r=4), 0)
    trained = {name for name, p in classifier.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "score" in name for name in trained)
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained if "lora_" in name}
    assert adapted == PROJECTIONS
    assert {p.dtype for p in classifier.parameters() if p.requires_grad} == {torch.float32}


def test_the_layer_range_is_a_fraction_of_the_depth(checkpoint):
    model = base(checkpoint)
    assert lora_targets(model, LoraConfig(first_layer=0.5)) == (sorted(PROJECTIONS), [2, 3])
    classifier = add_adapters(model, LoraConfig(r=2, first_layer=0.5, targets=["q_proj"]), 0)
    layers = {name.split("layers.")[1][0] for name, _ in classifier.named_parameters() if "lora_" in name}
    assert layers == {"2", "3"}
    with pytest.raises(UserError, match="qkv_proj"):
        lora_targets(base(checkpoint), LoraConfig(targets=["qkv_proj"]))


def test_a_fresh_classifier_predicts_the_uniform_distribution(checkpoint):
    classifier = add_adapters(base(checkpoint), LoraConfig(), 0)
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        logits = classifier(ids, torch.ones_like(ids), torch.tensor([19]))
    assert logits.tolist() == [[0, 0, 0]]


def test_padding_makes_no_difference(checkpoint, rows):
    """A batch padded on the right gives each row the logits it has alone (float32, eager)."""
    from data.encoding.encode import Encoder, Truncation
    from distill.model.backbone import load_tokenizer

    config = BackboneConfig(path=str(checkpoint))
    encoded = Encoder(load_tokenizer(config, str(checkpoint)), Template(), Truncation(256)).encode(rows)
    classifier = add_adapters(base(checkpoint), LoraConfig(), 0)
    torch.manual_seed(1)
    for parameter in classifier.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    sequences = np.arange(12)
    assert len(set(encoded.lengths[sequences])) > 3
    with torch.no_grad():
        together = classifier(**pad(encoded, sequences, 7))
        alone = torch.cat([classifier(**pad(encoded, np.array([s]), 7)) for s in sequences])
    assert together.abs().max() > 0.1
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_soft_capping_is_never_dropped(checkpoint):
    """Gemma-2 gets eager whatever the library's default, and its cap changes the result."""
    kind = json.loads((checkpoint / "config.json").read_text())["model_type"]
    if kind == "llama":
        assert base(checkpoint).config._attn_implementation == "packed_sdpa"
        return
    model = base(checkpoint)
    assert model.config._attn_implementation == "packed_eager"
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        for layer in model.get_decoder().layers:
            layer.self_attn.q_proj.weight.mul_(60)
        capped = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        for layer in model.get_decoder().layers:
            layer.self_attn.attn_logit_softcapping = None
        bare = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    assert (capped - bare).abs().max() > 1e-3
    with pytest.raises(UserError, match="soft-capping"):
        attention_for(AutoConfig.for_model("gemma2"), "sdpa")
    with pytest.raises(ValueError, match="cannot soft-cap"):
        sdpa(None, None, None, None, None, softcap=50.0)


def test_full_weights_can_be_trained_saved_and_loaded(checkpoint, tmp_path):
    from distill.model.backbone import load_full

    classifier = add_adapters(base(checkpoint), LoraConfig(enabled=False), 0)
    assert all(p.requires_grad for p in classifier.parameters())
    nn.init.normal_(classifier.model.score.weight)
    classifier.save(tmp_path)
    loaded = load_full(BackboneConfig(path=str(tmp_path), precision="fp32"), str(tmp_path), 3)
    ids = torch.arange(10, 30)[None]
    inputs = (ids, torch.ones_like(ids), torch.tensor([19]))
    with torch.no_grad():
        torch.testing.assert_close(type(classifier)(loaded)(*inputs), classifier(*inputs))


def test_missing_backbones_are_named(tmp_path):
    with pytest.raises(UserError, match="no-such/model"):
        load_base(BackboneConfig(path="no-such/model"), "no-such/model", 3)
    with pytest.raises(UserError, match="no weights"):
        weight_hash(str(tmp_path))
    with pytest.raises(UserError, match="compute"):
        load_base(BackboneConfig(path="x", compute="int1"), "x", 3)


def test_no_layer_left_to_adapt_is_refused_and_does_not_mean_all(checkpoint):
    """PEFT takes an empty list of layers for all of them."""
    with pytest.raises(UserError, match=r"first_layer 0\.9 leaves none of the backbone's 4 layers"):
        lora_targets(base(checkpoint), LoraConfig(first_layer=0.9))


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
@pytest.mark.parametrize("damage", ["missing", "deeper", "cut"])
def test_weights_that_are_not_in_the_file_are_not_made_up(checkpoint, tmp_path, precision, damage):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    file, config = copy / "model.safetensors", json.loads((copy / "config.json").read_text())
    if damage == "missing":
        weights = load_file(file)
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, file, metadata={"format": "pt"})
    elif damage == "deeper":
        config["num_hidden_layers"] = 5
        if config.get("layer_types"):
            config["layer_types"].append("full_attention")
        (copy / "config.json").write_text(json.dumps(config))
    else:
        file.write_bytes(file.read_bytes()[:-100])
    words = {"missing": "layers.1.mlp.up_proj", "deeper": r"layers\.4\.", "cut": "cannot be loaded"}
    with pytest.raises(UserError, match=words[damage]):
        base(copy, precision)


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_pickled_weights_are_not_read(checkpoint, tmp_path, precision):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        weight_hash(str(copy))
    with pytest.raises(UserError, match="safetensors"):
        base(copy, precision)


def test_tokens_without_an_embedding_are_refused(checkpoint):
    config = BackboneConfig(path=str(checkpoint))
    check_vocabulary(config, str(checkpoint), 399)
    with pytest.raises(UserError, match=r"the token 400, and its config\.json has a vocabulary of 400"):
        check_vocabulary(config, str(checkpoint), 400)


def test_an_architecture_that_would_see_across_documents_is_kept_out_of_packs():
    stablelm = AutoConfig.for_model("stablelm")
    with pytest.raises(UserError, match=r"stablelm do not run in packs.*packed to false"):
        attention_name(BackboneConfig(path="x", precision="fp32"), stablelm)
    assert attention_name(BackboneConfig(path="x", precision="fp32", packed=False), stablelm) == "sdpa"
