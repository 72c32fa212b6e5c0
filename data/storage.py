"""Paths on other storage, such as ``s3://bucket/rows``, through fsspec.

Training works on local files: a directory elsewhere has a mirror on the local disk, whose path says where it
belongs, so that every function that takes a path takes a mirror's. :func:`fetch` brings what is new there,
:func:`publish` sends what was made here; both do nothing for an ordinary path. Tables are read and written
in place, whole files at a time: an object store shows an object when all of it is there.

Credentials come from the environment, as the storage's own library reads it (for S3 ``AWS_ACCESS_KEY_ID``,
``AWS_PROFILE``, an instance's role, ``AWS_ENDPOINT_URL``); an address that holds some is refused, so that
none gets into a manifest or a log.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from data.errors import UserError, brief, printable, without_credentials
from data.files import atomic_write, sha256_files, write_json

SCRATCH = "DISTILLSTACK_SCRATCH"
"""Environment variable: the directory of all mirrors; by default one in the system's temporary directory."""
SEEN = ".fetched.json"
"""In a mirror: versions of the files that were fetched."""
INSTALL = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


def is_address(text: str) -> bool:
    """Whether ``text`` names a place on other storage; ``file://`` is the local disk."""
    return "://" in text and not text.startswith("file://")


def scratch() -> Path:
    """Return the directory that holds the mirrors."""
    return Path(os.environ.get(SCRATCH) or Path(tempfile.gettempdir()) / f"distillstack-{os.getuid()}")


def _own_scratch() -> Path:
    """Return the directory of mirrors, made for this user alone; refuse one that others can prepare."""
    root = scratch()
    try:
        if os.environ.get(SCRATCH):
            root.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            root.mkdir(mode=0o700)
        found = root.lstat()
    except OSError as error:
        raise UserError(
            f"{root}: cannot be made ({error.strerror}); name another place in {SCRATCH}"
        ) from error
    others = found.st_mode & (0o022 if os.environ.get(SCRATCH) else 0o077)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or others:
        raise UserError(
            f"{root}: copies of remote files would lie there, and it is no directory of yours alone (a link, "
            f"another owner, or open to others); delete it, or name a directory of yours in {SCRATCH}"
        )
    return root


def local_path(text: str) -> Path:
    """Return the local path of ``text``: itself, or the mirror of an address.

    Raises
    ------
    UserError
        The address holds a user or a password.
    """
    if not is_address(text):
        return Path(text.removeprefix("file://"))
    protocol, _, rest = text.partition("://")
    refuse_credentials(text)
    if not rest.strip("/") or ".." in rest.split("/") or "::" in text or "://" in rest:
        raise UserError(f"{brief(text)}: is no address of a file or directory; chained ones are not read")
    return _own_scratch().joinpath(protocol, *[part for part in rest.split("/") if part])


def refuse_credentials(address: str) -> None:
    """Refuse an address, or a chain of them, that holds a user, a password or a query; echo none of it."""
    if without_credentials(address) != address:
        raise UserError(
            f"{address.partition('://')[0]}://…: an address must not hold credentials or a query; give them "
            "in the environment"
        )


def address_of(path: Path) -> str | None:
    """Return the address that a mirror's path belongs to; None for an ordinary path."""
    root = scratch()
    if not path.is_relative_to(root):
        return None
    protocol, *rest = path.relative_to(root).parts
    return f"{protocol}://{'/'.join(rest)}" if rest else None


def shown(path: Path) -> str:
    """Return what to call a path in messages: the address where there is one."""
    return printable(address_of(path) or str(path))


def open_storage(address: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address, and the path in it.

    Raises
    ------
    UserError
        No library for this kind of address is installed, or it finds no credentials.
    """
    import fsspec

    refuse_credentials(address)
    protocol = address.partition("://")[0]
    try:
        fs, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise UserError(
            f"{address}: needs a library for {protocol}; pip install {INSTALL.get(protocol, brief(error))}"
        ) from error
    except ValueError as error:
        raise UserError(f"{address}: not a kind of storage that fsspec knows ({brief(error)})") from error
    return fs, path


@contextmanager
def named(address: str) -> Iterator[None]:
    """Turn what a storage library raises into a message that names the address, and no more of it."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{address}: no such file or directory there") from error
    except (OSError, RuntimeError) as error:
        raise UserError(f"{address}: the storage refuses ({type(error).__name__}: {brief(error)})") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in {"botocore", "aiobotocore", "google", "gcsfs", "azure"}:
            name = type(error).__name__
            raise UserError(f"{address}: the storage refuses ({name}: {brief(error)})") from error
        raise


def fetch(path: Path, parts: Sequence[str] | None = None, skip: Sequence[str] = ()) -> Path:
    """Bring a mirror up to date with its address; return ``path``.

    Parameters
    ----------
    path : Path
        Ordinary paths are left alone.
    parts : sequence of str, optional
        Bring only the files directly under the address and these directories of it; all, by default.
    skip : sequence of str
        Names of directories and files that are not brought, wherever they are; patterns of a shell.
    """
    address = address_of(path)
    if address is None:
        return path
    fs, root = open_storage(address)
    with named(address):
        fs.invalidate_cache()
        if fs.isfile(root):
            found, base = [root], root.rpartition("/")[0]
        elif parts is None:
            found, base = fs.find(root), root
        else:
            there = fs.ls(root, detail=True) if fs.exists(root) else []
            found, base = [entry["name"] for entry in there if entry["type"] == "file"], root
            for part in parts:
                found += fs.find(f"{root}/{part}") if fs.exists(f"{root}/{part}") else []
        target = path.parent if base != root else path
        record = target / SEEN
        seen = _seen(record)
        for name in found:
            relative = name[len(base.rstrip("/")) :].lstrip("/")
            if any(fnmatchcase(piece, pattern) for piece in relative.split("/") for pattern in skip):
                continue
            version, local = fs.ukey(name), target / relative
            if seen.get(relative) == [version, _content(local)]:
                continue
            with atomic_write(local) as temporary:
                fs.get_file(name, str(temporary))
            seen[relative] = [version, _content(local)]
        if found:
            write_json(record, seen)
    return path


def _seen(record: Path) -> dict[str, Any]:
    """What a mirror's record says of its files: version and content of each; nothing where it is damaged."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(record.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _content(file: Path) -> str | None:
    """The hash of a mirror's file; None of what is no plain file, so that it is fetched again."""
    return None if file.is_symlink() or not file.is_file() else sha256_files([file])


def publish(path: Path, last: Sequence[str] = ("oof.parquet", "trainer_state.json")) -> None:
    """Send a mirror's files to its address, those named ``last`` after all others.

    A reader that finds a file of ``last`` finds everything that was to be there before it.
    """
    address = address_of(path)
    if address is None:
        return
    fs, root = open_storage(address)
    if path.is_file():
        with named(address):
            fs.makedirs(root.rpartition("/")[0], exist_ok=True)
            fs.put_file(str(path), root)
        return
    files = [p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")]
    with named(address):
        made: set[str] = set()
        for file in sorted(files, key=lambda p: (p.name in last, str(p))):
            there = f"{root}/{file.relative_to(path).as_posix()}"
            folder = there.rpartition("/")[0]
            if folder not in made:
                fs.makedirs(folder, exist_ok=True)
                made.add(folder)
            fs.put_file(str(file), there)


def remove(path: Path) -> None:
    """Delete what lies at a mirror's address, if anything does."""
    address = address_of(path)
    if address is None:
        return
    fs, root = open_storage(address)
    with named(address), suppress(FileNotFoundError):
        fs.rm(root, recursive=True)
