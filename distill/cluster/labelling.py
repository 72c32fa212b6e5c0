"""Labelling on a Ray cluster: a pool of actors, each holding the loaded model, fed a shard at a time.

At most ``AHEAD`` shards wait at an actor, so that nothing piles up anywhere: an actor reads its rows and
writes its part itself, and only the number of rows comes back. A lost actor's shards go to others, and a new
one takes its place wherever there is room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from data.errors import UserError
from data.shards import Shard, ShardPlan, missing_parts
from distill.cluster.connect import amounts, connect, go_to_workplace, room_for
from distill.cluster.outcome import POLL_S, told
from distill.config import ResourcesConfig
from distill.prediction.labelling import Ended, Job, Lanes, Worker

AHEAD = 2
LOSSES = 3
"""Workers that may be lost over one shard before the shard is given up."""


class Labeller:
    """The actor. Its own errors come back as text, so that only a lost process looks lost."""

    def __init__(self, job: Job) -> None:
        go_to_workplace()
        self.job = job
        self.worker: Worker | None = None

    def load(self) -> str:
        """Load the model; return what is wrong, if anything."""
        try:
            self.worker = Worker(self.job)
        except Exception as error:
            return told(error)
        return ""

    def label(self, shard: Shard) -> tuple[int, str]:
        """Label a shard; return its rows and what went wrong, if anything."""
        assert self.worker is not None
        try:
            return self.worker.label(shard), ""
        except Exception as error:
            return 0, told(error)


@dataclass
class _Pool:
    """Actors by number, and what each has been asked for."""

    ray: Any
    actor: Any
    job: Job
    actors: dict[int, Any] = field(default_factory=dict)
    loading: dict[Any, int] = field(default_factory=dict)
    asked: dict[Any, tuple[int, Shard]] = field(default_factory=dict)
    made: int = 0

    def add(self) -> None:
        """Start another actor, wherever and whenever there is room for it."""
        number, self.made = self.made, self.made + 1
        self.actors[number] = self.actor.remote(self.job)
        self.loading[self.actors[number].load.remote()] = number

    def feed(self, lanes: Lanes) -> None:
        """Ask every loaded actor for as much as may wait at it, evenly."""
        busy = Counter(number for number, _ in self.asked.values())
        ready = [number for number in self.actors if number not in self.loading.values()]
        for depth in range(1, AHEAD + 1):
            for number in ready:
                if busy[number] < depth and lanes.left:
                    shard = lanes.take(number)
                    self.asked[self.actors[number].label.remote(shard)] = (number, shard)
                    busy[number] += 1

    def lose(self, number: int, lanes: Lanes) -> list[Shard]:
        """Drop a lost actor; its shards go back, the first of which it was working on."""
        self.actors.pop(number, None)
        lanes.forget(number)
        lost = [(ref, shard) for ref, (of, shard) in self.asked.items() if of == number]
        for ref, _ in lost:
            del self.asked[ref]
        shards = sorted((shard for _, shard in lost), key=lambda shard: shard.index)
        for shard in reversed(shards):
            lanes.put_back(shard)
        return shards


def label_on_cluster(
    job: Job, plan: ShardPlan, asked: ResourcesConfig, workers: int, show: Callable[[int], object]
) -> Ended:
    """Label the missing shards with ``workers`` actors (0: as many as the cluster has room for now).

    Parameters
    ----------
    asked : ResourcesConfig
        What an actor asks for.
    show : callable
        Told the number of rows of every part written or found.

    Returns
    -------
    Ended
        Shards that failed are in its ``errors``; the others are written.

    Raises
    ------
    UserError
        No Ray, no cluster, no machine with what an actor asks for, or a model that cannot be loaded.
    """
    ray = connect()
    missing = missing_parts(job.out, plan, job.key)
    ended = Ended(kept=plan.rows - sum(shard.rows for shard in missing))
    show(ended.kept)
    if not missing:
        return ended
    options = amounts(ray, "a worker", asked)
    room = room_for(ray, options)
    job = replace(job, threads=options["num_cpus"])
    pool = _Pool(ray, ray.remote(Labeller).options(max_restarts=0, **options), job)
    for _ in range(min(workers or room, len(missing))):
        pool.add()
    try:
        _work(pool, Lanes(missing), ended, show)
    finally:
        if pool.asked:  # interrupted: what is being written may end
            ray.wait(list(pool.asked), num_returns=len(pool.asked), timeout=POLL_S)
        for actor in pool.actors.values():
            ray.kill(actor)
    return ended


def _work(pool: _Pool, lanes: Lanes, ended: Ended, show: Callable[[int], object]) -> None:
    """Hand out shards and take what comes back, until none is left."""
    ray = pool.ray
    losses: Counter[int] = Counter()
    while lanes.left or pool.asked:
        pool.feed(lanes)
        done, _ = ray.wait([*pool.asked, *pool.loading], timeout=POLL_S)
        for ref in done:
            if ref in pool.loading:
                number, shard = pool.loading.pop(ref), None
            elif ref in pool.asked:
                number, shard = pool.asked[ref]
            else:
                continue
            try:
                result = ray.get(ref)
            except ray.exceptions.RayError as error:
                first = next(iter(pool.lose(number, lanes)), None)
                blamed = -1 if first is None else first.index
                losses[blamed] += 1
                if losses[blamed] >= LOSSES:
                    if first is None:
                        raise UserError(f"workers die before they have the model loaded: {error}") from error
                    lanes.drop(first)
                    ended.errors[first.index] = f"lost {LOSSES} workers over it"
                pool.add()
                continue
            if shard is None:
                if result:
                    raise UserError(result)
                continue
            del pool.asked[ref]
            rows, wrong = result
            if wrong:
                ended.errors[shard.index] = wrong
            else:
                ended.rows += rows
                show(rows)
