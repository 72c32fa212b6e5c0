"""Recipes: every shipped one loads; every mistake is named."""

from dataclasses import MISSING, fields, is_dataclass

import pytest

from data.errors import UserError
from distill import config
from distill.recipe import load_recipe, read_config, recipe_names, refusal, save_resolved
from distill.recipe_keys import keys_of, recipe_keys


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
        ("teachers.llama.train.micro_rows=-1", ["micro_rows", "not be below 0"]),
        ("teachers.llama.train.epochs=.inf", ["train.epochs", "finite"]),
        ("teachers.llama.train.epochs=1e9", ["train.epochs", "between 0 and 1000"]),
        ("teachers.llama.train.weight_decay=.nan", ["weight_decay", "finite"]),
        ("teachers.llama.train.weight_decay=-1", ["weight_decay", "not be below 0"]),
        ("teachers.llama.train.max_grad_norm=-1", ["max_grad_norm", "not be below 0"]),
        ("teachers.llama.train.head_lr=0", ["head_lr", "above 0"]),
        ("teachers.llama.train.head_lr=-1", ["head_lr", "above 0"]),
        ("teachers.llama.train.warmup=5", ["warmup", "between 0 and 1"]),
        ("teachers.llama.train.schedule=reduce_lr_on_plateau", ["schedule", "cosine"]),
        ("teachers.llama.train.optimizer=galore_adamw", ["optimizer", "adamw_torch"]),
        ("teachers.llama.train.checkpoint_steps=-1", ["checkpoint_steps", "not be below 0"]),
        ("teachers.llama.train.seed=-1", ["train.seed", "between 0"]),
        ("teachers.llama.train.seed=5000000", ["train.seed", "between 0"]),
        ("teachers.llama.lora.alpha=0", ["lora.alpha", "above 0"]),
        ("teachers.llama.encode.max_length=-3", ["encode.max_length", "not be below 16"]),
        ("teachers.llama.encode.prompt_share=2", ["prompt_share", "between 0 and 1"]),
        ("teachers.llama.encode.side=up", ["encode.side", "left, right, middle"]),
        ("data.rows=-5", ["data.rows", "above 0"]),
        ("data.folds=1", ["data.folds", "not be below 2"]),
        ("teachers.llama.lora.dropout=1", ["lora.dropout", "between 0"]),
        ("teachers.llama.lora.targets=[]", ["lora.targets", "all-linear"]),
        ("teachers.llama.backbone.compute=fp4", ["compute", "bf16", "fp8"]),
        ("teachers.gemma2.backbone={precision: bf16, compute: fp8}", ["gemma2.backbone.compute fp8", "nf4"]),
        (
            "teachers.gemma2.backbone={precision: fp8, compute: int8}",
            ["backbone.compute int8", "nf4 or int8"],
        ),
        ("teachers.llama.backbone.tiny.heads=0", ["tiny.heads", "above 0"]),
        ("teachers.llama.backbone.tiny.heads=3", ["hidden_size", "3 heads"]),
        ("teachers.llama.backbone.tiny.heads=64", ["hidden_size", "64 heads", "pairs"]),
        ("teachers.llama.backbone.tiny.kv_heads=3", ["heads", "kv_heads, 3"]),
        ("teachers.llama.backbone.tiny.layers=-1", ["tiny.layers", "above 0"]),
        ("teachers.llama.backbone.tiny.pretrain_steps=-1", ["pretrain_steps", "not be below 0"]),
        ("teachers.llama.backbone.tiny.pretrain_lr=.nan", ["pretrain_lr", "finite"]),
        ("student.distill.teacher_weights={llama: .nan}", ["teacher_weights.llama", "finite"]),
        ("teachers.lama.train.epochs=2", ["no teacher lama", "llama, gemma2"]),
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- teachers\n", ["a list"]),
        ("5\n", ["int"]),
        ("teachers: [llama]\n", ["bad recipe"]),
        ("data: {rows: 5}\ndata: {rows: 6}\n", ["line 2, column 1", "duplicate key data"]),
        ("data:\n  rows: ${nowhere}\n", ["mine.yaml", "data.rows", "nowhere"]),
        ("teachers:\n  a: {backbone: {path: x, head: other}}\n", ["backbone.head", "other"]),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, text, words):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml|recipe: ") as caught:
        load_recipe(str(file))
    for word in words:
        assert word in str(caught.value)


def test_a_recipe_that_is_a_directory_is_named(tmp_path):
    (tmp_path / "mine.yaml").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        load_recipe(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    "name", ["../elsewhere", "/tmp/x", "", ".", "x" * 101, "student", "rows.parquet", "a-in_sample"]
)
def test_a_teachers_name_is_that_of_a_directory_of_its_own(tmp_path, name):
    file = tmp_path / "mine.yaml"
    file.write_text(f"teachers:\n  '{name}': {{backbone: {{path: x}}}}\n")
    with pytest.raises(UserError, match="recipe: teachers"):
        load_recipe(str(file))


def test_the_resolved_recipe_loads_again(tmp_path):
    recipe = load_recipe("demo", ["teachers.llama.train.lr=1e-3"])
    save_resolved(tmp_path / "resolved.yaml", recipe)
    assert load_recipe(str(tmp_path / "resolved.yaml")) == recipe


def test_resources_that_cannot_be_are_refused(tiny_recipe):
    with pytest.raises(UserError, match=r"teachers\.llama\.resources\.cpus is 0"):
        load_recipe(str(tiny_recipe), ["teachers.llama.resources.cpus=0"])


def test_every_setting_says_what_it_means_and_its_default_is_within_its_limits():
    kinds = [kind for kind in vars(config).values() if is_dataclass(kind)]
    assert len(kinds) > 8
    for kind in kinds:
        for field in fields(kind):
            if not field.metadata:  # a configuration within
                continue
            assert field.metadata["help"], f"{kind.__name__}.{field.name}"
            default = field.default if field.default is not MISSING else field.default_factory()
            assert not refusal(default, field.metadata), f"{kind.__name__}.{field.name}"


def test_adapters_that_are_off_are_not_checked():
    off = ["teachers.llama.lora.enabled=false", "teachers.llama.backbone.precision=fp32"]
    assert load_recipe("demo", [*off, "teachers.llama.lora.r=0"]).teachers["llama"].lora.r == 0
    with pytest.raises(UserError, match=r"lora\.r is 0; it must be above 0"):
        load_recipe("demo", ["teachers.llama.lora.r=0"])


@pytest.mark.parametrize(
    "text", ["${oc.env:TOKEN}", "x ${oc.decode:${oc.env:TOKEN}}", "${${student.seed}:TOKEN}"]
)
def test_no_resolver_is_called_from_a_file_or_the_command_line(tmp_path, monkeypatch, text):
    monkeypatch.setenv("TOKEN", "hunter2")
    file = tmp_path / "mine.yaml"
    file.write_text(f"teachers:\n  a: {{backbone: {{path: '{text}'}}}}\n")
    tried = [
        lambda: load_recipe(str(file)),
        lambda: load_recipe("demo", [f"teachers.llama.backbone.revision={text}"]),
        lambda: read_config(file, config.ModelConfig),
    ]
    for number, read in enumerate(tried):
        with pytest.raises(UserError, match="calls a resolver") as caught:
            read()
        assert "hunter2" not in str(caught.value)
        assert ("backbone.revision" if number == 1 else "a.backbone.path") in str(caught.value)


def test_a_value_may_name_another_of_the_same_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data: {seed: 7}\nteachers:\n  a: {backbone: {path: x}, train: {seed: '${data.seed}'}}\n")
    assert load_recipe(str(file)).teachers["a"].train.seed == 7


def test_deeply_nested_yaml_is_named(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("[" * 50_000)
    with pytest.raises(UserError, match=r"mine\.yaml: is nested more than 50"):
        load_recipe(str(file))
    with pytest.raises(UserError, match=r"mine\.yaml: is nested more than 50"):
        read_config(file, config.ModelConfig)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["student.distill.loss=wsdm3", "student.distill.temperature=2"],
            "temperature means nothing to .*wsdm3",
        ),
        (["student.distill.loss=hard", "student.distill.weight=.5"], "weight means nothing.*has no teacher"),
        (
            ["student.distill.loss=hard", "student.distill.mixing=log"],
            "mixing means nothing to the loss hard",
        ),
        (["teachers.llama.backbone.verdicts=[A,B,C]"], "verdicts are words of head tokens"),
    ],
)
def test_a_key_that_would_mean_nothing_is_refused(overrides, words):
    with pytest.raises(UserError, match=words):
        load_recipe("demo", overrides)


def test_every_key_of_a_recipe_is_told_with_meaning_default_and_range():
    shown = recipe_keys()
    flat = " ".join(shown.split())
    for key, field in keys_of(config.StudentConfig):
        assert f"  {key.removeprefix('distill.')}\n" in shown or f"student.{key}\n" in shown
        assert " ".join(field.metadata["help"].split()) in flat
    assert "learning rate; default 0.0002; above 0" in flat
    assert "default linear" not in flat
    assert "share of the steps; default 0.05; from 0 to 1" in flat
    assert "default nf4; one of nf4, int8, fp8, bf16, fp16, fp32" in flat


@pytest.mark.parametrize("name", ["lmsys", "qwen3-8b", "qwen3-14b", "gemma3-12b", "qwen3-4b"])
def test_shipped_recipes_plan_a_run_without_their_checkpoints(name, trained, capsys):
    """What a run will cost is told before anything is downloaded."""
    from distill import teacher_oof

    teachers = load_recipe(name).teachers
    teacher_oof.main(
        ["--recipe", name, "--data", str(trained), "--out", str(trained / "planned"), "--dry-run"]
    )
    printed = capsys.readouterr().out
    for teacher in teachers:
        assert f"{teacher}/fold-1" in printed
    assert "one after another" in printed
    assert not (trained / "planned").exists()
