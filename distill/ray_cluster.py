"""The one door to Ray: a cluster that is there, or one on this machine; and what it has to give.

Only the modules named ``ray_*`` import Ray, and only commands that were asked to import them.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from data import storage
from data.errors import UserError

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
        address = os.environ.get("RAY_ADDRESS")
        try:
            # Mirrors must have the same paths everywhere; credentials stay each machine's own.
            ray.init(
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {storage.SCRATCH: str(storage.scratch())}},
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"no Ray cluster answers at {address or 'this machine'}: {error}") from error
    return ray


def nodes(ray: Any) -> list[dict[str, float]]:
    """Resources of every machine that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def require(ray: Any, what: str, asked: dict[str, float]) -> None:
    """Refuse what no machine of the cluster could ever give.

    Parameters
    ----------
    what : str
        Who asks, for the message.
    asked : dict
        Amounts of ``CPU``, ``GPU`` and ``memory`` (bytes).
    """
    found = nodes(ray)
    if any(all(node.get(key, 0) >= value for key, value in asked.items()) for node in found):
        return
    wanted = ", ".join(_amount(key, value) for key, value in asked.items() if value)
    best = "; ".join(", ".join(_amount(key, node.get(key, 0)) for key in asked) for node in found)
    raise UserError(f"{what} asks for {wanted}, which no machine of the cluster has ({best})")


def _amount(key: str, value: float) -> str:
    return f"{value / 2**30:.1f} GiB of memory" if key == "memory" else f"{value:g} {key}"
