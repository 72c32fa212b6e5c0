"""Workers of a pool that share the GPUs of a machine."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path


def take_card() -> None:
    """Put this worker on one GPU of those that its pool's processes share; nothing where there is none."""
    cards = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if cards == [""]:
        cards = [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
    if cards:
        number = multiprocessing.current_process()._identity[-1]
        os.environ["CUDA_VISIBLE_DEVICES"] = cards[number % len(cards)]
