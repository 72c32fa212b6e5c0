"""What every method shares: its inputs, its form as JSON, and log-probabilities.

A method is a scikit-learn style estimator over the predictions of several members: ``P`` has shape
(rows, members, classes). Constructor arguments are dataclass fields; what ``fit`` learns ends in ``_``.
A fitted method goes to JSON and back to the same numbers, so nothing is ever pickled.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any, ClassVar, Self

import numpy as np

PROB_FLOOR = 1e-7
"""Probabilities below this are taken as this where a logarithm becomes a feature."""
FLOORS = (1e-3, 1e-2)
"""Higher floors for logarithms, tried inside the training rows; see :func:`useful_floors`."""
LOSS_FLOOR = 1e-15
"""Probabilities below this are taken as this in a log-loss, which stays finite (as scikit-learn's did)."""

Swap = tuple[int, ...] | None
Known = dict[Hashable, np.ndarray]
"""What has been predicted of the same rows: by the ``id`` of a method, or by trees as text."""


class Blender(ABC):
    """A method that turns members' predictions (n, members, K) into one prediction (n, K).

    Attributes
    ----------
    oof_ : ndarray of shape (n, K)
        Only on methods flexible enough to fit noise: predictions of the training rows by models that
        did not see them. Whatever is fitted on top of such a method is fitted on these.
    """

    fitted: ClassVar[tuple[str, ...]] = ()
    """Names of the fitted attributes that prediction needs."""

    @abstractmethod
    def fit(
        self,
        P: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> Self:
        """Fit on members' predictions ``P`` (n, members, K).

        Parameters
        ----------
        P : ndarray of shape (n, members, K)
            Probabilities.
        y : ndarray of shape (n,) or (n, K)
            Class indices, or a target distribution a row.
        sample_weight : ndarray of shape (n,), optional
        groups : ndarray of shape (n,), optional
            Rows of one group are never parted by cross-validation inside the method.
        """

    @property
    def needs_rows(self) -> bool:
        """Whether prediction also needs the rows' own features ``X``, as the second argument."""
        return False

    def predict(self, P: np.ndarray, X: np.ndarray | None, known: Known | None = None) -> np.ndarray:
        """Return probabilities (n, K), from the rows' own features (n, d) too where the method needs them.

        Methods made of others share what these predict of the same rows where they are given the same
        ``known``, a dictionary that is empty at first.
        """
        known = {} if known is None else known
        if id(self) not in known:
            known[id(self)] = self._predict(P, X, known)
        return known[id(self)]

    def _predict(self, P: np.ndarray, X: np.ndarray | None, known: Known) -> np.ndarray:
        """:meth:`predict` itself; methods made of others override it and take theirs from ``known``."""
        return self.predict_proba(P, X) if self.needs_rows else self.predict_proba(P)  # type: ignore[call-arg]

    @abstractmethod
    def predict_proba(self, P: np.ndarray) -> np.ndarray:
        """Return probabilities of shape (n, K)."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fitted method as JSON values."""
        params = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        state = {name: _encode(getattr(self, name)) for name in self.fitted}
        return {"kind": type(self).__name__, "params": params, "fitted": state}

    def crossfitted(self, P: np.ndarray) -> np.ndarray:
        """Predictions of the training rows ``P`` that a second fit may be based on, shape (n, K)."""
        oof = getattr(self, "oof_", None)
        return self.predict_proba(P) if oof is None else oof


def _encode(value: Any) -> Any:
    if isinstance(value, Blender):
        return value.to_dict()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    return value


def log_probs(P: np.ndarray, floor: float = PROB_FLOOR) -> np.ndarray:
    """Logarithm of probabilities, floored at ``floor``."""
    return np.log(np.maximum(P, floor))


def useful_floors(P: np.ndarray) -> tuple[float, ...]:
    """The floors worth trying on ``P``: the lowest, and each that at least one row in a thousand is under.

    A member that says 0 where it means "seldom" (a forest, neighbours) makes an outlier of its
    logarithm, which a linear method pays for; where to floor is chosen like any other penalty.
    """
    lowest = P.min(axis=(1, 2))
    return (PROB_FLOOR, *(floor for floor in FLOORS if np.mean(lowest < floor) > 1e-3))


def over_classes(operation: np.ufunc, values: np.ndarray) -> np.ndarray:
    """Reduce the last axis class by class, which is 6 times as fast as NumPy's own way for three classes."""
    found = values[..., 0].copy()
    for k in range(1, values.shape[-1]):
        operation(found, values[..., k], out=found)
    return found


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    exp = np.exp(logits - over_classes(np.maximum, logits)[..., None])
    exp /= over_classes(np.add, exp)[..., None]
    return exp


def as_targets(y: np.ndarray, n_classes: int) -> np.ndarray:
    """Return target distributions (n, K) from class indices (n,) or distributions (n, K)."""
    y = np.asarray(y)
    if y.ndim == 2:
        return y.astype(np.float64, copy=False)
    return np.eye(n_classes)[y.astype(np.int64)]


def as_weights(sample_weight: np.ndarray | None, n: int) -> np.ndarray:
    """Return row weights that sum to 1, shape (n,)."""
    if sample_weight is None:
        return np.full(n, 1.0 / n)
    weights = np.asarray(sample_weight, dtype=np.float64)
    return weights / weights.sum()


def with_error(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Mean of ``values`` (n,) and its standard error, under weights that sum to 1."""
    mean = float(weights @ values)
    return mean, float(np.sqrt(np.sum((weights * (values - mean)) ** 2)))


def cross_entropy(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Log-loss of each row, shape (n,), in nats; targets are distributions (n, K)."""
    return -over_classes(np.add, targets * np.log(np.maximum(probs, LOSS_FLOOR)))
