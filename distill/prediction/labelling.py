"""Labelling of any number of rows: shard by shard, each predicted whole and written once.

Why not Ray Data's own reading and writing: its blocks, and the names of the files it writes, differ from one
attempt to the next, so that what a killed job left can neither be matched to rows nor be kept. Here a shard
is fixed by the input, its file is its proof, and who made it makes no difference.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.classes import classes_of
from data.console.remote_code import allow_remote_code, remote_code_allowed
from data.errors import UserError
from data.ids import refuse_repeated_batches
from data.schema import HASHED, Rows, validate
from data.shards import (
    Shard,
    ShardPlan,
    ShardReader,
    key_of,
    missing_parts,
    open_parquet,
    plan_shards,
    read_text,
    store_text,
    write_part,
)
from data.softmax import softmax
from data.sources.clean import Cleaning
from data.sources.open import Columns, Table
from data.sources.place import Place
from data.sources.read import SourceOptions, choose_reader
from distill.runs.loaded import Loaded
from distill.runs.saved import Access, SavedModel, identity, read_saved

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
SHARD_ROWS = 8192
ID_ROWS = 65536
PINNED = ("kind", "model_hash", "shard_rows", "source_hash")
"""Manifest fields that must be the same for a labelling to be continued."""


@dataclass(frozen=True)
class Job:
    """What every worker of one labelling needs.

    Attributes
    ----------
    model : Path
    source, out : str
        Paths or addresses.
    key : str
        Hash of the input, the cut and the model: what every part depends on.
    access : Access
        How the model is read, by the command line.
    remote_code : bool
        The command's permission (:mod:`data.console.remote_code`), for workers elsewhere.
    threads : int
        Of a worker on a CPU; 0 leaves them as they are.
    """

    model: Path
    source: str
    out: str
    key: str
    access: Access = field(default_factory=Access)
    remote_code: bool = False
    threads: int = 0


@dataclass
class Ended:
    """How a labelling ended.

    Attributes
    ----------
    rows : int
        Rows labelled by this command.
    kept : int
        Rows that were labelled before.
    errors : dict of int to str
        Shards that failed, and why.
    """

    rows: int = 0
    kept: int = 0
    errors: dict[int, str] = field(default_factory=dict)


def open_job(saved: SavedModel, source: str, out: str, shard_rows: int) -> tuple[Job, ShardPlan]:
    """Cut the input and claim ``out``, or see that what is there is the same job's.

    Raises
    ------
    UserError
        The input is no Parquet, damaged, or repeats an id; ``out`` holds something else.
    """
    plan = plan_shards(source, shard_rows)
    model_hash = identity(saved)
    manifest = {
        "kind": "predictions",
        "classes": list(saved.classes.names),
        "model": saved.name,
        "model_hash": model_hash,
        "source": source,
        "source_hash": plan.fingerprint,
        "n_rows": plan.rows,
        "n_shards": len(plan.shards),
        "shard_rows": shard_rows,
    }
    place = f"{out}/{MANIFEST}"
    text = read_text(place)
    if text is None:
        refuse_repeated_batches(lambda: ids_of(plan), source)
        store_text(place, json.dumps(manifest, indent=2) + "\n")
    else:
        _refuse_other(text, manifest, place, out)
    key = key_of(model_hash, plan.fingerprint)
    return Job(saved.path, source, out, key, saved.access, remote_code_allowed()), plan


def _refuse_other(text: str, manifest: dict[str, Any], place: str, out: str) -> None:
    try:
        found = json.loads(text)
        wrong = [name for name in PINNED if found.get(name) != manifest[name]]
    except (ValueError, AttributeError) as error:
        raise UserError(f"{place}: is damaged ({error}); choose another --out") from error
    if wrong:
        raise UserError(
            f"{out}: holds other predictions: its manifest differs in {wrong[0]} "
            f"({found.get(wrong[0])} there, {manifest[wrong[0]]} now); "
            "choose another --out, or delete that directory"
        )


def ids_of(plan: ShardPlan) -> Iterator[list[str]]:
    """All ids of the input, batch by batch."""
    for file in dict.fromkeys(shard.file for shard in plan.shards):
        with open_parquet(file) as opened:
            names = opened.schema_arrow.names
            column = next((name for name in ("row_id", "id") if name in names), None)
            if column is None:
                raise UserError(f"{file}: no column row_id or id, by which predictions are known")
            for batch in opened.iter_batches(ID_ROWS, columns=[column]):
                yield [str(value) for value in batch.column(0).to_pylist()]


class Worker:
    """One process's part of a labelling: the model, loaded once, and its place in the input."""

    def __init__(self, job: Job) -> None:
        if job.threads:
            import torch

            torch.set_num_threads(job.threads)
        allow_remote_code(job.remote_code)
        self.job = job
        self.loaded = Loaded(read_saved(job.model, job.access))
        self.reader = ShardReader()

    def label(self, shard: Shard) -> int:
        """Predict a shard and write its part; return its rows.

        Raises
        ------
        UserError
            A row that cannot be read, predictions that are not finite, a part that cannot be written.
        """
        import numpy as np
        import pyarrow as pa

        rows = rows_of(self.reader.read(shard), shard, self.loaded.saved)
        logits = self.loaded.predict(rows, f"shard {shard.index}").mean(axis=1)
        if not np.isfinite(logits).all():
            bad = rows.row_ids[int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])]
            raise UserError(f"{shard.file}: the model's prediction of row {bad} is not finite")
        probs = softmax(logits / self.loaded.saved.temperature)
        columns: dict[str, Any] = {"id": pa.array(rows.row_ids, pa.string())}
        columns |= {name: pa.array(probs[:, k]) for k, name in enumerate(rows.classes.names)}
        write_part(self.job.out, shard, pa.table(columns), self.job.key)
        return shard.rows


def rows_of(table: pa.Table, shard: Shard, saved: SavedModel) -> Rows:
    """Read a shard's table as rows: a row table of ours as it is, any other layout by its reader."""
    where = f"{shard.file}, shard {shard.index}"
    if set(HASHED) <= set(table.column_names) and str(table.schema.field("prompt").type).startswith("list"):
        known = Rows(table, classes_of(table.schema, Path(shard.file), saved.classes))
        return validate(known, where)
    columns: Columns = table.to_pydict()
    # Numbers would begin anew in every shard.
    options = SourceOptions(classes=saved.classes.names, swap=saved.classes.swap, ids="column")
    source = Table(table.column_names, lambda: iter([columns]))
    try:
        reader = choose_reader(source, where, options)
    except UserError:
        reader = choose_reader(source, where, SourceOptions(ids="column"))
    return reader(columns, Place(where, saved.name, Cleaning()))


def label_here(job: Job, plan: ShardPlan, show: Callable[[int], object]) -> Ended:
    """Label the missing shards in this process, one after another.

    Parameters
    ----------
    show : callable
        Told the number of rows of every part written or found.

    Raises
    ------
    UserError
        The first shard that fails; what is written stays.
    """
    missing = missing_parts(job.out, plan, job.key)
    ended = Ended(kept=plan.rows - sum(shard.rows for shard in missing))
    show(ended.kept)
    if missing:
        worker = Worker(job)
        for shard in missing:
            rows = worker.label(shard)
            ended.rows += rows
            show(rows)
    return ended


class Lanes:
    """Shards to hand out, so that a worker gets those of one row group in their order while it can."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._lanes: dict[tuple[str, tuple[int, ...]], deque[Shard]] = {}
        for shard in shards:
            self._lanes.setdefault((shard.file, shard.groups), deque()).append(shard)
        self._of: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.left = len(shards)

    def take(self, worker: int) -> Shard:
        """Return the next shard for a worker: of its own lane, of one nobody is on, or of the longest."""
        lane = self._of.get(worker)
        if lane not in self._lanes:
            taken = set(self._of.values())
            free = (key for key in self._lanes if key not in taken)
            lane = next(free, None) or max(self._lanes, key=lambda key: len(self._lanes[key]))
            self._of[worker] = lane
        queue = self._lanes[lane]
        shard = queue.popleft()
        if not queue:
            del self._lanes[lane]
        self.left -= 1
        return shard

    def put_back(self, shard: Shard) -> None:
        """Return a shard that its worker did not finish."""
        self._lanes.setdefault((shard.file, shard.groups), deque()).appendleft(shard)
        self.left += 1

    def drop(self, shard: Shard) -> None:
        """Give up a shard that was put back."""
        lane = self._lanes[shard.file, shard.groups]
        lane.remove(shard)
        if not lane:
            del self._lanes[shard.file, shard.groups]
        self.left -= 1

    def forget(self, worker: int) -> None:
        """Note that a worker is gone."""
        self._of.pop(worker, None)
