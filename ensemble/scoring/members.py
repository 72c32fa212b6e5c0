"""What each member is worth: what is lost without it, its Shapley value, and how few members would do.

Every loss here is nested: the mixture of a set of members is fitted, by the simplex blend, on all folds but
the one it is scored on. Intervals come from the shared bootstrap over prompt groups.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import factorial

import numpy as np

from ensemble.reading.problem import Problem
from ensemble.scoring.bootstrap import DRAWS, Bootstrap, Interval, bootstrap
from ensemble.scoring.crossfit import cross_fitted_prior
from ensemble.scoring.explore import true_likelihoods
from ensemble.solvers.numbers import LOSS_FLOOR, cross_entropy
from ensemble.solvers.simplex import solve_simplex

EXACT_MEMBERS = 5
"""Up to this many members every order of arrival counts in the Shapley value; beyond, a sample of them."""
SAMPLED_SETS = 160
"""About so many sets are fitted for sampled Shapley values."""
VALUE_ROWS = 50_000
"""At most so many rows are scored; see :func:`limit_rows`."""
FIT_ROWS, FIT_NUMBERS = 10_000, 100_000
"""At most so many rows, and rows times members, fit a set's weights, which more would hardly move."""
_CANDIDATES = 3


@dataclass(frozen=True)
class MemberValue:
    """One member's part in the mixture.

    Attributes
    ----------
    name : str
    loss : float
        Its own log-loss.
    lost : float
        What the mixture of all members loses without it; positive is worth having.
    lost_interval : Interval
    shapley : float
        Its mean gain over the orders in which members may join; the values of all members sum to the
        prior's loss less the loss of the mixture of all.
    shapley_interval : Interval
    """

    name: str
    loss: float
    lost: float
    lost_interval: Interval
    shapley: float
    shapley_interval: Interval


@dataclass(frozen=True)
class MemberSet:
    """A set of members and its mixture's nested log-loss.

    Attributes
    ----------
    members : tuple of int
    loss : float
    excess : float
        Over the best set of the path.
    interval : Interval
        Of that excess.
    """

    members: tuple[int, ...]
    loss: float
    excess: float
    interval: Interval


def limit_rows(
    problem: Problem, draws: Bootstrap, rows: int = VALUE_ROWS, seed: int = 0
) -> tuple[Problem, Bootstrap]:
    """Keep a sample of the rows where they are many: a member's value needs no million of them.

    The row table is left out, and the groups that stay are drawn anew.
    """
    if len(problem) <= rows:
        return problem, draws
    kept = np.sort(np.random.default_rng(seed).choice(len(problem), rows, replace=False))
    small = replace(
        problem,
        row_ids=[problem.row_ids[i] for i in kept.tolist()],
        P=problem.P[kept],
        y=problem.y[kept],
        fold=problem.fold[kept],
        groups=problem.groups[kept],
        rows=None,
        features=None,
        weight=None if problem.weight is None else problem.weight[kept],
    )
    return small, bootstrap(small.groups, DRAWS, seed, small.weight)


class SetLosses:
    """Nested losses of the mixtures of sets of members, each computed once.

    Parameters
    ----------
    problem : Problem
    fit_rows : int, optional
        Most rows that fit one fold's weights; by default as many as :data:`FIT_ROWS` and
        :data:`FIT_NUMBERS` allow.
    seed : int
        Of the rows left out where there are more.
    """

    def __init__(self, problem: Problem, fit_rows: int | None = None, seed: int = 0) -> None:
        self.problem = problem
        self._likelihoods, self._target, self._row = true_likelihoods(problem.P, problem.y)
        if problem.weight is not None:
            self._target = self._target * problem.weight[self._row]
        fold = problem.fold[self._row]
        fit_rows = fit_rows or min(FIT_ROWS, FIT_NUMBERS // problem.P.shape[1])
        rng = np.random.default_rng(seed)
        self._folds: list[tuple[np.ndarray, np.ndarray]] = []
        for number in np.unique(fold):
            train = np.flatnonzero(fold != number)
            if len(train) > fit_rows:
                train = np.sort(rng.choice(train, fit_rows, replace=False))
            self._folds.append((train, np.flatnonzero(fold == number)))
        prior = cross_fitted_prior(problem.y, problem.fold, problem.weight)
        self._losses: dict[tuple[int, ...], np.ndarray] = {
            (): problem.weighted(cross_entropy(prior, problem.y))
        }
        self._weights: dict[tuple[int, ...], np.ndarray] = {}

    def of(self, members: tuple[int, ...]) -> np.ndarray:
        """Losses of each row (n,) for a sorted tuple of members; the class frequencies for none."""
        if members not in self._losses:
            L = self._likelihoods[:, list(members)]
            mixture = np.empty(len(L))
            total = np.zeros(len(members))
            start = None
            for train, test in self._folds:
                share = self._target[train] / self._target[train].sum()
                weights = solve_simplex(L[train], share, start, tolerance=1e-7).weights
                mixture[test] = L[test] @ weights
                total += weights
                # A member at exactly zero could never come back.
                start = 0.9 * weights + 0.1 / len(members)
            self._weights[members] = total / len(self._folds)
            losses = -self._target * np.log(np.maximum(mixture, LOSS_FLOOR))
            self._losses[members] = np.bincount(self._row, weights=losses, minlength=len(self.problem))
        return self._losses[members]

    def weights(self, members: tuple[int, ...]) -> np.ndarray:
        """Mean over folds of the weights of a set."""
        self.of(members)
        return self._weights[members]


def member_values(sets: SetLosses, draws: Bootstrap, seed: int = 0) -> list[MemberValue]:
    """Value every member by leaving it out, and by its Shapley value.

    Notes
    -----
    Shapley, *A value for n-person games* (1953); orders are sampled in reversed pairs as in Castro, Gómez and
    Tejada, *Polynomial calculation of the Shapley value based on sampling* (2009).
    """
    problem = sets.problem
    n_members = problem.P.shape[1]
    everyone = tuple(range(n_members))
    full = sets.of(everyone)
    without = [sets.of(tuple(k for k in everyone if k != m)) - full for m in everyone]
    joined = _exact(sets, n_members) if n_members <= EXACT_MEMBERS else _sampled(sets, n_members, seed)
    intervals = draws.intervals(np.stack([*without, *joined], axis=1))
    return [
        MemberValue(
            name,
            float(problem.weighted(cross_entropy(problem.P[:, m], problem.y)).mean()),
            float(without[m].mean()),
            intervals[m],
            float(joined[m].mean()),
            intervals[n_members + m],
        )
        for m, name in enumerate(problem.names)
    ]


def _exact(sets: SetLosses, n_members: int) -> np.ndarray:
    """Shapley values of each row, shape (members, n), over all sets."""
    values = np.zeros((n_members, len(sets.problem)))
    for code in range(2**n_members):
        members = tuple(m for m in range(n_members) if code >> m & 1)
        outside = [m for m in range(n_members) if m not in members]
        share = factorial(len(members)) * factorial(len(outside) - 1) / factorial(n_members) if outside else 0
        for m in outside:
            values[m] += share * (sets.of(members) - sets.of(tuple(sorted((*members, m)))))
    return values


def _sampled(sets: SetLosses, n_members: int, seed: int) -> np.ndarray:
    """Shapley values of each row, shape (members, n), over sampled orders and their reverses."""
    rng = np.random.default_rng(seed)
    values = np.zeros((n_members, len(sets.problem)))
    orders = max(SAMPLED_SETS // (2 * n_members), 2)
    for _ in range(orders):
        order = rng.permutation(n_members)
        for way in (order, order[::-1]):
            before = sets.of(())
            for i, m in enumerate(way):
                after = sets.of(tuple(sorted(way[: i + 1].tolist())))
                values[m] += before - after
                before = after
    return values / (2 * orders)


def smallest_sets(sets: SetLosses, draws: Bootstrap) -> tuple[list[MemberSet], int]:
    """Drop members one by one, and find where the loss becomes credibly worse.

    At each step one of the least-weighted members goes: the one whose absence costs least.

    Returns
    -------
    path : list of MemberSet
        From all members to one.
    smallest : int
        Index of the smallest set whose excess over the path's best is within noise: its 95 % interval
        reaches zero.
    """
    current = tuple(range(sets.problem.P.shape[1]))
    path = [current]
    while len(current) > 1:
        weights = sets.weights(current)
        candidates = np.argsort(weights, kind="stable")[:_CANDIDATES]
        rest = [tuple(m for m in current if m != current[i]) for i in candidates]
        current = min(rest, key=lambda members: float(sets.of(members).mean()))
        path.append(current)
    best = min(path, key=lambda members: float(sets.of(members).mean()))
    excess = np.stack([sets.of(members) - sets.of(best) for members in path], axis=1)
    intervals = draws.intervals(excess)
    found = [
        MemberSet(members, float(sets.of(members).mean()), float(excess[:, i].mean()), intervals[i])
        for i, members in enumerate(path)
    ]
    near = [i for i, part in enumerate(found) if part.interval.low <= 0]
    return found, max(near)


def member_correlation(problem: Problem) -> np.ndarray:
    """Correlation, between members, of the log-probability given to what happened, shape (members, members).

    Members that fail on the same rows correlate; a low value is what makes a blend gain.
    """
    losses = np.stack([cross_entropy(problem.P[:, m], problem.y) for m in range(problem.P.shape[1])])
    centred = losses - losses.mean(axis=1, keepdims=True)
    scale = np.sqrt((centred**2).sum(axis=1))
    scale[scale == 0] = 1
    found = (centred / scale[:, None]) @ (centred / scale[:, None]).T
    np.fill_diagonal(found, 1.0)
    return np.clip(found, -1, 1)
