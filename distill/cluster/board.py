"""What a person sees of units that run elsewhere: a live table, and a summary that outlives the terminal.

Everything here is about showing; :mod:`distill.cluster.units` decides what happens.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.console.command import format_table
from data.console.progress import in_words, is_terminal
from data.files import sweep, write_json, write_text

QUEUED, RUNNING, FINISHED, FAILED, STOPPED = "queued", "running", "finished", "failed", "stopped"
HEADER = ("unit", "state", "where", "step", "loss", "time left")


@dataclass
class Line:
    """One unit as it stands.

    Attributes
    ----------
    state : str
    where : str
        Machine and process, and the GPUs it was given.
    step, steps : int
        Optimiser steps done and to do; 0 where not known yet.
    loss : float or None
        The last logged one.
    begun, ended : float or None
        Seconds since the epoch; of the last start.
    first : tuple of float and float, or None
        When the running attempt was first seen training, and the share of the training done by then.
    starts : int
        How often it was started.
    message : str
        Why it failed.
    """

    unit: str
    state: str = QUEUED
    where: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    begun: float | None = None
    ended: float | None = None
    first: tuple[float, float] | None = None
    starts: int = 0
    message: str = ""
    log: str = ""

    def time_left(self, now: float) -> float | None:
        """Seconds left of the training at the attempt's rate so far; None where nothing is known."""
        if self.state != RUNNING or self.first is None or not self.steps:
            return None
        since, share = self.first
        done = self.step / self.steps
        return None if done <= share else (now - since) * (1 - done) / (done - share)


class Board:
    """The units of one command, drawn on a terminal and kept in two files.

    Parameters
    ----------
    names : sequence of str
    summary : Path
        Where the summary goes: the same name with ``.json`` for programs and ``.txt`` for people.
    """

    def __init__(self, names: Sequence[str], summary: Path) -> None:
        self.lines = {name: Line(name) for name in names}
        self.summary = summary
        sweep(summary.parent)
        self._drawn = 0
        self._written: dict[str, tuple[Any, ...]] = {}

    def update(self, reports: dict[str, dict[str, Any]]) -> None:
        """Take what running units report: attributes of their lines."""
        for name, report in reports.items():
            line = self.lines[name]
            if line.state in {FINISHED, FAILED}:
                continue
            if report.get("starts", 0) != line.starts:
                line.first, line.step, line.begun = None, 0, time.time()
            for key, value in report.items():
                setattr(line, key, value)
            line.state = RUNNING
            if line.first is None and line.steps and line.step:
                line.first = (time.time(), line.step / line.steps)

    def end(self, name: str, state: str, message: str = "") -> None:
        """Note that a unit is over."""
        line = self.lines[name]
        line.state, line.message, line.ended = state, message, time.time()

    def stop(self) -> None:
        """Note that what is not over was stopped."""
        for line in self.lines.values():
            if line.state in {QUEUED, RUNNING}:
                line.state = STOPPED

    def table(self, most: int | None = None) -> str:
        """Return the table, running and failed units first if only ``most`` lines may be shown."""
        lines = list(self.lines.values())
        if most is not None and len(lines) > most:
            order = {RUNNING: 0, FAILED: 1, STOPPED: 2, QUEUED: 3, FINISHED: 4}
            kept = sorted(lines, key=lambda line: order[line.state])[: max(1, most)]
            lines = [line for line in lines if line in kept]
        now = time.time()
        body = [
            [
                line.unit,
                line.state + (f", start {line.starts}" if line.starts > 1 else ""),
                line.where or "–",
                f"{line.step} of {line.steps}" if line.steps else "–",
                "–" if line.loss is None else f"{line.loss:.4f}",
                in_words(line.time_left(now)),
            ]
            for line in lines
        ]
        hidden = len(self.lines) - len(lines)
        return format_table(HEADER, body) + (f"\n… and {hidden} more" if hidden else "")

    def counts(self) -> str:
        """Return how many units are in which state."""
        states = [line.state for line in self.lines.values()]
        parts = [
            f"{states.count(s)} {s}" for s in (RUNNING, QUEUED, FINISHED, FAILED, STOPPED) if s in states
        ]
        return ", ".join(parts)

    def show(self) -> None:
        """Draw on a terminal; elsewhere write a line for each change; keep the summary's files up to date."""
        changed = [
            line for line in self.lines.values() if self._written.get(line.unit) != (line.state, line.starts)
        ]
        if is_terminal():
            self._draw()
        else:
            for line in changed:
                if line.state != QUEUED:
                    why = f": {line.message}" if line.message else ""
                    print(f"{line.unit}: {line.state}, {line.where or 'not started'}{why}", file=sys.stderr)
        if changed:
            self._written = {line.unit: (line.state, line.starts) for line in self.lines.values()}
            self.write()

    def write(self) -> None:
        """Write the summary's files."""
        records = [asdict(line) for line in self.lines.values()]
        for record in records:
            record.pop("first")
        write_json(self.summary.with_suffix(".json"), records)
        write_text(self.summary.with_suffix(".txt"), f"{self.table()}\n{self.counts()}\n")

    def _draw(self) -> None:
        size = shutil.get_terminal_size()
        text = [line[: size.columns - 1] for line in self.table(size.lines - 6).splitlines()]
        text.append(self.counts()[: size.columns - 1])
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        sys.stderr.write(up + "".join(f"\x1b[2K{line}\n" for line in text) + "\x1b[0J")
        sys.stderr.flush()
        self._drawn = len(text)

    def clear(self) -> None:
        """Take the live table off the terminal, for the command to print its own."""
        if self._drawn:
            sys.stderr.write(f"\x1b[{self._drawn}A\x1b[0J")
            sys.stderr.flush()
            self._drawn = 0

    def failures(self) -> list[Line]:
        """Units that failed."""
        return [line for line in self.lines.values() if line.state == FAILED]
