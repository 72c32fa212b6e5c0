"""Which of the soft-label stores under a folder are members, and where the data of one are.

One rule for commands and notebooks.
"""

from __future__ import annotations

import os
from pathlib import Path

from data.errors import UserError, listing
from data.softlabels import LABEL_KINDS, MANIFEST, OOF, read_manifest


def member_stores(folder: Path) -> tuple[list[str], list[str]]:
    """Find the out-of-fold stores directly under a folder.

    Soft labels of other kinds are lessons for a student: a model's predictions of rows it was trained on
    would outweigh every honest member.

    Parameters
    ----------
    folder : Path
        One that is not there holds none.

    Returns
    -------
    paths : list of str
        In order of their names.
    notes : list of str
        What was left out, and why.

    Raises
    ------
    UserError
        A manifest is missing or damaged, or names an unknown kind.
    """
    paths, notes = [], []
    stores = (
        sorted(path for path in folder.iterdir() if (path / MANIFEST).exists() or (path / OOF).exists())
        if folder.is_dir()
        else []
    )
    for path in stores:
        finished = (path / OOF).exists()
        try:
            kind = read_manifest(path).get("label_kind", "oof" if finished else None)
        except UserError:
            if finished:
                raise
            continue  # of something else than a store
        if kind is None:
            continue
        if kind not in LABEL_KINDS:
            raise UserError(
                f"{path / MANIFEST}: label_kind {kind!r} is none of {listing(LABEL_KINDS)}; make the store "
                "again, or name the members with --oof"
            )
        if kind != "oof":
            notes.append(f"{path.name} is left out: its labels are {kind}, lessons for a student")
        elif not finished:
            notes.append(
                f"{path.name} is left out: it is unfinished, and the command that began it continues"
            )
        else:
            paths.append(str(path))
    return paths, notes


def data_of(store: Path, stated: str) -> Path | None:
    """Where the data are that a store's manifest states; a relative path may start at the store.

    Returns
    -------
    Path or None
        Without the way through the store and back, where that names the same; none where nothing is there.
    """
    place = next((place for place in (store / stated, Path(stated)) if stated and place.exists()), None)
    if place is None:
        return None
    short = Path(os.path.normpath(place))
    return short if short.exists() and short.samefile(place) else place
