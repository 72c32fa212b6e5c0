"""Greedy ensemble selection, kept for comparison: it approaches what the simplex blend solves exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from ensemble.methods.base import Blender
from ensemble.solvers.numbers import LOSS_FLOOR, as_targets, as_weights


@dataclass
class GreedySelection(Blender):
    """Add members one at a time, with replacement, each time the one that lowers the mean's loss most.

    Parameters
    ----------
    n_picks : int
        Members added; the best mean on the way is kept.

    Attributes
    ----------
    weights_ : ndarray of shape (members,)
        Shares of the picks.

    Notes
    -----
    Caruana, Niculescu-Mizil, Crew and Ksikes, *Ensemble selection from libraries of models* (ICML 2004).
    """

    n_picks: int = 100
    fitted: ClassVar[tuple[str, ...]] = ("weights_",)

    def fit(
        self,
        P: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> Self:
        """Pick members; see :meth:`Blender.fit`."""
        n, n_members, n_classes = P.shape
        targets, weights = as_targets(y, n_classes), as_weights(sample_weight, n)
        row, label = np.nonzero(targets)
        likelihoods, shares = P[row, :, label], weights[row] * targets[row, label]
        total = np.zeros(len(row))
        counts, best, best_loss = np.zeros(n_members), np.zeros(n_members), np.inf
        for picks in range(1, self.n_picks + 1):
            mixtures = np.maximum((total[:, None] + likelihoods) / picks, LOSS_FLOOR)
            losses = -(shares @ np.log(mixtures))
            chosen = int(losses.argmin())
            counts[chosen] += 1
            total += likelihoods[:, chosen]
            if losses[chosen] < best_loss:
                best, best_loss = counts / picks, float(losses[chosen])
        self.weights_ = best
        return self

    def predict_proba(self, P: np.ndarray) -> np.ndarray:
        """Return the mean of the picks (n, K)."""
        return np.einsum("nmk,m->nk", P, self.weights_)
