"""Every family of the table: packed equals one by one equals padded, forward and gradient."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForSequenceClassification,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)

from data.encoding.encode import Encoded
from data.errors import UserError
from distill.architectures import ARCHITECTURES, PACKED, architecture, by_hub_name
from distill.config import BackboneConfig
from distill.kernels.agreement import WINDOW as WINDOW_OF_PROBES
from distill.kernels.agreement import Heads
from distill.kernels.attention import eager
from distill.kernels.choice import registered
from distill.model.backbone import attention_name, load_base, load_full
from distill.model.classifier import Classifier
from distill.packing.examples import pad
from distill.packing.pack import pack
from distill.packing.sharing import layout, prefixes, shape_of

LENGTHS = (5, 30, 1, 17)
SHAPE = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8,
    "num_labels": 3, "pad_token_id": 0, "max_position_embeddings": 128,
}  # fmt: skip
WINDOW = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}
"""Shorter than the rows, and in some layers only where the family mixes them."""
MORE = {
    "gemma2": {"attn_logit_softcapping": 2.0},
    "gemma3_text": {"sliding_window_pattern": 2},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "smollm3": {"no_rope_layer_interval": 2},
    "glm": {"partial_rotary_factor": 0.5},
    "exaone4": {"sliding_window_pattern": 2},
}


def config_of(name, layers=4):
    """A small configuration with everything felt that the family has: cap, window, scaled rope."""
    family = architecture(name)
    window = WINDOW if family.window else {}
    shape = {**SHAPE, **family.tiny, **MORE.get(name, {}), **window, "num_hidden_layers": layers}
    return AutoConfig.for_model(name, **shape)


def models_of(name, attention, layers=4):
    """The same weights in packs under ``attention``, and as the library runs them by eager attention."""
    made = []
    for implementation in (registered(attention), "eager"):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(
            config_of(name, layers), attn_implementation=implementation
        )
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:  # of ones or zeros, they would hide where they stand
                torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.2)
            elif "_proj" in parameter_name or "score" in parameter_name:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        made.append(model.eval())
    return Classifier(made[0]), made[1]


def outcome(model, *forwards):
    """Logits of several forward passes, joined, and the gradients of a loss on them, by name."""
    model.zero_grad()
    logits = torch.cat([forward() for forward in forwards])
    (logits * torch.arange(logits.numel()).view_as(logits).cos()).sum().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(one, other):
    """Logits to 1e-5, and gradients to 1e-5 of each tensor's largest."""
    torch.testing.assert_close(one[0], other[0], atol=1e-5, rtol=1e-5)
    assert one[0].std() > 0.1
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        scale = float(gradient.abs().max()) + 1e-3
        torch.testing.assert_close(other[1][name] / scale, gradient / scale, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("name", [name for name in PACKED if not architecture(name).text])
def test_what_a_kernel_is_judged_for_is_what_layers_ask_of_it(name, monkeypatch):
    """Numbers of heads, their size, cap and window, as read off a configuration before there is a model."""
    classifier, _ = models_of(name, "eager", 4)
    asked = set()

    def seen(module, query, key, value, mask, **options):
        window = WINDOW_OF_PROBES if options.get("sliding_window") else None
        shape = query.shape[1], key.shape[1], query.shape[3]
        asked.add(Heads(*shape, options.get("softcap"), window))
        return eager(module, query, key, value, mask, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, registered("eager"), seen)
    encoded = Encoded(np.arange(10, 40, dtype=np.int32), np.array([0, 30]), 1, 0)
    classifier.plan.prune = False
    classifier(pack=pack(encoded, np.arange(1), 0))
    judged = Heads.of(config_of(name))
    assert judged in asked
    assert asked <= {judged, replace(judged, window=None)}


CASES = [
    (name, attention, layers)
    for name in PACKED
    if not architecture(name).text
    for attention in (("eager",) if architecture(name).capped else ("eager", "sdpa"))
    for layers in (3, 4)
]
"""With an odd and an even number of layers, so that the last is of either kind where kinds alternate."""


@pytest.mark.parametrize(("name", "attention", "layers"), CASES)
def test_packed_is_one_by_one_is_padded(name, attention, layers):
    rng = np.random.default_rng(0)
    ids = rng.integers(10, 300, size=sum(LENGTHS), dtype=np.int32)
    encoded = Encoded(ids, np.concatenate([[0], np.cumsum(LENGTHS)]), 1, 0)
    rows = [torch.from_numpy(encoded[i].astype(np.int64))[None] for i in range(len(LENGTHS))]
    one = pack(encoded, np.arange(len(LENGTHS)), 0)
    batch = pad(encoded, np.arange(len(LENGTHS)), 0)
    del batch["last"]
    classifier, plain = models_of(name, attention, layers)
    alone = outcome(plain, *(lambda r=r: plain(input_ids=r, use_cache=False).logits for r in rows))
    assert_same(alone, outcome(plain, lambda: plain(**batch, use_cache=False).logits))
    for prune in (True, False):
        classifier.plan.prune = prune
        assert_same(alone, outcome(classifier.inner, lambda: classifier(pack=one)))


@pytest.mark.parametrize(("name", "attention", "layers"), CASES)
def test_sequences_around_a_shared_prefix_are_those_one_by_one(name, attention, layers):
    """Prefixes longer than the window and shorter than the rest, a row of one sequence, and padding."""
    rng = np.random.default_rng(0)
    pieces = []
    for shared, owns in ((20, (3, 1, 12)), (0, (9,)), (17, (21, 2)), (0, (6, 5))):
        start = rng.integers(10, 300, size=shared)
        pieces += [np.concatenate([start, rng.integers(10, 300, size=own)]) for own in owns]
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
    sizes = np.array([3, 1, 2, 2])
    encoded = Encoded(np.concatenate(pieces).astype(np.int32), offsets, 1, 0, sizes)
    found = prefixes(encoded, np.arange(4))
    assert found.tolist() == [20, 0, 17, 0]
    rows = [torch.from_numpy(piece)[None] for piece in pieces]
    chosen = np.arange(len(pieces))
    shape = shape_of([layout(encoded, chosen, found)], 40)
    packs = [pack(encoded, chosen, 0, static, found) for static in (None, shape)]
    assert packs[0].input_ids.shape[1] == offsets[-1] - 2 * 20 - 17
    assert packs[1].shape[3] > packs[0].shape[3]
    classifier, plain = models_of(name, attention, layers)
    alone = outcome(plain, *(lambda r=r: plain(input_ids=r, use_cache=False).logits for r in rows))
    for one in packs:
        for prune in (True, False):
            classifier.plan.prune = prune
            assert_same(alone, outcome(classifier.inner, lambda one=one: classifier(pack=one)))


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_of_a_nested_checkpoint_the_text_model_alone_is_loaded(tmp_path, precision):
    text = {**SHAPE, **WINDOW, **MORE["gemma3_text"], "hidden_size": 64}
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    torch.manual_seed(0)
    whole = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision))
    whole.save_pretrained(tmp_path / "whole")
    backbone = BackboneConfig(path=str(tmp_path / "whole"), precision=precision, attention="eager")
    found = load_base(backbone, backbone.path, 3)
    assert found.config.model_type == architecture("gemma3").text
    assert found.config.num_labels == 3
    assert torch.equal(found.model.embed_tokens.weight.float(), whole.get_input_embeddings().weight)
    if precision == "fp32":
        found.save_pretrained(tmp_path / "text")  # by a text model's own names
        again = load_full(backbone, str(tmp_path / "text"), 3)
        for name, weight in again.get_decoder().state_dict().items():
            assert torch.equal(weight, whole.get_decoder().state_dict()[name]), name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_row_is_of_a_family_that_the_library_knows(name):
    family = ARCHITECTURES[name]
    assert family.name == name
    assert AutoConfig.for_model(name).model_type == name
    assert family.tokens
    if not family.packed:
        assert family.encoder or family.refused


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("google/gemma-2-9b-it", "gemma2"), ("google/gemma-2b", "gemma"), ("me/my-gemma2-9b", "gemma2"),
        ("meta-llama/Llama-3.1-8B", "llama"), ("Qwen/Qwen2.5-1.5B", "qwen2"), ("Qwen/Qwen3-8B", "qwen3"),
        ("microsoft/Phi-4-mini-instruct", "phi3"), ("x/y", None),
    ],
)  # fmt: skip
def test_a_name_tells_the_family(path, name):
    family = by_hub_name(path)
    assert (family and family.name) == name


def test_what_is_not_in_the_table_is_refused_in_packs():
    with pytest.raises(UserError, match=r"gpt2 do not run in packs.*backbone\.packed to false"):
        attention_name(BackboneConfig(precision="fp32"), AutoConfig.for_model("gpt2"))
    with pytest.raises(UserError, match=r"albert cannot be trained"):
        attention_name(BackboneConfig(precision="fp32"), AutoConfig.for_model("albert"))
