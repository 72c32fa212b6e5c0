"""Looking at a blend by hand: what weights cost, what shrinkage does, and rows to try them on.

Everything here returns arrays or dictionaries; the report and the notebooks draw them. The cost of *given*
weights needs no cross-fitting, for nothing was fitted; only the least cost over all weights is too good.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.classes import PREFERENCE, Classes
from data.softmax import softmax
from ensemble.reading.load import load_problem
from ensemble.reading.problem import Problem
from ensemble.reading.stores import member_stores
from ensemble.solvers.folds import group_folds
from ensemble.solvers.numbers import LOSS_FLOOR, PROB_FLOOR, as_targets, log_probs
from ensemble.solvers.simplex import solve_simplex, with_prior

SAMPLE_ROWS = 4000
SAMPLE_VALUES = 300_000
_LOG_SCALE = 4000
"""Log-probabilities are kept as 16-bit whole numbers of 1/4000 nat: off by at most 0.000125 a row."""
_TARGET_SCALE = 65_535
_CHUNK = 8192


@dataclass(frozen=True)
class Sample:
    """Some of the rows in compact form, as the report's page holds them.

    Attributes
    ----------
    codes : ndarray of uint16, shape (n, members, K)
        Minus the log-probabilities, in units of 1/4000 nat.
    target_codes : ndarray of uint16, shape (n, K)
        Target weights in units of 1/65535. Where rows weigh differently a row's sum to its weight, that of
        the heaviest being 1.
    """

    codes: np.ndarray
    target_codes: np.ndarray

    @property
    def P(self) -> np.ndarray:
        """The probabilities that the codes stand for, shape (n, members, K)."""
        return np.exp(self.codes / -_LOG_SCALE)

    @property
    def y(self) -> np.ndarray:
        """The targets that the codes stand for, shape (n, K)."""
        return self.target_codes / _TARGET_SCALE

    def to_json(self) -> dict[str, Any]:
        """Return the codes as base64 of little-endian numbers, with their shape and units."""
        n, members, n_classes = self.codes.shape
        return {
            "n": n,
            "members": members,
            "classes": n_classes,
            "logScale": _LOG_SCALE,
            "targetScale": _TARGET_SCALE,
            "codes": b64encode(self.codes.astype("<u2").tobytes()).decode("ascii"),
            "targets": b64encode(self.target_codes.astype("<u2").tobytes()).decode("ascii"),
        }


def take_sample(problem: Problem, rows: int = SAMPLE_ROWS, seed: int = 0) -> Sample:
    """Draw rows to explore: at most ``rows``, fewer where members times classes are many."""
    n, members, n_classes = problem.P.shape
    size = min(n, rows, max(SAMPLE_VALUES // (members * n_classes), 50))
    chosen = np.sort(np.random.default_rng(seed).choice(n, size, replace=False))
    codes = np.round(-log_probs(problem.P[chosen]) * _LOG_SCALE).astype(np.uint16)
    y = problem.y[chosen]
    if problem.weight is not None:
        weight = problem.weight[chosen]
        y = y * (weight / weight.max())[:, None]
    return Sample(codes, np.round(y * _TARGET_SCALE).astype(np.uint16))


def true_likelihoods(P: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What every member gave to what happened: the only part of ``P`` that a mixture's loss needs.

    Parameters
    ----------
    P : ndarray of shape (n, members, K)
    y : ndarray of shape (n,) or (n, K)

    Returns
    -------
    likelihoods : ndarray of shape (cases, members)
        A case is a row and a class that its target gives weight to: one a row with hard labels.
    weights : ndarray of shape (cases,)
        Target weights.
    row : ndarray of shape (cases,)
    """
    targets = as_targets(y, P.shape[2])
    row, label = np.nonzero(targets)
    return np.maximum(P[row, :, label], LOSS_FLOOR), targets[row, label], row


def linear_losses(P: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean log-loss of mixtures with weights (..., members); the result has the leading shape.

    A row counts for the sum of its targets.
    """
    likelihoods, target, _ = true_likelihoods(P, y)
    flat = np.atleast_2d(np.asarray(weights, dtype=np.float64)).reshape(-1, P.shape[1])
    total = np.zeros(len(flat))
    for start in range(0, len(likelihoods), _CHUNK):
        part = slice(start, start + _CHUNK)
        total -= target[part] @ np.log(np.maximum(likelihoods[part] @ flat.T, LOSS_FLOOR))
    return (total / target.sum()).reshape(np.shape(weights)[:-1])


def pool_loss(
    P: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    bias: np.ndarray | None = None,
    floor: float = PROB_FLOOR,
) -> float:
    """Mean log-loss of the log-opinion pool with weights (members,) and class biases (K,), as there.

    Members' probabilities under ``floor`` are taken as that.
    """
    logits = np.einsum("nmk,m->nk", log_probs(P, floor), np.asarray(weights)) + (0 if bias is None else bias)
    targets = as_targets(y, P.shape[2])
    return -float((targets * np.log(np.maximum(softmax(logits), LOSS_FLOOR))).sum() / targets.sum())


def move_weight(weights: np.ndarray, member: int, value: float) -> np.ndarray:
    """Give one member the weight ``value`` (0 to 1) and share the rest among the others as before.

    Where the others had nothing they share it equally.
    """
    value = min(max(float(value), 0.0), 1.0)
    moved = np.asarray(weights, dtype=np.float64).copy()
    others = np.arange(len(moved)) != member
    if not others.any():
        return np.ones(1)
    rest = moved[others].sum()
    moved[others] = moved[others] * ((1 - value) / rest) if rest > 1e-12 else (1 - value) / others.sum()
    moved[member] = value
    return moved


def triangles(steps: int) -> np.ndarray:
    """Tile the weights of three members with small triangles.

    Returns
    -------
    ndarray of shape (steps ** 2, 3, 3)
        Corners of each triangle, as weights of the three members.
    """
    corners = []
    for i in range(steps):
        for j in range(steps - i):
            k = steps - 1 - i - j
            corners.append([(i + 1, j, k), (i, j + 1, k), (i, j, k + 1)])
            if k > 0:
                corners.append([(i + 1, j + 1, k - 1), (i + 1, j, k), (i, j + 1, k)])
    return np.array(corners, dtype=np.float64) / steps


def ternary_map(
    P: np.ndarray, y: np.ndarray, members: Sequence[int] = (0, 1, 2), steps: int = 20
) -> dict[str, np.ndarray]:
    """Log-loss over the mixture weights of three members.

    Returns
    -------
    dict
        ``corners`` (t, 3, 3) of each small triangle, ``weights`` (t, 3) at its centre, ``loss`` (t,), and
        ``best`` (3,), the weights of the least loss of all with ``best_loss`` ().
    """
    part = P[:, list(members)]
    corners = triangles(steps)
    centres = corners.mean(axis=1)
    best = best_weights(part, y)
    return {
        "corners": corners,
        "weights": centres,
        "loss": linear_losses(part, y, centres),
        "best": best,
        "best_loss": linear_losses(part, y, best),
    }


def weight_curve(
    P: np.ndarray, y: np.ndarray, members: Sequence[int] = (0, 1), points: int = 101
) -> dict[str, np.ndarray]:
    """Log-loss of mixtures of two members: ``weight`` (points,) of the first, and ``loss``."""
    weight = np.linspace(0, 1, points)
    loss = linear_losses(P[:, list(members)], y, np.stack([weight, 1 - weight], axis=1))
    return {"weight": weight, "loss": loss}


def best_weights(P: np.ndarray, y: np.ndarray, shrinkage: float = 0.0) -> np.ndarray:
    """Mixture weights of least loss, drawn to equal ones by ``shrinkage`` pseudo-rows a row."""
    likelihoods, target, _ = true_likelihoods(P, y)
    return solve_simplex(*with_prior(likelihoods, target / target.sum(), shrinkage)).weights


def shrinkage_path(
    problem: Problem, shrinkages: Iterable[float] = tuple(np.geomspace(1e-3, 10, 13))
) -> dict[str, np.ndarray]:
    """Follow the mixture's weights from their optimum to equality as shrinkage grows.

    Returns
    -------
    dict
        ``shrinkage`` (s,), ``weights`` (s, members), ``in_sample`` (s,) and ``nested`` (s,) log-loss, the
        latter with each fold's weights fitted on the other folds.
    """
    strengths = np.array(list(shrinkages), dtype=np.float64)
    P, y, fold = problem.P, problem.y, problem.fold
    weights = np.stack([best_weights(P, y, s) for s in strengths])
    nested = np.zeros(len(strengths))
    for number in np.unique(fold):
        held = fold == number
        fitted = np.stack([best_weights(P[~held], y[~held], s) for s in strengths])
        nested += linear_losses(P[held], y[held], fitted) * held.sum()
    return {
        "shrinkage": strengths,
        "weights": weights,
        "in_sample": linear_losses(P, y, weights),
        "nested": nested / len(P),
    }


def temperature_curve(
    probs: np.ndarray, y: np.ndarray, temperatures: Iterable[float] = tuple(np.geomspace(0.4, 2.5, 41))
) -> dict[str, np.ndarray]:
    """Log-loss of one prediction (n, K) at each temperature."""
    values = np.array(list(temperatures), dtype=np.float64)
    loss = [pool_loss(probs[:, None], y, np.array([1 / value])) for value in values]
    return {"temperature": values, "loss": np.array(loss)}


def simulate_problem(
    n: int = 600, members: int = 3, classes: Classes = PREFERENCE, seed: int = 0, sharpness: float = 1.4
) -> Problem:
    """Make members that see the truth through noise: earlier ones less noise, all of them over-confident.

    Parameters
    ----------
    n, members : int
    classes : Classes
    seed : int
    sharpness : float
        What every member multiplies its logits with.
    """
    rng = np.random.default_rng(seed)
    truth = 1.2 * rng.normal(size=(n, classes.n))
    labels = (rng.random((n, 1)) > softmax(truth).cumsum(axis=1)[:, :-1]).sum(axis=1)
    noise = rng.normal(size=(n, members, classes.n)) * np.linspace(0.7, 1.2, members)[:, None]
    y = np.eye(classes.n)[labels]
    return Problem(
        [f"r{i:06d}" for i in range(n)],
        softmax(sharpness * (truth[:, None] + noise)),
        y,
        group_folds(y, None, 5, seed),
        np.arange(n),
        classes,
        tuple(f"member {m + 1}" for m in range(members)),
        folds_from="simulated",
    )


def open_problem(folder: Path | str = "runs/demo", rows: int = 600) -> Problem:
    """Load the members that ``ensemble.stack`` takes of a run's folder; where it has none, simulate some."""
    stores, _ = member_stores(Path(folder))
    return load_problem(stores) if stores else simulate_problem(rows)
