"""The campaign notices what it looks for, and a minute of it finds nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import rounds
from recipes import ROOT
from rounds import (
    CRASH,
    FAULTS,
    FULL,
    HANG,
    KILL,
    LEFT,
    LOST,
    MESSAGE,
    MUTANT,
    PAIR,
    SILENT,
    TRACEBACK,
    Campaign,
)
from worlds import Case

from data.files import sha256_text

QUICK = [
    "prepare a CSV", "check", "predict", "predict in shards, continued", "predict with an export", "export",
    "teachers, continued", "blend",
]  # fmt: skip
"""Commands that take less than a second, a training's end among them."""


@pytest.fixture
def trying(tmp_path: Path) -> Callable[[str], Campaign]:
    """Make a campaign over a command of ``helpers/careless.py``."""

    def make(how: str) -> Campaign:
        words = f"careless {how.replace(' ', '_')} {{}} out.txt"
        case = Case(
            how,
            words.format("in.txt"),
            ("in.txt", "other.txt"),
            bound=("in.txt",),
            pairs=(words.format("other.txt"),),
        )
        campaign = Campaign(tmp_path, 0, [case])
        campaign.base.mkdir()
        for name in ("in.txt", "other.txt"):
            lines = [f"{name}, line {i}" for i in range(10)]
            (campaign.base / name).write_text("\n".join([*lines, sha256_text(*lines)]))
        return campaign

    return make


def found(campaign: Campaign, kind: str, number: int = 12, until: str | None = None) -> set[str]:
    """The faults of some rounds; how many a fault takes that depends on the moment of a kill is not known."""
    faults = set()
    for n in range(number):
        faults |= {campaign.play(kind, n).verdict} & set(FAULTS)
        if until in faults:
            break
    return faults


def test_a_command_that_does_nothing_wrong_is_cleared(trying: Callable[[str], Campaign]) -> None:
    campaign = trying("sound")
    for kind in (KILL, MUTANT, FULL, PAIR):
        assert found(campaign, kind, 6) == set(), campaign.rounds
    assert sum(r.kills for r in campaign.rounds) >= 1
    assert {r.verdict for r in campaign.rounds} == {rounds.IDENTICAL, rounds.REFUSED}
    assert list(campaign.failures.iterdir()) == []


@pytest.mark.parametrize(
    ("how", "kind", "verdict"),
    [
        ("in place", KILL, LOST),  # no temporary name and rename: half a file is taken for a whole one
        ("leaves its scratch", KILL, LEFT),
        ("believes", MUTANT, SILENT),
        ("raises", MUTANT, TRACEBACK),
        ("hangs", MUTANT, HANG),
        ("aborts", MUTANT, CRASH),
        ("says nothing", MUTANT, MESSAGE),
        ("leaves something", MUTANT, LEFT),
        ("mixes", PAIR, LOST),
    ],
)
def test_a_careless_command_is_caught(
    trying: Callable[[str], Campaign], monkeypatch: pytest.MonkeyPatch, how: str, kind: str, verdict: str
) -> None:
    monkeypatch.setattr(rounds, "MOST_SECONDS", 2.0 if how == "hangs" else 120.0)
    campaign = trying(how)
    assert verdict in found(campaign, kind, 60, until=verdict)
    first = next(r for r in campaign.rounds if r.verdict == verdict)
    kept = campaign.failures / f"{kind}-{first.number}"
    assert {"world", "round.json", "log-0.err"} <= {path.name for path in kept.iterdir()}
    if kind == MUTANT:  # the seed and its number are all that a round depends on
        assert campaign.play(kind, first.number).done == first.done


def test_a_bounded_campaign_over_the_commands_finds_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, ROOT / "tests" / "campaign.py", "--minutes", "0.2", "--home", tmp_path,
            "--out", tmp_path / "table", "--cases", *QUICK,
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mutant: all" in (tmp_path / "table").read_text()
