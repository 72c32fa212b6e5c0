"""Python that comes with a checkpoint runs by the command line's permission, and by nothing else."""

import ast
import io
import json
import shutil
import sys
from contextlib import suppress

import pytest
from recipes import ROOT

from data.console import remote_code
from data.errors import UserError
from distill import export, predict, teacher_oof
from distill.doctor.__main__ import main as doctor
from distill.recipe import load_recipe, read_config

LOADERS = {"from_pretrained", "from_config"}
EXEMPT = {"PeftModel"}
"""Adapters come without code, and their loader knows no such argument."""
PLANTED = """
import pathlib
pathlib.Path({mark!r}).write_text("ran")
from transformers import {base}

class Planted({base}):
    model_type = "planted"
"""


@pytest.fixture(autouse=True)
def forget():
    yield
    remote_code.allow_remote_code(False)


def calls(tree):
    """Every call of a loader, also in the programs that stand in strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOADERS:
            yield node
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and "from_pretrained(" in node.value
        ):
            try:
                program = ast.parse(node.value)
            except SyntaxError:
                continue
            if any(isinstance(line, ast.Import | ast.ImportFrom) for line in program.body):
                yield from calls(program)


def test_every_call_that_loads_says_whether_code_may_run():
    silent, seen = [], 0
    for room in ("data", "ensemble", "distill"):
        for file in sorted((ROOT / room).rglob("*.py")):
            for call in calls(ast.parse(file.read_text(encoding="utf-8"))):
                owner = call.func.value
                if isinstance(owner, ast.Name) and owner.id in EXEMPT:
                    continue
                seen += 1
                if "trust_remote_code" not in {word.arg for word in call.keywords}:
                    silent.append(f"{file.relative_to(ROOT)}:{call.lineno}")
    # The lines on a model's card are for checkpoints that were just written, of the library's own classes.
    assert [place for place in silent if not place.startswith("distill/prediction/card.py")] == []
    assert seen > 10


@pytest.fixture
def planted(trained, tmp_path):
    """A checkpoint whose configuration, tokenizer and model name Python files beside them."""
    manifest = json.loads((trained / "student" / "manifest.json").read_text())
    checkpoint, mark = tmp_path / "planted", tmp_path / "mark"
    shutil.copytree(trained / "student" / manifest["backbone_path"], checkpoint)
    plant(checkpoint, mark)
    return checkpoint, mark


def plant(checkpoint, mark):
    config = json.loads((checkpoint / "config.json").read_text())
    classes = {
        "AutoConfig": "LlamaConfig",
        "AutoModelForSequenceClassification": "LlamaForSequenceClassification",
    }
    config |= {
        "model_type": "planted",
        "auto_map": {auto: f"evil_{i}.Planted" for i, auto in enumerate(classes)},
    }
    (checkpoint / "config.json").write_text(json.dumps(config))
    for i, base in enumerate(classes.values()):
        (checkpoint / f"evil_{i}.py").write_text(PLANTED.format(mark=str(mark), base=base))
    tokenizer = json.loads((checkpoint / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "Planted", "auto_map": {"AutoTokenizer": [None, "evil_2.Planted"]}}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (checkpoint / "evil_2.py").write_text(PLANTED.format(mark=str(mark), base="PreTrainedTokenizerFast"))


@pytest.fixture
def yes(monkeypatch):
    """A terminal on which everything is answered with y."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    monkeypatch.setattr("builtins.input", lambda *a: "y")


def test_a_planted_checkpoint_is_not_run_by_any_command(trained, planted, yes, tmp_path, capsys):
    checkpoint, mark = planted
    run, data = str(trained / "student"), str(trained)
    out = ["--out", str(tmp_path / "out")]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"teachers: {{a: {{backbone: {{path: {checkpoint}, precision: fp32}}}}}}")
    moved = ["--backbone", str(checkpoint), "--accept-changed"]
    for main, arguments in (
        (predict.main, ["--model", run, "--data", data, "--out", str(tmp_path / "out.csv"), *moved]),
        (export.main, ["--model", run, *out, *moved]),
        (teacher_oof.main, ["--recipe", str(recipe), "--data", data, *out]),
        (teacher_oof.main, ["--recipe", str(recipe), "--data", data, *out, "--dry-run"]),
        (doctor, [str(checkpoint)]),
        (doctor, [str(recipe)]),
    ):
        with suppress(UserError):
            main(arguments)
        assert not mark.exists(), (main.__module__, arguments)


def test_a_planted_export_is_not_run(trained, yes, tmp_path):
    exported, mark = tmp_path / "exported", tmp_path / "mark"
    export.main(["--model", str(trained / "student"), "--out", str(exported)])
    plant(exported, mark)
    with pytest.raises(UserError, match="--trust-remote-code"):
        predict.main(
            ["--model", str(exported), "--data", str(trained), "--out", str(tmp_path / "out.csv"),
             "--accept-changed"]
        )  # fmt: skip
    doctor([str(exported)])
    assert not mark.exists()


def test_it_runs_where_the_command_line_says_so(planted, tmp_path):
    """So the test above would see it, if it ran."""
    checkpoint, mark = planted
    doctor([str(checkpoint), "--trust-remote-code"])
    assert mark.exists()


def test_recipes_and_runs_give_no_permission(trained, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("teachers: {a: {backbone: {path: x, trust_remote_code: true}}}")
    with pytest.raises(UserError, match="give the command --trust-remote-code"):
        load_recipe(str(recipe))
    recipe.write_text("teachers: {a: {backbone: {path: x, trust_remote_code: false}}}")
    assert load_recipe(str(recipe)).teachers["a"].backbone.path == "x"
    with pytest.raises(UserError, match="give the command --trust-remote-code"):
        load_recipe(str(recipe), ["teachers.a.backbone.trust_remote_code=true"])
    from distill.config import StudentConfig

    config = tmp_path / "config.yaml"
    text = (trained / "student" / "config.yaml").read_text()
    config.write_text(text.replace("backbone:\n", "backbone:\n  trust_remote_code: true\n", 1))
    with pytest.raises(UserError, match="a file gives no permission"):
        read_config(config, StudentConfig)


def test_an_adapter_that_names_a_module_to_import_is_refused(trained, tmp_path):
    run = tmp_path / "student"
    shutil.copytree(trained / "student", run)
    file = run / "final" / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text()) | {"megatron_config": {"a": 1}, "megatron_core": "planted"}
    file.write_text(json.dumps(config))
    out = ["--out", str(tmp_path / "out.csv"), "--accept-changed"]
    with pytest.raises(UserError, match="a module of its choice would be imported"):
        predict.main(["--model", str(run), "--data", str(trained), *out])
