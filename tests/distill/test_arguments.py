"""What the commands of ``distill`` read from their command lines."""

import argparse

import pytest

from distill.arguments import parse
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
