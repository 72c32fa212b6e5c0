"""A checkpoint's files: the weights that its index names, and what else is opened when it is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from data.errors import UserError, brief, is_disk_full
from data.files import read_json, sha256_files

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OPENED = ("config.json", INDEX, "adapter_config.json", "tokenizer_config.json", "special_tokens_map.json")
"""What a library reads of a checkpoint beside weights and vocabulary, where it is there."""


def shards_of(index: Path) -> list[str]:
    """Return the names of the files that an index of weights lists, sorted.

    Raises
    ------
    UserError
        The index is damaged, or names a file outside of its own directory, whose content no record of the
        checkpoint would cover.
    """
    found = read_json(index, "index of weights")
    placed = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(placed, dict) or not placed or not all(isinstance(n, str) for n in placed.values()):
        raise UserError(f"{index}: is no index of weights (weight_map); it is damaged, restore it")
    names = sorted(set(placed.values()))
    for name in names:
        if PurePosixPath(name).name != name or "\\" in name or name in {"", ".", ".."}:
            raise UserError(
                f"{index}: names {brief(name)}, which lies outside of the checkpoint's directory; put all "
                "weights beside the index, under plain names"
            )
    return names


def refuse_modules(adapter_config: Path) -> None:
    """Refuse an adapter whose configuration names a Python module, which PEFT would import."""
    if read_json(adapter_config, "adapter's configuration").get("megatron_config"):
        raise UserError(
            f"{adapter_config}: has a megatron_config, by which a module of its choice would be imported; "
            "adapters of this kind are not read"
        )


def weight_files(directory: Path) -> list[str]:
    """Return the names of the files that hold a local checkpoint's weights, by its index where it has one."""
    return shards_of(directory / INDEX) if (directory / INDEX).exists() else [SINGLE]


def opened_hashes(directory: Path) -> dict[str, str]:
    """Hash what is opened beside weights and tokenizer, by the files' names."""
    return {name: sha256_files([directory / name]) for name in OPENED if (directory / name).is_file()}


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Have a library write a model's files: a failure names the directory, and modes follow the umask.

    Libraries write weights through temporary files, which nobody else may read, and tell a full disk in
    exceptions of their own kinds.

    Raises
    ------
    UserError
        The disk is full, or the directory is not ours to write.
    """
    try:
        yield
    except Exception as error:
        if is_disk_full(error) or isinstance(error, PermissionError):
            raise UserError(
                f"{directory}: cannot be written ({brief(error)}); nothing was left there half-written"
            ) from error
        raise
    umask = os.umask(0o022)
    os.umask(umask)
    for file in directory.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~umask)
