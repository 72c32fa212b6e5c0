"""Greedy ensemble selection, kept for comparison: it approaches what the simplex blend solves exactly."""

from __future__ import annotations

import numpy as np

from ensemble.solvers.numbers import LOSS_FLOOR, as_targets


def greedy_weights(P: np.ndarray, y: np.ndarray, n_picks: int = 100) -> np.ndarray:
    """Add members one at a time, with replacement, each time the one that lowers the mean's loss most.

    Parameters
    ----------
    P : ndarray of shape (n, members, K)
    y : ndarray of shape (n,) or (n, K)
    n_picks : int
        Members added; the best mean on the way is kept.

    Returns
    -------
    ndarray of shape (members,)
        Shares of the picks.

    Notes
    -----
    Caruana, Niculescu-Mizil, Crew and Ksikes, *Ensemble selection from libraries of models* (ICML 2004).
    """
    n, n_members, n_classes = P.shape
    targets = as_targets(y, n_classes)
    row, label = np.nonzero(targets)
    likelihoods, shares = P[row, :, label], targets[row, label] / n
    total = np.zeros(len(row))
    counts, best, best_loss = np.zeros(n_members), np.zeros(n_members), np.inf
    for picks in range(1, n_picks + 1):
        mixtures = np.maximum((total[:, None] + likelihoods) / picks, LOSS_FLOOR)
        losses = -(shares @ np.log(mixtures))
        chosen = int(losses.argmin())
        counts[chosen] += 1
        total += likelihoods[:, chosen]
        if losses[chosen] < best_loss:
            best, best_loss = counts / picks, float(losses[chosen])
    return best
