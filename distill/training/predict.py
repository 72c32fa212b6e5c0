"""Prediction in packs, longest rows first; what is done is kept in shards and not done again.

Longest first, so that memory peaks in the first pack and the time left is never underestimated.
"""

from __future__ import annotations

import logging
import shutil
import time
import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from data.candidates import ABSENT, set_rows
from data.console.progress import progress_of_tokens
from data.errors import UserError
from data.files import atomic_write, sha256_text
from distill.model.classifier import Classifier
from distill.packing.cutting import by_length, share_out
from distill.packing.examples import Examples
from distill.packing.pack import pack
from distill.packing.sharing import Whole, laid_lengths, layout, prefixes_to_share, shape_of
from distill.processes import gathered, on_first, process

log = logging.getLogger(__name__)

PACK_TOKENS = 16384
SHARD_SECONDS = 30.0
WORTH_COMPILING = 2_000_000
"""Tokens from which on compiling the layers for prediction pays for itself."""


class Shards:
    """Predicted logits on disk, a file every half minute.

    Parameters
    ----------
    directory : Path
    key : str
        What the logits depend on; shards of another key are deleted.
    """

    def __init__(self, directory: Path, key: str) -> None:
        self.directory = directory / sha256_text(key)[:16]
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._written = time.monotonic()

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sequences already predicted, shape (n,), and their logits (n, K)."""
        if self.directory.parent.exists():
            for other in self.directory.parent.iterdir():
                if other != self.directory:
                    shutil.rmtree(other, ignore_errors=True)
        found = []
        for path in sorted(self.directory.glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as file:
                    found.append((file["sequences"], file["logits"]))
            except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
                path.unlink()  # damaged, and soon predicted again
        if not found:
            return np.empty(0, dtype=np.int64), np.empty((0, 0), dtype=np.float32)
        sequences, logits = zip(*found, strict=True)
        return np.concatenate(sequences), np.concatenate(logits)

    def add(self, sequences: np.ndarray, logits: np.ndarray) -> None:
        """Keep logits, and write them out when the last shard is old enough."""
        self._waiting.append((sequences, logits))
        if time.monotonic() - self._written > SHARD_SECONDS:
            self.write()

    def write(self) -> None:
        """Write what waits as one shard."""
        if not self._waiting:
            return
        sequences, logits = zip(*self._waiting, strict=True)
        path = self.directory / f"{int(sequences[0][0]):09d}.npz"
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, sequences=np.concatenate(sequences), logits=np.concatenate(logits))
        self._waiting = []
        self._written = time.monotonic()


@torch.no_grad()
def predict_logits(
    model: Classifier,
    examples: Examples,
    rows: np.ndarray,
    most: int,
    what: str,
    pack_tokens: int = PACK_TOKENS,
    shards: Path | None = None,
) -> np.ndarray:
    """Predict rows in all their orders.

    Parameters
    ----------
    most : int
        Sequences a pack may have; 0 for any number.
    what : str
        Name on the progress bar.
    pack_tokens : int
        Tokens a pack may have; lowered when CUDA runs out of memory.
    shards : Path, optional
        Directory in which finished packs are kept until the caller deletes it; it belongs to one trained
        model.

    Returns
    -------
    ndarray of shape (len(rows), orders, K), float32
        Classes permuted back into each row's own order; ``ABSENT`` behind the candidates of rows with some.
    """
    model.eval()
    orders = examples.encoded.orders
    sequences = examples.encoded.of_rows(rows)
    logits = np.full((len(sequences), examples.outputs), np.nan, dtype=np.float32)
    lengths = examples.encoded.lengths[sequences]
    kept = None
    missing = np.arange(len(sequences))
    if shards is not None:
        kept = Shards(shards, f"{sequences.tolist()} {lengths.tolist()}")
        done, found = on_first(kept.read)
        if done.size:
            logits[done] = found
            missing = np.setdiff1d(missing, done)
    prefixes = prefixes_to_share(examples.encoded, rows, examples.shared_prefix, model.shares)
    compiled = model.plan.compiled
    model.plan.compiled = compiled and int(lengths[missing].sum()) >= WORTH_COMPILING
    try:
        _predict(model, examples, sequences, missing, logits, most, what, pack_tokens, kept, prefixes)
    finally:
        model.plan.compiled = compiled
        if kept is not None:
            kept.write()
    logits = _joined(logits)
    if examples.encoded.sizes is not None:
        return set_rows(logits[:, 0], examples.encoded.sizes[rows], len(examples.permutation), ABSENT)[
            :, None
        ]
    shaped = logits.reshape(len(rows), orders, -1)
    if orders == 2:
        shaped[:, 1] = shaped[:, 1][:, examples.permutation]
    return shaped


def _predict(
    model: Classifier,
    examples: Examples,
    sequences: np.ndarray,
    missing: np.ndarray,
    logits: np.ndarray,
    most: int,
    what: str,
    pack_tokens: int,
    shards: Shards | None,
    prefixes: np.ndarray | None,
) -> None:
    """Fill ``logits[missing]``, this process's share of it, pack by pack."""
    rank, world = process()
    encoded = examples.encoded
    lengths = encoded.lengths[sequences]
    whole = Whole(encoded, sequences[missing], prefixes)
    mine = missing[whole.members(share_out(whole.lengths, world)[rank])]
    if model.sharded and not mine.size:
        mine = missing[:1]
    while mine.size:
        whole = Whole(encoded, sequences[mine], prefixes)
        packs = [mine[whole.members(p)] for p in by_length(whole.lengths, pack_tokens, whole.at_most(most))]
        longest = int(lengths[mine].max())
        static = None
        if model.plan.static:
            layouts = [layout(encoded, sequences[p], prefixes) for p in packs]
            static = shape_of(layouts, longest, pack_tokens)
        finished = 0
        # The next pack is sent off before the last one's logits are fetched, so that the GPU never waits.
        pending: tuple[np.ndarray, torch.Tensor] | None = None
        try:
            tokens = [int(laid_lengths(encoded, sequences[p], prefixes).sum()) for p in packs]
            for chosen in progress_of_tokens(packs, what, tokens):
                inputs = pack(encoded, sequences[chosen], examples.pad_id, static, prefixes)
                out = model(pack=inputs.to(model.device))
                finished += _fetch(pending, logits, shards)
                pending = chosen, out
            finished += _fetch(pending, logits, shards)
            # A sharded base is gathered by all together: who is done runs a pack more that nobody asks for.
            for _ in range(max(gathered(len(packs))) - len(packs) if model.sharded else 0):
                model(pack=inputs.to(model.device))
            return
        except torch.OutOfMemoryError:
            if pack_tokens <= longest or model.sharded:
                raise UserError(
                    f"{what}: CUDA is out of memory with a single row of {longest} tokens; use precision nf4"
                ) from None
        torch.cuda.empty_cache()
        mine = np.concatenate(packs[finished:])
        before, pack_tokens = pack_tokens, max(longest, pack_tokens // 2)
        log.warning("CUDA is out of memory; pack_tokens is lowered from %d to %d", before, pack_tokens)


def _fetch(pending: tuple[np.ndarray, torch.Tensor] | None, logits: np.ndarray, shards: Shards | None) -> int:
    """Copy a pack's logits to their places; return how many packs that were."""
    if pending is None:
        return 0
    chosen, out = pending
    logits[chosen] = out.float().cpu().numpy()
    if shards is not None:
        shards.add(chosen, logits[chosen])
    return 1


def _joined(logits: np.ndarray) -> np.ndarray:
    """Join the processes' shares: every sequence was predicted by exactly one, or read from its shard."""
    if process()[1] == 1:
        return logits
    known = np.flatnonzero(~np.isnan(logits).all(axis=1))
    joined = np.full_like(logits, np.nan)
    for chosen, found in gathered((known, logits[known])):
        joined[chosen] = found
    return joined
