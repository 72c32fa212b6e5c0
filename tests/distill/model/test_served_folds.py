"""Adapters merged for prediction give the trained logits, and FP8 weights that are rounded once."""

import numpy as np
import pytest
import torch

from data.arena import ArenaConfig, simulate_arena
from data.encoding.encode import Encoded
from data.encoding.template import Template
from distill.config import BackboneConfig, LoraConfig, TinyConfig
from distill.kernels.linear import QuantisedLinear
from distill.kernels.scaled import quantise_rows
from distill.model.backbone import add_adapters, load_base, load_trained
from distill.model.served import serve
from distill.model.tiny import tiny_backbone
from distill.packing.pack import pack


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny backbone's path, and two folds' adapters and heads that do something."""
    directory = tmp_path_factory.mktemp("trained")
    shape = TinyConfig("llama", 64, 64, layers=3, vocab_size=300, pretrain_steps=0)
    path = str(tiny_backbone(shape, simulate_arena(ArenaConfig(n_rows=12)), Template(), 0, directory))
    for fold in range(2):
        config = BackboneConfig(path=path, precision="fp32")
        classifier = add_adapters(load_base(config, path, 3), LoraConfig(r=4), 0)
        torch.manual_seed(fold)
        for parameter in classifier.trained:
            torch.nn.init.normal_(parameter, std=0.02)
        classifier.save(directory / f"fold-{fold}")
    return path, directory


def merged(config, path, trained, precision=""):
    return serve(load_trained(config, path, trained, True, 3), config, precision)


def logits_of(classifier):
    ids = np.random.default_rng(0).integers(10, 300, size=30, dtype=np.int32)
    encoded = Encoded(ids, np.array([0, 9, 12, 30]), 1, 0)
    with torch.no_grad():
        return classifier(pack=pack(encoded, np.arange(3), 7))


def test_merged_adapters_give_the_logits_of_the_trained(trained):
    path, directory = trained
    config = BackboneConfig(path=path, precision="fp32")
    wanted = logits_of(load_trained(config, path, directory / "fold-0", True, 3))
    found = logits_of(merged(config, path, directory / "fold-0"))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_an_fp8_base_is_rounded_once_with_its_adapters(trained):
    path, directory = trained
    config = BackboneConfig(path=path, precision="fp32")
    whole = merged(config, path, directory / "fold-0")
    found = merged(config, path, directory / "fold-0", "fp8")
    plain, rounded = (m.inner.get_decoder().layers[1].mlp.down_proj for m in (whole, found))
    assert isinstance(rounded, QuantisedLinear)
    values, scale = quantise_rows(plain.weight.detach())
    assert torch.equal(rounded.weight.view(torch.float8_e4m3fn).float(), values.float())
    assert torch.equal(rounded.scale, scale)
    exact = logits_of(whole)
    assert (logits_of(found) - exact).norm() < 0.1 * exact.norm()


def test_folds_are_loaded_in_turn_into_one_base_that_does_not_merge(trained):
    path, directory = trained
    config = BackboneConfig(path=path, precision="nf4")
    classifier = merged(config, path, directory / "fold-0")
    first = logits_of(classifier)
    classifier.load(directory / "fold-1")
    second = logits_of(classifier)
    assert (first - second).abs().max() > 0.001
    assert torch.equal(second, logits_of(load_trained(config, path, directory / "fold-1", True, 3)))
