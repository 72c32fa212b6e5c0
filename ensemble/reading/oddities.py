"""What looks odd among members and is told, not mended: exchanged classes, copies, constants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.classes import Classes
from data.errors import UserError, listing
from data.softmax import softmax
from ensemble.solvers.designs import SharedDesign
from ensemble.solvers.newton import SoftmaxProblem, minimise
from ensemble.solvers.numbers import cross_entropy, log_probs

COPY = 0.01
"""Mean total-variation distance under which two members are near-copies."""
CONSTANT = 1e-6
"""Standard deviation over the rows under which a member says the same of every row."""
SURE = 5.0
"""Standard errors by which another order of the classes must be better than the one given."""
SURE_OF_BAD = 2.5
"""The same of a member that is worse than the classes' shares alone, which no honest model is for long."""
_FLOOR = 1e-3
_LOOKED_AT = 20_000


def odd_members(
    P: np.ndarray, y: np.ndarray, names: Sequence[str], classes: Classes, counted: Path | str | None = None
) -> list[str]:
    """Notes on members (n, members, K) that need the user's eye.

    Parameters
    ----------
    P : ndarray of shape (n, members, K)
    y : ndarray of shape (n, K)
    names : sequence of str
    classes : Classes
    counted : Path or str, optional
        The file whose labels are indices of classes.

    Raises
    ------
    UserError
        Labels that are indices, by which every member is worse than the classes' shares, and all of them say
        that the classes are counted in one other order.
    """
    P, y = P[:_LOOKED_AT], y[:_LOOKED_AT]
    notes = [
        f"{name} says the same of every row"
        for m, name in enumerate(names)
        if P[:, m].std(axis=0).max() < CONSTANT
    ]
    notes += _copies(P, names)
    found = {name: exchanged(P[:, m], y) for m, name in enumerate(names)}
    orders = {name: order for name, order in found.items() if order is not None}
    agreed = len(orders) == len(names) and len(set(orders.values())) == 1
    if counted is not None and agreed and all(_is_bad(P[:, m], y) for m in range(len(names))):
        raise UserError(
            f"{counted}: its labels are numbers, {index_reading(classes)}, and so read every member is worse "
            "than the classes' shares alone, which it would not be with "
            f"{_moves(next(iter(orders.values())), classes)}. Give the labels as class names"
        )
    for order in dict.fromkeys(orders.values()):
        alike = [name for name in orders if orders[name] == order]
        notes.append(
            f"{listing(alike, 12)}: what happened is far likelier with classes exchanged "
            f"({_moves(order, classes)}); "
            + (
                "all members agree, so that the labels may be read in another order than was meant"
                if len(alike) == len(names) and len(names) > 1
                else "the columns may be named in another order than the labels'"
            )
            + "; nothing is exchanged here"
        )
    return notes


def index_reading(classes: Classes) -> str:
    """How labels that are indices are read, for a message."""
    order = ", ".join(f"{k} = {name}" for k, name in enumerate(classes.names[:12]))
    return f"read as {order}{', ...' if classes.n > 12 else ''}"


def _moves(order: tuple[int, ...], classes: Classes) -> str:
    moved = [(k, j) for k, j in enumerate(order) if k != j]
    return ", ".join(f"column {classes.names[j]} for {classes.names[k]}" for k, j in moved[:6]) + (
        ", ..." if len(moved) > 6 else ""
    )


def exchanged(probs: np.ndarray, y: np.ndarray) -> tuple[int, ...] | None:
    """The order of columns that a member (n, K) seems to mean, where it is surely not the one given.

    In the order of most likelihood, at a temperature of its own, the loss is surely below that of the order
    given, at its own. Logarithms are floored, so that a few bold mistakes do not decide. Each column moved
    was picked from as many as there are classes and costs the logarithm of their number: of a thousand
    columns the luckiest always fits a class of few rows.
    """
    from scipy.optimize import linear_sum_assignment

    logs = log_probs(probs, _FLOOR)
    logs -= logs.mean(axis=1, keepdims=True)
    order = linear_sum_assignment(-(y.T @ logs))[1]
    if np.array_equal(order, np.arange(len(order))):
        return None
    gain = tempered(logs, y) - tempered(logs[:, order], y)
    sure = SURE_OF_BAD if _is_bad(probs, y) else SURE
    moved = np.count_nonzero(order != np.arange(len(order)))
    picked = moved * np.log(len(order)) / len(gain)
    if gain.mean() - picked <= sure * gain.std() / np.sqrt(len(gain)):
        return None
    return tuple(int(k) for k in order)


def _is_bad(probs: np.ndarray, y: np.ndarray) -> bool:
    """Whether a member (n, K) costs more than the classes' shares."""
    shares = np.tile(y.mean(axis=0), (len(y), 1))
    return bool(cross_entropy(probs, y).mean() > cross_entropy(shares, y).mean())


def tempered(logs: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Loss of each row (n,) at the temperature of least loss, infinite where the logarithms speak against it.

    Parameters
    ----------
    logs, y : ndarray of shape (n, K)
    """
    design = SharedDesign(logs[:, :, None])
    even = np.full(len(y), 1 / len(y))
    scale = minimise(SoftmaxProblem(design, y, even, np.full(1, 1e-6), np.ones(1)), tolerance=1e-8)
    return cross_entropy(softmax(design.logits(np.maximum(scale, 0))), y)


def _copies(P: np.ndarray, names: Sequence[str]) -> list[str]:
    """Members that differ by next to nothing, a note for each set of them."""
    groups: list[list[int]] = []
    for m in range(len(names)):
        for group in groups:
            if 0.5 * np.abs(P[:, m] - P[:, group[0]]).sum(axis=1).mean() < COPY:
                group.append(m)
                break
        else:
            groups.append([m])
    return [
        f"{listing([names[m] for m in group], 12)} are near-copies, which say little more than one of them"
        for group in groups
        if len(group) > 1
    ]
