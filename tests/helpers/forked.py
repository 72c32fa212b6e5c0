"""Commands run in forked children of a process that has imported everything: milliseconds instead of seconds.

The child is a process group of its own, so that it can be killed with all that it started. It runs the
command as ``python -m`` does, through :func:`data.console.command.run`; it does not tear an interpreter
down.
"""

from __future__ import annotations

import atexit
import faulthandler
import importlib
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

UNCAUGHT = 99
"""Exit status of a child whose command let something through that ``run`` does not catch."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes
    ----------
    status : int
        Exit status; negative, the number of the signal that ended it; None where it was ended for its time.
    out, err : str
        What it said.
    seconds : float
    """

    status: int | None
    out: str
    err: str
    seconds: float

    @property
    def hung(self) -> bool:
        return self.status is None


class Child:
    """A command that runs.

    Parameters
    ----------
    words : sequence of str
        The module and its arguments.
    where : Path
        Working directory.
    log : Path
        Files of this name with ``.out`` and ``.err`` hold what it says.
    limits : mapping of int to int
        ``resource.RLIMIT_*`` to the value that it is not to pass.
    env : mapping of str to str
    """

    def __init__(
        self,
        words: Sequence[str],
        where: Path,
        log: Path,
        limits: Mapping[int, int] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.log, self.began = log, time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run(words, where, log, limits or {}, env or {})
        with suppress(OSError):
            os.setpgid(self.pid, self.pid)  # as the child does itself: whichever comes first
        self._fd = os.pidfd_open(self.pid)
        self._ended: Ended | None = None

    def ended_within(self, seconds: float) -> bool:
        """Wait; return whether it has ended."""
        return self._ended is not None or bool(select.select([self._fd], [], [], max(0.0, seconds))[0])

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to it and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self, seconds: float) -> Ended:
        """Wait for its end, or end it when its time is over."""
        if self._ended is None:
            hung = not self.ended_within(seconds)
            self.kill()  # what it started and left
            _, waited = os.waitpid(self.pid, 0)
            os.close(self._fd)
            status = None if hung else os.waitstatus_to_exitcode(waited)
            said = [
                self.log.with_suffix(end).read_text(encoding="utf-8", errors="replace")
                for end in (".out", ".err")
            ]
            self._ended = Ended(status, *said, time.monotonic() - self.began)
        return self._ended


def run(words: Sequence[str], where: Path, log: Path, seconds: float, **how: Mapping) -> Ended:
    """Run a command to its end."""
    return Child(words, where, log, **how).wait(seconds)


def _main_of(module: str) -> Callable[[Sequence[str]], int | None]:
    """The ``main`` that ``python -m module`` runs."""
    found = importlib.import_module(module)
    return (found if hasattr(found, "main") else importlib.import_module(f"{module}.__main__")).main


def _run(words, where, log, limits, env) -> None:
    """Be the child."""
    status = UNCAUGHT
    faulthandler.disable()
    try:
        os.setpgid(0, 0)
        os.chdir(where)
        for number, end in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(log.with_suffix(end), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (os.fdopen(fd, "w", encoding="utf-8", closefd=False) for fd in (1, 2))
        os.environ.update(env)
        for what, value in limits.items():
            resource.setrlimit(what, (value, resource.getrlimit(what)[1]))
        sys.argv = list(words)
        command = importlib.import_module("data.console.command")
        known = set(sys.modules)
        try:
            command.run(_main_of(words[0]))
        except SystemExit as end:
            status = end.code or 0
        if "CAMPAIGN_IMPORTED" in env:
            with open(env["CAMPAIGN_IMPORTED"], "a", encoding="utf-8") as names:
                names.writelines(f"{name}\n" for name in sys.modules if name not in known)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        with suppress(Exception):
            os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status if isinstance(status, int) else 1)
