"""Reading members: soft-label stores and prediction sets.

Everything is keyed by row id, never by position, and every departure from the contract is refused with
the file, the row or the column in the message.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.errors import UserError, brief, listing
from data.files import read_json, read_table, sha256_text
from data.schema import Classes
from ensemble.reading.arrays import read_array
from ensemble.reading.columns import NOT_CLASSES, check_probabilities, infer_classes, number_column, read_ids

if TYPE_CHECKING:
    import pyarrow as pa

PARTS = "part-*.parquet"


@dataclass(frozen=True)
class Source:
    """What a stack remembers of where a member came from.

    Attributes
    ----------
    path : Path
    content_hash : str
        Of its ids and probabilities.
    """

    path: Path
    content_hash: str


@dataclass(frozen=True)
class Member:
    """One model's predictions.

    Attributes
    ----------
    name : str
        File stem or store directory, or what the user called it.
    row_ids : list of str, length n
    probs : ndarray of shape (n, K)
        In class order, each row summing to 1.
    classes : Classes
    path : Path
    fold : ndarray of shape (n,) or None
        The fold whose model predicted the row, where known.
    manifest : dict or None
        A store's manifest.
    order : tuple of str
        The class names in the order of a prediction set's own columns.
    """

    name: str
    row_ids: list[str]
    probs: np.ndarray
    classes: Classes
    path: Path
    fold: np.ndarray | None = None
    manifest: dict[str, Any] | None = None
    order: tuple[str, ...] = ()

    @property
    def source(self) -> Source:
        """Where these came from."""
        return Source(self.path, sha256_text("\x01".join(self.row_ids), self.probs.tobytes().hex()))


def split_name(argument: str) -> tuple[str | None, Path]:
    """Split ``NAME=PATH`` into its parts; a plain path has no name of its own."""
    try:
        there = Path(argument).exists()
    except OSError as error:  # a name too long, a directory that may not be entered
        raise UserError(f"{brief(argument)}: cannot be opened ({error.strerror})") from error
    if "=" in argument and not there:
        name, _, path = argument.partition("=")
        if name and "/" not in name:
            return name, Path(path)
    return None, Path(argument)


def load_member(path: Path, classes: Classes | None = None, name: str | None = None) -> Member:
    """Read a store directory, or a prediction set as CSV, Parquet, ``.npy``, or the parts of a labelling.

    A ``.npy`` holds probabilities (n, K); its ids stand one a line in ``<stem>.ids.txt`` beside it. Columns
    that hold no class are left alone where the classes are given; else they are those of
    :data:`~ensemble.reading.columns.NOT_CLASSES`.

    Parameters
    ----------
    path : Path
    classes : Classes, optional
        The classes to find, by name; taken from the manifest or the columns by default.
    name : str, optional
        Instead of the file stem or the directory's name.

    Raises
    ------
    UserError
        Missing or damaged file, missing column, duplicate id, values that are not probabilities.
    """
    if not path.exists():
        raise UserError(f"{path}: no such prediction set or soft-label store")
    name = name or _stem(path)
    if path.is_dir() and not any(path.glob(PARTS)):
        return _load_store(path, classes, name)
    if path.suffix.lower() == ".npy":
        return _load_array(path, classes, name)
    table = _read_parts(path) if path.is_dir() else read_table(path, "prediction set", as_text=True)
    ids = read_ids(table, path)
    found = classes or infer_classes([c for c in table.column_names if c not in NOT_CLASSES], path)
    missing = [column for column in found.names if column not in table.column_names]
    if missing:
        raise UserError(
            f"{path}: no probability column {listing(missing)}; the file has "
            f"{listing(table.column_names, 12)}, and needs one column a class, named as the class"
        )
    values = np.stack([number_column(table, column, ids, path) for column in found.names], axis=1)
    probs = check_probabilities(values, ids, found, path)
    order = tuple(column for column in table.column_names if column in found.names)
    return Member(name, ids, probs, found, path, order=order)


def _stem(path: Path) -> str:
    """What a member is called that was given no name."""
    if path.is_dir():
        return path.resolve().name
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def _read_parts(path: Path) -> pa.Table:
    """Join the parts that ``distill.predict`` left in a directory, in their order; all must be there."""
    import pyarrow as pa

    manifest = read_json(path / "manifest.json", "manifest of predictions")
    n_rows = manifest.get("n_rows") if isinstance(manifest, dict) else None
    try:
        table = pa.concat_tables(
            [read_table(part, "part of predictions") for part in sorted(path.glob(PARTS))]
        )
    except pa.ArrowException as error:
        raise UserError(
            f"{path}: its parts do not belong together ({brief(error)}); make it again"
        ) from error
    if table.num_rows != n_rows:
        raise UserError(
            f"{path}: has {table.num_rows} of {n_rows} rows; "
            "start the same distill.predict again to finish it"
        )
    return table


def _load_store(path: Path, classes: Classes | None, name: str) -> Member:
    from data.softlabels import MANIFEST, read_store

    if not (path / MANIFEST).exists():
        raise UserError(
            f"{path}: is a directory without {MANIFEST}, so not a soft-label store; give a store or a file"
        )
    store = read_store(path)
    if classes is not None and store.classes.names != classes.names:
        raise UserError(
            f"{path}: its classes are {listing(store.classes.names, 12)}, "
            f"where {listing(classes.names, 12)} were expected"
        )
    return Member(name, store.row_ids, store.probs, store.classes, path, store.fold, store.manifest)


def _load_array(path: Path, classes: Classes | None, name: str) -> Member:
    ids, values = read_array(path)
    found = classes or Classes(tuple(str(k) for k in range(values.shape[1])))
    if found.n != values.shape[1]:
        raise UserError(f"{path}: has {values.shape[1]} columns, and there are {found.n} classes")
    return Member(name, ids, check_probabilities(values, ids, found, path), found, path)
