"""Whether ids repeat, for more ids than memory holds: their hashes wait in buckets on disk."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from data.errors import UserError, listing

BUCKETS = 64


def refuse_repeated(batches: Callable[[], Iterable[list[str]]], where: str) -> None:
    """Refuse ids that appear more than once.

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
