"""Partly learnt labels: what a member knows of a row's own label, which no honest member can.

An honest member departs from the others because it reads the row otherwise. Where it does, the class that
it favours happens about as often as it says or less, and what the others say still counts beside it. A
member that learnt the rows' labels by heart, if only a little, departs towards the label itself: the class
then happens more often than it says, and what the others say counts against the label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.softmax import softmax
from ensemble.solvers.designs import Design, PoolDesign, SharedDesign
from ensemble.solvers.newton import SoftmaxProblem, minimise
from ensemble.solvers.numbers import cross_entropy, log_probs

ROWS = 2000
"""Rows from which this can be told."""
SURE = 4.0
"""Standard errors by which the others' weight must be below zero."""
AGAINST = -0.15
STEEP = 1.1
"""Bounds of the others' weight and of the member's own slope, each to be passed by two standard errors."""
MOST_LEAKS = 4
_MOST_ROWS = 20_000
_FLOOR = 1e-4
_BIASED_CLASSES = 20
"""Classes up to which each has a bias of its own."""
_RIDGE = 3.0


@dataclass(frozen=True)
class Verdict:
    """What was found of a member.

    Attributes
    ----------
    slope, slope_error : float
        Of the label on the member's log-probabilities alone: above 1 where classes happen more often than
        it says.
    weight, weight_error : float
        Of the others' best pool beside it.
    """

    slope: float
    slope_error: float
    weight: float
    weight_error: float

    @property
    def leaks(self) -> bool:
        """Whether both are beyond what an honest member's could be."""
        return (
            self.weight < -SURE * self.weight_error
            and self.weight + 2 * self.weight_error < AGAINST
            and self.slope - 2 * self.slope_error > STEEP
        )


def partly_learnt(P: np.ndarray, y: np.ndarray) -> tuple[list[int], list[Verdict], list[int]]:
    """Members that seem to know part of the labels, what told, and the members they were held against.

    Up to :data:`MOST_LEAKS` members of least loss once calibrated, so that several leaks do not hide one
    another: all of them are held against the rest alone, and all must fail.

    Parameters
    ----------
    P : ndarray of shape (n, members, K)
    y : ndarray of shape (n, K)
    """
    n, n_members, _ = P.shape
    if n < ROWS or n_members < 2:
        return [], [], []
    if n > _MOST_ROWS:
        rows = np.random.default_rng(0).permutation(n)[:_MOST_ROWS]
        P, y = P[rows], y[rows]
    logs = log_probs(P, _FLOOR).transpose(0, 2, 1)
    logs = logs - logs.mean(axis=1, keepdims=True)
    alone = [_fit(logs[:, :, [m]], y) for m in range(n_members)]
    order = np.argsort([cross_entropy(fit.probs, y).mean() for fit in alone], kind="stable").tolist()
    found: tuple[list[int], list[Verdict], list[int]] = [], [], []
    for size in range(1, min(MOST_LEAKS, max(n_members // 2, 1)) + 1):
        leaks, others = order[:size], order[size:]
        if not all(alone[m].theta[0] - 2 * alone[m].errors[0] > STEEP for m in leaks):
            break
        rest = _centred_logs(_fit(logs[:, :, others], y).probs)
        verdicts = []
        for m in leaks:
            both = _fit(np.stack([_centred_logs(alone[m].probs), rest], axis=2), y)
            slope = alone[m].theta[0], alone[m].errors[0]
            verdicts.append(Verdict(*map(float, (*slope, both.theta[1], both.errors[1]))))
        if all(verdict.leaks for verdict in verdicts):
            found = leaks, verdicts, others
    return found


@dataclass(frozen=True)
class _Fit:
    theta: np.ndarray
    errors: np.ndarray
    probs: np.ndarray


def _fit(logs: np.ndarray, y: np.ndarray) -> _Fit:
    """A log-opinion pool of predictors (n, K, d): its parameters, their robust errors, its predictions."""
    n, k, d = logs.shape
    design: Design = PoolDesign(logs) if k <= _BIASED_CLASSES else SharedDesign(logs)
    centre = np.zeros(design.size)
    centre[:d] = 1 / d
    problem = SoftmaxProblem(design, y, np.full(n, 1 / n), np.full(design.size, _RIDGE / n), centre)
    theta = minimise(problem, tolerance=1e-9)
    probs = softmax(design.logits(theta))
    residual = probs - y
    slopes = np.einsum("nkd,nk->nd", logs, residual)
    if design.size > d:
        slopes = np.concatenate([slopes, residual], axis=1)
    inverse = np.linalg.inv(problem.hessian(probs))
    spread = inverse @ (slopes.T @ slopes / n) @ inverse / n
    return _Fit(theta, np.sqrt(np.diag(spread)), probs)


def _centred_logs(probs: np.ndarray) -> np.ndarray:
    logs = log_probs(probs)
    return logs - logs.mean(axis=1, keepdims=True)
