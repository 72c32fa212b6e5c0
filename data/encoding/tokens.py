"""The token store: every turn of a row table tokenized once, in memory-mapped files of uint32.

One directory a tokenizer and template, ``tokens-<tokenizer>-<template>``, holds ``ids.u32``,
``lengths.u32`` and ``turns.u32`` (see :class:`data.encoding.encode.Tokens`) and a manifest with the hashes of
tokenizer, template and row table and the checksums of the files. A store of other rows is stale, one
whose bytes do not match is damaged; either is built anew. Built in chunks, in several processes if asked;
a build killed at any moment goes on from its last checkpoint. Of two commands that want the same store one
builds it and the other waits.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.console.progress import progress
from data.encoding.encode import CHUNK_ROWS, Encoder, Tokens, tokenize_turns
from data.encoding.fast_bpe import FastBpe
from data.encoding.plain_text import PlainText
from data.encoding.template import PARTS
from data.errors import UserError, brief
from data.files import locked, make_directory, read_json, sha256_text, sweep, unwritable, write_json
from data.schema import Rows

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
FILES = ("ids", "lengths", "turns")
FORMAT = 2
"""1 read added tokens that are not flagged special as tokens, where they are text."""
CHECKPOINT_CHUNKS = 16
WORKER_ROWS = 50_000
"""Below this many rows, starting other processes takes longer than they save."""


def open_tokens(rows: Rows, encoder: Encoder, home: Path, workers: int | None = None) -> tuple[Tokens, str]:
    """Open the store of these rows under ``home``, building it where there is none that fits.

    Parameters
    ----------
    rows : Rows
    encoder : Encoder
        Its truncation makes no difference: turns are stored whole.
    home : Path
        The directory that holds the store's.
    workers : int, optional
        Processes that tokenize; by default one a core where there are rows enough.

    Returns
    -------
    tokens : Tokens
        On memory-mapped files.
    what : str
        What was done: "opened", "built", "continued", or "rebuilt" and why.

    Raises
    ------
    UserError
        The store cannot be written, or a process that makes it was killed.
    """
    key = store_key(rows, encoder)
    path = _place(home, key)
    if check_store(path, key) is None:
        return _map(path), "opened"
    with locked(home, wait=True):
        wrong = check_store(path, key)  # again: it may have been built while this process waited
        if wrong is None:
            return _map(path), "opened"
        what = "built"
        if (path / MANIFEST).exists():
            shutil.rmtree(path)
            what = f"rebuilt: {wrong}"
        elif (path / PROGRESS).exists():
            what = "continued"
        try:
            _build(rows, encoder, path, key, workers)
        except OSError as error:
            raise unwritable(path, error) from error
        return _map(path), what


def find_tokens(rows: Rows, encoder: Encoder, home: Path) -> Tokens | None:
    """Map the store of these rows under ``home`` if a whole one is there; never write.

    For runs that may share a directory: building is left to ``python -m data.prepare --tokenizer``.
    """
    key = store_key(rows, encoder)
    path = _place(home, key)
    return _map(path) if check_store(path, key) is None else None


def _place(home: Path, key: dict[str, Any]) -> Path:
    return home / f"tokens-{key['tokenizer_hash'][:8]}-{key['template_hash'][:8]}"


def store_key(rows: Rows, encoder: Encoder) -> dict[str, Any]:
    """What a store depends on."""
    return {
        "kind": "tokens",
        "format": FORMAT,
        "tokenizer_hash": sha256_text(encoder.plain.definition),
        "template_hash": sha256_text(json.dumps(asdict(encoder.template), sort_keys=True)),
        "rows_hash": rows.content_hash,
        "n_rows": len(rows),
    }


def check_store(path: Path, key: dict[str, Any] | None = None) -> str | None:
    """Say what is wrong with a store, None if nothing is: its files are read whole and checksummed.

    Parameters
    ----------
    path : Path
    key : dict, optional
        What it must have been made from.
    """
    if not (path / MANIFEST).exists():
        return "it is not finished"
    try:
        manifest = read_json(path / MANIFEST, "manifest")
        for name, value in (key or {}).items():
            if manifest.get(name) != value:
                return f"it is stale, its {name} is another"
        for name in FILES:
            file = path / f"{name}.u32"
            if not file.exists() or file.stat().st_size != manifest["bytes"][name]:
                return f"{file.name} is damaged, its size is not what was written"
            if _checksum(file) != manifest["crc32"][name]:
                return f"{file.name} is damaged, its checksum is not what was written"
    except (UserError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest is damaged ({brief(error, 80)})"
    return None


def _checksum(path: Path, length: int | None = None) -> int:
    """Checksum of a file, or of so many bytes at its beginning."""
    crc, left = 0, path.stat().st_size if length is None else length
    with open(path, "rb") as handle:
        while chunk := handle.read(min(left, 1 << 22)):
            crc = zlib.crc32(chunk, crc)
            left -= len(chunk)
    return crc


def _map(path: Path) -> Tokens:
    found = [
        np.memmap(path / f"{name}.u32", dtype="<u4", mode="r")
        if (path / f"{name}.u32").stat().st_size
        else np.zeros(0, dtype=np.uint32)
        for name in FILES
    ]
    return Tokens(found[0], found[1], found[2].reshape(-1, 3))


def _build(rows: Rows, encoder: Encoder, path: Path, key: dict[str, Any], workers: int | None) -> None:
    state = _resume(path, key)
    chunks = range(state["rows"], len(rows), CHUNK_ROWS)
    if workers is None:
        workers = (os.cpu_count() or 1) if len(chunks) * CHUNK_ROWS >= WORKER_ROWS else 1
    sweep(path)
    with ExitStack() as stack:
        handles = {name: stack.enter_context(open(path / f"{name}.u32", "r+b")) for name in FILES}
        for name, handle in handles.items():
            handle.truncate(state["bytes"][name])
            handle.seek(state["bytes"][name])
        chunked = _tokenized(rows, encoder, chunks, workers)
        for done, arrays in enumerate(progress(chunked, "tokenizing", len(chunks), "chunk"), start=1):
            for name, array in zip(FILES, arrays, strict=True):
                data = np.ascontiguousarray(array, dtype="<u4").tobytes()
                handles[name].write(data)
                state["crc32"][name] = zlib.crc32(data, state["crc32"][name])
                state["bytes"][name] += len(data)
            state["rows"] = min(state["rows"] + CHUNK_ROWS, len(rows))
            if done % CHECKPOINT_CHUNKS == 0:
                _flush(handles)
                write_json(path / PROGRESS, state)
        _flush(handles)
    write_json(path / MANIFEST, {name: value for name, value in state.items() if name != "rows"})
    (path / PROGRESS).unlink(missing_ok=True)


def _resume(path: Path, key: dict[str, Any]) -> dict[str, Any]:
    """Where to go on: the last checkpoint of a build of the same store, else the beginning."""
    fresh = {**key, "rows": 0, "bytes": dict.fromkeys(FILES, 0), "crc32": dict.fromkeys(FILES, 0)}
    state = fresh
    if (path / PROGRESS).exists():
        try:
            found = read_json(path / PROGRESS, "progress file")
            sizes = found["bytes"]
            if (
                all(found[name] == value for name, value in key.items())
                and sizes["turns"] == 3 * 4 * found["rows"]
                and all(_checksum(path / f"{n}.u32", sizes[n]) == found["crc32"][n] for n in FILES)
            ):
                state = found
        except (UserError, KeyError, TypeError, OSError):
            state = fresh  # a damaged checkpoint costs time, nothing else
    make_directory(path)
    for name in FILES:
        (path / f"{name}.u32").touch()
    return state


def _flush(handles: dict[str, Any]) -> None:
    for handle in handles.values():
        handle.flush()
        os.fsync(handle.fileno())


def _tokenized(
    rows: Rows, encoder: Encoder, chunks: range, workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield ids, lengths and turns of each chunk, in order."""
    if workers < 2:
        for start in chunks:
            tokens = encoder.tokenize(rows, start, start + CHUNK_ROWS)
            yield tokens.ids, tokens.lengths, tokens.turns
        return
    import multiprocessing

    encoder.plain.seek_fast()
    with ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),  # a fork would take the caller's threads and locks with it
        _start_worker,
        (encoder.plain.definition, encoder.plain.special, encoder.plain.fast),
    ) as pool:
        waiting: deque[Future] = deque()
        remaining = deque(chunks)
        turns = rows.table.select(list(PARTS))
        while remaining or waiting:
            try:
                while remaining and len(waiting) < 2 * workers:
                    waiting.append(pool.submit(_work, _packed(turns.slice(remaining.popleft(), CHUNK_ROWS))))
                done = waiting.popleft().result()
            except (BrokenProcessPool, OSError) as error:  # the latter where the pool's own pipes have gone
                raise UserError(
                    "a process that tokenized was ended from outside, perhaps for want of memory; the same "
                    "command goes on from its last checkpoint"
                ) from error
            yield done


def _packed(table: pa.Table) -> pa.Buffer:
    """Return the rows of a slice in Arrow's stream format; a pickle of it would hold the whole table."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


_plain: PlainText | None = None


def _start_worker(definition: str, special: dict[int, str], fast: FastBpe | None) -> None:
    global _plain
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core; threads would contend

    def load() -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(definition)

    _plain = PlainText(load, special, fast, seek=False)


def _work(packed: pa.Buffer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import pyarrow as pa

    assert _plain is not None
    tokens = tokenize_turns(pa.ipc.open_stream(packed).read_all(), _plain)
    return tokens.ids, tokens.lengths, tokens.turns
