"""Reading members: soft-label stores and prediction sets, and the labels they are scored against.

Everything is keyed by row id, never by position, and every departure from the contract is refused with
the file, the row or the column in the message.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.errors import UserError, listing
from data.files import read_json, read_table, sha256_text
from data.schema import PREFERENCE, PREFERENCE_NO_TIE, Classes, Rows

if TYPE_CHECKING:
    import pyarrow as pa

ID_COLUMNS = ("id", "row_id")
NOT_CLASSES = (*ID_COLUMNS, "fold", "group_id", "label", "swap", "weight")
PARTS = "part-*.parquet"
_MISSING = ("", "nan", "na", "null", "none")
SUM_TOLERANCE = 5e-3
"""Probabilities rounded to a few digits may miss 1 by this; they are then normalised."""


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
    """

    name: str
    row_ids: list[str]
    probs: np.ndarray
    classes: Classes
    path: Path
    fold: np.ndarray | None = None
    manifest: dict[str, Any] | None = None

    @property
    def source(self) -> Source:
        """Where these came from."""
        return Source(self.path, sha256_text("\x01".join(self.row_ids), self.probs.tobytes().hex()))


@dataclass(frozen=True)
class Labels:
    """What happened: a target distribution a row.

    Attributes
    ----------
    row_ids : list of str
    targets : ndarray of shape (n, K)
        One-hot or soft; NaN where a row is unlabelled.
    path : Path
    rows : Rows or None
        The row table, where the labels came with one.
    weights : ndarray of shape (n,) or None
        What each row counts for, where a column ``weight`` says so.
    """

    row_ids: list[str]
    targets: np.ndarray
    path: Path
    rows: Rows | None = None
    weights: np.ndarray | None = None


def split_name(argument: str) -> tuple[str | None, Path]:
    """Split ``NAME=PATH`` into its parts; a plain path has no name of its own."""
    if "=" in argument and not Path(argument).exists():
        name, _, path = argument.partition("=")
        if name and "/" not in name:
            return name, Path(path)
    return None, Path(argument)


def load_member(path: Path, classes: Classes | None = None, name: str | None = None) -> Member:
    """Read a store directory, or a prediction set as CSV, Parquet, ``.npy``, or the parts of a labelling.

    A ``.npy`` holds probabilities (n, K); its ids stand one a line in ``<stem>.ids.txt`` beside it.

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
    values = np.stack([_numbers(table, column, path) for column in found.names], axis=1)
    probs = check_probabilities(values, ids, found, path)
    return Member(name or (path.name if path.is_dir() else path.stem), ids, probs, found, path)


def _read_parts(path: Path) -> pa.Table:
    """Join the parts that ``distill.predict`` left in a directory, in their order; all must be there."""
    import pyarrow as pa

    manifest = read_json(path / "manifest.json", "manifest of predictions")
    table = pa.concat_tables([read_table(part, "part of predictions") for part in sorted(path.glob(PARTS))])
    if table.num_rows != manifest.get("n_rows"):
        raise UserError(
            f"{path}: has {table.num_rows} of {manifest.get('n_rows')} rows; "
            "start the same distill.predict again to finish it"
        )
    return table


def _load_store(path: Path, classes: Classes | None, name: str | None) -> Member:
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
    return Member(
        name or store.name, store.row_ids, store.probs, store.classes, path, store.fold, store.manifest
    )


def _load_array(path: Path, classes: Classes | None, name: str | None) -> Member:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path}: cannot be read as a NumPy array ({error}); save it with numpy.save"
        ) from error
    if values.ndim != 2 or values.shape[1] < 2 or values.dtype.kind not in "fiu":
        raise UserError(
            f"{path}: holds {values.dtype} of shape {values.shape}; needs numbers, one row a row id and "
            "one column a class"
        )
    file = path.with_suffix(".ids.txt")
    try:
        ids = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read ({error}); {path} needs its row ids there, one a line"
        ) from error
    if len(ids) != len(values):
        raise UserError(f"{file}: has {len(ids)} ids, and {path} has {len(values)} rows; give one id a row")
    found = classes or Classes(tuple(str(k) for k in range(values.shape[1])))
    if found.n != values.shape[1]:
        raise UserError(f"{path}: has {values.shape[1]} columns, and there are {found.n} classes")
    ids = _checked_ids(ids, "id", file)
    return Member(
        name or path.stem, ids, check_probabilities(values.astype(np.float64), ids, found, path), found, path
    )


def infer_classes(columns: list[str], path: Path) -> Classes:
    """Return the classes that columns name; the known preference tasks bring their order and swap."""
    for known in (PREFERENCE, PREFERENCE_NO_TIE):
        if sorted(columns) == sorted(known.names):
            return known
    if len(columns) < 2:
        raise UserError(
            f"{path}: has {len(columns)} probability columns ({listing(columns)}); "
            "a prediction set needs an id and one column a class"
        )
    return Classes(tuple(columns))


def read_ids(table: pa.Table, path: Path) -> list[str]:
    """Return the id column as text; refuse a missing column, an empty or repeated id, an empty file."""
    column = next((name for name in ID_COLUMNS if name in table.column_names), None)
    if column is None:
        raise UserError(
            f"{path}: no id column (id or row_id); the file has {listing(table.column_names, 12)}"
        )
    return _checked_ids(table.column(column).to_pylist(), column, path)


def _checked_ids(values: list[Any], column: str, path: Path) -> list[str]:
    if not values:
        raise UserError(f"{path}: holds no rows")
    empty = next((i for i, value in enumerate(values) if value is None or value == ""), None)
    if empty is not None:
        raise UserError(f"{path}: line {empty + 1} of the data has no {column}")
    ids = [str(value) for value in values]
    repeated = [key for key, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(
            f"{path}: {len(repeated)} ids appear more than once: {listing(repeated)}; keep one line a row"
        )
    return ids


def _numbers(table: pa.Table, name: str, path: Path) -> np.ndarray:
    import pyarrow as pa

    column = table.column(name)
    if pa.types.is_string(column.type):  # a CSV is read as text, so that ids keep their zeros
        import pyarrow.compute as pc

        text = pc.utf8_trim_whitespace(column)
        with suppress(pa.ArrowInvalid):  # the type is refused below
            column = pc.if_else(pc.equal(text, ""), None, text).cast(pa.float64())
    kind = column.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise UserError(f"{path}: column {name} holds {kind} values where probabilities were expected")
    return np.array(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def check_probabilities(values: np.ndarray, ids: list[str], classes: Classes, path: Path) -> np.ndarray:
    """Return rows normalised to sum to exactly 1; refuse what is not a distribution, naming the row."""
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        row, column = bad[0]
        raise UserError(
            f"{path}: row {ids[row]} has no finite number in column {classes.names[column]}; "
            "every row needs a probability for every class"
        )
    bad = np.argwhere((values < 0) | (values > 1 + SUM_TOLERANCE))
    if bad.size:
        row, column = bad[0]
        raise UserError(
            f"{path}: row {ids[row]} has {values[row, column]:g} in column {classes.names[column]}, "
            "outside 0 to 1; give probabilities, not logits"
        )
    sums = values.sum(axis=1)
    wrong = np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE)
    if wrong.size:
        raise UserError(
            f"{path}: {wrong.size} rows do not sum to 1, e.g. row {ids[wrong[0]]} sums to "
            f"{sums[wrong[0]]:.6g} over {listing(classes.names, 12)}; normalise them, or name all the classes"
        )
    return values / sums[:, None]


def load_labels(path: Path, classes: Classes) -> Labels:
    """Read labels: a row table or prepared data, or ``id`` with ``label`` or one column a class.

    ``label`` is a class index or a class name, empty where a row is unlabelled;
    class columns are one-hot or soft. A column ``weight`` says what each row counts for.

    Raises
    ------
    UserError
        Missing or damaged file, missing column, duplicate id, a label that is none of the classes.
    """
    from data.schema import read_rows

    if path.is_dir():
        return labels_of(read_rows(path), path, classes)
    table = read_table(path, "label file", as_text=True)
    if {"row_id", "prompt", "response_a", "label"} <= set(table.column_names) and path.suffix == ".parquet":
        return labels_of(read_rows(path), path, classes)
    ids = read_ids(table, path)
    if "label" in table.column_names:
        targets = _targets_from_labels(table.column("label").to_pylist(), ids, classes, path)
    elif all(name in table.column_names for name in classes.names):
        values = np.stack([_numbers(table, name, path) for name in classes.names], axis=1)
        targets = check_probabilities(values, ids, classes, path)
    else:
        raise UserError(
            f"{path}: no label column; it needs label (a class index or name) or one column a class "
            f"({listing(classes.names, 12)}), and has {listing(table.column_names, 12)}"
        )
    return Labels(ids, targets, path, weights=_weights(table, ids, path))


def labels_of(rows: Rows, path: Path, classes: Classes) -> Labels:
    """Labels of a row table, which must speak of the same classes."""
    if rows.classes.names != classes.names:
        raise UserError(
            f"{path}: its classes are {listing(rows.classes.names, 12)}, "
            f"where the predictions have {listing(classes.names, 12)}"
        )
    return Labels(rows.row_ids, rows.targets, path, rows, _weights(rows.table, rows.row_ids, path))


def _weights(table: pa.Table, ids: list[str], path: Path) -> np.ndarray | None:
    """The column ``weight``, where there is one: finite and not negative."""
    if "weight" not in table.column_names:
        return None
    values = _numbers(table, "weight", path)
    bad = np.flatnonzero(~np.isfinite(values) | (values < 0))
    if bad.size:
        raise UserError(
            f"{path}: row {ids[bad[0]]} has no weight of 0 or more in column weight; give every row one"
        )
    return values


def _targets_from_labels(values: list[Any], ids: list[str], classes: Classes, path: Path) -> np.ndarray:
    index = {name: k for k, name in enumerate(classes.names)}
    targets = np.full((len(values), classes.n), np.nan)
    for i, value in enumerate(values):
        if value is None or value != value or (value not in index and str(value).lower() in _MISSING):
            continue
        k = _class_index(value, index, classes.n)
        if k is None:
            raise UserError(
                f"{path}: row {ids[i]} has label {value!r}, none of the {classes.n} classes; give an "
                f"index from 0 to {classes.n - 1} or one of {listing(classes.names, 12)}"
            )
        targets[i] = np.eye(classes.n)[k]
    return targets


def _class_index(value: Any, index: dict[str, int], n: int) -> int | None:
    if isinstance(value, str) and value in index:
        return index[value]
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() and 0 <= number < n else None
