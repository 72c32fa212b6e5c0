"""How fast a device is, for estimates: cards by their makers' figures, the rest by a short product.

Speeds are dense 16-bit matrix products on a card, 32-bit ones on a CPU, in operations a second. The rates
that were measured on one H200 are scaled by a card's speed over the H200's; a CPU's follow from its product.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass

import torch

CARDS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "L4": 121e12,
    "V100": 112e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""By a part of the name that the driver gives; the first that fits. Float16 where a card has no bfloat16."""
OF_THE_TABLE = 0.75
"""What a large product reaches of the makers' figure: an unknown card's product is divided by it."""
PROBE_S = 0.3


@dataclass(frozen=True)
class Device:
    """What units are estimated for.

    Attributes
    ----------
    name : str
    on_gpu : bool
    speed : float
        Operations a second.
    how : str
        How the speed is known.
    """

    name: str
    on_gpu: bool
    speed: float
    how: str

    @property
    def over_h200(self) -> float:
        """How fast it is where an H200 is one."""
        return self.speed / H200.speed


H200 = Device("one H200", True, CARDS["H200"], "its maker")
"""Where the project's own rates were measured; also stands for the unknown cards of a cluster."""


def device_here() -> Device:
    """Return the device that a command started here trains on: the first CUDA card, or the CPU."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        known = next((speed for part, speed in CARDS.items() if part in name), None)
        if known is not None:
            return Device(name, True, known, "its maker")
        return Device(name, True, product_speed("cuda", torch.float16, 4096) / OF_THE_TABLE, "a product here")
    return cpu_here()


def cpu_here() -> Device:
    """Return this machine's CPU, by a product of its own."""
    threads = torch.get_num_threads()
    name = f"this machine's CPU ({platform.machine()}, {threads} thread{'s' * (threads > 1)})"
    return Device(name, False, product_speed("cpu", torch.float32, 512), "a product here")


def product_speed(device: str, dtype: torch.dtype, size: int) -> float:
    """Operations a second of square matrix products, over a third of a second."""
    a = torch.ones(size, size, device=device, dtype=dtype)

    def multiply() -> float:
        started = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    multiply()  # the first also loads what it needs
    ended, seconds = time.perf_counter() + PROBE_S, [multiply()]
    while time.perf_counter() < ended:
        seconds.append(multiply())
    return 2 * size**3 * len(seconds) / sum(seconds)
