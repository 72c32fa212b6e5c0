"""A recorded pass does what the layers do one by one; on a CPU a replay runs them again."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.arena import ArenaConfig, simulate_arena
from data.encoding.encode import Encoded
from data.encoding.template import Template
from distill.config import BackboneConfig, LoraConfig, TinyConfig
from distill.model.backbone import add_adapters, load_base
from distill.model.tiny import tiny_backbone
from distill.packing.cutting import static_shape
from distill.packing.pack import pack

LENGTHS = ([9, 21, 4], [30, 2], [5, 5, 5, 5, 5])


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    rows = simulate_arena(ArenaConfig(n_rows=12, seed=5))
    cache = tmp_path_factory.mktemp("cache")

    def classifier(precision, **lora):
        shape = TinyConfig("llama", 64, 64, layers=3, vocab_size=300, pretrain_steps=0)
        path = str(tiny_backbone(shape, rows, Template(), 0, cache))
        config = BackboneConfig(path=path, precision=precision, attention="eager")
        made = add_adapters(load_base(config, path, 3), LoraConfig(r=4, **lora), 0)
        torch.manual_seed(1)
        for parameter in made.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        return made

    return classifier


def packs():
    """Packs of one shape, of other documents each."""
    static = static_shape([np.array(lengths) for lengths in LENGTHS], 40)
    for seed, lengths in enumerate(LENGTHS):
        ids = np.random.default_rng(seed).integers(10, 300, size=sum(lengths), dtype=np.int32)
        encoded = Encoded(ids, np.concatenate([[0], np.cumsum(lengths)]), 1, 0)
        yield pack(encoded, np.arange(len(lengths)), 7, static)


def step(classifier):
    """Gradients and logits of a step of three packs, as a trainer makes it."""
    classifier.zero_grad()
    logits = []
    for one in packs():
        logits.append(classifier(pack=one))
        logits[-1].square().sum().backward()
    gradients = {n: p.grad.clone() for n, p in classifier.named_parameters() if p.requires_grad}
    return torch.cat(logits).detach(), gradients


@pytest.mark.parametrize(("precision", "lora"), [("fp32", {}), ("bf16", {}), ("fp32", {"first_layer": 0.6})])
def test_a_replayed_step_is_the_step(make, precision, lora):
    classifier = make(precision, **lora)
    wanted = step(classifier)
    classifier.plan.graphs = True
    for _ in range(2):  # recorded, then replayed; then with parameters that have changed in place
        for change in (1.0, 1.1):
            with torch.no_grad():
                for parameter in classifier.parameters():
                    if parameter.requires_grad:
                        parameter.mul_(change)
            classifier.plan.graphs = False
            wanted = step(classifier)
            classifier.plan.graphs = True
            found = step(classifier)
            near = {"atol": 1e-5, "rtol": 1e-5} if precision == "fp32" else {"atol": 2e-2, "rtol": 2e-2}
            torch.testing.assert_close(found[0], wanted[0], **near)
            for name, gradient in wanted[1].items():
                assert gradient.dtype == torch.float32
                gap = (found[1][name] - gradient).norm() / gradient.norm().clamp_min(1e-9)
                assert gap < (1e-4 if precision == "fp32" else 2e-2), name
    assert classifier.plan.graphs
    assert len(classifier.graphs._recorded) == 1


def test_prediction_is_recorded_apart_and_a_loose_pack_is_not(make):
    classifier = make("fp32").eval()
    one = next(packs())
    with torch.no_grad():
        wanted = classifier(pack=one)
        classifier.plan.graphs = True
        torch.testing.assert_close(classifier(pack=one), wanted, atol=1e-5, rtol=1e-5)
        assert len(classifier.graphs._recorded) == 1
        classifier(pack=replace(one, static=False))
    assert len(classifier.graphs._recorded) == 1


def test_two_passes_forward_before_one_goes_back_are_refused(make):
    classifier = make("fp32")
    classifier.plan.graphs = True
    first, second = (classifier(pack=one).sum() for _, one in zip(range(2), packs(), strict=False))
    second.backward()
    with pytest.raises(RuntimeError, match="must go back before the next"):
        first.backward()


def test_what_recomputes_is_not_recorded(make):
    classifier = make("fp32")
    classifier.plan.graphs, classifier.plan.checkpoint = True, "all"
    step(classifier)
    assert not classifier.graphs._recorded
    # Only the last layer is trained, so that one kept layer is all of them.
    upper = make("fp32", first_layer=0.6)
    upper.plan.graphs, upper.plan.checkpoint, upper.plan.kept = True, "auto", 1
    step(upper)
    assert len(upper.graphs._recorded) == 1
