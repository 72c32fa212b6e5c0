"""Reading and writing files so that nothing is ever half-written and damage is named.

Writers go to a temporary name in the same directory, flush to disk and rename. Readers turn what a
missing or damaged file raises into a :class:`~data.errors.UserError` that names it.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from data.errors import UserError, brief, listing

if TYPE_CHECKING:
    import pyarrow as pa

MAX_EXPANSION = 100
"""A gzip file may hold this many times its own size; beyond that it is taken for a bomb."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block succeeds, flush it and rename it to ``path``."""
    _refuse_unreadable_name(path)
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:  # no space, no permission, a directory in the way
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_directory(path: Path) -> None:
    """Make a directory and its parents, if they are not there."""
    _refuse_unreadable_name(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{path}: cannot be made a directory, a file of that name is in the way") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be made a directory ({_reason(error)})") from error


def _refuse_unreadable_name(path: Path) -> None:
    """Refuse a name whose bytes are no text: Arrow cannot open it, nor can a manifest name it."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{brief(path)}: its name is not UTF-8 text; rename it") from error


@contextmanager
def locked(directory: Path, wait: bool = False) -> Iterator[None]:
    """Hold a directory for one command; a killed command holds nothing.

    Parameters
    ----------
    directory : Path
        Made where it is not there, and taken away again where nothing was written.
    wait : bool
        Wait for another command that holds it, instead of refusing. Not to be asked for a directory that
        this process holds already.

    Raises
    ------
    UserError
        Another command holds it, or it cannot be made or opened.
    """
    there = directory.exists()
    make_directory(directory)
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{directory}: cannot be opened ({_reason(error)})") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(
                f"{directory}: another command is writing there; wait until it has ended, or choose another "
                "directory"
            ) from None
        except OSError:
            pass  # a network's file system may know no locks
        yield
    finally:
        os.close(handle)
        if not there:
            with suppress(OSError):  # it holds something by now
                directory.rmdir()


def unwritable(path: Path, error: OSError) -> UserError:
    """Return what to say of a file that cannot be written: the disk is full, or not ours to write."""
    return UserError(f"{path}: cannot be written ({_reason(error)}); nothing was left there half-written")


def _reason(error: Exception) -> str:
    return brief(getattr(error, "strerror", None) or error)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write an Arrow table as Parquet, atomically, with checksums that :func:`read_parquet` looks at."""
    import pyarrow.parquet as pq

    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)


def require_file(path: Path, what: str = "file") -> Path:
    """Return ``path`` if it is a file, else say which ``what`` is missing."""
    _refuse_unreadable_name(path)
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a directory where a {what} was expected")
        if not path.exists():
            raise UserError(f"{path}: no such {what}")
        if not path.is_file():
            raise UserError(
                f"{path}: is a pipe, a socket or a device where a {what} was expected; files are read more "
                "than once, so write its content to one first"
            )
    except (OSError, ValueError) as error:  # a name too long, a directory that may not be entered
        raise UserError(f"{brief(path)}: cannot be opened ({_reason(error)})") from error
    return path


def read_json(path: Path, what: str = "file") -> Any:
    """Read a JSON file; a missing or damaged one is a user's mistake."""
    try:
        return json.loads(require_file(path, what).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); it may be damaged, make it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)})") from error


def read_parquet(path: Path, what: str = "file") -> pa.Table:
    """Read a Parquet file; a missing or truncated one is a user's mistake.

    Arrow opens the file itself: its readers' threads let go of a Python handle late, and where the
    interpreter is ending by then the whole process aborts (apache/arrow issue 39862).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(str(require_file(path, what)), page_checksum_verification=True) as file:
            return file.read()
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: not a readable Parquet file ({error}); it may be truncated or damaged, make it again"
        ) from error


@contextmanager
def readable_parquet(path: Path | str) -> Iterator[None]:
    """Turn what Arrow raises of a file that is not its own, or is cut short, into a message naming it."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: not a readable Parquet file ({brief(error)}); it may be truncated, make it again"
        ) from error


def unpacked(path: Path) -> IO[bytes]:
    """Open a file of bytes, through gzip where its name says so."""
    return gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def refuse_bomb(path: Path) -> None:
    """Unpack to nowhere first: a file that would fill the memory is refused before anything is read."""
    limit = MAX_EXPANSION * max(path.stat().st_size, 1 << 16)
    size = 0
    try:
        with gzip.open(path) as handle:
            while chunk := handle.read(1 << 20):
                size += len(chunk)
                if size > limit:
                    raise UserError(
                        f"{path}: unpacks to more than {MAX_EXPANSION} times its size; if that is no "
                        "mistake, unpack it yourself and give the file"
                    )
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be unpacked as gzip ({error}); is it damaged or cut off?") from error


def read_table(path: Path, what: str = "file", as_text: bool = False) -> pa.Table:
    """Read a CSV (plain or packed by gzip), Parquet or JSON-lines file, by its extension.

    Parameters
    ----------
    path : Path
    what : str
        What to call the file in messages.
    as_text : bool
        Leave the values of a CSV as the text they are; else columns of numbers become numbers.

    Raises
    ------
    UserError
        The file is missing, damaged, or of another kind.
    """
    import pyarrow as pa

    require_file(path, what)
    suffix = path.suffix.lower()
    if suffix in {".parquet", ".pq"}:
        return read_parquet(path, what)
    if path.name.lower().endswith((".csv.gz", ".tsv.gz")):  # Arrow unpacks by the name
        refuse_bomb(path)
        suffix = path.name.lower()[-7:-3]
    try:
        if suffix in {".csv", ".tsv"}:
            from pyarrow import csv

            parse = csv.ParseOptions(newlines_in_values=True, delimiter="\t" if suffix == ".tsv" else ",")
            read = csv.ReadOptions(block_size=64 << 20)
            convert = csv.ConvertOptions()
            if as_text:
                with csv.open_csv(path, read, parse) as reader:
                    names = reader.schema.names
                convert = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
            table = csv.read_csv(path, read, parse, convert)
            if len(set(table.column_names)) < table.num_columns:
                raise ValueError(f"a column name appears twice: {listing(table.column_names, 12)}")
            return table
        if suffix in {".jsonl", ".ndjson"}:
            with open(path, encoding="utf-8") as handle:
                records = [json.loads(line) for line in handle if line.strip()]
            names = dict.fromkeys(name for record in records for name in record)  # not the first row's alone
            return pa.table({name: [record.get(name) for record in records] for name in names})
    except (pa.ArrowException, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read as {suffix[1:].upper()} ({error})") from error
    raise UserError(f"{path}: unknown kind of {what}; give a .csv, .csv.gz, .parquet or .jsonl file")


def require_columns(table: pa.Table | pa.Schema, columns: list[str], path: Path | str) -> None:
    """Refuse a table that lacks one of ``columns``, naming what it has."""
    names = getattr(table, "column_names", None) or table.names
    missing = [column for column in columns if column not in names]
    if missing:
        raise UserError(f"{path}: no column {listing(missing)}; the file has {listing(names, 12)}")


def sha256_text(*parts: str) -> str:
    """Hash text parts, each followed by a separator that text does not hold."""
    return TextDigest(*parts).hexdigest()


class TextDigest:
    """The hash of :func:`sha256_text` over parts that arrive piece by piece."""

    def __init__(self, *parts: str) -> None:
        self._digest = hashlib.sha256()
        for part in parts:
            self.add(part)
            self.end()

    def add(self, piece: str) -> None:
        """Add a piece of the current part."""
        self._digest.update(piece.encode("utf-8", "surrogatepass"))

    def end(self) -> None:
        """End the current part."""
        self._digest.update(b"\x00")

    def hexdigest(self) -> str:
        """Return the hash so far."""
        return self._digest.hexdigest()


def sha256_files(paths: list[Path]) -> str:
    """Hash the names and bytes of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with open(path, "rb") as handle:
            while chunk := handle.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
