"""Tables too large for memory, as shards: which rows each holds, reading one, writing what belongs to it.

The input is a directory of Parquet files, or one file, on the local disk or behind an address. A shard is a
run of rows of one file, fixed by the files alone; its output is one file of its own, written whole or not at
all. So whoever makes a shard again, after whatever died, makes the same file, and the parts in the order of
their numbers are the rows in the order of the input.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from data.errors import UserError, brief
from data.files import readable_parquet, write_parquet, write_text
from data.storage import address_of, is_address, named, open_storage

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".pq")
MARK = b"distillstack.shard"
"""Key of an output file's metadata: the hash of everything the part depends on."""
READ_BUFFER = 1 << 20
READ_ROWS = 4096
FOOTERS_AT_ONCE = 16


@dataclass(frozen=True)
class Shard:
    """A run of rows of one file.

    Attributes
    ----------
    index : int
        Its number, in the order of the input.
    file : str
        Path or address.
    groups : tuple of int
        The Parquet row groups that it lies in.
    skip : int
        Rows of the first group before it.
    rows : int
    """

    index: int
    file: str
    groups: tuple[int, ...]
    skip: int
    rows: int

    @property
    def part(self) -> str:
        """Name of its output file."""
        return f"part-{self.index:06d}.parquet"


@dataclass(frozen=True)
class ShardPlan:
    """A cut of the input into shards.

    Attributes
    ----------
    shards : list of Shard
    fingerprint : str
        Hash of the files' names, sizes and Parquet footers (which hold sizes and ranges of all columns), and
        of the cut.
    """

    shards: list[Shard]
    fingerprint: str

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)


def parquet_files(source: str) -> list[str]:
    """Return the Parquet files of a directory or of a single file, sorted by name; [] if it is neither."""
    if is_address(source):
        fs, root = open_storage(source)
        protocol = source.partition("://")[0]
        with named(source):
            if source.endswith(SUFFIXES):
                return [source] if fs.exists(root) else []
            found = fs.find(root) if fs.exists(root) else []
        names = [name for name in found if _is_data(name[len(root.rstrip("/")) :])]
        return sorted(f"{protocol}://{name.lstrip('/')}" for name in names)
    path = Path(source)
    if path.is_file():
        return [source] if path.suffix.lower() in SUFFIXES else []
    if not path.is_dir():
        return []
    return sorted(str(p) for p in path.rglob("*") if p.is_file() and _is_data(str(p.relative_to(path))))


def _is_data(relative: str) -> bool:
    parts = relative.strip("/").split("/")
    return parts[-1].lower().endswith(SUFFIXES) and not any(part.startswith((".", "_")) for part in parts)


def open_file(file: str) -> IO[bytes]:
    """Open a file of the input for reading."""
    if is_address(file):
        fs, path = open_storage(file)
        with named(file):
            return fs.open(path, "rb")
    return open(file, "rb")


def open_parquet(file: str) -> Any:
    """Open a Parquet file so that reading it takes little memory, whatever the size of its row groups."""
    import pyarrow.parquet as pq

    with readable_parquet(file):
        source = open_file(file) if is_address(file) else file  # see data.files.read_parquet
        return pq.ParquetFile(source, buffer_size=READ_BUFFER, pre_buffer=False)


def plan_shards(source: str, shard_rows: int) -> ShardPlan:
    """Cut the input into shards of about ``shard_rows`` rows, along row groups where these are smaller.

    Raises
    ------
    UserError
        No Parquet files there, a damaged one, or no rows.
    """
    files = parquet_files(source)
    if not files:
        raise UserError(f"{source}: holds no Parquet files (.parquet); give a directory of them, or one file")
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        footers = list(pool.map(_footer, files))
    shards: list[Shard] = []
    digest = hashlib.sha256(str(shard_rows).encode())
    for file, (sizes, content) in zip(files, footers, strict=True):
        digest.update(f"{Path(file).name} {content}".encode())
        for groups, skip, rows in _cut(sizes, shard_rows):
            shards.append(Shard(len(shards), file, groups, skip, rows))
    if not shards:
        raise UserError(f"{source}: holds no rows")
    return ShardPlan(shards, digest.hexdigest())


def _footer(file: str) -> tuple[list[int], str]:
    """Rows of each row group, and a hash of the footer."""
    with open_parquet(file) as opened:
        meta = opened.metadata
        sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        return sizes, hashlib.sha256(json.dumps(meta.to_dict(), default=str).encode()).hexdigest()


def _cut(sizes: Sequence[int], shard_rows: int) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Join small row groups and split large ones: (groups, rows to skip, rows)."""
    waiting: list[int] = []
    held = 0
    for group, size in enumerate(sizes):
        if waiting and held + size > shard_rows:
            yield tuple(waiting), 0, held
            waiting, held = [], 0
        if size > shard_rows:
            for skip in range(0, size, shard_rows):
                yield (group,), skip, min(shard_rows, size - skip)
        elif size:
            waiting, held = [*waiting, group], held + size
    if waiting:
        yield tuple(waiting), 0, held


class ShardReader:
    """Reads shards, keeping its place: shards of one row group in their order cost one pass over it."""

    def __init__(self) -> None:
        self._key: tuple[str, tuple[int, ...]] | None = None
        self._batches: Iterator[Any] = iter(())
        self._at = 0
        self._left: Any = None

    def read(self, shard: Shard) -> pa.Table:
        """Return a shard's rows with all columns of the file."""
        import pyarrow as pa

        try:
            return self._read(shard)
        except (pa.ArrowException, OSError) as error:
            self._key = None
            raise UserError(
                f"{shard.file}: cannot be read ({brief(error)}); is it cut short? make it again"
            ) from error

    def _read(self, shard: Shard) -> pa.Table:
        import pyarrow as pa

        if self._key != (shard.file, shard.groups) or self._at > shard.skip:
            self._batches = open_parquet(shard.file).iter_batches(READ_ROWS, row_groups=list(shard.groups))
            self._key, self._at, self._left = (shard.file, shard.groups), 0, None
        pieces, wanted = [], shard.rows
        while wanted:
            batch = next(self._batches) if self._left is None else self._left
            self._left = None
            skip = min(max(0, shard.skip - self._at), batch.num_rows)
            taken = batch.slice(skip, wanted)
            pieces += [taken] if taken.num_rows else []
            wanted -= taken.num_rows
            self._at += skip + taken.num_rows
            if skip + taken.num_rows < batch.num_rows:
                self._left = batch.slice(skip + taken.num_rows)
        return pa.Table.from_batches(pieces)


def write_part(out: str, shard: Shard, table: pa.Table, key: str) -> None:
    """Write a shard's output, marked as made from ``key``: whole or not at all.

    Raises
    ------
    UserError
        The disk is full, or the storage refuses.
    """
    import pyarrow.parquet as pq

    metadata = {MARK: mark(shard, key).encode()}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
    if not is_address(out):
        write_parquet(Path(out) / shard.part, table)
        return
    sink = io.BytesIO()
    pq.write_table(table, sink, write_page_checksum=True)
    write_bytes(f"{out}/{shard.part}", sink.getvalue())


def write_bytes(address: str, content: bytes) -> None:
    """Write an object; a storage of objects shows it when all of it is there."""
    fs, path = open_storage(address)
    with named(address):
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.pipe_file(path, content)


def mark(shard: Shard, key: str) -> str:
    """Return what a shard's output says it was made from."""
    described = {**asdict(shard), "file": Path(shard.file).name}
    return hashlib.sha256(f"{key} {json.dumps(described, sort_keys=True)}".encode()).hexdigest()


def missing_parts(out: str, plan: ShardPlan, key: str) -> list[Shard]:
    """Return the shards whose output is not there, cut short, or made from something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    present = {file.rpartition("/")[2]: file for file in parquet_files(out)}

    def is_missing(shard: Shard) -> bool:
        file = present.get(shard.part)
        if file is None:
            return True
        try:
            with open_file(file) as handle:
                meta = pq.read_metadata(handle)
        except (pa.ArrowException, OSError):
            return True
        found = (meta.metadata or {}).get(MARK, b"").decode()
        return meta.num_rows != shard.rows or found != mark(shard, key)

    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        missing = list(pool.map(is_missing, plan.shards))
    return [shard for shard, gone in zip(plan.shards, missing, strict=True) if gone]


def read_text(place: str) -> str | None:
    """Return a small text file's content; None if it is not there."""
    if not is_address(place):
        path = Path(place)
        return path.read_text(encoding="utf-8") if path.is_file() else None
    fs, path_there = open_storage(place)
    with named(place):
        fs.invalidate_cache()
        return fs.cat_file(path_there).decode() if fs.exists(path_there) else None


def store_text(place: str, text: str) -> None:
    """Write a small text file, atomically on the local disk."""
    if is_address(place):
        write_bytes(place, text.encode())
    else:
        write_text(Path(place), text)


def place_of(path: Path) -> str:
    """Return a path, or the address of a mirror's."""
    return address_of(path) or str(path)
