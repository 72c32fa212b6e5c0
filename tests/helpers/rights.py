"""Tests of what a user may not do, whoever runs them: root gives its rights up in a child process."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def shut(mode: int) -> Iterator[Path]:
    """Yield a directory of a mode, in one that everybody may enter; root's own is nobody's."""
    home = Path(tempfile.mkdtemp())
    try:
        home.chmod(0o755)
        (home / "shut").mkdir()
        (home / "shut").chmod(mode)
        yield home / "shut"
    finally:
        (home / "shut").chmod(0o755)
        shutil.rmtree(home)


def mistake_without_rights(what: Callable[[], object]) -> str:
    """Call something in a child that may do what any user may; return what it raised, with its kind."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            what()
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as told:
        said = told.read()
    os.waitpid(pid, 0)
    return said
