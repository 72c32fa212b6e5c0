"""Recipes: every shipped one loads; every mistake is named."""

import pytest

from data.errors import UserError
from distill.config import load_recipe, recipe_names, save_resolved


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load(name):
    recipe = load_recipe(name)
    assert recipe.teachers or recipe.student


def test_overrides_reach_nested_keys():
    recipe = load_recipe("demo", ["teachers.llama.train.lr=1e-3", "student.distill.weight=0.5"])
    assert recipe.teachers["llama"].train.lr == 1e-3
    assert recipe.student.distill.weight == 0.5
    assert recipe.teachers["gemma2"].train.lr != 1e-3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("teachers.llama.train.learning_rate=1", ["learning_rate", "command line"]),
        ("teachers.llama.train.epochs=many", ["epochs", "many"]),
        ("teachers.llama.train.epochs=0", ["epochs", "above 0"]),
        ("teachers.llama.backbone.precision=int3", ["precision", "int3", "nf4"]),
        ("teachers.llama.train.micro_rows=-1", ["micro_rows", "between 0"]),
        ("teachers.llama.train.pack_tokens=0", ["pack_tokens", "above 0"]),
        ("teachers.llama.train.gradient_checkpointing=maybe", ["gradient_checkpointing", "maybe", "auto"]),
        ("teachers.llama.backbone.compile=never", ["compile", "never", "auto"]),
        ("teachers.llama.backbone.path=x", ["path", "tiny"]),
        ("teachers.llama.lora.enabled=false", ["full weights", "nf4"]),
        ("teachers.llama.backbone.tiny.hidden_size=96", ["hidden_size", "multiple of 64"]),
        ("student.distill.weight=1.5", ["weight", "between 0 and 1"]),
        ("student.distill.temperature=0", ["temperature", "above 0"]),
        ("teachers.llama.backbone.tiny.family=gpt", ["family", "gpt"]),
        ("epochs", ["key.sub=value"]),
    ],
)
def test_a_bad_override_is_named(override, words):
    with pytest.raises(UserError) as caught:
        load_recipe("demo", [override])
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_key_in_a_file_is_named(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("teachers:\n  a:\n    backbone: {path: x}\n    lora: {rank: 8}\n")
    with pytest.raises(UserError, match="rank") as caught:
        load_recipe(str(file))
    assert str(file) in str(caught.value)


def test_damaged_yaml_and_missing_recipes_are_named(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("teachers: [")
    with pytest.raises(UserError, match=r"broken\.yaml"):
        load_recipe(str(file))
    with pytest.raises(UserError, match="demo"):
        load_recipe("no-such-recipe")


def test_the_resolved_recipe_loads_again(tmp_path):
    recipe = load_recipe("demo", ["teachers.llama.train.lr=1e-3"])
    save_resolved(tmp_path / "resolved.yaml", recipe)
    assert load_recipe(str(tmp_path / "resolved.yaml")) == recipe
