"""Locks: who holds a directory, what is taken away behind it, and systems that have no locks."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data import files
from data.errors import UserError
from data.files import lock, locked, sweep


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuses(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", refuses)
    with caplog.at_level(logging.WARNING), locked(tmp_path):
        (tmp_path / "a").write_text("")
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"{tmp_path}: its file system gives no locks ({os.strerror(number)})"
    )


def test_a_system_without_locks_is_refused_in_one_message() -> None:
    """Windows has no ``fcntl``."""
    without = "import sys; sys.modules['fcntl'] = None; sys.argv = ['x', '--help']\n"
    command = f"{without}import runpy; runpy.run_module('data.prepare', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: this system has no file locks")
    assert "Windows is not supported" in done.stderr
    assert done.stderr.count("\n") == 1
    done = subprocess.run(
        [sys.executable, "-c", f"{without}import data.files"], capture_output=True, text=True, check=False
    )
    assert "UserError: this system has no file locks" in done.stderr


def test_a_hidden_directory_that_a_killed_command_left_is_taken_away(tmp_path: Path) -> None:
    hidden, users = tmp_path / ".a.csv.predicting", tmp_path / "out"
    for directory in (hidden, users):
        directory.mkdir()
        with locked(directory):
            pass
    assert not hidden.exists()
    assert users.exists()


def test_a_directory_that_is_taken_away_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its opening and its lock: a lock on what has no name any more would keep nobody out."""
    calls: list[int] = []

    def late(handle: int, where: Path, wait: bool) -> None:
        if not calls:
            where.rmdir()
        calls.append(handle)
        lock(handle, where, wait)

    monkeypatch.setattr(files, "lock", late)
    with (
        locked(tmp_path / "out"),
        pytest.raises(UserError, match="another command is writing there"),
        locked(tmp_path / "out"),
    ):
        pass
    assert len(calls) == 3


def test_what_is_swept_can_be_the_leavings_of_one_file(tmp_path: Path) -> None:
    for name in (".a.csv.12.tmp", ".b.csv.12.tmp", "a.csv"):
        (tmp_path / name).write_text("")
    sweep(tmp_path, "a.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.csv.12.tmp", "a.csv"]


def test_a_unit_waits_for_the_process_that_works_on_it(tmp_path: Path) -> None:
    """What a killed driver left running still holds the unit's lock."""
    with open(tmp_path / "unit.lock", "w") as other, open(tmp_path / "unit.lock") as mine:
        lock(other.fileno(), tmp_path / "unit.lock", wait=True)
        with pytest.raises(BlockingIOError):
            lock(mine.fileno(), tmp_path / "unit.lock", wait=False)
        fcntl.flock(other, fcntl.LOCK_UN)
        lock(mine.fileno(), tmp_path / "unit.lock", wait=False)
