"""The soft-label store: what a model predicted, for which rows, under which folds, and from what.

A store is a directory: ``manifest.json`` pins everything the numbers depend on, ``oof.parquet`` holds
one line a row and order (``row_id``, ``fold``, ``swap``, ``logit_<class>``). Logits, not probabilities,
and already permuted back into the row's own class order. Of rows with candidates of their own, which the
manifest says, the file has a line a candidate instead (:mod:`data.set_logits`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.candidates import CANDIDATES
from data.classes import Classes
from data.errors import UserError, brief, listing
from data.files import read_json, read_parquet, require_columns, sha256_text, write_parquet
from data.ids import places
from data.set_logits import long_table, read_long
from data.softmax import softmax

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
OOF = "oof.parquet"
LABEL_KINDS = ("oof", "in_sample", "fold_mean")
MAY_CHANGE = ("versions", "data", "backbone_path", "backbone_beside", "backbone_source", "truncated_share")
"""Manifest fields that may differ when a run is continued: they do not change its numbers."""
MADE_BY = b"distillstack.made_by"
"""Key of a soft-label file's metadata: the hash of the manifest under which it was written."""
CONTENT = b"distillstack.content"
"""Key of its metadata: the hash of its columns."""
JOIN_FIELDS = ("classes", "rows_hash", "folds_hash")
"""Manifest fields on which stores must agree before their rows may be joined."""


@dataclass(frozen=True)
class SoftLabels:
    """One model's logits for a set of rows.

    Attributes
    ----------
    row_ids : list of str, length n
    fold : ndarray of shape (n,)
        The fold whose model, trained without that fold, predicted the row.
    logits : ndarray of shape (n, orders, K)
        In the row's own class order; second axis is the order of the pair (as given, swapped).
    classes : Classes
    manifest : dict
        The store's manifest.
    path : Path
        Where it was read from.
    candidates : list of list of str or None
        Each row's own, where rows have any: its logits are those of its places, and ``ABSENT`` behind them.
    """

    row_ids: list[str]
    fold: np.ndarray
    logits: np.ndarray
    classes: Classes
    manifest: dict[str, Any]
    path: Path
    candidates: list[list[str]] | None = None

    @property
    def name(self) -> str:
        """The member's name: its directory."""
        return self.path.resolve().name

    @property
    def mean_logits(self) -> np.ndarray:
        """Logits averaged over the orders of a pair, shape (n, K)."""
        return self.logits.mean(axis=1)

    @property
    def probs(self) -> np.ndarray:
        """Softmax of the order-averaged logits, shape (n, K)."""
        return softmax(self.mean_logits)

    @property
    def table(self) -> pa.Table:
        """An Arrow table of ``row_id``, ``fold`` and a probability a class; ``to_pandas()`` makes a frame.

        Of rows with candidates a line a candidate, with its ``logit`` and ``probability``.
        """
        import pyarrow as pa

        if self.candidates is not None:
            long, _ = long_table(self.row_ids, self.fold, self.logits, self.candidates)
            sizes = np.array([len(found) for found in self.candidates])
            flat = self.probs[np.arange(self.classes.n) < sizes[:, None]]
            return long.append_column("probability", pa.array(flat))
        columns = {"row_id": pa.array(self.row_ids, pa.string()), "fold": pa.array(self.fold, pa.int32())}
        probs = self.probs
        return pa.table(columns | {name: probs[:, k] for k, name in enumerate(self.classes.names)})


def logit_columns(classes: Classes) -> list[str]:
    """Column names of the logits, in class order."""
    return [f"logit_{name}" for name in classes.names]


def run_hash(manifest: Mapping[str, Any]) -> str:
    """Hash what a manifest says of a run's numbers; where things lie may change."""
    kept = {name: value for name, value in manifest.items() if name not in MAY_CHANGE}
    return sha256_text(json.dumps(kept, sort_keys=True))


def write_logits(
    path: Path,
    row_ids: list[str],
    fold: np.ndarray,
    logits: np.ndarray,
    classes: Classes,
    manifest: Mapping[str, Any] | None = None,
    candidates: Sequence[Sequence[str]] | None = None,
) -> None:
    """Write an ``oof.parquet``: logits of shape (n, orders, K), one line a row and order, atomically.

    With the ``manifest`` that it belongs to it is marked as that one's, and with the hash of its columns.
    ``candidates`` are those of each row, where they have any.
    """
    import pyarrow as pa

    if candidates is not None:
        table, content = long_table(row_ids, fold, logits, candidates)
        if manifest is not None:
            table = table.replace_schema_metadata({MADE_BY: run_hash(manifest), CONTENT: content})
        write_parquet(path, table)
        return
    n, orders, _ = logits.shape
    ids = [row_id for row_id in row_ids for _ in range(orders)]
    folds, swap = np.repeat(fold, orders), np.tile(classes.orders, n)
    flat = logits.reshape(n * orders, -1).astype(np.float32)
    columns: dict[str, Any] = {
        "row_id": pa.array(ids, pa.string()),
        "fold": pa.array(folds, pa.int32()),
        "swap": pa.array(swap, pa.bool_()),
    }
    for k, name in enumerate(logit_columns(classes)):
        columns[name] = pa.array(flat[:, k])
    table = pa.table(columns)
    if manifest is not None:
        marks = {MADE_BY: run_hash(manifest), CONTENT: _content(ids, folds, swap, flat)}
        table = table.replace_schema_metadata(marks)
    write_parquet(path, table)


def _content(ids: list[str], fold: np.ndarray, swap: np.ndarray, logits: np.ndarray) -> str:
    """Hash the columns of a soft-label file, line by line: files made of it keep its order."""
    numbers = (fold.astype("<i8"), swap.astype("<i8"), logits.astype("<f4"))
    return sha256_text(*ids, *(part.tobytes().hex() for part in numbers))


def read_logits(
    path: Path, classes: Classes, manifest: Mapping[str, Any] | None = None
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Read an ``oof.parquet`` back as (row ids, fold (n,), logits (n, orders, K)).

    Of rows with candidates, :data:`~data.candidates.ABSENT` stands behind each row's set.

    Raises
    ------
    UserError
        The file was written under another manifest than the one given, or changed since, is missing or
        damaged, lacks a column or has one of another type, holds a non-finite logit or an empty cell, repeats
        a row and order, lacks one order of a pair, or has the two in two folds.
    """
    return _read(path, classes, manifest)[:3]


def _read(
    path: Path, classes: Classes, manifest: Mapping[str, Any] | None
) -> tuple[list[str], np.ndarray, np.ndarray, list[list[str]] | None]:
    """:func:`read_logits`, and the rows' candidates where they have any."""
    table = read_parquet(path, "soft-label file")
    if classes.candidates:
        own_ids, own_fold, own_logits, candidates, content = read_long(table, classes.n, path)
        _refuse_unmarked(table, content, manifest, path)
        return own_ids, own_fold, own_logits, candidates
    columns = logit_columns(classes)
    require_columns(table, ["row_id", "fold", "swap", *columns], path)
    _check_types(table, columns, path)
    ids = table.column("row_id").to_pylist()
    swap = table.column("swap").to_numpy(zero_copy_only=False).astype(int)
    fold = table.column("fold").to_numpy(zero_copy_only=False).astype(np.int64)
    values = np.stack([table.column(name).to_numpy(zero_copy_only=False) for name in columns], axis=1)
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)  # the store's own type, in which a greater number is not finite
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise UserError(f"{path}: row {ids[bad[0]]} has a logit that is not finite")

    unique = list(dict.fromkeys(ids))
    index = places(ids, unique)
    n, orders = len(unique), len(classes.orders)
    counts = np.zeros((n, 2), dtype=np.int64)
    np.add.at(counts, (index, swap), 1)
    wrong = np.flatnonzero((counts[:, :orders] != 1).any(axis=1) | (counts[:, orders:] != 0).any(axis=1))
    if wrong.size:
        raise UserError(f"{path}: row {unique[wrong[0]]} must appear once for each of {orders} order(s)")
    logits = np.empty((n, orders, classes.n), dtype=np.float32)
    logits[index, swap] = values
    row_fold = np.empty(n, dtype=np.int64)
    row_fold[index] = fold
    parted = np.flatnonzero(row_fold[index] != fold)
    if parted.size:
        raise UserError(
            f"{path}: row {ids[parted[0]]} is in two folds; one model predicts both orders of a row"
        )
    _refuse_unmarked(table, _content(ids, fold, swap, values), manifest, path)
    return unique, row_fold, logits, None


def _refuse_unmarked(table: pa.Table, content: str, manifest: Mapping[str, Any] | None, path: Path) -> None:
    """Refuse a file that was written under another manifest than the one given, or changed since."""
    if manifest is None:
        return
    marks, wanted = table.schema.metadata or {}, {MADE_BY: run_hash(manifest), CONTENT: content}
    needed = "backbone" in manifest  # a training's; what others wrote needs no marks
    if any(marks.get(key, b"") != wanted[key].encode() for key in wanted if needed or key in marks):
        raise UserError(
            f"{path}: is not as it was written under the {MANIFEST} of its store: one of the two was "
            "changed since, or is another store's; restore it, or make the store again"
        )


def _check_types(table: pa.Table, logits: list[str], path: Path) -> None:
    """Refuse columns of other types than :func:`write_logits` gives them, and empty cells."""
    import pyarrow.types as pt

    expected: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
        "row_id": ("text", lambda kind: pt.is_string(kind) or pt.is_large_string(kind)),
        "fold": ("whole numbers", pt.is_integer),
        "swap": ("truths", pt.is_boolean),
    }
    expected |= dict.fromkeys(logits, ("floating-point numbers", pt.is_floating))
    for name, (what, fits) in expected.items():
        column = table.column(name)
        if not fits(column.type):
            raise UserError(f"{path}: column {name} holds {column.type}, not {what}; make it again")
        if column.null_count and name not in logits:  # of a logit the row is named
            raise UserError(f"{path}: column {name} has {column.null_count} empty cells; make it again")


def second_order_leak(manifest: Mapping[str, Any]) -> bool:
    """Whether a student's out-of-fold score flatters it, for its teachers saw the folds that it is scored on.

    An out-of-fold label of fold j comes from a model trained on fold i, a stack's from a fit on it; the
    student scored on fold i learns from it what fold i's labels taught. ``strict`` labels do not pass that
    on, nor do ``apart`` and ``in_sample`` ones, of the one model that never saw fold i.
    ``benchmarks/distillation.md`` has its size.
    """
    return manifest.get("leakage") == "standard" and manifest.get("teacher_label_kind") in {
        "oof",
        "fold_mean",
        "stack",
    }


def derived_path(store: Path, kind: str) -> Path:
    """Where a teacher's labels of another kind stand: a store beside its own."""
    return store.with_name(f"{store.name}-{kind}")


def is_store(path: Path) -> bool:
    """Whether ``path`` is a store's directory."""
    return path.is_dir() and (path / MANIFEST).exists() and (path / OOF).exists()


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a store's manifest."""
    if not path.is_dir():
        raise UserError(f"{path}: no such soft-label store (a directory with {MANIFEST} and {OOF})")
    manifest = read_json(path / MANIFEST, "manifest")
    if not isinstance(manifest, dict):
        raise UserError(f"{path / MANIFEST}: is not a manifest; it is damaged, or another program's")
    for name in MAY_CHANGE:  # which no hash covers
        kind = {"versions": dict, "truncated_share": float | int}.get(name, str)
        if name in manifest and not isinstance(manifest[name], kind):
            raise UserError(
                f"{path / MANIFEST}: field {name} is {brief(manifest[name], 60)}; restore the file"
            )
    return manifest


def read_store(path: str | Path) -> SoftLabels:
    """Read a finished store; its ``table`` goes into a data frame.

    Parameters
    ----------
    path : path
        The store's directory.

    Raises
    ------
    UserError
        Not a store, unfinished, damaged, or of an unknown ``label_kind``.
    """
    path = Path(path)
    manifest = read_manifest(path)
    missing = [key for key in (*JOIN_FIELDS, "label_kind") if key not in manifest]
    if missing:
        raise UserError(f"{path / MANIFEST}: no field {listing(missing)}; is this a soft-label store?")
    if manifest["label_kind"] not in LABEL_KINDS:
        raise UserError(
            f"{path / MANIFEST}: label_kind {manifest['label_kind']!r} is none of {listing(LABEL_KINDS)}"
        )
    if not (path / OOF).exists():
        raise UserError(
            f"{path}: has no {OOF}; its run is unfinished, start the same command again to finish it"
        )
    classes = classes_of(manifest, path / MANIFEST)
    row_ids, fold, logits, candidates = _read(path / OOF, classes, manifest)
    return SoftLabels(row_ids, fold, logits, classes, manifest, path, candidates)


def classes_of(manifest: Mapping[str, Any], where: Path) -> Classes:
    """The classes of a manifest, which is called ``where`` if it names none."""
    names, swap = manifest["classes"], manifest.get("swap")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{where}: field classes is {brief(names)}, not a list of names; make the store again"
        )
    if swap is not None and not (isinstance(swap, list) and all(type(k) is int for k in swap)):
        raise UserError(
            f"{where}: field swap is {brief(swap)}, not a list of class numbers; make the store again"
        )
    try:
        return Classes(tuple(names), None if swap is None else tuple(swap), CANDIDATES in manifest)
    except UserError as mistake:
        raise UserError(f"{where}: {mistake}") from mistake


def check_joinable(first: dict[str, Any], second: dict[str, Any], first_name: str, second_name: str) -> None:
    """Refuse to join two manifests that disagree on rows, folds or classes, naming the field."""
    for field in JOIN_FIELDS:
        if first.get(field) != second.get(field):
            raise UserError(
                f"{first_name} and {second_name} cannot be joined: their manifests disagree on {field} "
                f"({_short(first.get(field))} against {_short(second.get(field))}); "
                "make both from the same rows.parquet and folds.parquet"
            )


def _short(value: object) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 16 else str(value)
