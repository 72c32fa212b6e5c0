"""Reading and writing files so that nothing is ever half-written and damage is named.

Writers go to a temporary name in the same directory, flush to disk and rename. Readers turn what a
missing or damaged file raises into a :class:`~data.errors.UserError` that names it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from data.errors import NO_LOCKS, UserError, brief, listing

try:
    import fcntl
except ImportError as error:
    raise UserError(NO_LOCKS) from error

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

MAX_EXPANSION = 100
"""A gzip file may hold this many times its own size; beyond that it is taken for a bomb."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block succeeds, flush it and rename it to ``path``."""
    refuse_impossible(path)
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    held = None
    try:
        held = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666)  # less the umask
        with suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)  # tells :func:`sweep` that its writer lives
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:  # no space, no permission, a directory in the way
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if held is not None:
            os.close(held)


_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file's name is one that :func:`atomic_write` gives while it writes."""
    return _TEMPORARY.fullmatch(name) is not None


def sweep(directory: Path, name: str = "") -> None:
    """Delete what killed commands left half-written directly in a directory; what is being written stays.

    Parameters
    ----------
    directory : Path
    name : str
        Of the file that they were writing; of any, by default.
    """
    try:
        left = [path for path in directory.iterdir() if is_temporary(path.name)]
        left = [path for path in left if path.name.startswith(f".{name}.") or not name]
    except OSError:
        return
    for path in left:
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(handle)


def make_directory(path: Path) -> None:
    """Make a directory and its parents, if they are not there."""
    refuse_impossible(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{path}: cannot be made a directory, a file of that name is in the way") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be made a directory ({_reason(error)})") from error


def refuse_impossible(path: Path) -> Path:
    """Return ``path``, or refuse one that cannot be looked at: no text, too long, in a directory shut to us.

    Arrow cannot open a name whose bytes are no text, nor can a manifest name it.
    """
    try:
        str(path).encode("utf-8")
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except UnicodeEncodeError as error:
        raise UserError(f"{brief(path)}: its name is not UTF-8 text; rename it") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{brief(path)}: cannot be opened ({_reason(error)})") from error
    return path


@contextmanager
def locked(directory: Path, wait: bool = False) -> Iterator[None]:
    """Hold a directory for one command; a killed command holds nothing, and what it left is swept.

    Parameters
    ----------
    directory : Path
        Made where it is not there, and taken away again where nothing was written; a hidden one in any case,
        for it is no user's.
    wait : bool
        Wait for another command that holds it, instead of refusing. Not to be asked for a directory that
        this process holds already.

    Raises
    ------
    UserError
        Another command holds it, or it cannot be made or opened.
    """
    passing = directory.name.startswith(".") or not directory.exists()
    handle = _held(directory, wait)
    try:
        sweep(directory)
        yield
    finally:
        if passing:
            with suppress(OSError):  # it holds something by now
                directory.rmdir()
        os.close(handle)


def _held(directory: Path, wait: bool) -> int:
    """Open and lock a directory; again where whoever held it took it away meanwhile."""
    while True:
        make_directory(directory)
        try:
            handle = os.open(directory, os.O_RDONLY)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{directory}: cannot be opened ({_reason(error)})") from error
        try:
            lock(handle, directory, wait)
            if os.path.samestat(os.fstat(handle), os.stat(directory)):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise UserError(
                f"{directory}: another command is writing there; wait until it has ended, or choose another "
                "directory"
            ) from None
        except FileNotFoundError:
            pass
        os.close(handle)


def lock(handle: int, where: Path, wait: bool) -> None:
    """Lock an open file or directory against other processes; where no lock can be had, say so and go on.

    Raises
    ------
    BlockingIOError
        Another process holds it, and it is not to be waited for.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        logging.getLogger(__name__).warning(
            "%s: its file system gives no locks (%s); see to it that no other command writes there meanwhile",
            where,
            _reason(error),
        )


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
    refuse_impossible(path)
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


def numbers_of(path: Path, what: str, column: str, n: int) -> np.ndarray:
    """Read a Parquet file's column of ``n`` numbers or truths; another program's file is a user's mistake."""
    table = read_parquet(path, what)
    require_columns(table, [column], path)
    found = table.column(column).to_numpy()
    if found.dtype.kind not in "fiub" or len(found) != n:
        raise UserError(f"{path}: column {column} does not hold {n} numbers; restore the file")
    return found


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


def csv_delimiter(path: Path) -> str:
    """Return what separates the cells of a CSV: by its header a comma, else ``;`` or a tab."""
    if path.name.lower().removesuffix(".gz").endswith(".tsv"):
        return "\t"
    try:
        with unpacked(path) as handle:
            header = re.sub(rb'"[^"]*"', b"", handle.readline(1 << 20))
    except (OSError, EOFError, zlib.error):
        return ","  # whoever reads on says what is wrong
    return next((mark for mark in (",", ";", "\t") if mark.encode() in header), ",")


def table_columns(path: Path, what: str = "file") -> list[str]:
    """Return the columns of a file that :func:`read_table` reads, without its rows where it can."""
    import csv
    import io

    if path.name.lower().endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz")):
        require_file(path, what)
        try:
            with unpacked(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
                return next(csv.reader(text, delimiter=csv_delimiter(path)), [])
        except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as CSV ({brief(error)})") from error
    if path.suffix.lower() in {".parquet", ".pq"}:
        import pyarrow.parquet as pq

        with readable_parquet(path):
            return list(pq.read_schema(str(require_file(path, what))).names)
    return list(read_table(path, what).column_names)


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

            parse = csv.ParseOptions(newlines_in_values=True, delimiter=csv_delimiter(path))
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
