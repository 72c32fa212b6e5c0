"""Reading members: soft-label stores and prediction sets.

Everything is keyed by row id, never by position, and every departure from the contract is refused with
the file, the row or the column in the message.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.classes import PREFERENCE, PREFERENCE_NO_TIE, Classes, place_classes, refuse_candidates
from data.errors import UserError, brief, listing
from data.files import read_json, read_table, readable_parquet, refuse_impossible, sha256_text, table_columns
from data.ids import id_column, places
from data.shards import KEY, key_of
from ensemble.reading.arrays import read_array
from ensemble.reading.columns import (
    check_probabilities,
    class_columns,
    infer_classes,
    read_ids,
    read_probabilities,
)
from ensemble.reading.judges import Judge, judge_columns, read_judge

if TYPE_CHECKING:
    import pyarrow as pa

PARTS = "part-*.parquet"
BLENDED = "blend such predictions by ensemble.stack and ensemble.predict"
"""What to do with the predictions of rows that have candidates of their own."""


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
        In class order, each row summing to 1; of a judge all alike, until it is mapped.
    classes : Classes
    path : Path
    fold : ndarray of shape (n,) or None
        The fold whose model predicted the row, where known.
    manifest : dict or None
        A store's manifest.
    order : tuple of str
        The class names in the order of a prediction set's own columns.
    spare : tuple of str
        Columns of a prediction set that are none of the classes.
    id_name : str or None
        What a prediction set's column of ids is called.
    judge : Judge or None
        What a member said that gives no probabilities.
    """

    name: str
    row_ids: list[str]
    probs: np.ndarray
    classes: Classes
    path: Path
    fold: np.ndarray | None = None
    manifest: dict[str, Any] | None = None
    order: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    id_name: str | None = None
    judge: Judge | None = None

    @property
    def source(self) -> Source:
        """Where these came from."""
        said = self.probs if self.judge is None else self.judge.signal
        return Source(self.path, sha256_text("\x01".join(self.row_ids), said.tobytes().hex()))

    def onto(self, row_ids: list[str]) -> Member:
        """A judge on these rows; of those that its file does not hold it says nothing."""
        if self.judge is None or self.row_ids == row_ids:
            return self
        judge = self.judge.take(places(row_ids, self.row_ids))
        probs = np.full((len(row_ids), self.classes.n), 1 / self.classes.n)
        return replace(self, row_ids=row_ids, probs=probs, judge=judge)


def split_name(argument: str) -> tuple[str | None, Path]:
    """Split ``NAME=PATH`` into its parts; a plain path has no name of its own."""
    name, equals, path = argument.partition("=")
    if equals and name and "/" not in name and not refuse_impossible(Path(argument)).exists():
        return name, refuse_impossible(Path(path))
    return None, refuse_impossible(Path(argument))


def load_member(path: Path, classes: Classes | None = None, name: str | None = None) -> Member:
    """Read a store directory, or a prediction set as CSV, Parquet, ``.npy``, or the parts of a labelling.

    A ``.npy`` holds probabilities (n, K); its ids stand one a line in ``<stem>.ids.txt`` beside it. Columns
    that hold no class are left alone where the classes are given; else these are
    :func:`~ensemble.reading.columns.class_columns`.

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
    name = name or name_of(path)
    if path.is_dir() and not any(path.glob(PARTS)):
        return _load_store(path, classes, name)
    if path.suffix.lower() == ".npy":
        return _load_array(path, classes, name)
    table = _read_parts(path) if path.is_dir() else read_table(path, "prediction set", as_text=True)
    return member_of(table, path, classes, name)


def member_of(table: pa.Table, path: Path, classes: Classes | None, name: str) -> Member:
    """Read the table of a prediction set, which messages call by ``path``; as :func:`load_member`."""
    if {"candidate", "probability"} <= set(table.column_names):
        refuse_candidates(place_classes(2), str(path), BLENDED)
    ids = read_ids(table, path)
    said = judge_columns(table.column_names, classes)
    if said:
        found = classes or PREFERENCE
        even = np.full((len(ids), found.n), 1 / found.n)
        spare = tuple(column for column in class_columns(table.column_names) if column not in said)
        judge = read_judge(table, ids, found, path)
        return Member(
            name, ids, even, found, path, spare=spare, id_name=id_column(table.column_names), judge=judge
        )
    columns = class_columns(table.column_names)
    found = classes or infer_classes(columns, path)
    probs = read_probabilities(table, ids, found, path)
    order = tuple(column for column in table.column_names if column in found.names)
    spare = () if len(columns) == 1 else tuple(column for column in columns if column not in found.names)
    return Member(
        name, ids, probs, found, path, order=order, spare=spare, id_name=id_column(table.column_names)
    )


def columns_of(path: Path) -> list[str] | None:
    """Return the columns of a prediction set that may be classes; None of all else, as stores and judges."""
    if path.is_dir():
        part = next(iter(sorted(path.glob(PARTS))), None)
        return None if part is None else class_columns(table_columns(part))
    if not path.is_file() or path.suffix.lower() == ".npy":
        return None
    names = table_columns(path, "prediction set")
    return (
        None
        if judge_columns(names) and not set(PREFERENCE_NO_TIE.names) <= set(names)
        else class_columns(names)
    )


def joined(one: Member, other: Member) -> Member:
    """Return two files of one model that share no row, as a fold each, as one member."""
    if one.fold is not None or other.fold is not None:
        raise UserError(f"{other.path}: a store holds all folds; it cannot be joined to {one.path}")
    said = [None if file.judge is None else (file.judge.kind, file.judge.swap) for file in (one, other)]
    if said[0] != said[1]:
        raise UserError(f"{one.path} and {other.path} bear one name and do not say the same kind of thing")
    judge = None
    if one.judge and other.judge:
        judge = replace(one.judge, signal=np.concatenate([one.judge.signal, other.judge.signal]))
    probs = np.concatenate([one.probs, other.probs])
    return replace(one, row_ids=[*one.row_ids, *other.row_ids], probs=probs, judge=judge)


def onto_common(members: list[Member]) -> list[Member]:
    """Bring judges onto the rows of the other members, or where there are none onto all that any holds."""
    held = next((member.row_ids for member in members if member.judge is None), None)
    if held is None:
        held = list(dict.fromkeys(row_id for member in members for row_id in member.row_ids))
    for member in members:
        if member.judge is not None and not set(member.row_ids) & set(held):
            raise UserError(
                f"{member.path}: judges none of the rows that the other members predict; ids differ"
            )
    return [member.onto(held) for member in members]


def name_of(path: Path) -> str:
    """What a member is called that was given no name."""
    if path.is_dir():
        return path.resolve().name
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def _read_parts(path: Path) -> pa.Table:
    """Join the parts that ``distill.predict`` left in a directory, in their order; all must be there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = read_json(path / "manifest.json", "manifest of predictions")
    if not isinstance(manifest, dict):
        raise UserError(f"{path}: its manifest is damaged; predict into another directory")
    n_rows, parts = manifest.get("n_rows"), sorted(path.glob(PARTS))
    key = key_of(str(manifest.get("model_hash")), str(manifest.get("source_hash")))
    for part in parts:
        with readable_parquet(part):
            found = (pq.read_metadata(part).metadata or {}).get(KEY)
        if found != key.encode():
            raise UserError(
                f"{part}: is not of the model and rows that manifest.json names, or of an earlier "
                "version; start the same distill.predict again to make it anew"
            )
    try:
        table = pa.concat_tables([read_table(part, "part of predictions") for part in parts])
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
    refuse_candidates(store.classes, str(path), BLENDED)
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
