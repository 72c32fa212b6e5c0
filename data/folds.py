"""Cross-validation folds: grouped by prompt, stratified by label, written once and then reused.

Rows that share a prompt are one group, and a group is never split: a model that saw a prompt in
training must not be the one that predicts another row of it. The fold file, not the seed, is the
truth; everything downstream reads it and records its hash.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data.errors import UserError, listing
from data.files import read_parquet, require_columns, sha256_text, write_parquet
from data.schema import Rows

FOLDS = "folds.parquet"

_SPACE = re.compile(r"\s+")


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
        position = {row_id: i for i, row_id in enumerate(self.row_ids)}
        missing = [row_id for row_id in row_ids if row_id not in position]
        if missing:
            raise UserError(
                f"the fold file has no fold for {len(missing)} of {len(row_ids)} rows: {listing(missing)}; "
                "rows and folds must come from the same prepared data"
            )
        index = np.array([position[row_id] for row_id in row_ids], dtype=np.int64)
        return Folds(list(row_ids), [self.group_ids[i] for i in index], self.fold[index])


def normalise_prompt(turns: Sequence[str]) -> str:
    """Join a prompt's turns into the text by which prompts are compared.

    Unicode compatibility forms, letter case and runs of white space make no difference.
    """
    text = unicodedata.normalize("NFKC", "\n".join(turns)).casefold()
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text)).strip()


def group_prompts(prompts: Iterable[Sequence[str]]) -> list[str]:
    """Return a group id a prompt: 16 hex digits, equal where the normalised prompts are equal."""
    return [
        hashlib.sha256(normalise_prompt(turns).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        for turns in prompts
    ]


def make_folds(rows: Rows, n_folds: int = 5, seed: int = 0) -> Folds:
    """Deal the prompt groups into folds of like size and like label shares.

    Groups are shuffled, then dealt greedily, largest first, each to the fold that holds the smallest
    share of its labels and rows so far. Unlabelled rows count as a class of their own.

    Parameters
    ----------
    rows : Rows
    n_folds : int
        At least 2.
    seed : int
        Seed of the shuffle.

    Raises
    ------
    UserError
        Fewer than two folds, or fewer groups than folds.
    """
    if n_folds < 2:
        raise UserError(f"{n_folds} folds cannot be cross-validated; give 2 or more")
    groups = group_prompts(rows.table.column("prompt").to_pylist())
    names, group_of_row = np.unique(np.array(groups), return_inverse=True)
    if len(names) < n_folds:
        raise UserError(
            f"{len(rows)} rows hold {len(names)} distinct prompts, too few for {n_folds} folds: "
            "rows of one prompt share a fold; give fewer folds or more prompts"
        )
    strata = np.where(rows.labels < 0, rows.classes.n, rows.labels)
    counts = np.zeros((len(names), rows.classes.n + 1), dtype=np.int64)
    np.add.at(counts, (group_of_row, strata), 1)
    fold_of_group = _deal(counts, n_folds, np.random.default_rng(seed))
    return Folds(list(rows.row_ids), groups, fold_of_group[group_of_row])


def _deal(counts: np.ndarray, n_folds: int, rng: np.random.Generator) -> np.ndarray:
    """Assign groups with label counts (G, K) to folds; returns the fold of each group, shape (G,)."""
    sizes = counts.sum(axis=1)
    # A row weighs 1/(rows of its class) in its class and 1/(all rows) in the size of the fold.
    columns = np.concatenate([counts, sizes[:, None]], axis=1).astype(np.float64)
    weights = 1 / np.maximum(columns.sum(axis=0), 1)
    shuffled = rng.permutation(len(sizes))
    # Within a size, one majority label after the other: the last groups dealt then leave no imbalance.
    order = shuffled[np.lexsort((counts[shuffled].argmax(axis=1), -sizes[shuffled]))]
    held = np.zeros((n_folds, columns.shape[1]))
    fold = np.empty(len(sizes), dtype=np.int64)
    for place, group in enumerate(order):
        if place < n_folds:
            chosen = place  # no fold stays empty, however large the largest groups are
        else:
            chosen = int(np.argmin(held @ (columns[group] * weights)))
        fold[group] = chosen
        held[chosen] += columns[group]
    return fold


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
    repeated = [key for key, count in Counter(folds.row_ids).items() if count > 1]
    if repeated:
        raise UserError(f"{file}: {len(repeated)} rows appear more than once: {listing(repeated)}")
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
    repeated = [key for key, count in Counter(folds.row_ids).items() if count > 1]
    if repeated:
        raise UserError(f"{where}: {len(repeated)} rows appear more than once: {listing(repeated)}")
    known = set(rows.row_ids)
    unknown = [row_id for row_id in folds.row_ids if row_id not in known]
    if unknown:
        raise UserError(
            f"{where}: {len(unknown)} rows of the fold file are not in the row table: {listing(unknown)}; "
            "rows and folds must come from the same prepared data"
        )
    try:
        aligned = folds.aligned_to(rows.row_ids)
    except UserError as mistake:
        raise UserError(f"{where}: {mistake}") from None
    numbers = sorted({int(number) for number in aligned.fold})
    if numbers != list(range(len(numbers))) or len(numbers) < 2:
        raise UserError(
            f"{where}: fold numbers are {listing(numbers, 10)}; two or more must run from 0 without a gap"
        )
    _refuse_split(aligned.group_ids, aligned, "group", where)
    _refuse_split(group_prompts(rows.table.column("prompt").to_pylist()), aligned, "prompt group", where)
    return aligned


def _refuse_split(groups: list[str], folds: Folds, what: str, where: Path | str) -> None:
    first: dict[str, int] = {}
    for i, (group, fold) in enumerate(zip(groups, folds.fold, strict=True)):
        other = first.setdefault(group, i)
        if folds.fold[other] != fold:
            raise UserError(
                f"{where}: {what} {group} is split over folds {folds.fold[other]} and {fold} "
                f"(rows {folds.row_ids[other]} and {folds.row_ids[i]}); rows that share a prompt must share "
                "a fold, make the folds again with python -m data.prepare"
            )


def _fold_file(path: Path) -> Path:
    return path if path.suffix == ".parquet" and not path.is_dir() else path / FOLDS
