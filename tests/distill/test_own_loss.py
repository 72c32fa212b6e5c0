"""A loss of the user's own: executed where the command line names it, refused where only a file does."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml

from data.errors import UserError
from distill import student
from distill.losses import LOSSES, named_terms
from distill.own_loss import use_own
from distill.recipe import load_recipe

SQUARES = '''
import torch
def squares(logits, targets, teacher_logits, weight):
    """Mean squared error of probabilities, with cross-entropy beside it."""
    soft = (logits.softmax(-1) - teacher_logits.softmax(-1).mean(1)).square().sum(-1)
    hard = -(targets * logits.log_softmax(-1)).sum(-1)
    return {"hard": (1 - weight) * hard, "squares": weight * soft}
'''


@pytest.fixture(autouse=True)
def no_trace():
    before = dict(LOSSES)
    yield
    LOSSES.clear()
    LOSSES.update(before)


@pytest.fixture
def mine(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(SQUARES)
    return f"{file}:squares"


def test_it_is_taken_from_the_command_line_and_needs_what_it_names(mine):
    recipe = load_recipe("demo", [f"student.distill.loss={mine}", "student.distill.weight=0.5"])
    assert recipe.student.distill.loss == mine
    assert LOSSES[mine].needs == ("teacher_logits", "weight")
    assert LOSSES[mine].taught
    logits = torch.zeros(2, 3)
    given = {"teacher_logits": torch.zeros(2, 1, 3), "weight": 0.5}
    terms = named_terms(mine, logits, torch.eye(3)[:2], **given)
    torch.testing.assert_close(terms["hard"], torch.full((2,), 0.5 * 1.0986123))


def recipe_file(tmp_path, tiny_recipe, loss):
    file = tmp_path / "recipe.yaml"
    recipe = yaml.safe_load(tiny_recipe.read_text())
    recipe["student"]["distill"] = {"loss": loss}
    file.write_text(yaml.safe_dump(recipe))
    return str(file)


def test_a_recipe_alone_is_no_permission(tmp_path, tiny_recipe):
    trap = tmp_path / "trap.py"
    trap.write_text(
        f"open({str(tmp_path / 'executed')!r}, 'w')\ndef f(logits, targets): return logits[:, 0]\n"
    )
    file = recipe_file(tmp_path, tiny_recipe, f"{trap}:f")
    with pytest.raises(UserError, match="no file may have executed"):
        load_recipe(file)
    with pytest.raises(UserError, match="no file may have executed"):
        load_recipe(file, ["student.train.lr=1"])
    assert not (tmp_path / "executed").exists()
    load_recipe(file, [f"student.distill.loss={trap}:f"])
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("text", "function", "words"),
    [
        ("def f(logits): pass", "f", "takes 1 arguments"),
        ("def f(logits, targets, magic): pass", "f", "needs magic.*teacher_logits"),
        ("def g(logits, targets): pass", "f", "has no function f"),
        ("def f(", "f", "cannot be executed .*SyntaxError"),
        ("import no_such_thing", "f", "cannot be executed .*no_such_thing"),
    ],
)
def test_a_file_that_is_no_loss_is_named(tmp_path, text, function, words):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=words):
        use_own(f"{tmp_path / 'mine.py'}:{function}")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("logits.mean()", r"returns \(\).*shape \(n,\) = \(4,\)"),
        ("logits @ targets", "fails .RuntimeError"),
        ("1.0", "returns float"),
    ],
)
def test_what_it_returns_is_checked(tmp_path, body, words):
    (tmp_path / "mine.py").write_text(f"def f(logits, targets): return {body}")
    name = f"{tmp_path / 'mine.py'}:f"
    use_own(name)
    with pytest.raises(UserError, match=words):
        named_terms(name, torch.zeros(4, 3), torch.zeros(4, 3))


def test_a_missing_file_and_an_unknown_name_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"gone\.py"):
        load_recipe("demo", [f"student.distill.loss={tmp_path / 'gone.py'}:f"])
    with pytest.raises(UserError, match=r"'focal'; it is one of kl, blackpearl.*file\.py:function"):
        load_recipe("demo", ["student.distill.loss=focal"])


def test_a_student_learns_by_it_and_its_terms_are_logged(trained, tiny_recipe, mine, tmp_path):
    """The manifest holds the file's hash, and the terms add up to the loss in every line."""
    data = tmp_path / "data"
    shutil.copytree(trained, data, ignore=shutil.ignore_patterns("student", "stack"))
    command = ["--recipe", str(tiny_recipe), "--data", str(data), "--loss", mine, "student.train.log_steps=1"]
    student.main(command)
    manifest = json.loads((data / "student" / "manifest.json").read_text())
    assert manifest["distill"]["loss"] == mine
    assert len(manifest["distill"]["loss_hash"]) == 64
    lines = [json.loads(line) for line in (data / "student/final/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) > 2
    for line in steps:
        assert line["loss_hard"] + line["loss_squares"] == pytest.approx(line["loss"], abs=2e-3)
        assert line["loss_squares"] > 0

    file = mine.partition(":")[0]
    with open(file, "a", encoding="utf-8") as more:
        more.write("# another loss now\n")
    with pytest.raises(UserError, match="loss_hash"):
        student.main(command)
