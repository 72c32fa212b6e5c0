"""Ids of rows: where one list's stand in another, and whether any repeats.

Everything that joins two tables joins them here, by id and never by position. Ids that memory does not hold
are looked through with their hashes in buckets on disk.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from data.errors import UserError, listing

BUCKETS = 64


def places(ids: Sequence[str], onto: Sequence[str]) -> np.ndarray:
    """Return the position of each of ``ids`` in ``onto``, int64 of shape (len(ids),); -1 where it is absent.

    Of an id that ``onto`` repeats, the last.
    """
    position = {row_id: i for i, row_id in enumerate(onto)}
    return np.fromiter((position.get(row_id, -1) for row_id in ids), np.int64, len(ids))


def align(ids: Sequence[str], onto: Sequence[str], what: str) -> np.ndarray:
    """Return the position of each of ``ids`` in ``onto``: ``onto[align(ids, onto, what)[i]] == ids[i]``.

    Parameters
    ----------
    ids : sequence of str
        What to look for; may repeat.
    onto : sequence of str
        Where to look; each once.
    what : str
        What ``onto`` belongs to, for messages: a file, a store.

    Returns
    -------
    ndarray of shape (len(ids),), int64

    Raises
    ------
    UserError
        ``onto`` lacks one of ``ids``, or holds an id twice.
    """
    refuse_repeated(onto, what)
    found = places(ids, onto)
    absent = np.flatnonzero(found < 0)
    if absent.size:
        raise UserError(
            f"{what}: lacks {absent.size} of {len(ids)} rows: {listing(ids[i] for i in absent.tolist())}; "
            "both must come from the same prepared data"
        )
    return found


def refuse_repeated(ids: Sequence[str], where: str, what: str = "row ids", remedy: str = "") -> None:
    """Refuse ids that appear more than once, naming them.

    Parameters
    ----------
    ids : sequence of str
    where, what : str
        Their source, and what they are called there, for the message.
    remedy : str
        What to do, where there is more to say than that.
    """
    if len(set(ids)) < len(ids):
        repeated = [row_id for row_id, count in Counter(ids).items() if count > 1]
        raise UserError(f"{where}: {len(repeated)} {what} appear more than once: {listing(repeated)}{remedy}")


def refuse_repeated_batches(batches: Callable[[], Iterable[list[str]]], where: str) -> None:
    """Refuse ids that appear more than once, without holding them in memory.

    Parameters
    ----------
    batches : callable
        Returns the ids, batch by batch; called again to name the repeated ones.
    where : str
        Their source, for the message.

    Notes
    -----
    8 bytes a row on disk, a 64th of that in memory. Ids that share a 64-bit hash by chance are told apart.
    """
    suspects: set[int] = set()
    with tempfile.TemporaryDirectory(prefix="distillstack-ids-") as folder, ExitStack() as stack:
        paths = [Path(folder) / str(bucket) for bucket in range(BUCKETS)]
        files = [stack.enter_context(open(path, "wb")) for path in paths]
        for ids in batches():
            hashes = _hashes(ids)
            bucket = (hashes % BUCKETS).astype(np.int64)
            for number in np.unique(bucket):
                files[number].write(hashes[bucket == number].tobytes())
        for file in files:
            file.close()
        for path in paths:
            values, counts = np.unique(np.fromfile(path, dtype=np.uint64), return_counts=True)
            suspects.update(values[counts > 1].tolist())
    if not suspects:
        return
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    wanted = np.array(sorted(suspects), dtype=np.uint64)
    for ids in batches():
        for i in np.flatnonzero(np.isin(_hashes(ids), wanted)):
            (repeated.setdefault(ids[i]) if ids[i] in seen else seen.add(ids[i]))
    if repeated:
        raise UserError(f"{where}: {len(repeated)} row ids appear more than once: {listing(repeated)}")


def _hashes(ids: list[str]) -> np.ndarray:
    """64-bit hashes of ids, shape (n,)."""
    joined = b"".join(
        hashlib.blake2b(i.encode("utf-8", "surrogatepass"), digest_size=8).digest() for i in ids
    )
    return np.frombuffer(joined, dtype=np.uint64)
