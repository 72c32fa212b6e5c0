"""The second level: stackers of different kinds averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from ensemble.methods.base import Blender, Known, Swap
from ensemble.methods.blend import LogOpinionPool, SimplexBlend
from ensemble.methods.calibrate import CalibratedPool
from ensemble.methods.logit import MultinomialLogit
from ensemble.methods.mlp import MLPStacker
from ensemble.methods.trees import LightGBMStacker

PSEUDO_ROWS = 4.0
"""Rows that draw the weights of stackers to equal ones."""


@dataclass
class AverageStacker(Blender):
    """A mean of stackers of different kinds, which err in different places.

    Equal weights of logit, trees and networks by default. With ``weighted``, the simplex blend of their
    cross-fitted predictions, drawn a little to equal weights, of the pool too and of each kind of trees.

    Parameters
    ----------
    swap : tuple of int, optional
    weighted : bool
    n_folds, seed : int

    Attributes
    ----------
    members_ : list of Blender
    shares_ : ndarray of shape (stackers,)
    oof_ : ndarray of shape (n, K)
    """

    swap: Swap = None
    weighted: bool = False
    n_folds: int = 5
    seed: int = 0
    fitted: ClassVar[tuple[str, ...]] = ("members_", "shares_")

    def fit(
        self,
        P: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> Self:
        """Fit the logit, the trees and the networks; see :meth:`Blender.fit`."""
        pool = LogOpinionPool(None, self.n_folds, self.seed).fit(P, y, sample_weight, groups)
        logit = MultinomialLogit(self.swap, self.n_folds, self.seed).fit(P, y, sample_weight, groups)
        trees = LightGBMStacker(self.swap, n_folds=self.n_folds, seed=self.seed)
        trees.fit(P, y, sample_weight, groups, start=pool, logit=logit)
        calibrated = CalibratedPool(self.n_folds, self.seed).fit(P, y, sample_weight, groups)
        networks = MLPStacker(n_folds=self.n_folds, seed=self.seed)
        networks.fit(P, y, sample_weight, groups, start=pool)
        parts: list[Blender] = (
            [pool, calibrated, logit, networks, *trees.parted()]
            if self.weighted
            else [logit, trees, networks]
        )
        return self.fit_from(parts, y, sample_weight)

    def fit_from(
        self, members: list[Blender], y: np.ndarray, sample_weight: np.ndarray | None = None
    ) -> Self:
        """Average stackers already fitted on the same rows."""
        self.members_ = members
        held_out = np.stack([member.oof_ for member in members], axis=1)  # type: ignore[attr-defined]
        self.shares_ = np.full(len(members), 1 / len(members))
        if self.weighted:
            self.shares_ = SimplexBlend(PSEUDO_ROWS / len(held_out)).fit(held_out, y, sample_weight).weights_
        self.oof_ = np.einsum("nsk,s->nk", held_out, self.shares_)
        return self

    @classmethod
    def of(cls, members: list[Blender]) -> AverageStacker:
        """The equal average of methods already fitted, which has no ``oof_``."""
        found = cls()
        found.members_, found.shares_ = members, np.full(len(members), 1 / len(members))
        return found

    @property
    def needs_rows(self) -> bool:
        """Whether a stacker that counts does."""
        shares = zip(self.shares_, self.members_, strict=True)
        return any(share > 0 and member.needs_rows for share, member in shares)

    def predict_proba(self, P: np.ndarray, X: np.ndarray | None = None) -> np.ndarray:
        """Return the mean of the stackers' probabilities (n, K)."""
        return self._predict(P, X, {})

    def _predict(self, P: np.ndarray, X: np.ndarray | None, known: Known) -> np.ndarray:
        total = np.zeros((len(P), P.shape[2]))
        for share, member in zip(self.shares_, self.members_, strict=True):
            if share > 0:
                total += share * member.predict(P, X, known)
        return total
