"""Prediction sets of rows with candidates, a line a row and candidate: ``row_id, candidate, probability``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.candidates import CANDIDATES, set_rows
from data.errors import UserError, brief, listing
from data.files import atomic_write, read_table, sha256_text, sweep, table_columns, write_parquet
from data.ids import id_column, places
from data.schema import SUM_TOLERANCE
from data.softlabels import MANIFEST, read_manifest, read_store
from ensemble.reading.columns import DUST, number_column
from ensemble.reading.members import name_of

CANDIDATE, PROBABILITY = "candidate", "probability"
LEAST = 1e-12
"""Candidates of a lower probability are taken as this, so that 0 stands for places without a candidate."""


@dataclass(frozen=True)
class SetMember:
    """One model's predictions of rows with candidates.

    Attributes
    ----------
    name : str
    path : Path
    row_ids : list of str, length n
    candidates : list of list of str
        Each row's own, in the order of ``probs``.
    probs : ndarray of shape (n, K)
        Above 0 for each candidate, summing to 1, and 0 behind a row's set.
    fold : ndarray of shape (n,) or None
        The fold whose model predicted the row, of a store.
    manifest : dict or None
        A store's.
    """

    name: str
    path: Path
    row_ids: list[str]
    candidates: list[list[str]]
    probs: np.ndarray
    fold: np.ndarray | None = None
    manifest: dict[str, Any] | None = None

    @property
    def content_hash(self) -> str:
        """Of ids, candidates and probabilities."""
        names = [name for found in self.candidates for name in ("", *found)]
        return sha256_text("\x01".join(self.row_ids), *names, self.probs.tobytes().hex())

    def onto(self, row_ids: Sequence[str], candidates: Sequence[Sequence[str]], whose: str) -> SetMember:
        """Its predictions of these rows, the candidates of each in this order.

        Raises
        ------
        UserError
            It lacks a row, or a row has other candidates here.
        """
        at = places(row_ids, self.row_ids)
        lacking = [row_id for row_id, i in zip(row_ids, at.tolist(), strict=True) if i < 0]
        if lacking:
            raise UserError(
                f"{self.path}: lacks {len(lacking)} of the {len(row_ids)} rows of {whose}: {listing(lacking)}"
            )
        width = max(self.probs.shape[1], *(len(found) for found in candidates))
        probs = np.zeros((len(row_ids), width))
        for line, i, row_id, wanted in zip(probs, at.tolist(), row_ids, candidates, strict=True):
            own = self.candidates[i]
            if own == list(wanted):
                line[: len(own)] = self.probs[i, : len(own)]
                continue
            if sorted(own) != sorted(wanted):
                odd = sorted(set(own).symmetric_difference(wanted))
                raise UserError(
                    f"{self.path}: row {row_id} has other candidates than in {whose}: {listing(odd, 3)} in "
                    "one alone; a blend needs the same candidates from every model"
                )
            line[: len(own)] = self.probs[i, [own.index(name) for name in wanted]]
        fold = None if self.fold is None else self.fold[at]
        return replace(
            self, row_ids=list(row_ids), candidates=list(map(list, candidates)), probs=probs, fold=fold
        )


def is_of_sets(path: Path) -> bool:
    """Whether a store or prediction set is of rows with candidates."""
    if path.is_dir():
        return (path / MANIFEST).is_file() and CANDIDATES in read_manifest(path)
    if not path.is_file() or path.suffix.lower() == ".npy":
        return False
    return {CANDIDATE, PROBABILITY} <= set(table_columns(path, "prediction set"))


def read_member(path: Path, name: str | None = None) -> SetMember:
    """Read a store, or a prediction set in the long layout, CSV or Parquet.

    Raises
    ------
    UserError
        Missing or damaged, other columns, a candidate twice, or shares that are no distribution over a set.
    """
    if not path.exists():
        raise UserError(f"{path}: no such prediction set or soft-label store")
    if not is_of_sets(path):
        raise UserError(
            f"{path}: is not of rows with candidates, as the other models are; a prediction set of these has "
            f"the columns row_id, {CANDIDATE} and {PROBABILITY}"
        )
    name = name or name_of(path)
    if path.is_dir():
        store = read_store(path)
        assert store.candidates is not None
        sizes = np.array([len(found) for found in store.candidates])
        probs = np.where(np.arange(store.classes.n) < sizes[:, None], np.maximum(store.probs, LEAST), 0.0)
        probs /= probs.sum(axis=1, keepdims=True)
        return SetMember(name, path, store.row_ids, store.candidates, probs, store.fold, store.manifest)
    return _read_long(path, name)


def _read_long(path: Path, name: str) -> SetMember:
    table = read_table(path, "prediction set", as_text=True)
    column = id_column(table.column_names)
    if column is None:
        raise UserError(f"{path}: no column row_id or id among {listing(table.column_names, 12)}")
    ids = [str(value) for value in table.column(column).to_pylist()]
    names = [str(value) for value in table.column(CANDIDATE).to_pylist()]
    if not ids:
        raise UserError(f"{path}: holds no rows")
    values = number_column(table, PROBABILITY, ids, path)
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= -DUST) & (values <= 1 + SUM_TOLERANCE)))
    if bad.size:
        raise UserError(
            f"{path}: row {ids[bad[0]]} has the {PROBABILITY} {values[bad[0]]:g} for "
            f"{brief(names[bad[0]], 60)}, which is none; give numbers from 0 to 1"
        )
    row_ids = list(dict.fromkeys(ids))
    line = places(ids, row_ids)
    order = np.argsort(line, kind="stable")
    sizes = np.bincount(line)
    ends = np.cumsum(sizes)
    in_order = [names[i] for i in order]
    candidates = [in_order[end - n : end] for end, n in zip(ends, sizes, strict=True)]
    for row_id, found in zip(row_ids, candidates, strict=True):
        if len(found) < 2 or len(set(found)) < len(found):
            raise UserError(
                f"{path}: row {row_id} has the candidates {listing(found, 5)}; two or more, each once"
            )
    width = int(sizes.max())
    sums = set_rows(values[order], sizes, width, 0.0).sum(axis=1)
    wrong = np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE)
    if wrong.size:
        raise UserError(
            f"{path}: {wrong.size} rows do not sum to 1 over their candidates, e.g. row {row_ids[wrong[0]]} "
            f"sums to {sums[wrong[0]]:.6g}; give every candidate of a row, and normalise"
        )
    probs = set_rows(np.maximum(values[order], LEAST), sizes, width, 0.0)
    return SetMember(name, path, row_ids, candidates, probs / probs.sum(axis=1, keepdims=True))


def write_sets(
    path: Path, row_ids: Sequence[str], candidates: Sequence[Sequence[str]], probs: np.ndarray
) -> None:
    """Write a prediction set in the long layout, CSV or Parquet by extension, atomically.

    Parameters
    ----------
    path : Path
    row_ids : sequence of str, length n
    candidates : sequence of sequence of str
    probs : ndarray of shape (n, K)
        Those of each row's candidates first.
    """
    import pyarrow as pa
    from pyarrow import csv

    sizes = np.array([len(found) for found in candidates])
    table = pa.table(
        {
            "row_id": pa.array(
                [i for i, n in zip(row_ids, sizes, strict=True) for _ in range(n)], pa.string()
            ),
            CANDIDATE: pa.array([name for found in candidates for name in found], pa.string()),
            PROBABILITY: pa.array(probs[np.arange(probs.shape[1]) < sizes[:, None]]),
        }
    )
    sweep(path.parent, path.name)
    if path.suffix.lower() == ".parquet":
        write_parquet(path, table)
        return
    with atomic_write(path) as temporary:
        csv.write_csv(table, temporary)
