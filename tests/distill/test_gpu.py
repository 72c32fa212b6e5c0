"""What only a GPU shows: its attention kernels, compiled layers, bf16, FP8, int8, 8-bit Adam.

Skipped without CUDA; ``benchmarks/README.md`` says how to run it.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.utils.import_utils import is_flash_attn_4_available

from data.arena import ArenaConfig, simulate_arena
from data.dataset import prepare
from data.encoding.encode import Encoded
from data.encoding.template import Template
from data.schema import read_rows
from data.softlabels import read_store
from distill.config import BackboneConfig, LoraConfig, TinyConfig
from distill.kernels.gated import gated_fp8
from distill.kernels.linear import QuantisedLinear, parts
from distill.kernels.products import ROUNDED, FrozenProduct, dense
from distill.kernels.rotation import quantise_rotated, rotated, rotated_mm
from distill.kernels.scaled import (
    LARGEST,
    by_torch,
    int8_product,
    quantise_rows,
    rounded,
    scaled_mm,
    turned,
    written_out,
)
from distill.kernels.unpack import row_scales, unpack
from distill.model.backbone import add_adapters, load_base
from distill.model.tiny import tiny_backbone
from distill.packing.cutting import static_shape
from distill.packing.examples import pad
from distill.packing.pack import pack
from distill.packing.sharing import layout, prefixes, shape_of
from tests.helpers.shared_rows import encoded as encoded_rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LENGTHS = [90, 7, 300, 41, 128, 2]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Tiny classifiers with adapters and a head that do something, the same for every precision."""
    rows = simulate_arena(ArenaConfig(n_rows=12, seed=5))
    cache = tmp_path_factory.mktemp("cache")

    def classifier(family, **changes):
        shape = TinyConfig(family, 128, 128, layers=3, vocab_size=300, pretrain_steps=0)
        path = str(tiny_backbone(shape, rows, Template(), 0, cache))
        config = replace(BackboneConfig(path=path, compile="false"), **changes)
        made = add_adapters(load_base(config, path, 3), LoraConfig(r=4), 0)
        generator = torch.Generator().manual_seed(1)
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.data.copy_(0.03 * torch.randn(parameter.shape, generator=generator))
        return made

    return classifier


def documents(lengths, seed=0):
    ids = np.random.default_rng(seed).integers(10, 300, size=sum(lengths), dtype=np.int32)
    return Encoded(ids, np.concatenate([[0], np.cumsum(lengths)]), 1, 0)


def run(classifier, encoded, static=True, shared=None):
    """Logits of a pack of all documents, and the gradients of a loss on them, in one long vector."""
    chosen = np.arange(len(encoded.lengths))
    shape = shape_of([layout(encoded, chosen, shared)], 300) if static else None
    classifier.zero_grad()
    logits = classifier(pack=pack(encoded, chosen, 7, shape, shared).to(DEVICE))
    (logits * torch.arange(logits.numel(), device=DEVICE).view_as(logits).cos()).sum().backward()
    gradients = [p.grad.float().ravel() for p in classifier.parameters() if p.requires_grad]
    return logits.detach().float(), torch.cat(gradients)


def assert_near(found, wanted, share=0.05):
    """As near as bf16's rounding lets a few layers be: by the norm of the difference."""
    assert torch.isfinite(found).all()
    assert (found - wanted).norm() < share * wanted.norm()


@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("llama", "varlen"),
        ("llama", "flex"),
        ("gemma2", "flex"),
        ("llama", "flash_attention_4"),
        ("gemma2", "flash_attention_4"),
    ],
)
def test_the_kernels_are_the_formula(make, family, attention):
    """As near to attention written out in float32 as the formula itself is in bf16; so is a padded batch."""
    if attention == "flash_attention_4" and not is_flash_attn_4_available():
        pytest.skip("flash-attn-4 is not installed")
    encoded = documents(LENGTHS)
    exact = run(make(family, precision="fp32", attention="eager"), encoded, static=False)
    assert exact[0].abs().max() > 0.1
    written_out = make(family, precision="bf16", attention="eager")
    rounded = run(written_out, encoded, static=False)
    found = run(make(family, precision="bf16", attention=attention), encoded)
    for kernel, formula, truth in zip(found, rounded, exact, strict=True):
        assert (kernel - truth).norm() < 2 * (formula - truth).norm() < 0.06 * truth.norm()
    batch = {name: tensor.to(DEVICE) for name, tensor in pad(encoded, np.arange(len(LENGTHS)), 7).items()}
    with torch.no_grad():
        padded = written_out(**batch).float()
    assert (padded - exact[0]).norm() < 2 * (rounded[0] - exact[0]).norm()


@pytest.mark.parametrize("compiled", ["false", "true"])
@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("llama", "varlen"),
        ("llama", "flex"),
        ("gemma2", "flex"),
        ("llama", "flash_attention_4"),
        ("gemma2", "flash_attention_4"),
    ],
)
def test_prefixes_laid_out_once_are_as_near_to_the_formula_as_sequences_apart(
    make, family, attention, compiled
):
    """Longer and shorter than a tile, with fillers and without; twice, as what is recorded is replayed."""
    if attention == "flash_attention_4" and not is_flash_attn_4_available():
        pytest.skip("flash-attn-4 is not installed")
    rows = encoded_rows([(200, 40, 1, 99), (0, 70), (33, 5, 5, 5, 5), (64, 64, 128), (16, 2, 3)])
    rows = replace(rows, ids=10 + rows.ids % 290)
    shared = prefixes(rows, np.arange(5))
    exact = run(make(family, precision="fp32", attention="eager"), rows, static=False)
    apart = run(make(family, precision="bf16", attention=attention, compile=compiled), rows)
    classifier = make(family, precision="bf16", attention=attention, compile=compiled)
    for _ in range(2):
        found = run(classifier, rows, shared=shared)
        for kernel, other, truth in zip(found, apart, exact, strict=True):
            assert (kernel - truth).norm() < 2 * (other - truth).norm() < 0.06 * truth.norm()
    if attention == "varlen" and compiled == "false":
        loose = run(classifier, rows, static=False, shared=shared)
        assert_near(loose[0], found[0], 0.02)


def test_compiled_layers_are_the_layers_and_compile_once(make):
    """Packs of other lengths and other numbers of documents run the code that was compiled for the first."""
    from torch._dynamo.utils import counters

    classifier = make("llama", precision="nf4", compile="true")
    assert classifier.plan.compiled
    plain = make("llama", precision="nf4")
    first, other = documents(LENGTHS), documents([3] * 40 + [260, 250], seed=1)
    shape = static_shape([first.lengths, other.lengths], 300)
    graphs = []
    for encoded in (first, other):
        one = pack(encoded, np.arange(len(encoded.lengths)), 7, shape).to(DEVICE)
        for training in (True, False):
            with torch.set_grad_enabled(training):
                logits = classifier(pack=one)
                assert_near(logits, plain(pack=one))
            if training:
                logits.sum().backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0


@pytest.mark.parametrize("dtype", list(LARGEST))
@pytest.mark.parametrize("nested", [False, True])
def test_nf4_is_unpacked_to_the_8_bit_numbers_of_its_dequantised_rows(nested, dtype):
    import bitsandbytes.functional as bnb

    shape = [200, 320]
    weight = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=nested)
    extra = [state.state2.code, state.state2.absmax, state.offset] if nested else []
    scale = row_scales(packed, state.absmax, extra, shape, dtype)
    found = unpack([packed, scale, state.absmax, *extra], shape, dtype)
    other = unpack([packed, scale, state.absmax, *extra], shape, dtype, turned=True)
    exact = dense("nf4", [packed, state.absmax, *extra], shape, torch.float32)
    exact = rotated(exact) if dtype == torch.int8 else exact
    gap = found.float() - rounded(exact / scale, dtype).float()
    # A product in another order may fall on the other side of a tie; the rotation of codes is in float16.
    assert (gap == 0).float().mean() > (0.9 if dtype == torch.int8 else 0.999)
    assert dtype != torch.int8 or gap.abs().max() <= 1
    assert torch.equal(other.t().float(), found.float())


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_the_gated_kernel_is_its_formula(activation):
    gate, up = (torch.randn(70, 1000, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    found, wanted = (gated_fp8(*(t.to(d) for t in (gate, up)), activation) for d in ("cuda", "cpu"))
    torch.testing.assert_close(found[1].cpu(), wanted[1], rtol=1e-4, atol=0)
    assert (found[0].cpu().float() == wanted[0].float()).float().mean() > 0.99


def test_replayed_passes_are_those_of_the_layers(make):
    """Two packs of one shape and changing parameters, with graphs and without."""
    classifier = make("llama", precision="bf16", compile="true")
    assert classifier.plan.graphs
    encoded = documents(LENGTHS), documents([3] * 40 + [260, 250], seed=1)
    shape = static_shape([e.lengths for e in encoded], 300)
    outcomes = {}
    for graphs in (False, True):
        classifier.plan.graphs = graphs
        classifier.zero_grad()
        logits = []
        for one in (pack(e, np.arange(len(e.lengths)), 7, shape).to(DEVICE) for e in encoded):
            logits.append(classifier(pack=one))
            logits[-1].square().sum().backward()
        outcomes[graphs] = torch.cat(logits).detach(), torch.cat([p.grad.ravel() for p in classifier.trained])
    for found, wanted in zip(outcomes[True], outcomes[False], strict=True):
        assert_near(found, wanted, 0.02)
    assert classifier.plan.graphs
    assert len(classifier.graphs._recorded) == 1


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2000, 1408, 512), torch.bfloat16),
        ((131, 200, 1096), torch.float16),
        ((3, 64, 72), torch.float32),
    ],
)
def test_int8_products_are_their_formula_to_the_bit(shape, dtype):
    """The kernel and torch's product, of tiles full and not; int32 sums are exact in any order."""
    m, n, k = shape
    generator = torch.Generator(DEVICE).manual_seed(0)
    x, weight = (
        quantise_rows(torch.randn(rows, k, device=DEVICE, generator=generator), torch.int8) for rows in (m, n)
    )
    sums = x[0].double() @ weight[0].double().t()
    exact = (sums.float() * weight[1].t() * x[1]).to(dtype)
    assert torch.equal(by_torch(*x, *weight, dtype), exact)
    assert torch.equal(scaled_mm(*x, *weight, dtype), exact)
    assert (written_out(*x, *weight, torch.float32) - exact).norm() < 0.01 * exact.float().norm()
    assert torch.equal(turned(weight[0]), weight[0].t())
    assert_near(rotated_mm(*x, *weight, dtype).float(), rotated(exact).float(), 5e-3)


@pytest.mark.parametrize("width", [64, 576, 4096, 14336])
def test_activations_are_rotated_and_rounded_in_one_pass(width):
    generator = torch.Generator(DEVICE).manual_seed(0)
    x = torch.randn(70, width, device=DEVICE, dtype=torch.float16, generator=generator)
    x[:, 5] *= 100
    values, scale = quantise_rotated(x)
    wanted, wanted_scale = quantise_rows(rotated(x.float()), torch.int8)
    torch.testing.assert_close(scale, wanted_scale, rtol=1e-3, atol=0)
    gap = (values.int() - wanted.int()).abs()
    assert gap.max() <= 1
    assert (gap == 0).float().mean() > 0.98


def test_cards_since_ampere_multiply_int8_by_the_kernel():
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no tensor-core code by Triton")
    assert int8_product(DEVICE).__name__ == "launch"


@pytest.mark.parametrize("kind", ["fp8", "int8_int8"])
def test_8_bit_products_are_those_of_the_rounded_weights(kind):
    if kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no FP8 hardware")
    generator = torch.Generator(DEVICE).manual_seed(0)
    weight = torch.randn(256, 128, device=DEVICE, dtype=torch.bfloat16, generator=generator)
    x = torch.randn(64, 128, device=DEVICE, dtype=torch.bfloat16, generator=generator).requires_grad_()
    dy = torch.randn(64, 256, device=DEVICE, dtype=torch.bfloat16, generator=generator)
    kind, shape, stored = parts(QuantisedLinear(weight, kind))
    y = FrozenProduct.apply(x, kind, shape, *stored)
    y.backward(dy)
    wide = weight.float()
    values, scale = quantise_rows(rotated(wide) if kind == "int8_int8" else wide, ROUNDED[kind])
    held = values.float() * scale
    held = rotated(held) if kind == "int8_int8" else held
    assert (y.float() - x.detach().float() @ held.T).norm() < 0.05 * y.float().norm()
    assert (x.grad.float() - dy.float() @ held).norm() < 0.06 * x.grad.float().norm()


def test_gemma_in_float16_keeps_its_residuals_in_range(make):
    """NF4 with float16 products, as on cards without bfloat16, where a layer adds more than 65,504."""
    logits = {}
    for compute in ("bf16", "fp16"):
        classifier = make("gemma2", precision="nf4", compute=compute, attention="eager")
        for layer in classifier.inner.get_decoder().layers[:2]:
            layer.post_feedforward_layernorm.weight.data.fill_(4e4)
        logits[compute], _ = run(classifier, documents(LENGTHS), static=False)
    assert_near(logits["fp16"], logits["bf16"], 0.1)


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    directory = tmp_path_factory.mktemp("gpu") / "arena"
    prepare(simulate_arena(ArenaConfig(n_rows=240, seed=1)), directory, n_folds=2)
    return directory


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_teacher_trains_and_predicts_in_nf4_with_bf16(arena, tiny_recipe, family):
    from distill import teacher_oof
    from distill.runs.loaded import predict_rows
    from distill.runs.saved import read_saved

    train = ["optimizer=adamw_8bit", "gradient_checkpointing=true", "epochs=6", "micro_rows=4", "lr=2e-3"]
    options = ["backbone.compile=false", *(f"train.{option}" for option in train)]
    command = ["--recipe", str(tiny_recipe), "--data", str(arena), "--only", family]
    teacher_oof.main([*command, *(f"teachers.{family}.{option}" for option in options)])
    store = read_store(arena / family)
    assert store.manifest["backbone"]["compute"] == "bfloat16"
    assert store.manifest["backbone"]["attention"] == {"llama": "varlen", "gemma2": "flex"}[family]
    assert np.isfinite(store.logits).all()
    lines = (arena / family / "fold-0" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]
    assert np.mean(losses[-15:]) < np.log(3) - 0.01

    saved = read_saved(arena / family)
    only = replace(saved, weights=[arena / family / "fold-1" / "adapter"])
    inside = np.flatnonzero(store.fold == 1)
    again = predict_rows(only, read_rows(arena).take(inside))
    np.testing.assert_allclose(again, store.logits[inside], atol=0.05)


def test_the_student_is_taught_on_the_gpu(arena, tiny_recipe):
    from distill import student

    student.main(["--recipe", str(tiny_recipe), "--data", str(arena), "student.backbone.compile=false"])
    assert np.isfinite(read_store(arena / "student").logits).all()
