"""Backbones found under an input directory, as data sets are mounted: each run gets the one it came from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import UserError, listing
from distill.model.files import opened_hashes

DEEPEST = 6
"""Levels below the input directory that are looked at."""


def checkpoints(root: Path) -> list[Path]:
    """The directories at or below ``root`` that hold a ``config.json``, nearest first."""
    found, level = [], [root]
    for _ in range(DEEPEST + 1):
        found += [path for path in level if (path / "config.json").is_file()]
        level = [
            child for path in level for child in sorted(path.iterdir())
            if child.is_dir() and not child.name.startswith(".")
        ]  # fmt: skip
    return found


def find_backbone(root: Path, run: Path, manifest: Mapping[str, Any]) -> str:
    """Return the checkpoint at or below ``root`` that a run was trained from.

    Known by the hashes of what is opened of it, or else by that of its configuration; of one that came from a
    hub, of which no files were recorded, by its name. That all of it is the very same is seen to before it is
    used.

    Parameters
    ----------
    root : Path
        A checkpoint itself, which is taken as it is, or a directory of them.
    run : Path
        The run's directory, for the message.
    manifest : mapping
        The run's.

    Raises
    ------
    UserError
        There is none.
    """
    if (root / "config.json").is_file():
        return str(root)
    candidates = checkpoints(root)
    stated = manifest["backbone"].get("files")
    name = Path(str(manifest["backbone_path"])).name
    if stated:
        hashes = {path: opened_hashes(path) for path in candidates}
        alike = [path for path, found in hashes.items() if found == stated]
        config = "config.json"
        alike += [path for path, found in hashes.items() if found[config] == stated.get(config)]
    else:
        alike = [path for path in candidates if name in path.relative_to(root).parts]
    if alike:
        return str(alike[0])
    raise UserError(
        f"--backbone {root}: holds no checkpoint that {run} was trained from ({name}); there are "
        f"{listing([str(path.relative_to(root)) for path in candidates]) or 'none at all'}; give the "
        "directory of one by itself, with --accept-changed if it is a copy that differs"
    )
