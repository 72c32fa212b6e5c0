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
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data.errors import UserError, brief
from data.files import atomic_write, write_json

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
    if "@" in rest.split("/")[0] or "?" in rest:
        raise UserError(
            f"{protocol}://…: an address must not hold credentials or a query; give them in the environment"
        )
    if not rest.strip("/") or ".." in rest.split("/"):
        raise UserError(f"{text}: is no address of a file or directory")
    return scratch().joinpath(protocol, *[part for part in rest.split("/") if part])


def address_of(path: Path) -> str | None:
    """Return the address that a mirror's path belongs to; None for an ordinary path."""
    root = scratch()
    if not path.is_relative_to(root):
        return None
    protocol, *rest = path.relative_to(root).parts
    return f"{protocol}://{'/'.join(rest)}" if rest else None


def shown(path: Path) -> str:
    """Return what to call a path in messages: the address where there is one."""
    return address_of(path) or str(path)


def open_storage(address: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address, and the path in it.

    Raises
    ------
    UserError
        No library for this kind of address is installed, or it finds no credentials.
    """
    import fsspec

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
        Directories that are not brought, wherever they are.
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
        seen = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        for name in found:
            relative = name[len(base.rstrip("/")) :].lstrip("/")
            if set(skip) & set(relative.split("/")[:-1]):
                continue
            version, local = fs.ukey(name), target / relative
            if seen.get(relative) == version and local.exists():
                continue
            with atomic_write(local) as temporary:
                fs.get_file(name, str(temporary))
            seen[relative] = version
        if found:
            write_json(record, seen)
    return path


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
