"""Calibration: one temperature or more, alone, after any other method, or of each member before a blend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from ensemble.methods.base import Blender, Known, Training
from ensemble.methods.pool import LogPool
from ensemble.methods.registry import register
from ensemble.methods.scalings import KINDS, LinearScaling
from ensemble.methods.temperature import TemperatureScaling, held_out_scaling
from ensemble.solvers.folds import inner_folds
from ensemble.solvers.numbers import as_targets, as_weights, cross_entropy, with_error

MATRIX_CLASSES = 10
"""Most classes for which a matrix is tried: its entries grow with their square."""
VECTOR_CLASSES = 30
"""Most classes for which a scale and a bias a class are tried."""


@dataclass
class Calibrated(Blender):
    """A method followed by calibration: one temperature, or what the training rows show to be better.

    It is fitted on the method's cross-fitted predictions of the training rows where the method is flexible
    enough to fit noise (it then has an ``oof_``), never on what it fitted itself to.

    Parameters
    ----------
    base : Blender
        The method, unfitted; :meth:`fit_after` takes a fitted one.
    kind : str
        ``temperature``, one of :data:`ensemble.methods.scalings.KINDS`, or ``best``: the temperature, unless
        one of these wins by more than its paired standard error in cross-validation inside the training rows.

    Attributes
    ----------
    temperature_ : float
    scaling_ : TemperatureScaling or LinearScaling
        The map, which may be more than that temperature.
    """

    base: Blender
    kind: str = "temperature"
    fitted: ClassVar[tuple[str, ...]] = ("temperature_", "scaling_")

    def fit_on(self, data: Training) -> Self:
        """Fit the method, then the calibration; see :meth:`Blender.fit`."""
        self.base.fit_on(data)
        return self.fit_after(data)

    def fit_after(self, data: Training) -> Self:
        """Fit the calibration alone, after a ``base`` already fitted on the same rows."""
        probs, y, sample_weight = self.base.crossfitted(data.P), data.targets, data.sample_weight
        plain = TemperatureScaling().fit_on(probs, y, sample_weight)
        better: LinearScaling | None = None
        if self.kind == "best":
            better = best_scaling(probs, y, sample_weight, data.groups)
        elif self.kind != "temperature":
            better = LinearScaling(self.kind).fit_on(probs, y, sample_weight, data.groups)
        self.temperature_ = plain.temperature_
        self.scaling_ = plain if better is None else better
        return self

    @property
    def needs_rows(self) -> bool:
        """Whether the method does."""
        return self.base.needs_rows

    def _predict(self, P: np.ndarray, X: np.ndarray | None, known: Known) -> np.ndarray:
        return self.scaling_.predict_on(self.base.predict_known(P, X, known))


def best_scaling(
    probs: np.ndarray,
    y: np.ndarray,
    sample_weight: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    kinds: tuple[str, ...] = KINDS,
) -> LinearScaling | None:
    """Choose a map by cross-validation; ``None`` where none credibly beats one temperature.

    Parameters
    ----------
    probs : ndarray of shape (n, K)
    y, sample_weight, groups
        As in :meth:`Blender.fit`.
    kinds : tuple of str
        Those to try; beyond :data:`MATRIX_CLASSES` classes only ``vector`` is, and none beyond
        :data:`VECTOR_CLASSES`.
    """
    n_classes = probs.shape[1]
    kinds = tuple(
        kind
        for kind in kinds
        if n_classes <= MATRIX_CLASSES or (kind == "vector" and n_classes <= VECTOR_CLASSES)
    )
    if not kinds:
        return None
    targets, weights = as_targets(y, n_classes), as_weights(sample_weight, len(probs))
    folds = inner_folds(targets, groups, 5, 0)
    plain = np.empty_like(targets)
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        scaling = TemperatureScaling().fit_on(probs[train], targets[train], weights[train])
        plain[test] = scaling.predict_on(probs[test])
    tried = [LinearScaling(kind).fit_on(probs, targets, weights, groups) for kind in kinds]
    best = min(tried, key=lambda scaling: scaling.loss_)
    gain = cross_entropy(plain, targets) - cross_entropy(best.oof_, targets)
    mean, error = with_error(gain, weights)
    return best if mean > error else None


@dataclass
class CalibratedPool(Blender):
    """A log-opinion pool of members that are each calibrated first.

    Every member gets its own temperature, or a curve of its log-probabilities where that credibly helps it:
    a member that is over-confident in one range alone is mended there, as no weight could. The pool is
    fitted on cross-fitted calibrations.

    Parameters
    ----------
    n_folds, seed : int
        Of the inner cross-validation.

    Attributes
    ----------
    scalings_ : list of TemperatureScaling or LinearScaling
        One a member.
    pool_ : LogPool
    oof_ : ndarray of shape (n, K)
    """

    n_folds: int = 5
    seed: int = 0
    fitted: ClassVar[tuple[str, ...]] = ("scalings_", "pool_")

    def fit_on(self, data: Training) -> Self:
        """Calibrate and pool; see :meth:`Blender.fit`."""
        P, targets, weights, groups = data.P, data.targets, data.weights, data.groups
        folds = data.folds(self.n_folds, self.seed)
        held_out = np.empty_like(P)
        self.scalings_: list[TemperatureScaling | LinearScaling] = []
        for m in range(P.shape[1]):
            curve = best_scaling(P[:, m], targets, weights, groups, ("spline",))
            if curve is None:
                held_out[:, m] = held_out_scaling(P[:, m], targets, weights, folds)
                self.scalings_.append(TemperatureScaling().fit_on(P[:, m], targets, weights))
            else:
                held_out[:, m] = curve.oof_
                self.scalings_.append(curve)
        self.pool_ = LogPool(None, self.n_folds, self.seed).fit(held_out, targets, weights, groups)
        self.oof_ = self.pool_.oof_
        return self

    def predict_on(self, P: np.ndarray) -> np.ndarray:
        """Return the pooled probabilities (n, K)."""
        mended = [scaling.predict_on(P[:, m]) for m, scaling in enumerate(self.scalings_)]
        return self.pool_.predict_on(np.stack(mended, axis=1))


register("calibrated pool", 60, lambda fitting: CalibratedPool(seed=fitting.seed).fit_on(fitting.data))
