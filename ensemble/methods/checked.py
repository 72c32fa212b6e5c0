"""Arrays that an estimator's ``fit`` and ``predict_proba`` take, checked; mistakes are ``ValueError``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from data.classes import Classes
from data.errors import UserError, listing
from data.frames import is_frame
from data.labels import LabelReader
from data.schema import SUM_TOLERANCE
from ensemble.reading.columns import DUST
from ensemble.reading.fresh import joined
from ensemble.reading.given import members_given, named_members


class GivenError(UserError, ValueError):
    """A mistake in what an estimator was given; a ``ValueError``, as scikit-learn's callers expect."""


@contextmanager
def as_value_error() -> Iterator[None]:
    """Raise a user's mistake as :class:`GivenError`."""
    try:
        yield
    except GivenError:
        raise
    except UserError as mistake:
        raise GivenError(str(mistake)) from mistake


def distributions(P: np.ndarray) -> np.ndarray:
    """Refuse an array (..., K) whose rows are no distributions; scikit-learn's words where it has some."""
    if 0 in P.shape:
        raise GivenError(f"Found array with 0 sample(s) (shape={P.shape}) while a minimum of 1 is required.")
    if P.shape[-1] < 2:
        raise GivenError(f"shape {P.shape}: the last axis is the classes, of which there are two or more")
    if not np.isfinite(P).all():
        raise GivenError("Input X contains NaN or infinity; every row needs a probability for every class")
    sums = P.sum(axis=-1)
    if P.min() < -DUST or np.abs(sums - 1).max() > SUM_TOLERANCE:
        row = int(np.argmax(np.abs(sums - 1)).item() // max(sums[0].size, 1))
        raise GivenError(
            f"row {row} is no distribution over the classes: probabilities are 0 or more and sum to 1; "
            "give softmax(logits), or divide percentages by 100"
        )
    return P


def as_targets_of(
    y: Any, n: int, n_classes: int, names: Sequence[str] | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Target distributions (n, K) for an estimator, and the labels that its columns stand for (K,).

    Whole numbers from 0 to K - 1 are indices of columns. Where ``names`` are known, labels are these; where
    not, other labels must be K different ones, the columns in sorted order, as scikit-learn has them.

    Raises
    ------
    ValueError
        Labels that are none of these, not one a row, or distributions of another shape.
    """
    if y is None:
        raise GivenError("requires y to be passed, but the target y is None")
    values = np.asarray(y)
    known = np.arange(n_classes) if names is None else np.asarray(names)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if len(values) != n or values.ndim not in (1, 2):
        raise GivenError(f"y has shape {values.shape}, and there are {n} rows; give one label a row")
    if values.ndim == 2:
        if values.shape != (n, n_classes):
            raise GivenError(f"y has shape {values.shape}, and targets have ({n}, {n_classes})")
        return distributions(values.astype(np.float64, copy=False)), known
    if values.dtype.kind in "biu" and (names is None or known.dtype.kind in "biu"):
        if known.dtype.kind in "biu" and np.isin(values, known).all():
            return np.eye(n_classes)[np.searchsorted(known, values)], known
    elif values.dtype.kind == "f" and not np.isfinite(values).all():
        raise GivenError("Input y contains NaN or infinity; leave out rows without a label")
    if names is not None and known.dtype.kind in "UO":
        with as_value_error():
            read = LabelReader(Classes(tuple(map(str, known))), "y")
            found = [read(value, str(i)) for i, value in enumerate(values.tolist())]
            if None in found:
                raise UserError(f"y: row {found.index(None)} has no label")
            read.check_counting()
        return np.eye(n_classes)[np.asarray(found)], known
    seen, at = np.unique(values, return_inverse=True)
    if names is not None:
        seen, at = known, np.searchsorted(known, values).clip(0, n_classes - 1)
        if not np.array_equal(seen[at], values):
            raise GivenError(f"y has labels that are none of the classes {listing(known.tolist(), 12)}")
    elif len(seen) != n_classes or (values.dtype.kind == "f" and not np.array_equal(seen, np.round(seen))):
        raise GivenError(
            f"y has {len(seen)} class(es), {listing(seen.tolist())}, and there are {n_classes} columns; give "
            f"indices from 0 to {n_classes - 1}, one label a column in sorted order, or frames whose columns "
            "are named as the labels"
        )
    return np.eye(n_classes)[at], seen


def as_sample_weight(sample_weight: Any, n: int) -> np.ndarray | None:
    """Row weights (n,), checked; ``None`` where all count alike.

    Raises
    ------
    ValueError
        Not one a row, not finite, negative, or all 0.
    """
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.shape != (n,):
        raise GivenError(f"sample_weight has shape {weights.shape}, and there are {n} rows")
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
        raise GivenError("sample_weight: weights are finite, 0 or more, and not all zero")
    return weights


def as_members(
    P: Any, classes: np.ndarray | None = None, names: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[str, ...] | None, tuple[str, ...] | None]:
    """Members' predictions of the first member's rows for an estimator.

    Parameters
    ----------
    P
        As :func:`members_given` takes.
    classes : ndarray of shape (K,), optional
        What the columns of frames must be, where they were names.
    names : sequence of str, optional
        Members to find in a mapping, in their order.

    Returns
    -------
    P : ndarray of shape (n, members, K)
    classes : tuple of str or None
        Names of the columns, where they have any.
    names : tuple of str or None
        Of the members, where they have any.

    Raises
    ------
    ValueError
        As :func:`members_given` refuses.
    """
    with as_value_error():
        if isinstance(P, np.ndarray) and P.ndim == 3:
            return distributions(P), None, None
        if isinstance(P, Mapping) and names is not None:
            lacking = [name for name in names if name not in P]
            if lacking:
                raise UserError(f"no predictions of {listing(lacking)}; members are {listing(names, 12)}")
            P = {name: P[name] for name in names}
        wanted = None
        if classes is not None and np.asarray(classes).dtype.kind in "UO":
            wanted = Classes(tuple(map(str, classes)))
        members = members_given(P, wanted)
        own = any(is_frame(part) or isinstance(part, str | Path) for _, part in named_members(P, None))
        called = tuple(member.name for member in members) if isinstance(P, Mapping) else None
        named = {member.name: [member] for member in members}
        return (
            joined(named, list(named), "the members").seen({}),
            members[0].classes.names if own else None,
            called,
        )


def as_probabilities(
    probs: Any, classes: np.ndarray | None = None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """One prediction (n, K) for a calibrator, and the names of its columns where it is a frame.

    Raises
    ------
    ValueError
        No two-dimensional array of distributions.
    """
    if is_frame(probs):
        P, names, _ = as_members([probs], classes)
        return P[:, 0], names
    if isinstance(probs, np.ndarray) and probs.ndim == 2 and probs.dtype.kind == "f":
        return distributions(probs), None
    from sklearn.utils import check_array

    with as_value_error():
        return distributions(check_array(probs, dtype=np.float64)), None
