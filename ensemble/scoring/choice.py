"""The choice of a stack by nested predictions: a mixture of unlike kinds, and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ensemble.methods.average import PSEUDO_ROWS
from ensemble.methods.blend import SimplexBlend
from ensemble.methods.catalogue import CALIBRATION, SIMPLEST
from ensemble.solvers.numbers import cross_entropy

KINDS = (
    SIMPLEST,
    "calibrated pool",
    "pool by slice",
    "logit",
    "lightgbm",
    "mlp",
    SIMPLEST + CALIBRATION,
    "logit+lightgbm+mlp" + CALIBRATION,
)
"""What is mixed, the simplest first: no two are made alike."""
ODDS = 8.0
"""So many times as likely must the rows be under the mixture as under its simplest kind for it to count."""
LEAST_SHARE = 0.01
"""A kind of less is left out."""


def choose(losses: Mapping[str, np.ndarray]) -> str:
    """The method of least mean loss; the first of several equal ones."""
    return min(losses, key=lambda name: float(losses[name].mean()))


def mixture(
    probs: Mapping[str, np.ndarray], y: np.ndarray, weight: np.ndarray | None = None
) -> dict[str, float]:
    """The share of each kind in the stack, the simplest first; they sum to 1.

    Methods that the rows cannot tell apart are better mixed than chosen from, and a mixture of near-copies
    is no better than one of them: the kinds are unlike one another. Shares are those of most likelihood on
    nested predictions, drawn a little to equal ones. Of what the mixture so gains over its simplest kind,
    each further share costs a nat (Akaike's correction); unless the rest makes the rows :data:`ODDS` times
    as likely, the simplest stays alone, and from there on the others count for more the more likely they are.

    Parameters
    ----------
    probs : dict of str to ndarray of shape (n, K)
        Nested predictions by method; :data:`KINDS` that are not there are not mixed, the first must be.
    y : ndarray of shape (n, K)
    weight : ndarray of shape (n,), optional
        What each row counts for, with mean 1.
    """
    names = [name for name in KINDS if name in probs]
    if len(names) == 1:
        return {SIMPLEST: 1.0}
    stacked = np.stack([probs[name] for name in names], axis=1)
    shares = SimplexBlend(PSEUDO_ROWS / len(y)).fit(stacked, y, weight).weights_
    shares = np.where(shares >= LEAST_SHARE, shares, 0.0)
    shares /= shares.sum()
    mixed = np.einsum("nsk,s->nk", stacked, shares)
    gain = cross_entropy(stacked[:, 0], y) - cross_entropy(mixed, y)
    nats = float(gain.sum() if weight is None else weight @ gain) - (np.count_nonzero(shares[1:]))
    departure = max(0.0, 1 - ODDS * float(np.exp(min(-nats, 0.0))))
    shares *= departure
    shares[0] += 1 - departure
    return {name: float(share) for name, share in zip(names, shares, strict=True) if share > 0}


def mixed(probs: Mapping[str, np.ndarray], shares: Mapping[str, float]) -> np.ndarray:
    """The prediction (n, K) of a mixture."""
    return np.sum([share * probs[name] for name, share in shares.items()], axis=0)


def final_fit_note(name: str, inside: np.ndarray, nested: np.ndarray) -> str | None:
    """What to tell the user where the fit on all rows is not the one that was scored, else ``None``.

    A fit is better on its own rows than on those it did not see. Where its loss on its own is above the
    nested loss by more than two paired standard errors, what will be deployed learned less than the fits
    that were scored.

    Parameters
    ----------
    name : str
        Of the method.
    inside, nested : ndarray of shape (n,)
        Loss of each row by the fit on all rows, and by the fits that did not see it.
    """
    gap = inside - nested
    error = float(gap.std() / np.sqrt(len(gap)))
    if gap.mean() <= max(2 * error, 1e-9):
        return None
    return (
        f"{name}, fitted on all rows, has a loss of {inside.mean():.4f} on these, above its nested loss of "
        f"{nested.mean():.4f}: it learned less than the fits that were scored; try another --seed"
    )


def choice_included(
    probs: Mapping[str, np.ndarray], y: np.ndarray, fold: np.ndarray, weight: np.ndarray | None = None
) -> np.ndarray:
    """Predict each fold (n, K) by the mixture that the other folds choose.

    A score of shares fitted to the rows that they are scored on is a little too good; the loss of these
    predictions is not.
    """
    found = np.empty_like(y)
    for number in np.unique(fold):
        held = fold == number
        rest = {name: probs[name][~held] for name in KINDS if name in probs}
        shares = mixture(rest, y[~held], None if weight is None else weight[~held])
        found[held] = mixed({name: probs[name][held] for name in shares}, shares)
    return found
