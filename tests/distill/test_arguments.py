"""What the commands of ``distill`` read from their command lines."""

import argparse
import tomllib

import pytest
from recipes import ROOT

from data.errors import UserError
from distill.arguments import EXTRAS, check_tracker, parse, unread
from distill.race.__main__ import arguments as race_arguments
from distill.student import arguments as student_arguments
from distill.teacher_oof import arguments as teacher_arguments


@pytest.mark.parametrize("arguments", [teacher_arguments, student_arguments])
def test_no_arguments_are_the_demo(arguments):
    args = arguments([])
    assert args.recipe == "demo"
    assert args.data is None
    assert args.overrides == []


def test_overrides_stand_anywhere():
    parser = argparse.ArgumentParser()
    parser.add_argument("--many", nargs="+")
    parser.add_argument("overrides", nargs="*")
    args = parse(parser, ["a.b=1", "--many", "x", "y", "c=2"])
    assert args.overrides == ["a.b=1", "c=2"]
    assert args.many == ["x", "y"]


def test_the_value_of_an_option_is_no_override():
    args = race_arguments(["--backbones", "a", "b", "--budget", "seconds=60", "data.seed=1"])
    assert args.budget == "seconds=60"
    assert args.overrides == ["data.seed=1"]


@pytest.mark.parametrize("arguments", [teacher_arguments, student_arguments, race_arguments])
def test_the_recipe_s_keys_are_shown_by_an_option_that_help_names(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        arguments(["--help-recipe"])
    assert not ended.value.code
    assert "train.lr" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        arguments(["--help"])
    assert "--help-recipe" in capsys.readouterr().out


def test_typed_keys_of_other_models_are_told():
    args = teacher_arguments(["--only", "gemma2", "teachers.llama.train.lr=1", "teachers.gemma2.train.lr=1"])
    assert unread(args, ["teachers.gemma2"]) == [
        "note: teachers.llama.train.lr is not read here, only teachers.gemma2, data"
    ]
    args = student_arguments(["--data", "x", "data.rows=9", "student.train.lr=1"])
    assert unread(args, ["student"]) == ["note: data.rows is not read here, only student"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wandb", r"pip install 'distillstack\[wandb\]'"),
        ("tensorboard", r"pip install 'distillstack\[tensorboard\]'"),
        ("mlflow", "pip install mlflow"),
        ("nonsense", "no such tracker; it is one of .*wandb"),
    ],
)
def test_a_tracker_that_is_not_installed_comes_with_its_pip_line(name, words, monkeypatch):
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: [])
    with pytest.raises(UserError, match=words):
        check_tracker(name)


def test_the_trackers_extras_are_those_of_the_project():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) <= set(extras)
