"""What cascades say of rows that they were not fitted on: every figure of a router is made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ensemble.routing.cascade import fit_cascade, route
from ensemble.solvers.numbers import log_loss

STEPS = 20


@dataclass(frozen=True)
class Held:
    """Rows as cascades fitted on the other folds see them.

    Attributes
    ----------
    cheap, dear : ndarray of shape (n,)
        Log-loss by the cheap model alone, and by the blend of all.
    gain : ndarray of shape (n,)
        What the dear models were expected to gain, in nats.
    fold : ndarray of shape (n,)
    known : dict of int to ndarray
        By the fold that each cascade was not fitted on: the gain that it expects of the rows that it was.
    weight : ndarray of shape (n,)
        What each row counts for, with mean 1.
    """

    cheap: np.ndarray
    dear: np.ndarray
    gain: np.ndarray
    fold: np.ndarray
    known: dict[int, np.ndarray]
    weight: np.ndarray

    @property
    def true_gain(self) -> np.ndarray:
        """What the dear models did gain on each row (n,), which nobody can know beforehand."""
        return self.cheap - self.dear

    def routed(self, chosen: np.ndarray) -> np.ndarray:
        """Log-loss (n,) where the dear models see the ``chosen`` rows, a mask."""
        return np.where(chosen, self.dear, self.cheap)

    def by_lot(self, share: float) -> np.ndarray:
        """Log-loss (n,) where each row goes to the dear models with this chance, on average."""
        return share * self.dear + (1 - share) * self.cheap

    def best(self, score: np.ndarray, cost: np.ndarray, share: float) -> np.ndarray:
        """The rows of the best score for cost, as a mask, for this share of the cost of all, fold by fold."""
        chosen = np.zeros(len(score), dtype=bool)
        for number in self.known:
            inside = self.fold == number
            weight = self.weight[inside]
            chosen[inside] = route(score[inside] * weight, cost[inside] * weight, share)
        return chosen

    def foreseen(self, cost: np.ndarray, share: float) -> np.ndarray:
        """The oracle's choice, as a mask: it knows each row's true gain, and sends none for a loss."""
        true = self.true_gain
        return route(true * self.weight, cost * self.weight, share) & (true > 0)

    def mean(self, losses: np.ndarray) -> float:
        """The weighted mean of (n,)."""
        return float((losses * self.weight).mean())


def cross_fit(
    P: np.ndarray,
    y: np.ndarray,
    fold: np.ndarray,
    weight: np.ndarray | None = None,
    seen: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Held:
    """Fit a cascade outside each fold, and see what it says inside.

    Parameters
    ----------
    P : ndarray of shape (n, models, K)
        Probabilities by models that were trained on none of these rows, the cheap one first.
    y : ndarray of shape (n,) or (n, K)
    fold : ndarray of shape (n,)
        Of whole groups.
    weight : ndarray of shape (n,), optional
        What each row counts for, with mean 1.
    seen : callable, optional
        Gives ``P`` as a fit on some rows (their places) may see it: what judges mean is learnt from these.
    """
    cheap, dear, gain = (np.empty(len(P)) for _ in range(3))
    known = {}
    for number in np.unique(fold).tolist():
        inside = fold == number
        part = None if weight is None else weight[~inside]
        P = P if seen is None else seen(np.flatnonzero(~inside))
        cascade = fit_cascade(P[~inside], y[~inside], part)
        known[number] = cascade.expected_gain(P[~inside, 0])
        cheap[inside] = log_loss(cascade.cheap(P[inside, 0]), y[inside])
        dear[inside] = log_loss(cascade.all_models(P[inside]), y[inside])
        gain[inside] = cascade.expected_gain(P[inside, 0])
    return Held(cheap, dear, gain, fold, known, np.ones(len(P)) if weight is None else weight)


def cross_fitted_curve(
    P: np.ndarray, y: np.ndarray, cost: np.ndarray, fold: np.ndarray, steps: int = STEPS
) -> list[tuple[float, float, float]]:
    """Log-loss against the budget: (share of the cost of all rows, by expected gain, by lot on average)."""
    held = cross_fit(P, y, fold)
    return [
        (share, held.mean(held.routed(held.best(held.gain, cost, share))), held.mean(held.by_lot(share)))
        for share in np.linspace(0, 1, steps + 1).tolist()
    ]
