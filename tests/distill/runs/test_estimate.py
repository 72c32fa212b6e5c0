"""What units cost before anything is spent, and where the figures come from."""

from __future__ import annotations

import json

import pytest
from pyarrow import csv
from transformers import LlamaConfig

from data.classroom import simulate_classroom
from data.dataset import load_prepared
from data.errors import UserError
from data.sources.read import read_source
from distill.config import BackboneConfig, ModelConfig
from distill.recipe import load_recipe
from distill.runs import devices
from distill.runs.devices import H200, Device, device_here
from distill.runs.estimate import estimates, linear_parameters, mean_tokens, table_of
from distill.runs.units import ModelSpec, Unit, units_of


@pytest.fixture
def spec(tiny_recipe, trained):
    recipe = load_recipe(str(tiny_recipe))
    return ModelSpec("llama", recipe.teachers["llama"], trained, trained / "llama")


def test_an_estimate_counts_tokens_and_names_the_source_of_its_rate(spec, trained, tmp_path):
    rows, folds = load_prepared(trained)
    (finished,) = estimates([Unit(spec, "fold-0")], rows, folds, H200)
    assert finished.source == "finished"
    assert finished.seconds == 0

    recipe = load_recipe("lmsys")
    model = recipe.teachers["llama31-8b"]
    fresh = ModelSpec("llama31-8b", model, trained, tmp_path / "llama31-8b")
    fold, other = estimates(units_of(fresh, 2), rows, folds, H200)
    assert "benchmarks/gpu_training.md" in fold.source
    assert fold.gpus == 1
    assert fold.gib is not None
    assert 9 < fold.gib[0] < 13
    assert 60 < fold.gib[1] < 75
    assert fold.train_tokens + fold.predict_tokens == pytest.approx(other.train_tokens + other.predict_tokens)
    assert 17000 < fold.rate < 19000

    model.resources.tokens_per_second = 100.0
    model.resources.gpus = 0.5
    (told, _) = estimates(units_of(fresh, 2), rows, folds, H200)
    assert told.source == "the recipe"
    assert told.seconds > fold.train_tokens / 100
    assert told.gpus == 0.5

    (fresh.out / "fold-1").mkdir(parents=True)
    (fresh.out / "fold-1" / "metrics.jsonl").write_text(json.dumps({"step": 9, "train_runtime": 50.0}) + "\n")
    (measured, _) = estimates(units_of(fresh, 2), rows, folds, H200)
    assert measured.source == "fold-1 of this store"
    assert measured.rate == pytest.approx(measured.train_tokens / 50)


def test_a_prefix_that_packs_share_is_counted_once_a_row(tmp_path, trained):
    csv.write_csv(simulate_classroom(40, 2), tmp_path / "train.csv")
    rows, _ = read_source(str(tmp_path / "train.csv"))
    path = str(next((trained / "backbones").glob("tiny-llama-*")))
    model = ModelConfig(backbone=BackboneConfig(path=path), template="candidate")
    tokens = {}
    for wanted in ("false", "true", "auto"):
        model.train.shared_prefix = wanted
        tokens[wanted], predicted = mean_tokens(model, rows)
        assert predicted == tokens[wanted]
    assert tokens["auto"] == tokens["true"] < 0.5 * tokens["false"]
    for apart in ({"packed": False}, {"attention": "flash_attention_3"}):
        model.backbone = BackboneConfig(path=path, **apart)
        assert mean_tokens(model, rows) == (tokens["false"], tokens["false"])


def test_a_pair_in_one_order_shares_nothing_while_it_is_trained(trained):
    rows, _ = load_prepared(trained)
    path = str(next((trained / "backbones").glob("tiny-llama-*")))
    model = ModelConfig(backbone=BackboneConfig(path=path))
    both_alone, predicted_alone = mean_tokens(model, rows)
    assert both_alone == predicted_alone
    model.train.shared_prefix = "true"
    both, predicted = mean_tokens(model, rows)
    assert both == predicted < predicted_alone
    model.train.both_orders = False
    assert mean_tokens(model, rows) == (both_alone / 2, predicted)


def test_the_size_of_a_model_that_is_not_here_comes_from_its_name():
    linear, family = linear_parameters(BackboneConfig(path="google/gemma-2-9b-it"))
    assert (round(linear / 1e9, 1), family) == (7.8, "gemma2")
    with pytest.raises(UserError, match="its name does not say its size"):
        linear_parameters(BackboneConfig(path="somebody/something"))


def fresh_units(trained, tmp_path, name="llama31-8b"):
    model = load_recipe("lmsys").teachers[name]
    rows, folds = load_prepared(trained)
    return units_of(ModelSpec(name, model, trained, tmp_path / name), 2), rows, folds


def test_layers_that_are_cut_off_are_not_reckoned_with(tmp_path):
    LlamaConfig(num_hidden_layers=4).save_pretrained(tmp_path)
    whole, _ = linear_parameters(BackboneConfig(path=str(tmp_path)))
    cut, _ = linear_parameters(BackboneConfig(path=str(tmp_path), first_layers=1))
    assert cut == whole / 4


def test_a_laptop_is_promised_its_own_speed_and_told_so(trained, tmp_path):
    """An 8B model on a CPU of 100 GFLOP/s: four operations a weight and token, at under a third of them."""
    units, rows, folds = fresh_units(trained, tmp_path)
    laptop = Device("this machine's CPU", False, 1e11, "a product here")
    found = estimates(units, rows, folds, laptop)
    assert 0.5 < found[0].rate < 2
    assert found[0].seconds > 9_000
    assert found[0].gpus == 0
    assert found[0].gib is None
    assert found[0].source == "a product here, 100 GFLOP/s"
    _, notes = table_of(found, laptop)
    assert "time is that of this machine's CPU" in notes[0]
    (fast, _) = estimates(units, rows, folds, H200)
    assert fast.rate > 10_000 * found[0].rate


@pytest.mark.parametrize("name", ["llama31-8b", "gemma2-9b"])
def test_fp8_products_of_an_nf4_base_have_their_own_rate(trained, tmp_path, name):
    """Measured for Llama; taken from it for another family."""
    (plain, _) = estimates(*fresh_units(trained, tmp_path, name), H200)
    units, rows, folds = fresh_units(trained, tmp_path, name)
    for unit in units:
        unit.model.model.backbone.compute = "fp8"
    (fast, _) = estimates(units, rows, folds, H200)
    assert 1.3 < fast.rate / plain.rate < 1.7


def test_a_card_of_the_table_is_scaled_from_the_one_measured(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices.torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-80GB")
    card = device_here()
    assert (card.name, card.on_gpu, card.how) == ("NVIDIA A100-SXM4-80GB", True, "its maker")
    units, rows, folds = fresh_units(trained, tmp_path)
    (slow, _), (fast, _) = estimates(units, rows, folds, card), estimates(units, rows, folds, H200)
    assert slow.rate == pytest.approx(fast.rate * 312 / 989)
    assert slow.source.endswith("times 0.32 for this card by its maker")


def test_an_unknown_card_and_a_cpu_are_probed(monkeypatch):
    monkeypatch.setattr(
        devices, "product_speed", lambda device, dtype, size: {"cuda": 3e13, "cpu": 2e11}[device]
    )
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: False)
    assert device_here().speed == 2e11
    assert "CPU" in device_here().name
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices.torch.cuda, "get_device_name", lambda _: "Some New Card")
    assert device_here().speed == pytest.approx(4e13)
    assert device_here().how == "a product here"


def test_the_probe_is_short_and_plausible():
    assert 1e8 < devices.product_speed("cpu", devices.torch.float32, 256) < 1e14
