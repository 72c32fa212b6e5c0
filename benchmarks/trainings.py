"""Trainings beside each other in processes that share the GPUs, until all are done or time is up."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

GRACE = 8.0
"""Seconds that trainings already begun may take longer than planned."""
RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Job:
    """One training: what it needs, what it leaves."""

    key: str
    kind: str
    seed: int = 0
    spec: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def left(self, result: dict[str, Any] | None) -> bool:
        """Whether a line of the results is of this training, not of one that a plan named so before."""
        return result is not None and (result["spec"], result["needs"]) == (self.spec, list(self.needs))


def save(path: Path, values: np.ndarray) -> None:
    """Write an array so that it is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, values.astype(np.float32))
    temporary.replace(path)


def read_results(out: Path) -> list[dict[str, Any]]:
    """The lines of the results that stand in a directory."""
    path = out / RESULTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Queue:
    """Runs jobs in worker processes until they are done or time is up, appending each result to a file.

    Parameters
    ----------
    out : Path
        Holds the results; those of an earlier call are read and not made again, unless the job is another.
    work : callable
        What a worker does with a job; returns its line of the results.
    start : (callable, tuple)
        What a worker begins with.
    workers : int
    deadline : float
        In seconds of ``time.monotonic``.
    """

    def __init__(
        self,
        out: Path,
        work: Callable[[Job], dict[str, Any]],
        start: tuple[Callable[..., None], tuple[Any, ...]],
        workers: int,
        deadline: float,
    ) -> None:
        self.out, self.work, self.start = out, work, start
        self.workers, self.deadline = workers, deadline
        self.pool = self._new_pool()
        self.results = {result["key"]: result for result in read_results(out)}
        self.typical: dict[str, float] = {}

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn"), *self.start)

    def run(self, jobs: list[Job], reserve: float = 0.0) -> None:
        """Run jobs in order, each once what it needs is done; begin none ``reserve`` s before the end."""
        waiting = [job for job in jobs if not job.left(self.results.get(job.key))]
        for job in waiting:
            self.results.pop(job.key, None)
        running: dict[Future, Job] = {}
        while waiting or running:
            left = self.deadline - reserve - time.monotonic()
            for job in list(waiting):
                if len(running) >= self.workers:
                    break
                if all(key in self.results for key in job.needs) and self.typical.get(job.kind, 0.0) < left:
                    waiting.remove(job)
                    running[self._submit(job)] = job
            if not running or left < -GRACE:
                break
            for future in wait(running, timeout=left + GRACE, return_when=FIRST_COMPLETED).done:
                self._keep(running.pop(future), future)
        for job in waiting:
            print(f"no time for {job.key}", flush=True)

    def _submit(self, job: Job) -> Future:
        try:
            return self.pool.submit(self.work, job)
        except BrokenProcessPool:  # a worker died, and its pool with it
            self.pool = self._new_pool()
            return self.pool.submit(self.work, job)

    def _keep(self, job: Job, future: Future) -> None:
        try:
            result = future.result()
        except Exception as error:  # one failed run must not take the others along
            print(f"FAILED {job.key}: {type(error).__name__}: {error}", flush=True)
            return
        self.results[job.key] = result
        before = self.typical.get(job.kind, result["seconds"])
        self.typical[job.kind] = 0.7 * before + 0.3 * result["seconds"]
        with open(self.out / RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        shown = {k: v for k, v in result.items() if isinstance(v, float)}
        left = self.deadline - time.monotonic()
        print(f"{left:5.0f} s left  {job.key}  {shown}", flush=True)

    def close(self) -> None:
        """End the workers, busy or not."""
        for process in list(getattr(self.pool, "_processes", {}).values()):
            process.kill()
        self.pool.shutdown(wait=False, cancel_futures=True)
