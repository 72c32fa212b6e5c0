"""What units cost before anything is spent, and where the figures come from."""

from __future__ import annotations

import json

import pytest

from data.dataset import load_prepared
from data.errors import UserError
from distill.config import BackboneConfig
from distill.recipe import load_recipe
from distill.runs.estimate import estimates, linear_parameters
from distill.runs.units import ModelSpec, Unit, units_of


@pytest.fixture
def spec(tiny_recipe, trained):
    recipe = load_recipe(str(tiny_recipe))
    return ModelSpec("llama", recipe.teachers["llama"], trained, trained / "llama")


def test_an_estimate_counts_tokens_and_names_the_source_of_its_rate(spec, trained, tmp_path):
    rows, folds = load_prepared(trained)
    (finished,) = estimates([Unit(spec, "fold-0")], rows, folds)
    assert finished.source == "finished"
    assert finished.seconds == 0

    recipe = load_recipe("lmsys")
    model = recipe.teachers["llama31-8b"]
    fresh = ModelSpec("llama31-8b", model, trained, tmp_path / "llama31-8b")
    fold, other = estimates(units_of(fresh, 2), rows, folds)
    assert "benchmarks/gpu_training.md" in fold.source
    assert fold.gpus == 1
    assert fold.gib is not None
    assert 9 < fold.gib[0] < 13
    assert 60 < fold.gib[1] < 75
    assert fold.train_tokens + fold.predict_tokens == pytest.approx(other.train_tokens + other.predict_tokens)
    assert 17000 < fold.rate < 19000

    model.resources.tokens_per_second = 100.0
    model.resources.gpus = 0.5
    (told, _) = estimates(units_of(fresh, 2), rows, folds)
    assert told.source == "the recipe"
    assert told.seconds > fold.train_tokens / 100
    assert told.gpus == 0.5

    (fresh.out / "fold-1").mkdir(parents=True)
    (fresh.out / "fold-1" / "metrics.jsonl").write_text(json.dumps({"step": 9, "train_runtime": 50.0}) + "\n")
    (measured, _) = estimates(units_of(fresh, 2), rows, folds)
    assert measured.source == "fold-1 of this store"
    assert measured.rate == pytest.approx(measured.train_tokens / 50)


def test_the_size_of_a_model_that_is_not_here_comes_from_its_name():
    linear, family = linear_parameters(BackboneConfig(path="google/gemma-2-9b-it"))
    assert (round(linear / 1e9, 1), family) == (7.8, "gemma2")
    with pytest.raises(UserError, match="its name does not say its size"):
        linear_parameters(BackboneConfig(path="somebody/something"))
