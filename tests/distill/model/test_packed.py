"""A pack gives every document the logits and gradients it has alone, however it is packed."""

import copy
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from wide import Wide

from data.arena import ArenaConfig, simulate_arena
from data.encoding.encode import Encoded
from data.encoding.template import Template
from distill.config import BackboneConfig, LoraConfig, TinyConfig
from distill.kernels.choice import registered
from distill.model.backbone import add_adapters, load_base
from distill.model.classifier import Classifier
from distill.model.tiny import tiny_backbone
from distill.packing.cutting import Static
from distill.packing.examples import pad
from distill.packing.pack import pack

LONGEST = 40


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    rows = simulate_arena(ArenaConfig(n_rows=12, seed=5))
    cache = tmp_path_factory.mktemp("cache")
    made = {}

    def classifier(family, precision="fp32", attention="eager", compute="auto", **lora):
        key = (family, precision, attention, compute, *lora.items())
        if key not in made:
            shape = TinyConfig(family, 64, 64, layers=3, vocab_size=300, pretrain_steps=0)
            path = str(tiny_backbone(shape, rows, Template(), 0, cache))
            config = BackboneConfig(path=path, precision=precision, attention=attention, compute=compute)
            made[key] = add_adapters(load_base(config, path, 3), LoraConfig(r=4, **lora), 0)
            torch.manual_seed(1)
            for parameter in made[key].parameters():
                if parameter.requires_grad:
                    nn.init.normal_(parameter, std=0.1)
        return made[key]

    return classifier


def documents(lengths, seed=0):
    ids = np.random.default_rng(seed).integers(10, 300, size=sum(lengths), dtype=np.int32)
    return Encoded(ids, np.concatenate([[0], np.cumsum(lengths)]), 1, 0)


def outcome(classifier, *forwards, scale=1.0):
    """Logits of several forward passes, joined, and the gradients of a loss on them."""
    classifier.zero_grad()
    logits = torch.cat([forward() for forward in forwards])
    (scale * logits * torch.arange(logits.numel()).view_as(logits).cos()).sum().backward()
    gradients = {n: p.grad.clone() for n, p in classifier.named_parameters() if p.requires_grad}
    return logits.detach(), gradients


def assert_same(one, other, exact=1e-5):
    """Logits to ``exact``; gradients, summed over all tokens, to ten times that of each tensor's largest."""
    torch.testing.assert_close(one[0], other[0], atol=exact, rtol=exact)
    assert one[0].abs().max() > 0.1
    for name, gradient in one[1].items():
        scale = float(gradient.abs().max()) + 1e-6
        torch.testing.assert_close(gradient / scale, other[1][name] / scale, atol=10 * exact, rtol=0)


# Padding on the left moves a document's positions, whose angles then round otherwise: 2e-5 in float32.
@example(family="gemma2", lengths=[1, 1, 23, 40, 35], cuts=set(), size=0, order=Random(0))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    family=st.sampled_from(["llama", "gemma2"]),
    lengths=st.lists(st.integers(1, LONGEST), min_size=2, max_size=7),
    cuts=st.sets(st.integers(1, 6)),
    size=st.sampled_from([0, 300]),
    order=st.randoms(use_true_random=False),
)
def test_however_documents_are_packed_they_are_as_alone(make, family, lengths, cuts, size, order):
    classifier, encoded = copy.deepcopy(make(family)).double(), documents(lengths)
    chosen = list(range(len(lengths)))
    order.shuffle(chosen)
    padded = [pad(encoded, np.array([s]), 7) for s in chosen]
    batches = [pad(encoded, np.array(chosen), 7, side) for side in ("left", "right")]
    parts = np.split(np.array(chosen), sorted(c for c in cuts if c < len(chosen)))
    static = Static(size, 32, max(lengths)) if size else None
    packs = [pack(encoded, part, 7, static) for part in parts]
    with Wide():
        alone = outcome(classifier, *(lambda one=one: classifier(**one) for one in padded))
        assert alone[0].dtype == torch.float64
        for batch in batches:
            assert_same(alone, outcome(classifier, lambda batch=batch: classifier(**batch)), exact=1e-11)
        packed = outcome(classifier, *(lambda p=p: classifier(pack=p) for p in packs))
        assert_same(alone, packed, exact=1e-11)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("change", ["whole last layer", "checkpointing", "upper layers only", "sdpa"])
def test_every_saving_is_exact(make, family, change):
    attention = "sdpa" if change == "sdpa" and family == "llama" else "eager"
    lora = {"first_layer": 0.5} if change == "upper layers only" else {}
    encoded = documents([9, 1, 30, 4])
    one = pack(encoded, np.arange(4), 7)
    classifier = make(family, attention=attention, **lora)
    alone = outcome(classifier, *(lambda s=s: classifier(**pad(encoded, np.array([s]), 7)) for s in range(4)))
    plan = classifier.plan
    plan.prune, plan.checkpoint = change != "whole last layer", "all" if change == "checkpointing" else "none"
    try:
        assert_same(alone, outcome(classifier, lambda: classifier(pack=one)))
    finally:
        plan.prune, plan.checkpoint = True, "none"


@pytest.mark.parametrize(
    ("precision", "compute"),
    [
        ("nf4", "auto"),
        ("nf4", "fp8"),
        ("nf4", "int8"),
        ("int8", "auto"),
        ("int8", "int8"),
        ("fp8", "auto"),
    ],
)
def test_the_fused_product_is_peft_on_the_same_weights(make, precision, compute):
    """Our product of base and adapter against the same adapters on the base's own weights written out."""
    from distill.kernels.linear import parts
    from distill.kernels.products import ROUNDED, dense
    from distill.kernels.rotation import rotated
    from distill.kernels.scaled import quantise_rows
    from distill.kernels.unpack import unpack

    classifier = make("llama", precision, compute=compute)
    layer = classifier.inner.get_decoder().layers[0].mlp.down_proj
    kind, shape, stored = parts(layer.base_layer)
    if kind in ROUNDED:
        nf4 = kind.startswith("nf4")
        rounded = unpack(list(stored), list(shape), ROUNDED[kind]) if nf4 else stored[0]
        rotate = rotated if ROUNDED[kind] == torch.int8 else torch.clone
        weight = rotate(rounded.float() * stored[1])
    else:
        weight = dense(kind, list(stored), list(shape), torch.float32)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    fused = layer(x)
    seen = x
    if kind in ROUNDED:
        values, scale = quantise_rows(rotate(x), ROUNDED[kind])
        seen = rotate(values.float() * scale)
    plain = seen @ weight.T + x @ a.T @ b.T * layer.scaling["default"]
    torch.testing.assert_close(fused, plain, atol=2e-5, rtol=1e-4)
    weights = torch.randn_like(fused)
    (dx,) = torch.autograd.grad(fused, x, weights)
    expected = weights @ weight + (weights @ b) @ a * layer.scaling["default"]
    loose = 0.06 if kind in ROUNDED else 1e-5  # the gradient is rounded, too
    assert (dx - expected).norm() < loose * expected.norm()


def test_merged_adapters_change_nothing_but_the_rounding(make):
    from distill.kernels.linear import merge_adapters

    classifier = make("llama", "bf16" if torch.cuda.is_available() else "fp32", "eager", alpha=8.0)
    one = pack(documents([9, 1, 30, 4]), np.arange(4), 7)
    with torch.no_grad():
        before = classifier(pack=one)
        merge_adapters(classifier)
        torch.testing.assert_close(classifier(pack=one), before, atol=1e-4, rtol=1e-4)
    assert not [name for name, _ in classifier.named_modules() if name.endswith("lora_A")]
    with pytest.raises(ValueError, match="NF4"):
        merge_adapters(make("llama", "nf4"))


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_gemma_in_float16_does_not_overflow_where_its_residuals_do(make, family):
    """Activations as large as real Gemma-2's: residuals beyond 65,504, which float16 does not have."""
    encoded = documents([9, 1, 30, 4])
    one = pack(encoded, np.arange(4), 7)
    logits, gradients, peaks = {}, {}, []
    for compute in ("fp32", "fp16"):
        classifier = make(family, "nf4", compute=compute)
        decoder = classifier.inner.get_decoder()
        if family == "gemma2":
            with torch.no_grad():
                # The last norms of a layer set how much it adds: the first alone leaves float16's range.
                for layer in decoder.layers[:2]:
                    layer.post_feedforward_layernorm.weight.fill_(4e4)
        decoder.layers[1].register_forward_hook(
            lambda _m, _i, out: peaks.append(float(out.detach().abs().max()))
        )
        logits[compute], gradients[compute] = outcome(
            classifier,
            lambda c=classifier: c(pack=one),
            scale=128.0,  # as the Trainer scales in float16
        )
        peaks.clear()
        with torch.no_grad():
            classifier(pack=one)
        assert (max(peaks) > torch.finfo(torch.float16).max) == (family == "gemma2")
    assert torch.isfinite(logits["fp16"]).all()
    torch.testing.assert_close(logits["fp16"], logits["fp32"], atol=0.05, rtol=0.02)
    for name, gradient in gradients["fp32"].items():
        other = gradients["fp16"][name]
        assert torch.nn.functional.cosine_similarity(gradient.ravel(), other.ravel(), dim=0) > 0.98, name


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["mistral", "gemma", "qwen2", "phi3", "starcoder2"])
def test_windows_are_kept_in_the_last_layer_too(kind, attention):
    """Mistral's attention modules do not know their window; their configuration does."""
    config = AutoConfig.for_model(
        kind, vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=2, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, num_labels=3, pad_token_id=0,
        sliding_window=8, use_sliding_window=True, max_window_layers=0,
    )  # fmt: skip
    torch.manual_seed(0)
    options = {"attn_implementation": registered(attention)}
    packed = AutoModelForSequenceClassification.from_config(copy.deepcopy(config), **options).eval()
    plain = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    plain.load_state_dict(packed.state_dict())
    encoded = documents([5, 30, 1, 17])
    with torch.no_grad():
        found = Classifier(packed)(pack=pack(encoded, np.arange(4), 0))
        alone = [
            plain(input_ids=torch.from_numpy(encoded[i].astype(np.int64))[None]).logits for i in range(4)
        ]
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-5, rtol=1e-5)
