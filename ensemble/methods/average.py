"""The second level: stackers of different kinds averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from ensemble.methods.base import Blender, Known, Swap, Training
from ensemble.methods.blend import SimplexBlend
from ensemble.methods.registry import Fitting, register

PSEUDO_ROWS = 4.0
"""Rows that draw the weights of stackers to equal ones."""


@dataclass
class AverageStacker(Blender):
    """A mean of stackers of different kinds, which err in different places.

    Equal weights by default. With ``weighted``, the simplex blend of their cross-fitted predictions, drawn a
    little to equal weights, of each kind of trees by itself.

    Parameters
    ----------
    names : tuple of str
        Registered methods to average; see :mod:`ensemble.methods.registry`.
    swap : tuple of int, optional
    weighted : bool
    seed : int

    Attributes
    ----------
    members_ : list of Blender
    shares_ : ndarray of shape (stackers,)
    oof_ : ndarray of shape (n, K)
    """

    names: tuple[str, ...] = ("logit", "lightgbm", "mlp")
    swap: Swap = None
    weighted: bool = False
    seed: int = 0
    fitted: ClassVar[tuple[str, ...]] = ("members_", "shares_")

    def fit_on(self, data: Training) -> Self:
        """Fit the stackers; see :meth:`Blender.fit`."""
        return self.fit_within(Fitting(data, self.swap, self.seed))

    def fit_within(self, fitting: Fitting) -> Self:
        """Average stackers that are fitted on the same rows, here or already."""
        members = [fitting[name] for name in self.names]
        if self.weighted:
            members = [part for member in members for part in member.parts()]
        return self.fit_from(members, fitting.data)

    def fit_from(self, members: Sequence[Blender], data: Training) -> Self:
        """Average stackers already fitted on the same rows."""
        self.members_ = list(members)
        held_out = np.stack([member.oof_ for member in members], axis=1)
        self.shares_ = np.full(len(members), 1 / len(members))
        if self.weighted:
            blend = SimplexBlend(PSEUDO_ROWS / len(held_out))
            self.shares_ = blend.fit(held_out, data.targets, data.sample_weight).weights_
        self.oof_ = np.einsum("nsk,s->nk", held_out, self.shares_)
        return self

    @classmethod
    def of(cls, members: dict[str, Blender], shares: Sequence[float]) -> AverageStacker:
        """Methods already fitted, each for its share; it has no ``oof_``."""
        found = cls(tuple(members))
        found.members_, found.shares_ = list(members.values()), np.array(shares)
        return found

    @property
    def needs_rows(self) -> bool:
        """Whether a stacker that counts does."""
        shares = zip(self.shares_, self.members_, strict=True)
        return any(share > 0 and member.needs_rows for share, member in shares)

    def _predict(self, P: np.ndarray, X: np.ndarray | None, known: Known) -> np.ndarray:
        total = np.zeros((len(P), P.shape[2]))
        for share, member in zip(self.shares_, self.members_, strict=True):
            if share > 0:
                total += share * member.predict_known(P, X, known)
        return total


def _register(name: str, rank: int, *names: str, weighted: bool = False, calibrated: bool = False) -> None:
    def build(fitting: Fitting) -> Blender:
        return AverageStacker(names, fitting.swap, weighted, fitting.seed).fit_within(fitting)

    register(name, rank, build, calibrated, needs=names)


_register("calibrated pool+lightgbm", 110, "calibrated pool", "lightgbm")
_register("logit+lightgbm", 120, "logit", "lightgbm")
_register("logit+lightgbm+mlp", 130, "logit", "lightgbm", "mlp", calibrated=True)
_register(
    "weighted stackers",
    140,
    *("log-pool", "calibrated pool", "pool by slice", "logit", "mlp", "lightgbm"),
    weighted=True,
)
