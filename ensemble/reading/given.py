"""What a caller of the Python API gives, arrays, lists and data frames, read as files are.

A data frame (pandas, polars, Arrow) goes through the same readers as the Parquet file that it would make, so
that both accept and refuse the same. Rows that bring no ids of their own are meant by position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.classes import Classes
from data.errors import UserError, listing
from data.frames import as_table, is_frame, numbered
from data.ids import align
from ensemble.reading.columns import check_ids, check_probabilities
from ensemble.reading.labels import Labels, labels_in, load_labels
from ensemble.reading.members import Member, load_member, member_of, name_of

if TYPE_CHECKING:
    import pyarrow as pa


def members_given(
    members: Any, classes: Classes | None = None, names: Sequence[str] | None = None
) -> list[Member]:
    """Read members that agree on their classes, in the order given.

    Parameters
    ----------
    members : ndarray of shape (n, members, K), or a list or mapping of members
        A member is an array (n, K), a data frame of one column a class, or the path of a store or a
        prediction set.
    classes : Classes, optional
        Of the columns; by default those of the first member that names them, else numbered.
    names : sequence of str, optional
        Of members that come without; by default a path's stem, of others ``member1``, ``member2``, ...

    Raises
    ------
    UserError
        A member is no distribution over these classes, or rows without ids are not as many as the first's.
    """
    named = named_members(members, names)
    known = classes
    for name, part in named if known is None else ():
        if is_frame(part) or isinstance(part, str | Path):
            known = member_given(part, name, None).classes
            break
    found: list[Member] = []
    for name, part in named:
        member = member_given(part, name, known, found[0].row_ids if found else None)
        found.append(member)
        known = known or member.classes
    return found


def named_members(members: Any, names: Sequence[str] | None) -> list[tuple[str, Any]]:
    """Members with the names that they have, or get; see :func:`members_given`."""
    if isinstance(members, Mapping):
        return [(str(name), part) for name, part in members.items()]
    if is_frame(members) or isinstance(members, str) or getattr(members, "ndim", 3) != 3:
        raise UserError(
            "members are one array of shape (rows, members, classes), a list of one (rows, classes) a "
            "member, or a mapping of names to these; put a single prediction in a list"
        )
    if isinstance(members, np.ndarray):
        parts = [members[:, m] for m in range(members.shape[1])]
    else:
        parts = list(members)
    if not parts:
        raise UserError("no members; give one prediction or more")
    if names is not None and len(names) != len(parts):
        raise UserError(f"{len(parts)} members are given, and there are {len(names)}: {listing(names, 12)}")
    usual = [
        name_of(Path(part)) if isinstance(part, str | Path) else f"member{number}"
        for number, part in zip(numbered(len(parts), 1), parts, strict=True)
    ]
    return list(zip(names or usual, parts, strict=True))


def member_given(
    part: Any, name: str, classes: Classes | None = None, row_ids: Sequence[str] | None = None
) -> Member:
    """Read one member, as :func:`members_given` does.

    Parameters
    ----------
    part : ndarray of shape (n, K), data frame or path
    name : str
    classes : Classes, optional
    row_ids : sequence of str, optional
        Those of rows that bring none, by position.
    """
    where = Path(f"members[{name!r}]")
    if isinstance(part, str | Path):
        return load_member(Path(part), classes, name)
    if is_frame(part):
        table, own = as_table(part)
        member = member_of(table, where, classes, name)
        if own or row_ids is None:
            return member
        return replace(member, row_ids=_by_position(row_ids, len(member.row_ids), str(where)))
    values = np.asarray(part)
    if values.ndim != 2 or values.shape[1] < 2 or values.dtype.kind not in "fiu":
        raise UserError(f"{where}: has shape {values.shape}; a member has one row a row, one column a class")
    n, n_classes = values.shape
    classes = classes or Classes(tuple(str(k) for k in range(n_classes)))
    if classes.n != n_classes:
        raise UserError(
            f"{where}: has {n_classes} columns, and there are {classes.n} classes: {listing(classes.names)}"
        )
    ids = numbered(n) if row_ids is None else _by_position(row_ids, n, str(where))
    checked = check_probabilities(values.astype(np.float64), ids, classes, where)
    return Member(name, ids, checked, classes, where)


def labels_given(y: Any, ids: Sequence[str], classes: Classes, sample_weight: Any = None) -> Labels:
    """Read what happened in rows ``ids``, in that order.

    Parameters
    ----------
    y : array of shape (n,) or (n, K), Series, data frame or path
        Labels (class names or indices, empty where unknown) or target distributions. What brings ids (a
        Series its index, a frame an id column) is matched by them, everything else by position.
    sample_weight : array of shape (n,), optional

    Raises
    ------
    UserError
        As :func:`ensemble.reading.labels.load_labels`; a row without a label, or more labels than rows.
    """
    import pyarrow as pa

    if isinstance(y, str | Path):
        found = load_labels(Path(y), classes)
        table = None
    elif is_frame(y):
        table, own = as_table(y)
        if not own:
            table = table.set_column(0, "id", pa.array(_by_position(ids, table.num_rows, "y"), pa.string()))
    elif getattr(y, "ndim", 1) == 2:
        values = np.asarray(y, dtype=np.float64)
        if values.shape[1] != classes.n:
            raise UserError(f"y: has {values.shape[1]} columns, and there are {classes.n} classes")
        columns = {name: pa.array(values[:, k]) for k, name in enumerate(classes.names)}
        table = pa.table({"id": pa.array(_by_position(ids, len(values), "y"), pa.string()), **columns})
    else:
        table = pa.table({"id": pa.array(ids, pa.string()), "label": _array(by_row(y, ids, "y"))})
    if table is not None:
        found = labels_in(table, Path("y"), classes)
    if sample_weight is None:
        return found
    weights = np.asarray(by_row(sample_weight, ids, "sample_weight"), dtype=np.float64)
    at = align(found.row_ids, list(ids), "sample_weight")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise UserError("sample_weight: every row needs a weight of 0 or more")
    return replace(found, weights=weights[at])


def by_row(values: Any, ids: Sequence[str], what: str) -> list[Any]:
    """Values of rows ``ids``, in that order: of a Series with an index of its own by it, else by position."""
    if hasattr(values, "to_frame"):
        table, own = as_table(values.to_frame("value"))
        found = table.column("value").to_pylist()
        if own:
            at = align(ids, check_ids(table.column(0).to_pylist(), "index", Path(what)), what)
            return [found[i] for i in at.tolist()]
    else:
        found = np.asarray(values).tolist()
    _by_position(ids, len(found), what)
    return found


def _by_position(ids: Sequence[str], n: int, what: str) -> list[str]:
    """The ids of ``n`` rows that bring none, which must be as many."""
    if n != len(ids):
        raise UserError(f"{what}: has {n} rows where there are {len(ids)}; give one a row, or rows with ids")
    return list(ids)


def _array(values: list[Any]) -> pa.Array:
    """An Arrow column; of values of several kinds, as text."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except pa.ArrowException:
        return pa.array([None if value is None else str(value) for value in values])
