"""Training units on a Ray cluster: each where its resources are free, again where a machine was lost.

Ray's scheduler decides where and when; what makes a second start safe is the unit itself, which goes on from
its last checkpoint. Its progress is read from the files that it writes anyway.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from data import storage
from data.errors import UserError
from data.files import make_directory
from distill.cluster.board import FAILED, FINISHED, Board
from distill.cluster.connect import amounts, connect
from distill.runs.units import Unit

RETRIES = 8
"""Starts after the first one, each for a lost machine or process, never for an error of the unit's own."""
POLL_S = 1.0
STOP_S = 20.0
"""How long stopped units may take to end by themselves."""
HOME = "units"
"""Directory beside the stores: a log a unit, and the summaries."""


@dataclass(frozen=True)
class Outcome:
    """How a unit ended: ``error`` is empty if it is finished."""

    unit: str
    error: str = ""


def run_units(units: Sequence[Unit], home: Path, command: str) -> Board:
    """Run what is left of ``units`` on the cluster; return how they all ended.

    Parameters
    ----------
    home : Path
        Directory that gets ``units/``: a log a unit, and the summary named after ``command``.

    Raises
    ------
    UserError
        No Ray, no cluster, or a unit that asks for more than any machine has.
    KeyboardInterrupt
        After the running units were stopped.
    """
    ray = connect()
    asks = {unit.name: amounts(ray, unit.name, unit.model.model.resources) for unit in units}
    place = home / HOME
    make_directory(place)
    board = Board([unit.name for unit in units], place / command)
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    watcher = ray.remote(Watcher).options(num_cpus=0, scheduling_strategy=here).remote()
    # CUDA stays with the card and the memory that a process first took: each unit on a GPU has a fresh one.
    on_cpu, on_gpu = ray.remote(attempt), ray.remote(max_calls=1)(attempt)
    waiting = {}
    for unit in units:
        if unit.finished():
            board.end(unit.name, FINISHED)
            continue
        log = place / f"{unit.name.replace('/', '-')}.log"
        board.lines[unit.name].log = str(log)
        asked = asks[unit.name]
        # Of several processes the unit's own only waits; Ray Train asks for what they need.
        own = asked if unit.model.model.resources.processes == 1 else {"num_cpus": 0}
        task = on_gpu if asked["num_gpus"] else on_cpu
        ref = task.options(name=unit.name, max_retries=RETRIES, **own).remote(unit, watcher, log, asked)
        waiting[ref] = unit.name
    try:
        _watch(ray, waiting, watcher, board)
    except KeyboardInterrupt:
        _stop(ray, list(waiting))
        board.stop()
        raise
    finally:
        board.show()
        board.clear()
        storage.publish(place)
        ray.kill(watcher)
    return board


def _watch(ray: Any, waiting: dict[Any, str], watcher: Any, board: Board) -> None:
    """Keep the board up to date until every unit has ended."""
    left = list(waiting)
    board.show()
    while left:
        done, left = ray.wait(left, num_returns=len(left), timeout=POLL_S)
        board.update(ray.get(watcher.snapshot.remote()))
        for ref in done:
            try:
                outcome = ray.get(ref)
            except ray.exceptions.RayError as error:  # lost more often than it may be started again
                outcome = Outcome(
                    waiting[ref], f"lost with its process: {str(error).strip().splitlines()[0]}"
                )
            board.end(waiting[ref], FAILED if outcome.error else FINISHED, outcome.error)
        board.show()


def _stop(ray: Any, refs: list[Any]) -> None:
    """Interrupt what runs, as Ctrl-C would on its own machine, and wait until it has ended."""
    for ref in refs:
        ray.cancel(ref, force=False)
    _, left = ray.wait(refs, num_returns=len(refs), timeout=STOP_S)
    for ref in left:
        ray.cancel(ref, force=True)


@dataclass
class Watcher:
    """An actor that holds the last report of every unit."""

    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def start(self, unit: str, where: str) -> None:
        """Note that a unit starts, perhaps again."""
        starts = self.reports.get(unit, {}).get("starts", 0) + 1
        self.reports[unit] = {"where": where, "starts": starts}

    def report(self, unit: str, progress: dict[str, Any]) -> None:
        """Note how far a unit is."""
        self.reports[unit] |= progress

    def fail(self, unit: str, message: str) -> None:
        """Note the first error of a unit's processes."""
        self.errors.setdefault(unit, message)

    def wrong(self, unit: str) -> str:
        """Return the error of a unit's processes; empty if they have none."""
        return self.errors.get(unit, "")

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Return all reports."""
        return self.reports


_planned: dict[str, Any] = {}
"""The last run planned in this process, so that folds of one model encode the rows once."""


def attempt(unit: Unit, watcher: Any, log: Path, asked: dict[str, Any]) -> Outcome:
    """Run a unit in a worker process; its own errors become its outcome, and its output goes to ``log``."""
    import ray
    import torch

    threads, processes = asked["num_cpus"], unit.model.model.resources.processes
    torch.set_num_threads(threads)
    where = f"{socket.gethostname()}:{os.getpid()}"
    if processes > 1:
        where += f" and {processes} processes"
    if gpus := ray.get_gpu_ids():
        where += f" GPU {','.join(map(str, gpus))}"
    watcher.start.remote(
        unit.name, where
    )  # not waited for: a task that waits lends its processor to the next
    with output_to(log), _alone(log.with_suffix(".lock")), _mirrored(unit):
        print(f"{_now()} {unit.name} starts on {where}, {threads} threads", flush=True)
        with _reporting(unit, watcher):
            try:
                if processes > 1:
                    from distill.cluster.together import run_together

                    if wrong := run_together(unit, asked, processes, watcher, log):
                        print(f"error: {wrong}", flush=True)
                        return Outcome(unit.name, wrong)
                    print(f"{_now()} {unit.name} is finished", flush=True)
                    return Outcome(unit.name)
                key = repr(unit.model)
                if key not in _planned:
                    _planned.clear()
                    _planned[key] = unit.model.plan()
                unit.run(_planned[key])
            except UserError as mistake:
                print(f"error: {mistake}", flush=True)
                return Outcome(unit.name, str(mistake))
            except Exception as error:
                traceback.print_exc()
                sys.stderr.flush()
                return Outcome(unit.name, f"{type(error).__name__}: {error}")
        print(f"{_now()} {unit.name} is finished", flush=True)
    return Outcome(unit.name)


def _now() -> str:
    return datetime.now().isoformat(sep=" ", timespec="milliseconds")


@contextlib.contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Append everything that this process writes, libraries in C included, to a file."""
    make_directory(log.parent)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        storage.publish(log)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no process of a driver that was killed works on the same unit any more."""
    with open(lock, "w", encoding="utf-8") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _mirrored(unit: Unit) -> Iterator[None]:
    """Bring the unit's files from other storage, and send its results there; nothing for local paths."""
    store = unit.model.out
    if storage.address_of(store) is None and storage.address_of(unit.model.data) is None:
        yield
        return
    unit.model.fetch()
    storage.fetch(store, [unit.part])
    stop = threading.Event()
    thread = threading.Thread(target=_send_checkpoints, args=(unit.directory, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for path in unit.directory.glob("checkpoint-*"):
            if not (path / "trainer_state.json").exists():
                shutil.rmtree(path, ignore_errors=True)
        if unit.finished():
            storage.publish(unit.directory)
            for path in _checkpoints_there(unit.directory):
                storage.remove(path)


def _send_checkpoints(directory: Path, stop: threading.Event) -> None:
    """Send every finished checkpoint to the unit's address, and delete the older ones there."""
    sent: set[str] = set()
    while not stop.wait(POLL_S):
        for path in sorted(directory.glob("checkpoint-*/trainer_state.json")):
            checkpoint = path.parent
            if checkpoint.name in sent:
                continue
            # The Trainer may delete it meanwhile, for a newer one that is sent next.
            with contextlib.suppress(UserError, OSError):
                storage.publish(checkpoint)
                sent.add(checkpoint.name)
                for old in _checkpoints_there(directory):
                    if old.name != checkpoint.name:
                        storage.remove(old)


def _checkpoints_there(directory: Path) -> list[Path]:
    """Mirror paths of the checkpoints at a directory's address."""
    address = storage.address_of(directory)
    if address is None:
        return []
    fs, root = storage.open_storage(address)
    if not fs.exists(root):
        return []
    names = [entry["name"].rstrip("/").rpartition("/")[2] for entry in fs.ls(root, detail=True)]
    return [directory / name for name in names if name.startswith("checkpoint-")]


@contextlib.contextmanager
def _reporting(unit: Unit, watcher: Any) -> Iterator[None]:
    """Tell the watcher every second how far the unit is."""
    stop = threading.Event()

    def tell() -> None:
        while not stop.wait(POLL_S):
            if progress := progress_of(unit.directory):
                watcher.report.remote(unit.name, progress)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if progress := progress_of(unit.directory):
            watcher.report.remote(unit.name, progress)


def progress_of(directory: Path) -> dict[str, Any]:
    """Step, steps in all and loss of a training, from the last lines of its ``metrics.jsonl``."""
    try:
        lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    found: dict[str, Any] = {}
    for line in reversed(lines):
        try:
            logged = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "step" not in found and logged.get("epoch"):
            # All planned steps are one epoch to the Trainer.
            found |= {"step": logged["step"], "steps": round(logged["step"] / logged["epoch"])}
        if "loss" in logged:
            found["loss"] = logged["loss"]
            break
    return found
