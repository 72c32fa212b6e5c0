"""The choice of a method by nested losses, and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np

from ensemble.methods.catalogue import family

CHANCE = 3.0
AVERAGED = 5
"""Methods within so many standard errors of the best are averaged with it, and so many in all."""


def choose(losses: Mapping[str, np.ndarray]) -> str:
    """The method of least mean loss; the first of several equal ones."""
    return min(losses, key=lambda name: float(losses[name].mean()))


def near_best(losses: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The method of least mean loss, and those whose lag behind it may be chance, best first.

    Between methods that the rows cannot tell apart a choice is a throw of dice, and their mean is better
    than the one thrown: those within :data:`CHANCE` paired standard errors of the least, but no more than
    :data:`AVERAGED`, for more are more of the same. Of one method with and without a calibration only the
    better counts.

    Parameters
    ----------
    losses : dict of str to ndarray of shape (n,)
        Nested loss of each row by each method.

    Notes
    -----
    After the one-standard-error rule of Breiman et al., *Classification and Regression Trees* (1984), with
    the error of the paired difference, and averaging in place of the simplest, which may reach further.
    """
    families: dict[str, str] = {}
    for name in sorted(losses, key=lambda name: float(losses[name].mean())):
        families.setdefault(family(name), name)
    best, *others = families.values()
    gaps = {name: losses[name] - losses[best] for name in others}
    near = (name for name, gap in gaps.items() if gap.mean() < CHANCE * gap.std() / np.sqrt(len(gap)))
    return best, *islice(near, AVERAGED - 1)


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


def average(probs: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Mean prediction (n, K) of some methods."""
    return np.mean([probs[name] for name in names], axis=0)


def choice_included(
    losses: Mapping[str, np.ndarray], probs: Mapping[str, np.ndarray], fold: np.ndarray
) -> np.ndarray:
    """Predict each fold (n, K) by the methods that the other folds choose, averaged.

    The least of many scores is a little too good; the loss of these predictions is not, for they are
    not chosen on the rows that they count.
    """
    found = np.empty_like(next(iter(probs.values())))
    for number in np.unique(fold):
        held = fold == number
        names = near_best({name: loss[~held] for name, loss in losses.items()})
        found[held] = average({name: probs[name][held] for name in names}, names)
    return found
