"""Blends of at most one parameter a member: the best single, means and the simplex blend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from data.softmax import softmax
from ensemble.methods.base import Blender, Training
from ensemble.methods.registry import register
from ensemble.solvers.numbers import (
    LOSS_FLOOR,
    cross_entropy,
    log_probs,
)
from ensemble.solvers.simplex import solve_simplex, with_prior


@dataclass
class BestSingle(Blender):
    """The one member of least loss on the training rows, alone.

    Attributes
    ----------
    weights_ : ndarray of shape (members,)
        One for the chosen member, zero for the others.
    """

    fitted: ClassVar[tuple[str, ...]] = ("weights_",)

    def fit_on(self, data: Training) -> Self:
        """Choose the member; see :meth:`Blender.fit`."""
        members = range(data.P.shape[1])
        losses = [data.weights @ cross_entropy(data.P[:, m], data.targets) for m in members]
        self.weights_ = np.eye(len(losses))[int(np.argmin(losses))]
        return self

    def predict_on(self, P: np.ndarray) -> np.ndarray:
        """Return the chosen member's probabilities (n, K)."""
        return _mix(P, self.weights_)


register("best single", 10, lambda fitting: BestSingle().fit_on(fitting.data))


@dataclass
class EqualMean(Blender):
    """The arithmetic mean of the members' probabilities: the blend every other must beat."""

    fitted: ClassVar[tuple[str, ...]] = ("weights_",)

    def fit_on(self, data: Training) -> Self:
        """Learn the number of members; see :meth:`Blender.fit`."""
        n_members = data.P.shape[1]
        self.weights_ = np.full(n_members, 1 / n_members)
        return self

    def predict_on(self, P: np.ndarray) -> np.ndarray:
        """Return the mean (n, K)."""
        return _mix(P, self.weights_)


register("mean", 20, lambda fitting: EqualMean().fit_on(fitting.data), calibrated=True)


@dataclass
class GeometricMean(EqualMean):
    """The normalised geometric mean of the members' probabilities: equal weights on log-probabilities."""

    def predict_on(self, P: np.ndarray) -> np.ndarray:
        """Return the normalised geometric mean (n, K)."""
        return softmax(np.einsum("nmk,m->nk", log_probs(P), self.weights_))


register("geometric mean", 30, lambda fitting: GeometricMean().fit_on(fitting.data))


@dataclass
class SimplexBlend(Blender):
    """The mixture of members of greatest likelihood: weights that are non-negative and sum to 1.

    Parameters
    ----------
    shrinkage : float
        Pseudo-rows per row that draw the weights to equal ones (a symmetric Dirichlet prior); 0 is the
        plain maximum-likelihood blend.

    Attributes
    ----------
    weights_ : ndarray of shape (members,)
    gap_ : float
        Certified upper bound of what any other weights could still gain in-sample, in nats: of the mean loss
        less ``shrinkage`` times the mean log weight.
    n_iter_ : int

    Notes
    -----
    Fitted by :func:`ensemble.solvers.simplex.solve_simplex` (mixSQP). Greedy selection (Caruana 2004) and
    hill climbing approximate the same optimum. At many near-equal members and few rows the equal mean wins.
    """

    shrinkage: float = 0.0
    fitted: ClassVar[tuple[str, ...]] = ("weights_", "gap_")

    def fit_on(self, data: Training) -> Self:
        """Fit the weights; see :meth:`Blender.fit`."""
        row, label = np.nonzero(data.targets)  # a soft target is a row for each class it gives weight to
        likelihoods = np.maximum(data.P[row, :, label], LOSS_FLOOR)
        weights = data.weights[row] * data.targets[row, label]
        solution = solve_simplex(*with_prior(likelihoods, weights, self.shrinkage))
        self.weights_, self.n_iter_ = solution.weights, solution.iterations
        self.gap_ = solution.gap * (1 + self.shrinkage)
        return self

    def predict_on(self, P: np.ndarray) -> np.ndarray:
        """Return the weighted mean (n, K)."""
        return _mix(P, self.weights_)


register("simplex", 40, lambda fitting: SimplexBlend().fit_on(fitting.data))


def _mix(P: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.einsum("nmk,m->nk", P, weights)
