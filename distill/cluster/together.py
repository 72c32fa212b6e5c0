"""One unit by several processes, each with a GPU of its own: Ray Train places and joins them.

What they run is the unit as any process runs it; they share its steps as they do under ``torchrun``, since
Ray Train has joined them into one group before.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from data.console.remote_code import allow_remote_code, remote_code_allowed
from distill.cluster.connect import go_to_workplace
from distill.cluster.outcome import RETRIES, output_to, told
from distill.runs.units import Unit


def run_together(unit: Unit, asked: dict[str, Any], processes: int, watcher: Any, log: Path) -> str:
    """Run a unit by ``processes`` processes, again if some are lost; return its own error, if it has one.

    Parameters
    ----------
    asked : dict
        Of each process, as :func:`distill.cluster.connect.amounts` returns it.
    watcher : actor handle
        Where processes tell how they fail, so that an error is not taken for a loss.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    each = {"CPU": asked["num_cpus"], "GPU": asked["num_gpus"], "memory": asked["memory"] or 0}
    for start in range(RETRIES + 1):
        with tempfile.TemporaryDirectory(prefix="distillstack-train-") as place:
            trainer = TorchTrainer(
                _member,
                train_loop_config={
                    "unit": unit,
                    "watcher": watcher,
                    "log": log,
                    "threads": asked["num_cpus"],
                    "remote_code": remote_code_allowed(),
                },
                scaling_config=ScalingConfig(
                    num_workers=processes,
                    use_gpu=asked["num_gpus"] > 0,
                    resources_per_worker={key: value for key, value in each.items() if value},
                ),
                run_config=RunConfig(
                    name=f"start-{start}", storage_path=place, failure_config=FailureConfig(max_failures=0)
                ),
            )
            try:
                trainer.fit()
                return ""
            except Exception as error:
                if wrong := ray.get(watcher.wrong.remote(unit.name)):
                    return wrong
                print(f"{unit.name}: lost a process ({type(error).__name__}); starts again", flush=True)
    return f"lost a process {RETRIES + 1} times"


def _member(config: dict[str, Any]) -> None:
    """One process's part."""
    import ray
    import torch
    from torch import distributed

    unit: Unit = config["unit"]
    go_to_workplace()
    torch.set_num_threads(config["threads"])
    allow_remote_code(config["remote_code"])
    with output_to(config["log"]):
        rank, world = distributed.get_rank(), distributed.get_world_size()
        number = os.getpid()
        print(
            f"{time.strftime('%F %T')} {unit.name} is process {rank} of {world}, number {number}", flush=True
        )
        try:
            unit.run()
        except Exception as error:
            ray.get(config["watcher"].fail.remote(unit.name, told(error)))
            raise
