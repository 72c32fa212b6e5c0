"""Blends with at most a handful of parameters: means, the simplex blend and the log-opinion pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from data.softmax import softmax
from ensemble.methods.base import Blender, Training
from ensemble.methods.registry import register
from ensemble.solvers.newton import Path, SharedDesign, SoftmaxProblem, choose_strength, minimise
from ensemble.solvers.numbers import (
    LOSS_FLOOR,
    PROB_FLOOR,
    as_weights,
    cross_entropy,
    log_probs,
    useful_floors,
)
from ensemble.solvers.simplex import solve_simplex, with_prior

STRENGTHS = (3000.0, 300.0, 30.0, 3.0, 0.3)
"""Penalties tried inside the training rows, in units of rows, strong to weak."""


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

    def predict_proba(self, P: np.ndarray) -> np.ndarray:
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

    def predict_proba(self, P: np.ndarray) -> np.ndarray:
        """Return the mean (n, K)."""
        return _mix(P, self.weights_)


register("mean", 20, lambda fitting: EqualMean().fit_on(fitting.data), calibrated=True)


@dataclass
class GeometricMean(EqualMean):
    """The normalised geometric mean of the members' probabilities: equal weights on log-probabilities."""

    def predict_proba(self, P: np.ndarray) -> np.ndarray:
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

    def predict_proba(self, P: np.ndarray) -> np.ndarray:
        """Return the weighted mean (n, K)."""
        return _mix(P, self.weights_)


register("simplex", 40, lambda fitting: SimplexBlend().fit_on(fitting.data))


@dataclass
class LogOpinionPool(Blender):
    r"""Weights on log-probabilities and a bias a class, :math:`p_k \propto e^{b_k} \prod_m p_{mk}^{w_m}`.

    Convex in its parameters; drawn to the geometric mean (weights :math:`1/M`, no bias) by a penalty
    chosen by cross-validation inside the training rows. Weights need not sum to one, so it also
    sharpens or softens. Where members' probabilities are floored before the logarithm is chosen likewise.

    Parameters
    ----------
    strength : float, optional
        Penalty in units of rows; chosen among :data:`STRENGTHS` by default.
    n_folds, seed : int
        Of the inner cross-validation.
    floor : float, optional
        Lower probabilities are taken as this; chosen among
        :func:`ensemble.solvers.numbers.useful_floors` by default.

    Attributes
    ----------
    weights_ : ndarray of shape (members,)
    bias_ : ndarray of shape (K,)
    strength_ : float
    floor_ : float
    oof_ : ndarray of shape (n, K)

    Notes
    -----
    Genest and Zidek, *Combining probability distributions* (Statistical Science 1986); Heskes,
    *Selecting weighting factors in logarithmic opinion pools* (NIPS 1997).
    """

    strength: float | None = None
    n_folds: int = 5
    seed: int = 0
    floor: float | None = None
    fitted: ClassVar[tuple[str, ...]] = ("weights_", "bias_", "strength_", "floor_")

    def fit_on(self, data: Training) -> Self:
        """Fit weights and biases; see :meth:`Blender.fit`."""
        folds = data.folds(self.n_folds, self.seed)
        strengths = STRENGTHS if self.strength is None else (self.strength,)
        best: tuple[Path, float, SoftmaxProblem] | None = None
        for floor in useful_floors(data.P) if self.floor is None else (self.floor,):
            problem = self._problem(data.P, data.targets, data.weights, floor)
            path = choose_strength(problem, folds, strengths)
            if best is None or path.loss < best[0].loss:
                best = path, floor, problem
        assert best is not None
        path, self.floor_, problem = best
        self.strength_, self.oof_ = path.strength, path.oof
        return self._solve(problem)

    def refit(self, P: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> LogOpinionPool:
        """Return a pool of the strength chosen here, fitted on other rows; it has no ``oof_``."""
        other = LogOpinionPool(self.strength, self.n_folds, self.seed)
        other.strength_, other.floor_ = self.strength_, self.floor_
        return other._solve(self._problem(P, targets, as_weights(weights, len(P)), self.floor_))

    def _problem(
        self, P: np.ndarray, targets: np.ndarray, weights: np.ndarray, floor: float = PROB_FLOOR
    ) -> SoftmaxProblem:
        n, n_members, n_classes = P.shape
        features = np.empty((n, n_classes, n_members + n_classes))
        features[:, :, :n_members] = log_probs(P, floor).transpose(0, 2, 1)
        features[:, :, n_members:] = np.eye(n_classes)
        centre = np.concatenate([np.full(n_members, 1 / n_members), np.zeros(n_classes)])
        return SoftmaxProblem(SharedDesign(features), targets, weights, np.ones(len(centre)), centre)

    def _solve(self, problem: SoftmaxProblem) -> Self:
        theta = minimise(problem.penalised(self.strength_))
        n_classes = problem.targets.shape[1]
        self.weights_, self.bias_ = theta[:-n_classes], theta[-n_classes:]
        return self

    def predict_proba(self, P: np.ndarray) -> np.ndarray:
        """Return the pooled probabilities (n, K)."""
        return softmax(np.einsum("nmk,m->nk", log_probs(P, self.floor_), self.weights_) + self.bias_)


register("log-pool", 50, lambda f: LogOpinionPool(seed=f.seed).fit_on(f.data), calibrated=True)


def _mix(P: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.einsum("nmk,m->nk", P, weights)
