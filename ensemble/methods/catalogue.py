"""The methods a stack tries, fitted together so that what they share is fitted once."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensemble.methods.average import AverageStacker
from ensemble.methods.base import Blender, Swap
from ensemble.methods.blend import BestSingle, EqualMean, GeometricMean, LogOpinionPool, SimplexBlend
from ensemble.methods.calibrate import Calibrated, CalibratedPool
from ensemble.methods.logit import MultinomialLogit
from ensemble.methods.mlp import MLPStacker
from ensemble.methods.sliced import SlicedPool
from ensemble.methods.trees import LightGBMStacker

PLAIN = (
    "best single",
    "mean",
    "geometric mean",
    "simplex",
    "log-pool",
    "calibrated pool",
    "pool by slice",
    "logit",
    "lightgbm",
    "mlp",
    "calibrated pool+lightgbm",
    "logit+lightgbm",
    "logit+lightgbm+mlp",
    "weighted stackers",
)
"""Method names, simplest first; ties in the choice go to the simpler."""
TEMPERATURE = "+temperature"
CALIBRATION = "+calibration"
CALIBRATED = ("mean", "log-pool", "logit+lightgbm+mlp")
"""Methods that are tried with the best of all calibrations too; on every one it would crowd the table."""
METHODS = tuple(
    name + suffix
    for name in PLAIN
    for suffix in ("", TEMPERATURE, CALIBRATION)
    if suffix != CALIBRATION or name in CALIBRATED
)

AVERAGE = "average of the best"
"""The name of the mean of several methods, where the rows cannot tell which of these is best."""


def family(name: str) -> str:
    """The method's name without its calibration."""
    return name.removesuffix(TEMPERATURE).removesuffix(CALIBRATION)


_KINDS: dict[str, type[Blender]] = {
    kind.__name__: kind
    for kind in (
        BestSingle,
        EqualMean,
        GeometricMean,
        SimplexBlend,
        LogOpinionPool,
        MultinomialLogit,
        LightGBMStacker,
        MLPStacker,
        AverageStacker,
        Calibrated,
        CalibratedPool,
        SlicedPool,
    )
}


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
    data = (P, y, sample_weight, groups)
    logit = MultinomialLogit(swap, seed=seed).fit(*data)
    pool = LogOpinionPool(seed=seed).fit(*data)
    sliced = SlicedPool(seed=seed).fit(*data, start=pool, X=X)
    trees = LightGBMStacker(swap, seed=seed).fit(*data, start=pool, logit=logit, X=X)
    calibrated = CalibratedPool(seed=seed).fit(*data)
    networks = MLPStacker(seed=seed).fit(*data, start=pool)

    def average(members: list[Blender], weighted: bool = False) -> AverageStacker:
        return AverageStacker(swap, weighted, seed=seed).fit_from(members, y, sample_weight)

    fitted: tuple[Blender, ...] = (
        BestSingle().fit(*data),
        EqualMean().fit(*data),
        GeometricMean().fit(*data),
        SimplexBlend().fit(*data),
        pool,
        calibrated,
        sliced,
        logit,
        trees,
        networks,
        average([calibrated, trees]),
        average([logit, trees]),
        average([logit, trees, networks]),
        average([pool, calibrated, sliced, logit, networks, *trees.parted()], True),
    )
    methods: dict[str, Blender] = {}
    for name, method in zip(PLAIN, fitted, strict=True):
        methods[name] = method
        methods[name + TEMPERATURE] = Calibrated(method).fit_after(*data)
        if name in CALIBRATED:
            methods[name + CALIBRATION] = Calibrated(method, "best").fit_after(*data)
    return methods


def from_dict(state: dict[str, Any]) -> Blender:
    """Rebuild a fitted method from what its ``to_dict`` returned.

    Raises
    ------
    KeyError
        The state is not that of a known method.
    """
    kind = _KINDS[state["kind"]]
    method = kind(**{name: _decode(value, False) for name, value in state["params"].items()})
    if isinstance(method, (Calibrated, CalibratedPool)):
        method.load_fitted(state["fitted"])
        return method
    for name, value in state["fitted"].items():
        setattr(method, name, _decode(value, True))
    return method


def _decode(value: Any, arrays: bool) -> Any:
    if isinstance(value, dict):
        return from_dict(value)
    if isinstance(value, list):
        if value and isinstance(value[0], dict):
            return [from_dict(item) for item in value]
        if not arrays:
            return tuple(value)
        if value and not isinstance(value[0], str):
            return np.asarray(value, dtype=np.float64)
    return value
