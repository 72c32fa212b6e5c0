"""What every method shares: its inputs, and its form as JSON.

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
