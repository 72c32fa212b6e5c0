"""``make test-lowest`` installs the versions that ``pyproject.toml`` states as its lowest, no others."""

from __future__ import annotations

import re
import tomllib

from recipes import ROOT

INSTALLED = ("train", "hub")
"""Extras that its tests need."""


def test_the_lowest_versions_are_those_that_the_package_states() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    stated = [*project["dependencies"], *(line for name in INSTALLED for line in extras.get(name, []))]
    bounds = dict(re.fullmatch(r"([\w.-]+)>=([\d.]+)", line).groups() for line in stated)
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    later = '; python_version >= "3.13"'  # versions that have builds for it where the lowest have none
    kept = [line.removesuffix('; python_version < "3.13"') for line in lines if not line.endswith(later)]
    assert dict(line.split("==") for line in kept) == bounds
    assert {line.split("==")[0] for line in lines} == bounds.keys()
