"""The command fits a router, decides rows, answers them; a mistake is one message, nothing half-written."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from recipes import ROOT
from stack_files import CLASSES, prepared, write_csv, write_sets, write_store

from benchmarks.judges import Panel
from data.errors import UserError
from ensemble import read_router
from ensemble.reading.members import load_member
from ensemble.route import main
from ensemble.solvers.numbers import log_loss


def shell(words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "ensemble.route", *words],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


COSTS = ["--cost", "m1=0.1", "m2=1"]
FIT = ["--cheap", "m1.csv", "--dear", "m2.csv", "--labels", "labels.csv"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled sets, new ones below ``new``, and a router."""
    folder = tmp_path_factory.mktemp("route")
    write_sets(folder, 400)
    write_sets(folder / "new", 50, seed=3)
    write_csv(
        folder / "labels.csv",
        ["id", "label"],
        [[r["id"], r["label"]] for r in rows_of(folder / "labels.csv")],
    )
    done = shell([*FIT, *COSTS, "--budget", "500", "--rows", "1000", "--out", "router"], folder)
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of its own with the files of ``home``, which is worked in."""
    for path in home.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(home)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path.relative_to(home)).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_says_what_is_won_where_the_budget_lands_and_what_comes_next(home: Path) -> None:
    said = (home / "said.txt").read_text()
    for part in ("by lot", "budget: ", "verdict: ", "regret: ", "an upper bound", "1,000 new rows", "next: "):
        assert part in said
    content = json.loads((home / "router" / "router.json").read_text())
    assert content["budget"] == {"a_row": 0.5, "rows": 1000}
    assert len(content["measured"]["curve"]) == 11
    assert sorted(path.name for path in (home / "router").iterdir()) == ["router.html", "router.json"]


def test_what_comes_next_works_as_it_stands(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A space in a name, or in the router's, is no end of a word."""
    Path("m1.csv").rename("my model.csv")
    words = ["--cheap", "my model.csv", *FIT[2:], "--cost", "my model=0.1", "m2=1", "--budget", "0.5"]
    main([*words, "--out", "my router"])
    line = capsys.readouterr().out.strip().splitlines()[-1].removeprefix("next: ")
    Path("new/m1.csv").rename("my model_test.csv")
    main(shlex.split(line)[3:])
    assert len(rows_of(Path("decisions.csv"))) == 50


def test_two_calls_decide_and_then_answer(here: Path) -> None:
    main(["--router", "router", "--cheap", "new/m1.csv", "--out", "decided.csv"])
    decided = rows_of(Path("decided.csv"))
    assert list(decided[0]) == ["id", *CLASSES, "expected_gain", "send"]
    assert [row["id"] for row in decided] == [row["id"] for row in rows_of(Path("new/m1.csv"))]
    sent = {row["id"] for row in decided if row["send"] == "true"}
    assert 0 < len(sent) < 50
    lines = [row for row in rows_of(Path("new/m2.csv")) if row["id"] in sent]
    write_csv(here / "m2.csv", list(lines[0]), [list(line.values()) for line in lines[::-1]])
    main(["--router", "router", "--cheap", "new/m1.csv", "--dear", "m2.csv", "--out", "answers.parquet"])
    answers = load_member(Path("answers.parquet"))
    assert answers.row_ids == [row["id"] for row in decided]
    router = read_router("router")
    np.testing.assert_array_equal(answers.probs, load_member(Path("answers.parquet")).probs)
    np.testing.assert_allclose(answers.probs, router.predict_proba("new/m1.csv", ["new/m2.csv"]), rtol=1e-12)
    write_csv(here / "m2.csv", list(lines[0]), [list(line.values()) for line in lines[1:]])
    with pytest.raises(
        UserError, match=rf"lacks 1 of the {len(sent)} rows that are sent, e.g. {lines[0]['id']};"
    ):
        main(["--router", "router", "--cheap", "new/m1.csv", "--dear", "m2.csv", "--out", "new.csv"])
    assert not Path("new.csv").exists()


def test_a_batch_has_its_own_budget(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--router", "router", "--cheap", "new/m1.csv", "--budget", "12.5"]
    main([*common, "--out", "decided.csv"])
    sent = sum(row["send"] == "true" for row in rows_of(Path("decided.csv")))
    assert sent == 7
    assert "50 rows by m1, 7 of them to send to m2, cost 12" in capsys.readouterr().out
    main([*common, "--dear", "new/m2.csv", "--out", "answers.csv"])
    assert len(rows_of(Path("answers.csv"))) == 50


def test_costs_of_rows_come_from_a_file(here: Path) -> None:
    for name in (".", "new"):
        ids = [row["id"] for row in rows_of(Path(name) / "m1.csv")]
        write_csv(Path(name) / "cost.csv", ["id", "cost"], [[i, 1 + k % 7] for k, i in enumerate(ids[::-1])])
    main([*FIT, "--cost", "m1=0.1", "m2=cost.csv", "--budget", "2", "--out", "other"])
    common = ["--router", "other", "--cheap", "new/m1.csv"]
    main([*common, "--cost", "m2=new/cost.csv", "--budget", "60", "--out", "decided.csv"])
    cost = {row["id"]: float(row["cost"]) for row in rows_of(Path("new/cost.csv"))}
    spent = sum(cost[row["id"]] for row in rows_of(Path("decided.csv")) if row["send"] == "true")
    assert 48 <= spent <= 55
    with pytest.raises(UserError, match="no cost of m2"):
        main([*common, "--out", "decided.csv"])
    with pytest.raises(UserError, match=r"cost.csv: has no cost of 350 rows"):
        main([*FIT, "--cost", "m1=0.1", "m2=new/cost.csv", "--budget", "2", "--out", "third"])


def test_several_dear_models_are_matched_by_name(here: Path) -> None:
    write_sets(here / "more", 400, members=3)
    write_sets(here / "more" / "new", 50, members=3, seed=3)
    fit = ["--cheap", "more/m1.csv", "--dear", "big=more/m3.csv", "--dear", "more/m2.csv"]
    costs = ["--cost", "m1=0.1", "m2=1", "--cost", "big=2"]
    main([*fit, *costs, "--labels", "more/labels.csv", "--budget", "1", "--out", "three"])
    router = read_router("three")
    assert router.members_ == ("m1", "big", "m2")
    common = ["--router", "three", "--cheap", "more/new/m1.csv", "--out", "out.csv"]
    main([*common, "--dear", "more/new/m2.csv", "big=more/new/m3.csv"])
    wanted = router.predict_proba("more/new/m1.csv", ["more/new/m3.csv", "more/new/m2.csv"])
    np.testing.assert_allclose(load_member(Path("out.csv")).probs, wanted, rtol=1e-12)
    with pytest.raises(UserError, match="m3 is none of the router's big, m2"):
        main([*common, "--dear", "more/new/m2.csv", "more/new/m3.csv"])
    with pytest.raises(UserError, match="no predictions of big"):
        main([*common, "--dear", "more/new/m2.csv"])


def test_judges_are_routed_by_what_their_words_are_worth(tmp_path: Path) -> None:
    """A judge asked once for all rows; the same asked in both orders, and a scorer, where it pays."""
    known, fresh = Panel(tmp_path / "known", 900, 0), Panel(tmp_path / "fresh", 2000, 1)
    costs = ["--cost", "once=1", "both=2", "sides=3", "--budget", "3"]
    words = ["--cheap", known.files[0], "--dear", *known.files[1:], "--labels", known.truth, *costs]
    main([*words, "--out", str(tmp_path / "router")])
    router = read_router(tmp_path / "router")
    assert set(router.rule.maps) == {"once", "both", "sides"}
    once, both, sides = fresh.files
    said = {row["id"]: row["verdict"] for row in rows_of(Path(once))}
    once = write_csv(tmp_path / "once.csv", ["id", "verdict"], [[i, said.get(i, "")] for i in fresh.ids])
    decided = router.decide(once)
    assert len({round(gain, 12) for gain in decided.expected_gain.tolist()}) <= 4  # A, B, tie or silence
    assert decided.row_ids == fresh.ids
    assert 0.3 < decided.send.mean() < 0.5  # some of those at the price, by lot
    probs = router.answer(decided, [both, sides])
    at = router.content["measured"]["at_budget"]
    assert log_loss(probs, fresh.labels).mean() == pytest.approx(at["routed"], abs=0.05)
    with pytest.raises(UserError, match="where the router was fitted on scores"):
        router.answer(decided, [both, both])


def test_stores_bring_folds_and_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, P = prepared(tmp_path / "data", 240)
    stores = [write_store(tmp_path / name, tmp_path / "data", P[:, m]) for m, name in enumerate(("s", "t"))]
    words = ["--cheap", str(stores[0]), "--dear", str(stores[1]), "--cost", "s=1", "t=10", "--budget", "5"]
    main([*words, "--out", str(tmp_path / "router")])
    rows = read_router(tmp_path / "router").content["rows"]
    assert (rows["groups"], rows["folds"]) == (120, 3)
    said = capsys.readouterr().out
    assert f"next: python -m distill.predict --model {stores[0]} --data test.csv --out s_test.csv" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*FIT, *COSTS, "--out", "r"], "give --budget"),
        ([*FIT, "--budget", "1", "--out", "r"], "give --cost"),
        ([*FIT[:2], *FIT[4:], *COSTS, "--budget", "1", "--out", "r"], "give --dear"),
        ([*FIT, "--cost", "m1=0.1", "--budget", "1", "--out", "r"], "no cost of m2"),
        ([*FIT, *COSTS, "nobody=3", "--budget", "1", "--out", "r"], "nobody is no model"),
        ([*FIT, *COSTS, "m2=3", "--budget", "1", "--out", "r"], "m2 has a cost already"),
        ([*FIT, "--cost", "m1", "--budget", "1", "--out", "r"], "--cost m1: give NAME=AMOUNT"),
        ([*FIT, "--cost", "m1=0.1", "m2=$3", "--budget", "1", "--out", "r"], "neither an amount nor a file"),
        *(
            ([*FIT, "--cost", "m1=0.1", f"m2={bad}", "--budget", "1", "--out", "r"], "a number above 0")
            for bad in ("0", "-1", "nan", "inf")
        ),
        ([*FIT, *COSTS, "--budget", "0.05", "--out", "r"], "m1 alone costs 0.1"),
        ([*FIT, *COSTS, "--budget", "90", "--rows", "1000", "--out", "r"], "m1 alone costs 0.1"),
        ([*FIT, *COSTS, "--budget", "nan", "--out", "r"], "--budget nan: must be an amount above 0"),
        ([*FIT, *COSTS, "--budget", "1", "--rows", "0", "--out", "r"], "--rows 0"),
        ([*FIT, *COSTS, "--budget", "1", "--seed", "-1", "--out", "r"], "--seed -1"),
        ([*FIT, *COSTS, "--budget", "1", "--out", "labels.csv"], "a directory is to be written"),
        ([*FIT, "--dear", "m1.csv", *COSTS, "--budget", "1", "--out", "r"], "cheap model and as a dear one"),
        ([*FIT[:2], "m2.csv", *FIT[2:], *COSTS, "--budget", "1", "--out", "r"], "one model sees every row"),
        ([*FIT[:3], "two.csv", *FIT[4:], *COSTS, "--budget", "1", "--out", "r"], "two.csv"),
        (["--router", "router", "--cheap", "two.csv", "--out", "o.csv"], "two.csv: no probability column"),
        (["--router", "router", "--cheap", "new/m1.csv", "--out", "o.txt"], ".csv or .parquet"),
        (
            ["--router", "router", "--cheap", "new/m1.csv", "--rows", "3", "--out", "o.csv"],
            "--rows is for fitting",
        ),
        (["--router", "router", "--cheap", "x=new/m1.csv", "--out", "o.csv"], "x is none of the router's m1"),
        (["--router", "router", "--cheap", "new/m1.csv", "--budget", "1", "--out", "o.csv"], "alone costs 5"),
        (["--router", "router", "--cheap", "new/m1.csv", "--out", "new/m1.csv"], "would be written over"),
        (["--router", "new", "--cheap", "new/m1.csv", "--out", "o.csv"], "router.json: no such router"),
        (["--router", "bad", "--cheap", "new/m1.csv", "--out", "o.csv"], "was changed after it was written"),
        (
            ["--router", "router", "--cheap", "verdicts.csv", "--out", "o.csv"],
            "gives verdicts, where the router",
        ),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(here: Path, words: list[str], message: str) -> None:
    write_csv(here / "two.csv", ["id", "yes", "no"], [[f"r{i:04d}", 0.5, 0.5] for i in range(400)])
    write_csv(here / "verdicts.csv", ["id", "verdict"], [["a", "A"], ["b", "B"]])
    text = Path("router/router.json").read_text()
    Path("bad").mkdir()
    Path("bad/router.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    done = shell(words, here)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_files_of_another_origin_are_not_written_over(here: Path) -> None:
    Path("r").mkdir()
    Path("r/router.json").write_text("{}")
    with pytest.raises(UserError, match=r"router.json: was written by no router"):
        main([*FIT, *COSTS, "--budget", "1", "--out", "r"])
    main([*FIT, *COSTS, "--budget", "1", "--out", "router"])
    assert read_router("router").content["budget"]["a_row"] == 1


def test_a_killed_command_leaves_nothing_half_written(here: Path) -> None:
    """At whatever moment: what is there is the old router or the new one, whole."""
    words = [sys.executable, "-m", "ensemble.route", *FIT, *COSTS, "--budget", "0.9", "--out", "router"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    old = Path("router/router.json").read_bytes()
    begun = time.monotonic()
    assert subprocess.run(words, env=environment, capture_output=True, check=False).returncode == 0
    whole = time.monotonic() - begun
    new = Path("router/router.json").read_bytes()
    assert new != old
    for share in (0.3, 0.6, 0.8, 0.9, 0.95):
        Path("router/router.json").write_bytes(old)
        running = subprocess.Popen(
            words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(share * whole)
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert Path("router/router.json").read_bytes() in (old, new)
        read_router("router").decide("new/m1.csv")
    assert subprocess.run(words, env=environment, capture_output=True, check=False).returncode == 0
    assert Path("router/router.json").read_bytes() == new
    assert sorted(path.name for path in Path("router").iterdir()) == ["router.html", "router.json"]
