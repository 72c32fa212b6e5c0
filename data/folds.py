"""Cross-validation folds: grouped by prompt, stratified by label and source, written once, then reused.

Rows that share a prompt are one group, and a group is never split: a model that saw a prompt in
training must not be the one that predicts another row of it. Extra rows may be pinned (fold -1): in the
training of every fold, validated in none; never where their group also holds validation rows. The fold
file, not the seed, is the truth; everything downstream reads it and records its hash.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.errors import UserError, listing
from data.files import read_parquet, require_columns, sha256_text, write_parquet
from data.groups import Near, group_prompts, group_rows, prompts_of
from data.ids import places, refuse_repeated
from data.schema import Rows, as_text

if TYPE_CHECKING:
    import pyarrow as pa

FOLDS = "folds.parquet"
PINNED = -1
"""The fold of a row that is in the training of every fold and validated in none."""


@dataclass(frozen=True)
class Folds:
    """Which fold every row belongs to.

    Attributes
    ----------
    row_ids : list of str, length n
    group_ids : list of str, length n
        Rows of one group share a prompt and a fold.
    fold : ndarray of shape (n,), int64
        Fold numbers 0 to ``n_folds - 1``; a row is predicted by the model trained without its fold.
        ``PINNED`` (-1) for a row that every fold's model is trained on and none predicts.
    """

    row_ids: list[str]
    group_ids: list[str]
    fold: np.ndarray

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def n_folds(self) -> int:
        """Number of folds."""
        return int(self.fold.max()) + 1

    @property
    def pinned(self) -> np.ndarray:
        """Which rows are in the training of every fold, shape (n,), bool."""
        return self.fold == PINNED

    @cached_property
    def content_hash(self) -> str:
        """Hash of row ids, group ids and folds, in their order."""
        return sha256_text(
            "\x01".join(self.row_ids), "\x01".join(self.group_ids), " ".join(map(str, self.fold.tolist()))
        )

    def aligned_to(self, row_ids: list[str]) -> Folds:
        """Return the folds of ``row_ids``, in that order.

        Raises
        ------
        UserError
            A row has no fold.
        """
        index = places(row_ids, self.row_ids)
        missing = np.flatnonzero(index < 0)
        if missing.size:
            raise UserError(
                f"the fold file has no fold for {missing.size} of {len(row_ids)} rows: "
                f"{listing(row_ids[i] for i in missing)}; "
                "rows and folds must come from the same prepared data"
            )
        return Folds(list(row_ids), [self.group_ids[i] for i in index], self.fold[index])


def make_folds(
    rows: Rows,
    n_folds: int = 5,
    seed: int = 0,
    near: Near | None = None,
    pin: Collection[str] = (),
    notes: list[str] | None = None,
) -> Folds:
    """Deal the prompt groups into folds of like size and like shares of labels and sources.

    Groups are shuffled, then dealt greedily, largest first, each to the fold that holds the smallest
    share of its labels and rows so far. Unlabelled rows count as a class of their own.

    Parameters
    ----------
    rows : Rows
    n_folds : int
        At least 2.
    seed : int
        Seed of the shuffle.
    near : Near, optional
        Unite near-duplicate prompts too.
    pin : collection of str
        Sources whose rows are pinned to every training. Rows of theirs that share a group with rows of
        another source are dealt into folds with it instead, for pinned they would leak.
    notes : list of str, optional
        Gets what the user should know of the groups.

    Raises
    ------
    UserError
        Fewer than two folds, fewer groups than folds, an unknown source to pin, or nothing left to
        validate on.
    """
    if n_folds < 2:
        raise UserError(f"{n_folds} folds cannot be cross-validated; give 2 or more")
    if seed < 0:
        raise UserError(f"a seed of {seed} is negative; give 0 or more")
    to_pin = _rows_of(rows, pin)
    groups = group_rows(rows, near, True, notes)
    names, group_of_row = np.unique(np.array(groups), return_inverse=True)
    validated = np.bincount(group_of_row, weights=~to_pin, minlength=len(names)) > 0
    if validated.sum() < n_folds:
        alike = (
            f" (those of a similarity from {near.threshold} on are one; --near off: equal ones alone)"
            if near
            else ""
        )
        raise UserError(
            f"{int((~to_pin).sum())} rows hold {int(validated.sum())} distinct prompts{alike}, too few for "
            f"{n_folds} folds: rows of one prompt share a fold; give fewer folds or more prompts"
        )
    strata, n_strata = _strata(rows)
    fold_of_group = np.full(len(names), PINNED, dtype=np.int64)
    number = np.cumsum(validated) - 1  # of a validated group among them
    dealt = validated[group_of_row]
    fold_of_group[validated] = _deal(
        number[group_of_row[dealt]], strata[dealt], n_strata, n_folds, np.random.default_rng(seed)
    )
    return Folds(list(rows.row_ids), groups, fold_of_group[group_of_row])


def expected_pins(rows: Rows, group_ids: list[str], pin: Collection[str]) -> np.ndarray:
    """Which rows are pinned when the sources ``pin`` are: those in groups without any other source."""
    to_pin = _rows_of(rows, pin)
    if not pin:
        return to_pin
    _, group = np.unique(np.array(group_ids), return_inverse=True)
    validated = np.bincount(group, weights=~to_pin) > 0
    return to_pin & ~validated[group]


def _rows_of(rows: Rows, sources: Collection[str]) -> np.ndarray:
    """Which rows are of one of ``sources``, shape (n,), bool."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not sources:
        return np.zeros(len(rows), dtype=bool)
    column = source_names(rows)
    if column is None:
        raise UserError("the rows name no sources, so none can be pinned")
    known = [str(value) for value in column.unique().to_pylist()]
    unknown = [name for name in sources if name not in known]
    if unknown:
        raise UserError(f"--pin {listing(unknown)}: no such source; the rows come from {listing(known)}")
    found = pc.is_in(column, value_set=pa.array(list(sources), pa.string()))
    return np.array(found.to_numpy(zero_copy_only=False), dtype=bool)


def source_names(rows: Rows) -> pa.Array | None:
    """The source of each row as text; None where the rows name none."""
    return as_text(rows.table.column("source")) if "source" in rows.table.column_names else None


def _strata(rows: Rows) -> tuple[np.ndarray, int]:
    """The stratum of each row, label by source, and how many there are."""
    k = rows.classes.n + 1
    labels = np.where(rows.labels < 0, rows.classes.n, rows.labels)
    names = source_names(rows)
    if names is None:
        return labels, k
    codes = names.dictionary_encode().indices.fill_null(0)
    source = codes.to_numpy(zero_copy_only=False).astype(np.int64)
    return source * k + labels, int(source.max() + 1) * k


def _deal(
    group: np.ndarray, stratum: np.ndarray, n_strata: int, n_folds: int, rng: np.random.Generator
) -> np.ndarray:
    """Assign groups to folds by the strata of their rows.

    Parameters
    ----------
    group, stratum : ndarray of shape (n,)
        Of each row; groups are numbered from 0, without a gap.
    n_strata, n_folds : int
    rng : Generator

    Returns
    -------
    ndarray of shape (G,)
        The fold of each group.
    """
    sizes = np.bincount(group)
    # Few of the cells of groups by strata hold rows, and of thousands of classes the others fill the memory.
    cells, counts = np.unique(group * n_strata + stratum, return_counts=True)
    of_group, columns = np.divmod(cells, n_strata)
    starts = np.searchsorted(of_group, np.arange(len(sizes) + 1))
    # A row weighs 1/(rows of its class) in its class and 1/(all rows) in the size of the fold.
    totals = [*np.bincount(stratum, minlength=n_strata).tolist(), len(group)]
    weights = 1 / np.maximum(np.array(totals, dtype=np.float64), 1)
    majority = columns[np.lexsort((columns, -counts, of_group))[starts[:-1]]]
    shuffled = rng.permutation(len(sizes))
    # Within a size, one majority label after the other: the last groups dealt then leave no imbalance.
    order = shuffled[np.lexsort((majority[shuffled], -sizes[shuffled]))]
    held = np.zeros((n_folds, n_strata + 1))
    row = np.zeros(n_strata + 1)
    fold = np.empty(len(sizes), dtype=np.int64)
    for place, at in enumerate(order.tolist()):
        own = slice(starts[at], starts[at + 1])
        row[columns[own]], row[-1] = counts[own], sizes[at]
        if place < n_folds:
            chosen = place  # no fold stays empty, however large the largest groups are
        else:
            chosen = int(np.argmin(held @ (row * weights)))
        fold[at] = chosen
        held[chosen] += row
        row[columns[own]] = 0
    return fold


def class_notes(rows: Rows, folds: Folds, limit: int = 4) -> list[str]:
    """What to say of classes without rows, or whose rows are all in one fold, and of unlabelled rows."""
    labels, names = rows.labels, rows.classes.names
    counts = np.bincount(labels[labels >= 0], minlength=rows.classes.n)
    notes = []
    if labels.size and (labels < 0).all() and not rows.labelled.any():
        return ["no row has a label: these folds serve to predict, not to train or to score"]
    unlabelled = int((~rows.labelled).sum())
    if unlabelled:
        notes.append(
            f"{unlabelled:,} rows without a label have folds too; they are not scored, and taught only to a "
            "student with pseudo_labels"
        )
    if rows.classes.candidates:  # whose places mean nothing from row to row
        return notes
    never = [names[k] for k in np.flatnonzero(counts == 0)]
    if never:
        notes.append(f"no row is labelled {listing(never, limit)}")
    lacking = []
    for fold in range(folds.n_folds):
        inside = labels[(folds.fold == fold) & (labels >= 0)]
        held = np.bincount(inside, minlength=rows.classes.n)
        lacking += [(fold, k) for k in np.flatnonzero((counts > 0) & (held == counts))]
    if lacking:
        shown = listing((f"{names[k]} (fold {fold})" for fold, k in lacking), limit, names=False)
        notes.append(
            f"{len(lacking):,} classes have all their rows in one fold, whose training lacks them: {shown}; "
            "give more rows of them, or leave them out"
        )
    return notes


def write_folds(path: Path, folds: Folds) -> None:
    """Write ``folds.parquet`` at ``path`` (a file, or the directory to put it in), atomically."""
    import pyarrow as pa

    table = pa.table(
        {
            "row_id": pa.array(folds.row_ids, pa.string()),
            "group_id": pa.array(folds.group_ids, pa.string()),
            "fold": pa.array(folds.fold, pa.int32()),
        }
    )
    write_parquet(_fold_file(path), table)


def read_folds(path: Path) -> Folds:
    """Read a fold file, or the ``folds.parquet`` of a directory.

    Raises
    ------
    UserError
        The file is missing or damaged, lacks a column, or holds a null or a row twice.
    """
    import pyarrow as pa

    file = _fold_file(path)
    table = read_parquet(file, "fold file")
    require_columns(table, ["row_id", "group_id", "fold"], file)
    for name in ("row_id", "group_id", "fold"):
        if table.column(name).null_count:
            raise UserError(f"{file}: column {name} has empty entries; every row needs a fold and a group")
    if not pa.types.is_integer(table.schema.field("fold").type) or table.num_rows == 0:
        raise UserError(f"{file}: column fold must hold whole numbers from 0, for at least one row")
    folds = Folds(
        [str(value) for value in table.column("row_id").to_pylist()],
        [str(value) for value in table.column("group_id").to_pylist()],
        table.column("fold").to_numpy(zero_copy_only=False).astype(np.int64),
    )
    refuse_repeated(folds.row_ids, str(file), "rows")
    return folds


def check_folds(folds: Folds, rows: Rows, where: Path | str) -> Folds:
    """Return ``folds`` in the order of ``rows`` if they keep the contract, else say what breaks it.

    Groups are checked twice: as the file states them, and as the rows' own prompts make them, so that
    a fold file made elsewhere cannot leak a prompt.

    Raises
    ------
    UserError
        A row without a fold or a fold without a row, a row twice, fold numbers with a gap, a group or
        a prompt in two folds.
    """
    refuse_repeated(folds.row_ids, str(where), "rows")
    unknown = np.flatnonzero(places(folds.row_ids, rows.row_ids) < 0)
    if unknown.size:
        raise UserError(
            f"{where}: {unknown.size} rows of the fold file are not in the row table: "
            f"{listing(folds.row_ids[i] for i in unknown)}; "
            "rows and folds must come from the same prepared data"
        )
    try:
        aligned = folds.aligned_to(rows.row_ids)
    except UserError as mistake:
        raise UserError(f"{where}: {mistake}") from None
    numbers = sorted({int(number) for number in aligned.fold} - {PINNED})
    if numbers != list(range(len(numbers))) or len(numbers) < 2:
        raise UserError(
            f"{where}: fold numbers are {listing(numbers, 10)}; two or more must run from 0 without a gap "
            f"(and {PINNED} for rows pinned to every training)"
        )
    _refuse_split(aligned.group_ids, aligned, "group", where)
    _refuse_split(group_prompts(prompts_of(rows)), aligned, "prompt group", where)
    return aligned


def check_near(folds: Folds, rows: Rows, near: Near, where: Path | str) -> None:
    """Refuse folds, in the order of ``rows``, that split near-duplicate prompts."""
    _refuse_split(group_rows(rows, near, True), folds, "near-duplicate group", where)


def _refuse_split(groups: list[str], folds: Folds, what: str, where: Path | str) -> None:
    first: dict[str, int] = {}
    fold = folds.fold.tolist()
    for i, (group, own) in enumerate(zip(groups, fold, strict=True)):
        other = first.setdefault(group, i)
        if fold[other] == own:
            continue
        one, two = folds.row_ids[other], folds.row_ids[i]
        if PINNED in (own, fold[other]):
            pinned, held = (two, one) if own == PINNED else (one, two)
            raise UserError(
                f"{where}: {what} {group} holds row {pinned}, pinned to every training, and row {held}, "
                "which is validated: that leaks; make the folds again with python -m data.prepare"
            )
        raise UserError(
            f"{where}: {what} {group} is split over folds {fold[other]} and {own} (rows {one} and {two}); "
            "rows that share a prompt must share a fold, make the folds again with python -m data.prepare"
        )


def _fold_file(path: Path) -> Path:
    return path if path.suffix == ".parquet" and not path.is_dir() else path / FOLDS
