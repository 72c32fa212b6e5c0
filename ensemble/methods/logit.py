"""The features of stackers, and the linear one: multinomial logit on log-probabilities.

Stackers are models of the members' predictions, flexible enough to need honest cross-fitting. Where the
task declares that classes change place when a pair is swapped, a stacker decides inside its training
rows whether that symmetry helps: members that favour one position are themselves not symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from data.softmax import softmax
from ensemble.methods.base import Blender, Swap, Training
from ensemble.methods.registry import register
from ensemble.solvers.designs import BlockDesign
from ensemble.solvers.newton import Path, SoftmaxProblem, choose_strength, minimise
from ensemble.solvers.numbers import PROB_FLOOR, as_weights, log_probs, useful_floors

_FREE_INTERCEPT = 1e-3
STRENGTHS = (3000.0, 300.0, 30.0, 3.0, 0.3)
"""Penalties tried inside the training rows, in units of rows, strong to weak."""
MOST_COEFFICIENTS = 5000
"""Beyond, rows that could tell them apart are not to be had."""
SQUARE_LIMIT = 8
"""Members times classes up to which products of features are worth their number."""


def stack_features(P: np.ndarray, kind: str = "log", floor: float = PROB_FLOOR) -> np.ndarray:
    """Features (n, d) of members' predictions (n, members, K).

    Parameters
    ----------
    P : ndarray of shape (n, members, K)
    kind : {"log", "log+prob", "square"}
        Log-probabilities centred over classes, member by member; "log+prob" adds the probabilities;
        "square" adds to these the products of every two of them.
    floor : float
        Lower probabilities are taken as this before the logarithm.
    """
    logs = log_probs(P, floor)
    logs = (logs - logs.mean(axis=2, keepdims=True)).reshape(len(P), -1)
    if kind == "log":
        return logs
    features = np.concatenate([logs, P.reshape(len(P), -1)], axis=1)
    if kind == "square":
        first, second = np.triu_indices(features.shape[1])
        features = np.concatenate([features, features[:, first] * features[:, second]], axis=1)
    return features


@dataclass
class MultinomialLogit(Blender):
    """Multinomial logistic regression on the members' log-probabilities.

    The penalty draws not to zero but to the geometric mean of the members. Its strength, the floor under
    probabilities, whether these join the log-probabilities, where they are few whether products of two
    do, and whether both orders of a pair are fitted and averaged,
    are chosen by grouped cross-validation inside the training rows.

    Parameters
    ----------
    swap : tuple of int, optional
        The permutation of classes when a pair is swapped; ``None`` where there is none.
    n_folds, seed : int
        Of the inner cross-validation.

    Attributes
    ----------
    coef_ : ndarray of shape (K, d)
    intercept_ : ndarray of shape (K,)
    features_ : {"log", "log+prob", "square"}
    floor_ : float
    symmetric_ : bool
    strength_ : float
    oof_ : ndarray of shape (n, K)

    Notes
    -----
    Wolpert, *Stacked generalization* (1992); Ting and Witten, *Issues in stacked generalization*
    (JAIR 1999) for linear models over class probabilities.
    """

    swap: Swap = None
    n_folds: int = 5
    seed: int = 0
    fitted: ClassVar[tuple[str, ...]] = (
        "coef_",
        "intercept_",
        "features_",
        "floor_",
        "symmetric_",
        "strength_",
    )

    def fit_on(self, data: Training) -> Self:
        """Choose and fit; see :meth:`Blender.fit`."""
        P, targets, weights, n = data.P, data.targets, data.weights, len(data.P)
        folds = data.folds(self.n_folds, self.seed)

        def attempt(kind: str, floor: float, symmetric: bool) -> tuple[Path, str, float, bool]:
            problem, _ = self._problem(P, targets, weights, kind, floor, symmetric)
            repeated = np.concatenate([folds, folds]) if symmetric else folds
            many = kind == "square"  # of so many products no weak penalty was ever the best
            path = choose_strength(problem, repeated, STRENGTHS[: 3 if many else None], slice(0, n), many)
            return path, kind, floor, symmetric

        best = min((attempt("log", floor, False) for floor in useful_floors(P)), key=lambda a: a[0].loss)
        kinds = ("log+prob", "square") if P[0].size <= SQUARE_LIMIT else ("log+prob",)
        best = min((best, *(attempt(kind, best[2], False) for kind in kinds)), key=lambda a: a[0].loss)
        if self.swap is not None:
            best = min((best, attempt(best[1], best[2], True)), key=lambda a: a[0].loss)
        path, self.features_, self.floor_, self.symmetric_ = best
        self.strength_, self.oof_ = path.strength, path.oof
        return self._solve(P, targets, weights)

    def refit(self, P: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> MultinomialLogit:
        """Return a logit of the choices made here, fitted on other rows; it has no ``oof_``."""
        other = MultinomialLogit(self.swap, self.n_folds, self.seed)
        for name in ("features_", "floor_", "symmetric_", "strength_"):
            setattr(other, name, getattr(self, name))
        return other._solve(P, targets, as_weights(weights, len(P)), tolerance=1e-8)

    def _solve(
        self, P: np.ndarray, targets: np.ndarray, weights: np.ndarray, tolerance: float = 1e-12
    ) -> Self:
        """Fit the coefficients, the choices being made."""
        problem, (mean, scale) = self._problem(
            P, targets, weights, self.features_, self.floor_, self.symmetric_
        )
        theta = minimise(problem.penalised(self.strength_), tolerance=tolerance).reshape(P.shape[2], -1)
        self.coef_ = theta[:, :-1] / scale
        self.intercept_ = theta[:, -1] - self.coef_ @ mean
        return self

    def predict_on(self, P: np.ndarray) -> np.ndarray:
        """Return probabilities (n, K)."""
        probs = self._one_order(P)
        if self.symmetric_:
            order = list(self.swap or ())
            probs = (probs + self._one_order(P[:, :, order])[:, order]) / 2
        return probs

    def _one_order(self, P: np.ndarray) -> np.ndarray:
        features = stack_features(P, self.features_, self.floor_)
        return softmax(features @ self.coef_.T + self.intercept_)

    def _problem(
        self,
        P: np.ndarray,
        targets: np.ndarray,
        weights: np.ndarray,
        kind: str,
        floor: float,
        symmetric: bool,
    ) -> tuple[SoftmaxProblem, tuple[np.ndarray, np.ndarray]]:
        """The penalised regression on standardised features, and their mean and scale."""
        if symmetric:
            P, targets, weights = with_swapped(P, targets, weights, self.swap)
        n, n_members, n_classes = P.shape
        features = stack_features(P, kind, floor)
        mean, scale = features.mean(axis=0), features.std(axis=0)
        scale = np.where(scale > 1e-9, scale, 1.0)
        design = BlockDesign(np.concatenate([(features - mean) / scale, np.ones((n, 1))], axis=1), n_classes)
        # In the geometric mean, class k takes 1/M of each member's log-probability of k.
        centre = np.zeros((n_classes, design.features.shape[1]))
        for k in range(n_classes):
            own = np.arange(n_members) * n_classes + k
            centre[k, own] = scale[own] / n_members
            centre[k, -1] = centre[k, :-1] @ (mean / scale)
        ridge = np.ones_like(centre)
        ridge[:, -1] = _FREE_INTERCEPT
        return SoftmaxProblem(design, targets, weights, ridge.ravel(), centre.ravel()), (mean, scale)


register(
    "logit",
    80,
    lambda fitting: MultinomialLogit(fitting.swap, seed=fitting.seed).fit_on(fitting.data),
    affordable=lambda members, classes: classes * (members * classes + 1) <= MOST_COEFFICIENTS,
)


def with_swapped(
    P: np.ndarray, targets: np.ndarray, weights: np.ndarray, swap: Swap
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Append every row with its pair swapped; weights still sum to what they did."""
    order = list(swap or ())
    return (
        np.concatenate([P, P[:, :, order]]),
        np.concatenate([targets, targets[:, order]]),
        np.concatenate([weights, weights]) / 2,
    )
