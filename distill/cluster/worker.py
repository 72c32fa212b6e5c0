"""One unit in a worker process of a cluster: files brought and sent, output kept, progress told."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from data import storage
from data.console.remote_code import allow_remote_code
from data.errors import UserError
from data.files import lock
from distill.cluster.connect import go_to_workplace
from distill.cluster.outcome import POLL_S, Outcome, output_to, told
from distill.cluster.together import run_together
from distill.runs.run_directory import PRETRAIN
from distill.runs.units import Unit

_planned: dict[str, Any] = {}
"""The last run planned in this process, so that folds of one model encode the rows once."""


def attempt(unit: Unit, watcher: Any, log: Path, asked: dict[str, Any], remote_code: bool) -> Outcome:
    """Run a unit in a worker process; its own errors become its outcome, and its output goes to ``log``.

    ``remote_code`` is the command's own permission (:mod:`data.console.remote_code`).
    """
    import ray
    import torch

    go_to_workplace()
    allow_remote_code(remote_code)
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
                return Outcome(unit.name, told(error))
        print(f"{_now()} {unit.name} is finished", flush=True)
    return Outcome(unit.name)


def _now() -> str:
    return datetime.now().isoformat(sep=" ", timespec="milliseconds")


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Wait until no process of a driver that was killed works on the same unit any more."""
    with open(place, "w", encoding="utf-8") as file:
        lock(file.fileno(), place, wait=True)
        yield


@contextlib.contextmanager
def _mirrored(unit: Unit) -> Iterator[None]:
    """Bring the unit's files from other storage, and send its results there; nothing for local paths."""
    store = unit.model.out
    if storage.address_of(store) is None and storage.address_of(unit.model.data) is None:
        yield
        return
    unit.model.fetch()
    storage.fetch(store, [unit.part, PRETRAIN])
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
