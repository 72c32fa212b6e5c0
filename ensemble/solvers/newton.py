r"""Penalised softmax regression, by Newton's method: the convex core of the log-opinion pool and the logit.

Minimises the weighted cross-entropy of :math:`\mathrm{softmax}(z)` against target distributions, where the
logits ``z`` (n, K) are linear in the parameters, plus a quadratic penalty that draws the parameters to a
chosen centre. Two designs make the logits: one vector of coefficients for all classes
(:class:`SharedDesign`) or one a class (:class:`BlockDesign`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from data.softmax import over_classes, softmax
from ensemble.solvers.numbers import cross_entropy, with_error

_NEWTON_LIMIT = 300
"""Parameters beyond which a Hessian costs more than the iterations it saves."""


class Design(Protocol):
    """A linear map from parameters (p,) to logits (n, K), its transpose and its curvature."""

    @property
    def size(self) -> int:
        """Number of parameters."""

    def take(self, rows: np.ndarray) -> Design:
        """The design of some rows."""

    def logits(self, theta: np.ndarray) -> np.ndarray:
        """Logits (n, K) at ``theta``."""

    def pullback(self, residual: np.ndarray) -> np.ndarray:
        """The transpose: from (n, K) to (p,)."""

    def curvature(self, probs: np.ndarray, row_weights: np.ndarray) -> np.ndarray:
        """Sum over rows of w X' (diag(p) - p p') X, shape (p, p)."""


@dataclass(frozen=True)
class SharedDesign:
    """Coefficients shared by the classes: features of shape (n, K, p)."""

    features: np.ndarray

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.features.shape[2]

    def take(self, rows: np.ndarray) -> SharedDesign:
        """The design of some rows."""
        return SharedDesign(self.features[rows])

    def logits(self, theta: np.ndarray) -> np.ndarray:
        """Logits (n, K)."""
        return self.features @ theta

    def pullback(self, residual: np.ndarray) -> np.ndarray:
        """Gradient with respect to the parameters (p,)."""
        return np.einsum("nkp,nk->p", self.features, residual, optimize=True)

    def curvature(self, probs: np.ndarray, row_weights: np.ndarray) -> np.ndarray:
        """Hessian of the cross-entropy (p, p)."""
        mean = np.einsum("nk,nkp->np", probs, self.features, optimize=True)
        scale = np.sqrt(probs * row_weights[:, None])
        spread = ((self.features - mean[:, None, :]) * scale[:, :, None]).reshape(-1, self.size)
        return spread.T @ spread


@dataclass(frozen=True)
class BlockDesign:
    """Coefficients a class: features (n, d), parameters (K, d) flattened."""

    features: np.ndarray
    n_classes: int

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.features.shape[1] * self.n_classes

    def take(self, rows: np.ndarray) -> BlockDesign:
        """The design of some rows."""
        return BlockDesign(self.features[rows], self.n_classes)

    def logits(self, theta: np.ndarray) -> np.ndarray:
        """Logits (n, K)."""
        return self.features @ theta.reshape(self.n_classes, -1).T

    def pullback(self, residual: np.ndarray) -> np.ndarray:
        """Gradient with respect to the parameters (K d,)."""
        return (residual.T @ self.features).ravel()

    def curvature(self, probs: np.ndarray, row_weights: np.ndarray) -> np.ndarray:
        """Hessian of the cross-entropy (K d, K d)."""
        k, d = self.n_classes, self.features.shape[1]
        out = np.zeros((k, d, k, d))
        for a in range(k):  # as p_a (1 - p_a) is the sum of p_a p_b over the other classes b
            for b in range(a + 1, k):
                scale = np.sqrt(row_weights * probs[:, a] * probs[:, b])
                scaled = self.features * scale[:, None]
                block = scaled.T @ scaled
                out[a, :, a, :] += block
                out[b, :, b, :] += block
                out[a, :, b, :] = out[b, :, a, :] = -block
        return out.reshape(k * d, k * d)


@dataclass(frozen=True)
class SoftmaxProblem:
    """The penalised objective: weighted mean cross-entropy + sum(ridge * (theta - centre)^2) / 2.

    Attributes
    ----------
    design : Design
    targets : ndarray of shape (n, K)
    row_weights : ndarray of shape (n,), summing to 1
    ridge, centre : ndarray of shape (p,)
    """

    design: Design
    targets: np.ndarray
    row_weights: np.ndarray
    ridge: np.ndarray
    centre: np.ndarray

    def penalised(self, strength: float) -> SoftmaxProblem:
        """The same with ``ridge`` scaled by ``strength`` over the number of rows."""
        return replace(self, ridge=self.ridge * (strength / len(self.targets)))

    def value(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the objective and the class probabilities (n, K) at ``theta``."""
        z = self.design.logits(theta)
        z = z - over_classes(np.maximum, z)[:, None]
        exp = np.exp(z)
        total = over_classes(np.add, exp)
        loss = self.row_weights @ (np.log(total) - over_classes(np.add, self.targets * z))
        loss += 0.5 * float(self.ridge @ (theta - self.centre) ** 2)
        return float(loss), exp / total[:, None]

    def gradient(self, theta: np.ndarray, probs: np.ndarray) -> np.ndarray:
        """Gradient at ``theta``, given its probabilities."""
        residual = (probs - self.targets) * self.row_weights[:, None]
        return self.design.pullback(residual) + self.ridge * (theta - self.centre)

    def hessian(self, probs: np.ndarray) -> np.ndarray:
        """Hessian at the point that has these probabilities."""
        return self.design.curvature(probs, self.row_weights) + np.diag(self.ridge)


def minimise(
    problem: SoftmaxProblem,
    start: np.ndarray | None = None,
    tolerance: float = 1e-12,
    max_iterations: int = 100,
) -> np.ndarray:
    """Minimise from ``start`` (the centre by default); returns the parameters (p,).

    Newton with backtracking, until half the Newton decrement, which bounds what is left to gain near
    the minimum, is at most ``tolerance`` nats; L-BFGS where there are too many parameters for a Hessian.
    """
    theta = problem.centre.copy() if start is None else start.copy()
    if problem.design.size > _NEWTON_LIMIT:
        return _minimise_lbfgs(problem, theta, tolerance)
    value, probs = problem.value(theta)
    for _ in range(max_iterations):
        gradient = problem.gradient(theta, probs)
        step = -_solve(problem.hessian(probs), gradient)
        slope = float(gradient @ step)
        if -slope / 2 <= tolerance:
            break
        size = 1.0
        while size > 1e-8:
            trial = theta + size * step
            trial_value, trial_probs = problem.value(trial)
            if trial_value <= value + 1e-4 * size * slope:
                break
            size /= 2
        else:
            break  # rounding leaves nothing to gain
        theta, value, probs = trial, trial_value, trial_probs
    return theta


def _solve(hessian: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.solve(hessian, gradient)
    except np.linalg.LinAlgError:
        return np.linalg.lstsq(hessian, gradient)[0]


def _minimise_lbfgs(problem: SoftmaxProblem, theta: np.ndarray, tolerance: float) -> np.ndarray:
    """Minimise by L-BFGS, in coordinates where the curvature is near one in every direction.

    These come from the curvature at even probabilities, which bounds that of two classes and is of the
    right shape for more (Böhning, *Multinomial logistic regression algorithm*, 1992).
    """
    from scipy.linalg import cholesky, solve_triangular
    from scipy.optimize import minimize

    n_classes, ridge = problem.targets.shape[1], problem.ridge
    size = problem.design.size
    if isinstance(problem.design, BlockDesign):
        features = problem.design.features
        size = features.shape[1]
        gram = features.T @ (features * (problem.row_weights / n_classes)[:, None])
        ridge = ridge.reshape(n_classes, size).mean(axis=0)
    else:
        gram = problem.design.curvature(np.full_like(problem.targets, 1 / n_classes), problem.row_weights)
    gram[np.diag_indices(size)] += ridge + 1e-10
    factor = cholesky(gram, lower=True)

    def back(point: np.ndarray) -> np.ndarray:
        whole = solve_triangular(factor, point.reshape(-1, size).T, lower=True, trans=1).T.ravel()
        return theta + whole

    def both(point: np.ndarray) -> tuple[float, np.ndarray]:
        there = back(point)
        value, probs = problem.value(there)
        slope = problem.gradient(there, probs).reshape(-1, size)
        return value, solve_triangular(factor, slope.T, lower=True).T.ravel()

    # In these coordinates half the squared slope is what is left to gain, about as in Newton's method.
    options = {
        "maxiter": 2000,
        "maxfun": 4000,
        "maxcor": 20,
        "ftol": 0.0,
        "gtol": float(np.sqrt(2 * tolerance / len(theta))),
    }
    return back(minimize(both, np.zeros(len(theta)), jac=True, method="L-BFGS-B", options=options).x)


@dataclass(frozen=True)
class Path:
    """Fits along a path of penalties, by cross-validation.

    Attributes
    ----------
    strength : float
        The penalty of least cross-validated loss.
    loss : float
        That loss, in nats.
    oof : ndarray of shape (n, K)
        Its cross-fitted predictions.
    """

    strength: float
    loss: float
    oof: np.ndarray


def choose_strength(
    problem: SoftmaxProblem,
    folds: np.ndarray,
    strengths: tuple[float, ...],
    score_rows: slice = slice(None),
    cautious: bool = False,
) -> Path:
    """Choose how strongly to draw to the centre: ``ridge`` is scaled by each strength over the rows.

    Strengths run from strong to weak, each fit starting where the last ended.

    Parameters
    ----------
    problem : SoftmaxProblem
        Its ``ridge`` is that of strength 1 on a mean loss of one row.
    folds : ndarray of shape (n,)
    strengths : tuple of float
        In units of rows: a ridge of ``strength / n`` on the mean loss.
    score_rows : slice
        Rows whose loss decides, where the design holds a row more than once.
    cautious : bool
        Take the strongest penalty whose loss is within a paired standard error of the least (Breiman et al.,
        1984), for designs of so many parameters that the least of a flat path is luck.
    """
    oof = np.empty((len(strengths), *problem.targets.shape))
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        design, held_out = problem.design.take(train), problem.design.take(test)
        weights = problem.row_weights[train] / problem.row_weights[train].sum()
        theta = problem.centre
        for i, strength in enumerate(strengths):
            part = SoftmaxProblem(design, problem.targets[train], weights, problem.ridge, problem.centre)
            theta = minimise(part.penalised(strength), theta, tolerance=1e-8)
            oof[i, test] = softmax(held_out.logits(theta))
    weights = problem.row_weights[score_rows] / problem.row_weights[score_rows].sum()
    each = np.stack([cross_entropy(p[score_rows], problem.targets[score_rows]) for p in oof])
    losses = (each @ weights).tolist()
    best = int(np.argmin(losses))
    if cautious:
        gaps = (with_error(loss - each[best], weights) for loss in each)
        best = next(i for i, (mean, error) in enumerate(gaps) if mean <= error)
    return Path(strengths[best], losses[best], oof[best][score_rows])
