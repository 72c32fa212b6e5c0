"""Rounds on a Ray cluster of this machine: its driver or one of its workers is killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from worlds import PREPARED, Case

MOST_SECONDS = 300.0
# Workers have a working directory of their own, so paths are absolute.
SHARDS = "distill.predict --model {world}/data/student --data {world}/data/rows.parquet --out {world}/out"
ON_RAY = [
    Case(
        "teachers on Ray",
        "distill.teacher_oof --recipe recipe.yaml --data {world}/data --only llama --launcher ray",
        ("recipe.yaml", *PREPARED),
        local="distill.teacher_oof --recipe recipe.yaml --data {world}/data --only llama",
    ),
    Case(
        "predict in shards on Ray",
        f"{SHARDS} --shard-rows 8 --launcher ray",
        ("data/student", "data/backbones", "data/rows.parquet"),
        local=f"{SHARDS} --shard-rows 8",
    ),
]


@contextmanager
def cluster() -> Iterator[int]:
    """Start a cluster of one node, name it in the environment, end it; yields its process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mode = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}  # whatever token lies at home
    os.environ |= {**mode, "RAY_ADDRESS": f"127.0.0.1:{port}"}
    words = ["start", "--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=false", "--block"]
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if time.monotonic() > deadline or head.poll() is not None:
                raise RuntimeError("the cluster does not start")
            time.sleep(0.2)
        yield head.pid
    finally:
        ours = descendants(head.pid)
        head.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            head.wait(20)
        for pid in [head.pid, *ours]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait()
        del os.environ["RAY_ADDRESS"]


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and theirs."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, left = [], [pid]
    while left:
        mine = children.get(left.pop(), [])
        found += mine
        left += mine
    return found


def working(head: int) -> list[int]:
    """The cluster's processes that run a task or an actor of ours."""

    def says(pid: int) -> str:
        with suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        return ""

    named = [(pid, says(pid)) for pid in descendants(head)]  # a node ends with its agents
    return [pid for pid, name in named if "ray::" in name and "IDLE" not in name and "Agent" not in name]


def disturb(head: int, driver, after: float, rng: random.Random) -> str:
    """Kill the driver, or one of the workers, at a moment; return what was done."""
    if driver.ended_within(after):
        return f"ended before {after:.1f} s"
    workers = working(head)
    if workers and rng.random() < 0.6:
        pid = rng.choice(workers)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return f"a worker killed after {after:.1f} s"
    driver.kill()
    return f"the driver killed after {after:.1f} s"


def without_logs(world: Path) -> None:
    """Take away what tells how units went, and when."""
    for logs in (world / "data" / "units", world / "units"):
        shutil.rmtree(logs, ignore_errors=True)
