r"""Maximum-likelihood mixture weights on the simplex, by Newton's method with an active set.

Minimises :math:`f(x) = -\sum_i w_i \log (Gx)_i + \sum_k x_k` over :math:`x \ge 0`, whose minimiser sums
to one, so that the simplex's equality constraint vanishes (mixSQP: Kim, Carbonetto, Stephens and Anitescu,
*A fast algorithm for maximum likelihood estimation of mixture proportions using sequential quadratic
programming*, JCGS 2020). Every answer comes with a certificate: at ``x`` on the simplex,
:math:`f(x) - f^* \le \max_k \sum_i w_i G_{ik} / (Gx)_i - 1`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from ensemble.solvers.numbers import LOSS_FLOOR

_RIDGE = 1e-12
_ROUNDING = 1e-14
"""Relative rounding of a loss: close to the optimum a good step gains less than that, and is still taken."""
_SAMPLED, _SAMPLE_ROWS = 8, 2000
"""Many rows are first solved on every eighth, where that leaves so many: a near start saves passes."""
_STALE = 0.05
"""A Hessian is kept while each step by it leaves at most this share of the gap."""
_KEPT = 0.01
"""What a weight keeps of itself at least in each step of the second attempt."""


class ConvergenceWarning(UserWarning):
    """A solver ended before its answer was as good as it was asked to be."""


@dataclass(frozen=True)
class SimplexSolution:
    """Weights and the proof of how good they are.

    Attributes
    ----------
    weights : ndarray of shape (members,)
        Non-negative, summing to 1.
    gap : float
        Upper bound of the excess of the mean loss over the best possible, in nats.
    iterations : int
    """

    weights: np.ndarray
    gap: float
    iterations: int


def solve_simplex(
    likelihoods: np.ndarray,
    row_weights: np.ndarray,
    start: np.ndarray | None = None,
    tolerance: float = 1e-11,
    max_iterations: int = 100,
) -> SimplexSolution:
    """Find the mixture weights of greatest weighted mean log-likelihood.

    Parameters
    ----------
    likelihoods : ndarray of shape (n, members)
        What each member gives to what happened; only the true class's column is needed.
    row_weights : ndarray of shape (n,)
        Non-negative, summing to 1.
    start : ndarray of shape (members,), optional
        Where to start; equal weights by default.
    tolerance : float
        Stop when the certified gap is at most this.

    Warns
    -----
    ConvergenceWarning
        The gap is above the tolerance after all.

    Notes
    -----
    A step of mixSQP may put a weight to nothing. Where a row of little weight has no other member to explain
    it, as the pseudo-rows of a small prior have not, the loss hardly rises there but its curvature explodes,
    and the steps that follow lead nowhere. What ends so is solved once more from equal weights, each
    weight keeping a hundredth of itself in every step (the rule of interior-point methods).
    """
    n, n_members = likelihoods.shape
    if start is None and n >= _SAMPLED * _SAMPLE_ROWS:
        part = row_weights[::_SAMPLED]
        if part.sum() > 0:
            start = solve_simplex(likelihoods[::_SAMPLED], part / part.sum(), None, 1e-7).weights
    x = np.full(n_members, 1.0 / n_members) if start is None else np.maximum(start, 0) / start.sum()
    if (
        likelihoods @ x
    ).min() <= 0:  # a member that the sample left out is the only one to give some row anything
        x = (x + 1.0 / n_members) / 2
    found = _descend(likelihoods, row_weights, x, tolerance, max_iterations)
    if found.gap > tolerance:
        even = np.full(n_members, 1.0 / n_members)
        second = _descend(likelihoods, row_weights, even, tolerance, max_iterations, _KEPT)
        found = min(found, second, key=lambda solution: solution.gap)
    if found.gap > tolerance:
        warnings.warn(
            f"mixture weights may cost {found.gap:.1e} nats more than the best, not at most {tolerance:.0e}",
            ConvergenceWarning,
            stacklevel=2,
        )
    return found


def _descend(
    likelihoods: np.ndarray,
    row_weights: np.ndarray,
    x: np.ndarray,
    tolerance: float,
    max_iterations: int,
    kept: float = 0.0,
) -> SimplexSolution:
    """Newton steps from ``x``, in each of which a weight keeps at least the share ``kept`` of itself."""
    mixture = likelihoods @ x
    value = _loss(mixture, row_weights)
    gap, best, best_gap = np.inf, x, np.inf
    hessian: np.ndarray | None = None
    for iteration in range(max_iterations + 1):
        last, slope = gap, (row_weights / mixture) @ likelihoods  # minus the log term's gradient
        gap = float(slope.max() - 1)
        if gap < best_gap:
            best, best_gap = x, gap
        if gap <= tolerance or iteration == max_iterations:
            break
        if hessian is None or gap > _STALE * last:  # one that still serves is dearer than a step by it
            weighted = likelihoods * (np.sqrt(row_weights) / mixture)[:, None]
            hessian = weighted.T @ weighted
        # The quadratic model around x in y = x + d is y'Hy / 2 - (Hx + slope - 1)'y.
        least = kept * x
        linear = hessian @ (x - least) + slope - 1
        if kept:  # large curvature makes the ridge felt: around x, not zero, it leaves the answer where it is
            linear += _RIDGE * np.trace(hessian) / len(x) * (x - least)
        target = least + _nonnegative_quadratic(hessian, linear, x - least)
        step = target - x
        decrease = float((1 - slope) @ step)
        size = 1.0
        while size > 1e-10:
            trial = np.maximum(x + size * step, 0)
            trial /= trial.sum()
            trial_mixture = likelihoods @ trial
            trial_value = _loss(trial_mixture, row_weights)
            if trial_value <= value + 1e-4 * size * decrease + _ROUNDING * (1 + abs(value)):
                break
            size /= 2
        else:
            break  # rounding leaves nothing to gain
        x, mixture, value = trial, trial_mixture, trial_value
    return SimplexSolution(best, max(best_gap, 0.0), iteration)


def with_prior(
    likelihoods: np.ndarray, row_weights: np.ndarray, shrinkage: float
) -> tuple[np.ndarray, np.ndarray]:
    """Append pseudo-rows, each explained by one member alone, that draw the weights to equal ones.

    They are a symmetric Dirichlet prior that counts for ``shrinkage`` times all rows together; the row
    weights returned sum to 1 again.
    """
    if shrinkage <= 0:
        return likelihoods, row_weights
    n_members = likelihoods.shape[1]
    pseudo = np.full(n_members, shrinkage / n_members)
    alone = np.eye(n_members) + LOSS_FLOOR
    return np.concatenate([likelihoods, alone]), np.concatenate([row_weights, pseudo]) / (1 + shrinkage)


def _loss(mixture: np.ndarray, row_weights: np.ndarray) -> float:
    if mixture.min() <= 0:
        return np.inf
    return -float(row_weights @ np.log(mixture))


def _nonnegative_quadratic(hessian: np.ndarray, linear: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Minimise y'Hy / 2 - linear'y over y >= 0 by Lawson and Hanson's active set, warm."""
    size = len(linear)
    matrix = hessian + (_RIDGE * np.trace(hessian) / size) * np.eye(size)
    y = start.copy()
    free = y > 0
    for _ in range(20 * size + 20):
        while free.any():
            candidate = np.zeros(size)
            candidate[free] = np.linalg.solve(matrix[np.ix_(free, free)], linear[free])
            falling = free & (candidate <= 0)
            if not falling.any():
                y = candidate
                break
            length = y[falling] / np.maximum(y[falling] - candidate[falling], 1e-300)
            y = y + length.min() * (candidate - y)
            blocked = np.flatnonzero(falling)[length <= length.min() * (1 + 1e-12)]
            y[blocked] = 0
            free[blocked] = False
            y[~free] = 0
        pull = linear - matrix @ y
        pull[free] = -np.inf
        if pull.max() <= 1e-13:
            break
        free[int(pull.argmax())] = True
    return y
