"""What is missing is named however a library says it, with what brings it."""

import importlib.metadata
from importlib.metadata import PackageNotFoundError

import pytest
from recipes import ROOT

from data.console import lacking
from data.console.lacking import extra_of, require, requirements, wanting

LINES = [
    "numpy>=1.26",
    "absent_here>=1; extra == 'all'",
    "absent_here>=1; extra == 'train'",
    "pytest>=9000.1; extra == 'train'",
    "elsewhere<9,>=2.5; extra == 'bench'",
]


@pytest.fixture
def stated(monkeypatch):
    monkeypatch.setattr("importlib.metadata.requires", lambda _: LINES)


def raised(how):
    try:
        how()
    except Exception as error:
        return wanting(error)
    raise AssertionError("nothing was raised")


@pytest.mark.usefixtures("stated")
def test_extras_are_read_of_the_distribution():
    assert requirements()[:2] == [("numpy", "1.26", ""), ("absent_here", "1", "train")]
    assert ("elsewhere", "2.5", "bench") in requirements()
    assert [extra_of(name) for name in ("absent-here", "elsewhere", "numpy")] == ["train", "bench", ""]


def test_sources_that_were_not_installed_state_their_own(monkeypatch):
    installed = requirements()

    def nowhere(_):
        raise PackageNotFoundError("distillstack")

    monkeypatch.setattr("importlib.metadata.requires", nowhere)
    assert {("torch", "2.11", "train"), ("gguf", "0.17", "bench")} <= set(requirements())
    assert sorted(requirements()) == sorted(installed)
    assert (ROOT / "pyproject.toml").is_file()


@pytest.mark.usefixtures("stated")
def test_a_package_is_named_by_the_error_its_cause_or_its_words():
    def named():
        require("math", "absent_here")

    def caused():
        try:
            require("absent_here")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("Could not import module 'Trainer'.") from error

    def in_words():
        raise ValueError("a map requires `absent_here`. You can install it with `pip install absent_here`")

    def quoted():
        raise ImportError("4 bits require absent-here: `pip install -U 'absent-here>=1.1'`")

    for how in (named, caused, in_words, quoted):
        assert raised(how).endswith("which the extra train brings: pip install 'distillstack[train]'"), how


@pytest.mark.usefixtures("stated")
def test_an_older_package_is_told_with_both_versions(monkeypatch):
    def older():
        from pytest import no_such_name  # noqa: F401, PT013

    found = importlib.metadata.version("pytest")
    assert raised(older) == (
        f"needs pytest 9000.1 or later, and {found} is installed: pip install 'distillstack[train]'"
    )
    monkeypatch.setattr(lacking, "requirements", lambda: [("pytest", "1.0", "train")])
    assert raised(older) == ""


def test_faults_of_our_own_stay_faults():
    def ours():
        from data import no_such_module_of_ours  # noqa: F401

    def renamed():
        import data.no_such_module_of_ours  # noqa: F401

    def unrelated():
        raise ValueError("pip install numpy, said a library that is there")

    assert [raised(how) for how in (ours, renamed, unrelated)] == ["", "", ""]
