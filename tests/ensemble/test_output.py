"""What a stack writes: over nothing that is not its own, one command at a time, and it notices changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stack_files import CLASSES, write_sets

from data.errors import UserError
from data.files import locked
from ensemble import predict, stack
from ensemble.methods.blend import SimplexBlend
from ensemble.output import hold
from ensemble.saved import load_stack, save_stack

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_sets(tmp_path, n=40)
    monkeypatch.chdir(tmp_path)
    P = np.random.default_rng(0).dirichlet([1, 1, 1], size=(40, 2))
    content = {"kind": "stack", "classes": list(CLASSES), "members": ["m1", "m2"], "chosen": "simplex"}
    save_stack(tmp_path / "stack", content, SimplexBlend().fit(P, np.arange(40) % 3))
    return tmp_path


ARGUMENTS = ["--oof", "m1.csv", "m2.csv", "--labels", "labels.csv", "--out"]


def test_two_stacks_do_not_write_into_one_directory(folder: Path) -> None:
    with locked(folder / "stack"), pytest.raises(UserError, match="stack: another command is writing there"):
        stack.main([*ARGUMENTS, "stack"])


@pytest.mark.parametrize("name", ["predictions.parquet", "report.html", "stack.json"])
def test_files_of_others_are_not_written_over(folder: Path, name: str) -> None:
    mine = folder / "mine" / name
    mine.parent.mkdir()
    mine.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=rf"{name}: was written by no stack"):
        stack.main([*ARGUMENTS, "mine"])
    assert mine.read_text(encoding="utf-8") == "mine"


def test_inputs_are_not_written_over(folder: Path) -> None:
    before = (folder / "m1.csv").read_bytes()
    usual = ["--stack", "stack", "--oof", "m1.csv", "m2.csv", "--out"]
    (folder / "link.csv").symlink_to("m1.csv")
    for out in ("m1.csv", "./m2.csv", "link.csv"):
        with pytest.raises(UserError, match="would be written over"):
            predict.main([*usual, out])
    assert (folder / "m1.csv").read_bytes() == before
    predict.main([*usual, "b.parquet"])
    (folder / "b.parquet").rename(folder / "stack" / "predictions.parquet")
    with pytest.raises(UserError, match="would be written over"):
        stack.main(["--oof", "stack/predictions.parquet", "--labels", "labels.csv", "--out", "stack"])
    with pytest.raises(UserError, match="would be written over"):
        predict.main([*usual, "stack/predictions.parquet"])


def test_only_trees_of_a_stack_are_taken_away(folder: Path) -> None:
    notes, trees = (folder / "stack" / f"lightgbm-{name}.txt" for name in ("notes", "0" * 16))
    notes.write_text("mine", encoding="utf-8")
    trees.write_text("old", encoding="utf-8")
    content, method = load_stack(folder / "stack")
    content.pop("fitted")
    save_stack(folder / "stack", content, method)
    assert notes.exists()
    assert not trees.exists()


def test_a_directory_that_was_held_in_vain_is_taken_away(folder: Path) -> None:
    with pytest.raises(UserError, match="a mistake"), hold(folder / "out", []):
        raise UserError("a mistake")
    assert not (folder / "out").exists()
    with hold(folder / "out", []):
        (folder / "out" / "report.html").touch()
    assert (folder / "out" / "report.html").exists()


def test_what_a_killed_command_left_is_swept(folder: Path) -> None:
    for name in (".report.html.123.tmp", f".lightgbm-{'a' * 16}.txt.4.tmp", ".mine.tmp"):
        (folder / "stack" / name).touch()
    with hold(folder / "stack", []):
        assert [path.name for path in (folder / "stack").glob(".*")] == [".mine.tmp"]


CHANGES: dict[str, Callable[[dict], object]] = {
    "members in another order": lambda stack: stack["members"].reverse(),
    "classes in another order": lambda stack: stack["classes"].reverse(),
    "another weight": lambda stack: stack["fitted"]["fitted"]["weights_"].reverse(),
    "a weight less": lambda stack: stack["fitted"]["fitted"]["weights_"].pop(),
    "members as a number": lambda stack: stack.update(members=5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_stack_is_refused(folder: Path, change: str) -> None:
    file = folder / "stack" / "stack.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    CHANGES[change](content)
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"stack\.json: was changed after it was written"):
        load_stack(folder / "stack")


def test_a_stack_of_another_format_is_refused(folder: Path) -> None:
    file = folder / "stack" / "stack.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, "format": 99}), encoding="utf-8")
    with pytest.raises(UserError, match="has format 99, and this version reads 2"):
        load_stack(folder / "stack")


@pytest.mark.parametrize(
    "words", [["--seed", "-1"], ["--seed", str(2**70)], ["--repeats", "0"], ["--repeats", "1000000"]]
)
def test_numbers_beyond_reason_are_refused(folder: Path, words: list[str]) -> None:
    with pytest.raises(UserError, match=words[0]):
        stack.main([*ARGUMENTS, "out", *words])
    assert not (folder / "out").exists()


def test_names_that_are_no_text_are_refused(folder: Path) -> None:
    odd = os.fsdecode(b"o\xff")
    with pytest.raises(UserError, match="its name is not UTF-8 text"):
        stack.main([*ARGUMENTS, odd])
    np.save(f"{odd}.npy", np.full((40, 3), 1 / 3))
    with pytest.raises(UserError, match="its name is not UTF-8 text"):
        stack.main(["--oof", "m1.csv", f"{odd}.npy", "--labels", "labels.csv"])
    with pytest.raises(UserError, match="its name is not UTF-8 text"):
        predict.main(["--stack", "stack", "--oof", "m1.csv", "m2.csv", "--out", f"{odd}.csv"])


def test_ctrl_c_waits_for_no_fit(folder: Path) -> None:
    write_sets(folder / "many", n=6000, members=6)
    members = [str(folder / "many" / f"m{m}.csv") for m in range(1, 7)]
    command = [sys.executable, "-m", "ensemble.stack", "--oof", *members]
    command += ["--labels", str(folder / "many" / "labels.csv"), "--out", str(folder / "out")]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as running:
        while not (folder / "out").exists():  # made when fitting begins
            time.sleep(0.05)
            assert running.poll() is None
        time.sleep(1)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=30)  # all fits take longer
    assert running.returncode == 130
    assert said == "interrupted; the same command continues from what is finished\n"
    assert not (folder / "out").exists()
