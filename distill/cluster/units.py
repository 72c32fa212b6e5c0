"""Training units on a Ray cluster: each where its resources are free, again where a machine was lost.

Ray's scheduler decides where and when; what makes a second start safe is the unit itself, which goes on from
its last checkpoint. Its progress is read from the files that it writes anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import storage
from data.console.remote_code import remote_code_allowed
from data.files import make_directory
from distill.cluster.board import FAILED, FINISHED, Board
from distill.cluster.connect import amounts, connect
from distill.cluster.outcome import POLL_S, RETRIES, Outcome
from distill.cluster.watcher import Watcher
from distill.cluster.worker import attempt
from distill.runs.units import Unit

STOP_S = 20.0
"""How long stopped units may take to end by themselves."""
HOME = "units"
"""Directory beside the stores: a log a unit, and the summaries."""


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
        ref = task.options(name=unit.name, max_retries=RETRIES, **own).remote(
            unit, watcher, log, asked, remote_code_allowed()
        )
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
