"""The site builds without a warning, its made pages are whole, and every link leads somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from recipes import ROOT

from distill.config import DataConfig, DistillConfig, ModelConfig
from distill.losses import LOSSES
from distill.recipe_keys import keys_of
from docs.build import COMMANDS, OUT, PACKAGES, commands_page, recipe_page
from docs.pictures import PICTURES

NEEDED = ("sphinx", "myst_parser", "furo")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_command_is_there_with_its_options() -> None:
    page = commands_page()
    for module in COMMANDS:
        assert f"## {module.removesuffix('.__main__')}\n" in page
    assert page.count("usage: python -m") == len(COMMANDS)
    assert {"--oof", "--minutes", "--near", "--cost", "--tune"} <= set(re.findall(r"--[a-z][a-z-]+", page))
    assert "Traceback" not in page


def test_every_key_of_a_recipe_is_there_with_its_range() -> None:
    page = recipe_page()
    for kind, prefix in ((DataConfig, "data"), (ModelConfig, ""), (DistillConfig, "student.distill")):
        for key, _ in keys_of(kind, prefix):
            assert f"| `{key}` |" in page, key
    assert "| above 0 |" in page
    assert "### kaggle-t4" in page


def test_every_loss_is_named() -> None:
    page = (ROOT / "docs" / "distil.md").read_text(encoding="utf-8")
    assert not [name for name in LOSSES if f"`{name}`" not in page]


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_are_those_of_the_script(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == PICTURES[name](), "python -m docs.pictures"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [link for link in links if link and "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, NEEDED)), reason="no Sphinx; pip install -e '.[docs]'"
)
def test_the_site_builds_without_a_warning() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "docs.build"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for package in PACKAGES:
        assert len((OUT / "docs" / f"api-{package}.html").read_text(encoding="utf-8")) > 10_000
    assert "how-it-works" in (OUT / "docs" / "index.html").read_text(encoding="utf-8")
