"""Reading members: soft-label stores and prediction sets.

Everything is keyed by row id, never by position, and every departure from the contract is refused with
the file, the row or the column in the message.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.errors import UserError, brief, listing
from data.files import read_json, read_table, require_file, sha256_text
from data.schema import PREFERENCE, PREFERENCE_NO_TIE, SUM_TOLERANCE, Classes

if TYPE_CHECKING:
    import pyarrow as pa

ID_COLUMNS = ("id", "row_id")
PANDAS_INDEX = ("", "Unnamed: 0", "__index_level_0__")
"""What the index of a pandas table is called in a file: to_csv's, the same read again, and to_parquet's."""
NOT_CLASSES = (*ID_COLUMNS, *PANDAS_INDEX, "fold", "group_id", "label", "swap", "weight")
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
    that hold no class are left alone where the classes are given; else they are those of :data:`NOT_CLASSES`.

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
    values = np.stack([numbers(table, column, ids, path) for column in found.names], axis=1)
    probs = check_probabilities(values, ids, found, path)
    order = tuple(column for column in table.column_names if column in found.names)
    return Member(name or _stem(path), ids, probs, found, path, order=order)


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
    require_file(path, "prediction set")
    try:
        values = np.load(path, allow_pickle=False)
        if not isinstance(values, np.ndarray):
            raise ValueError("it is an archive of several")
    except (OSError, ValueError, EOFError, MemoryError) as error:
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
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read ({error}); {path} needs its row ids there, one a line"
        ) from error
    ids = [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
    if len(ids) != len(values):
        raise UserError(f"{file}: has {len(ids)} ids, and {path} has {len(values)} rows; give one id a row")
    found = classes or Classes(tuple(str(k) for k in range(values.shape[1])))
    if found.n != values.shape[1]:
        raise UserError(f"{path}: has {values.shape[1]} columns, and there are {found.n} classes")
    ids = _checked_ids(ids, "id", file)
    return Member(
        name or _stem(path),
        ids,
        check_probabilities(values.astype(np.float64), ids, found, path),
        found,
        path,
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
    try:
        return Classes(tuple(columns))
    except UserError as mistake:
        raise UserError(f"{path}: {mistake}") from mistake


def read_ids(table: pa.Table, path: Path) -> list[str]:
    """Return the id column as text; refuse a missing column, an empty or repeated id, an empty file."""
    column = next((name for name in ID_COLUMNS if name in table.column_names), None)
    if column is None:
        semicolons = "; is it separated by semicolons? save it with commas" if table.num_columns == 1 else ""
        raise UserError(
            f"{path}: no id column (id or row_id); the file has {listing(table.column_names, 12)}"
            f"{semicolons if ';' in table.column_names[0] else ''}"
        )
    return _checked_ids(table.column(column).to_pylist(), column, path)


def _checked_ids(values: list[Any], column: str, path: Path) -> list[str]:
    if not values:
        raise UserError(f"{path}: holds no rows")
    for i, value in enumerate(values):
        if value is None or value == "" or value != value:
            raise UserError(f"{path}: line {i + 1} of the data has no {column}")
        if isinstance(value, (bool, bytes, list, dict)):
            raise UserError(
                f"{path}: line {i + 1} of the data has the {column} {brief(value)}; ids are text or numbers"
            )
    ids = [str(value) for value in values]
    repeated = [key for key, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(
            f"{path}: {len(repeated)} ids appear more than once: {listing(repeated)}; keep one line a row"
        )
    return ids


def numbers(table: pa.Table, name: str, ids: list[str], path: Path) -> np.ndarray:
    """Return a column as float64 (n,), NaN where it is empty; refuse what is no number, naming the row."""
    import pyarrow as pa

    column = table.column(name)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        import pyarrow.compute as pc

        # A CSV is read as text, so that ids keep their zeros.
        text = pc.utf8_trim_whitespace(column)
        try:
            column = pc.if_else(pc.equal(text, ""), None, text).cast(pa.float64())
        except pa.ArrowInvalid as error:
            row, value = next(
                ((i, v) for i, v in zip(ids, text.to_pylist(), strict=True) if not _is_number(v)), ("", error)
            )
            raise UserError(
                f"{path}: row {row} has {brief(value)!r} in column {name}, where a number was expected"
            ) from error
    kind = column.type
    known = (pa.types.is_floating, pa.types.is_integer, pa.types.is_null, pa.types.is_decimal)
    if not any(fits(kind) for fits in known):
        raise UserError(f"{path}: column {name} holds {kind} values where numbers were expected")
    return np.array(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def _is_number(text: str | None) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


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
        percent = np.allclose(values.sum(axis=1), 100, atol=1) and values.min() >= 0
        raise UserError(
            f"{path}: row {ids[row]} has {values[row, column]:g} in column {classes.names[column]}, "
            f"outside 0 to 1; {'divide percentages by 100' if percent else 'give probabilities, not logits'}"
        )
    sums = values.sum(axis=1)
    wrong = np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE)
    if wrong.size:
        raise UserError(
            f"{path}: {wrong.size} rows do not sum to 1, e.g. row {ids[wrong[0]]} sums to "
            f"{sums[wrong[0]]:.6g} over {listing(classes.names, 12)}; normalise them, or name all the classes"
        )
    return values / sums[:, None]
