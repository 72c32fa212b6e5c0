"""Labels or columns that bear one another's names: a member that is worse than knowing nothing, but for that.

A model that reads its rows at all beats the classes' shares. One that does not, and would under other names
of its columns, has them exchanged, or the labels' numbers were counted in another order than
they are read in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.errors import UserError, listing
from data.schema import Classes
from ensemble.reading.labels import Labels
from ensemble.reading.members import Member
from ensemble.solvers.numbers import LOSS_FLOOR

FAR = 0.1
"""Share of the loss of the classes' shares by which other names must better a member."""


def exchanged_classes(
    y: np.ndarray, P: np.ndarray, classes: Classes, members: Sequence[Member], labels: Labels
) -> list[str]:
    """Return a note a member whose columns look exchanged.

    Parameters
    ----------
    y : ndarray of shape (n, K)
    P : ndarray of shape (n, members, K)
    classes : Classes
    members : sequence of Member
    labels : Labels

    Raises
    ------
    UserError
        Labels that are numbers, by which every member looks so: their order is not the columns'.
    """
    from scipy.optimize import linear_sum_assignment

    shares = y.mean(axis=0)
    prior = float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
    notes = []
    for m, member in enumerate(members):
        logs = np.log(np.maximum(P[:, m], LOSS_FLOOR))
        own = float(-np.einsum("nk,nk->n", y, logs).mean())
        if own <= prior:
            continue
        cost = -(y.T @ logs) / len(y)  # (true class, column): what it costs to take the column for the class
        truth, column = linear_sum_assignment(cost)
        best = float(cost[truth, column].sum())
        if best >= prior or own - best < FAR * prior:
            continue
        moved = [
            f"{classes.names[k]} for {classes.names[j]}"
            for k, j in zip(truth.tolist(), column.tolist(), strict=True)
            if k != j and shares[k] > 0
        ]
        notes.append(
            f"{member.name} has a log-loss of {own:.3f}, worse than the classes' shares alone ({prior:.3f}), "
            f"and would have {best:.3f} with {listing(moved, 4)}: are its columns, or the labels, named "
            "otherwise?"
        )
    if labels.by_index and len(notes) == len(members):
        order = ", ".join(f"{k} = {name}" for k, name in enumerate(classes.names[:12]))
        raise UserError(
            f"{labels.path}: its labels are numbers, read as {order}, and so read {notes[0]} "
            "Give the labels as class names"
        )
    return notes
