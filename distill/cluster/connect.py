"""The one door to Ray: a cluster that is there, or one on this machine; and what it has to give.

Only this room imports Ray, and only in commands that were asked to.
"""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

from data import storage
from data.errors import UserError
from distill.config import ResourcesConfig

LAST_CLUSTER = Path("/tmp/ray/ray_current_cluster")
CPUS_BESIDE_A_GPU = 4
WORKPLACE = "DISTILLSTACK_WORKPLACE"
"""Where the command was started, for processes elsewhere."""
KEYS = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
MISSING = "--launcher ray needs Ray, which is not installed: pip install 'distillstack[ray]'"


def connect() -> Any:
    """Return Ray's module, connected to ``RAY_ADDRESS``, a cluster started on this machine, or a new one.

    Raises
    ------
    UserError
        Ray is not installed, or no cluster answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(MISSING) from error
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or ("local" if _is_stale(LAST_CLUSTER) else None)
        try:
            # Mirrors must have the same paths everywhere; credentials stay each machine's own.
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {storage.SCRATCH: str(storage.scratch()), WORKPLACE: os.getcwd()}},
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"no Ray cluster answers at {address or 'this machine'}: {error}; "
                "if it asks for a token, set RAY_AUTH_MODE=token here, too"
            ) from error
    return ray


def go_to_workplace() -> None:
    """Go to the directory of the command that asked for this process, where it exists, so that paths hold."""
    place = os.environ.get(WORKPLACE, "")
    if os.path.isdir(place):
        os.chdir(place)


def _is_stale(note: Path) -> bool:
    """Whether Ray's note of this machine's last cluster names one that is gone, for which Ray would wait."""
    try:
        host, _, port = note.read_text(encoding="utf-8").strip().rpartition(":")
        socket.create_connection((host, int(port)), timeout=2).close()
    except (OSError, ValueError):
        return note.exists()
    return False


def amounts(ray: Any, what: str, asked: ResourcesConfig) -> dict[str, Any]:
    """Return what to ask of Ray: the recipe's ``resources``, and defaults for what they leave open.

    On a CPU as many threads as this process uses, since the last bits of a sum depend on their number.

    Parameters
    ----------
    what : str
        Who asks, for the message.

    Returns
    -------
    dict
        ``num_cpus`` (whole), ``num_gpus`` and ``memory`` (bytes, or None).

    Raises
    ------
    UserError
        No machine of the cluster has as much.
    """
    import torch

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = asked.gpus if asked.gpus is not None else float(any(node.get("GPU") for node in found))
    cpus = asked.cpus or (CPUS_BESIDE_A_GPU if gpus >= 1 else 1 if gpus else torch.get_num_threads())
    memory = None if asked.memory_gb is None else int(asked.memory_gb * 2**30)
    if gpus > 1:
        raise UserError(
            f"{what}: a process has one GPU or a part of one, not {gpus:g}; set resources.processes"
        )
    wanted = {"num_cpus": cpus, "num_gpus": gpus, "memory": memory}
    if not room_for(ray, wanted):
        best = "; ".join(_named({name: node.get(key, 0) for name, key in KEYS.items()}) for node in found)
        raise UserError(
            f"{what} asks for {_named(wanted)}, which no machine of the cluster has ({best}); "
            "set resources.cpus, resources.gpus or resources.memory_gb of the model in the recipe"
        )
    return wanted


def room_for(ray: Any, wanted: dict[str, Any]) -> int:
    """How many of what is asked for the whole cluster can hold."""
    asked = {KEYS[name]: value for name, value in wanted.items() if value}
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(key, 0) / value) for key, value in asked.items()) for node in found)


def _named(wanted: dict[str, Any]) -> str:
    parts = [f"{value:g} {KEYS[name]}" for name, value in wanted.items() if value and name != "memory"]
    parts += [f"{wanted['memory'] / 2**30:.1f} GiB of memory"] if wanted.get("memory") else []
    return ", ".join(parts)
