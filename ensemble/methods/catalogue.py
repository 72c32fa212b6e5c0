"""The methods a stack tries, fitted together so that what they share is fitted once."""

from __future__ import annotations

import numpy as np

from ensemble.methods import average, blend, calibrate, logit, mlp, sliced, trees  # noqa: F401 (they register)
from ensemble.methods.base import Blender, Swap, Training
from ensemble.methods.calibrate import Calibrated
from ensemble.methods.registry import Fitting, registered

TEMPERATURE = "+temperature"
CALIBRATION = "+calibration"
METHODS = tuple(
    name + suffix
    for name, method in registered().items()
    for suffix in ("", TEMPERATURE, CALIBRATION)
    if suffix != CALIBRATION or method.calibrated
)
"""Names of all methods, simplest first."""

AVERAGE = "average of the best"
"""The name of the mean of several methods, where the rows cannot tell which of these is best."""


def family(name: str) -> str:
    """The method's name without its calibration."""
    return name.removesuffix(TEMPERATURE).removesuffix(CALIBRATION)


def fit_methods(
    P: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray | None = None,
    swap: Swap = None,
    seed: int = 0,
    sample_weight: np.ndarray | None = None,
    X: np.ndarray | None = None,
) -> dict[str, Blender]:
    """Fit every method on members' predictions (n, members, K); returns them by name, in METHODS' order.

    ``X`` are features of the rows themselves (n, d), for the methods that can use them.
    """
    data = Training.of(P, y, sample_weight, groups, X)
    fitting = Fitting(data, swap, seed)
    methods: dict[str, Blender] = {}
    for name, method in registered().items():
        methods[name] = fitting[name]
        methods[name + TEMPERATURE] = Calibrated(fitting[name]).fit_after(data)
        if method.calibrated:
            methods[name + CALIBRATION] = Calibrated(fitting[name], "best").fit_after(data)
    return methods
