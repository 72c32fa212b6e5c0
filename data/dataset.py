"""Prepared data on disk: a row table, its folds, and a manifest that names both by their hashes.

Written in an order that survives a kill at any point: rows, then folds, then the manifest. Whatever is
already there and fits is kept; whatever does not fit is refused, never overwritten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.candidates import CANDIDATES
from data.errors import UserError, brief, listing
from data.files import read_json, require_file, sha256_files, write_json
from data.folds import (
    FOLDS,
    PINNED,
    Folds,
    check_folds,
    check_near,
    expected_pins,
    make_folds,
    read_folds,
    source_names,
    write_folds,
)
from data.groups import Near
from data.schema import Rows, describe_file, read_rows, write_rows

ROWS = "rows.parquet"
MANIFEST = "manifest.json"
FORMAT = 1
CHANGED = "was changed after it was written; restore it, or delete the directory and prepare the data again"


def prepare(
    rows: Rows,
    out: Path,
    n_folds: int = 5,
    seed: int = 0,
    near: Near | None = None,
    pin: Collection[str] = (),
    details: Mapping[str, Any] | None = None,
    notes: list[str] | None = None,
) -> Folds:
    """Write ``rows`` and their folds into the directory ``out``, or finish what is begun there.

    Parameters
    ----------
    rows : Rows
        Validated rows.
    out : Path
        Directory for ``rows.parquet``, ``folds.parquet`` and ``manifest.json``. A fold file already
        there for the same rows is kept as it is, and ``seed`` then has no effect.
    n_folds, seed, near, pin
        As in :func:`data.folds.make_folds`.
    details : mapping, optional
        Further manifest fields.
    notes : list of str, optional
        Gets what the user should know of new folds.

    Raises
    ------
    UserError
        ``out`` holds other rows or folds of another kind, or is a file.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file where a directory is to be written; choose another --out")
    if (out / ROWS).exists():
        _refuse_other_rows(rows, out)
    elif (out / FOLDS).exists():
        raise UserError(
            f"{out}: holds {FOLDS} but no {ROWS}, so the folds belong to unknown rows; "
            "choose another --out, or delete the fold file"
        )
    if (out / FOLDS).exists():
        folds = check_folds(read_folds(out), rows, out / FOLDS)
        _refuse_other_folds(folds, rows, out / FOLDS, n_folds, near, pin)
    else:
        folds = make_folds(rows, n_folds, seed, near, pin, notes)
        if not (out / ROWS).exists():
            write_rows(out / ROWS, rows)
        write_folds(out, folds)
    manifest = {**describe(rows, folds, near, pin), **(details or {}), "files": _file_hashes(out)}
    if _read_manifest(out) != manifest:
        write_json(out / MANIFEST, manifest)
    return folds


def _file_hashes(out: Path) -> dict[str, str]:
    return {name: sha256_files([out / name]) for name in (ROWS, FOLDS)}


def _read_manifest(out: Path) -> dict[str, Any] | None:
    """Read the manifest of a directory, if one is there."""
    file = out / MANIFEST
    if not file.exists():
        return None
    manifest = read_json(file, "manifest")
    if not isinstance(manifest, dict) or manifest.get("kind") != "data":
        raise UserError(
            f"{file}: is not the manifest of prepared data; delete it, and prepare the data again"
        )
    return manifest


def near_of(path: Path) -> Near | None:
    """How alike prompts count as one in prepared data, by its manifest, which must be there."""
    manifest = _read_manifest(path)
    if manifest is None:
        raise UserError(
            f"{path / MANIFEST}: is missing, so that it is not known how alike prompts of these rows count "
            "as one; prepare them with data.prepare"
        )
    return _stated_near(manifest, path / MANIFEST)


def _stated_near(manifest: dict[str, Any], file: Path) -> Near | None:
    try:
        stated = manifest["near"]
        return None if stated is None else Near(float(stated["threshold"]))
    except (TypeError, KeyError, ValueError, UserError) as error:
        raise UserError(f"{file}: its near-duplicate threshold is damaged ({error})") from error


def _stated_files(manifest: dict[str, Any] | None) -> dict[str, Any]:
    """The files' hashes that a manifest names; an earlier version named none."""
    stated = (manifest or {}).get("files", {})
    return stated if isinstance(stated, dict) else {ROWS: stated}


def load_prepared(path: str | Path) -> tuple[Rows, Folds]:
    """Read prepared data: a directory of :func:`prepare`, or a row table with its fold file beside it.

    Parameters
    ----------
    path : path

    Returns
    -------
    rows : Rows
    folds : Folds
        In the order of ``rows``.

    Raises
    ------
    UserError
        A file is missing or damaged, or the folds do not fit the rows.
    """
    path = Path(path)
    file = path / ROWS if path.is_dir() else path
    if not file.exists():
        raise UserError(
            f"{file}: no such row table; make one with python -m data.prepare --source FILE --out DIR"
        )
    rows = read_rows(file)
    fold_file = file.parent / FOLDS
    if not fold_file.exists():
        raise UserError(
            f"{fold_file}: no such fold file, so {file.name} cannot be cross-validated; "
            "run python -m data.prepare again to finish it"
        )
    folds = check_folds(read_folds(require_file(fold_file, "fold file")), rows, fold_file)
    return rows, folds


def _refuse_other_rows(wanted: Rows, out: Path) -> None:
    classes, n, content = describe_file(out / ROWS)
    if content == wanted.content_hash and classes == wanted.classes:
        stated = _stated_files(_read_manifest(out)).get(ROWS)
        if stated is not None and stated != sha256_files([out / ROWS]):
            raise UserError(f"{out / ROWS}: {CHANGED}")
        return
    differs = "classes" if classes != wanted.classes else "rows"
    raise UserError(
        f"{out}: already holds other {differs} ({n} rows there; wanted {len(wanted)} rows of "
        f"{listing(sources_of(wanted), 3)}); choose another --out, or delete that directory"
    )


def _refuse_other_folds(
    folds: Folds, rows: Rows, where: Path, n_folds: int, near: Near | None, pin: Collection[str]
) -> None:
    """Refuse to keep folds that are not of the kind asked for: a fold file is written once."""
    remedy = "and a fold file is written once; keep them, or choose another --out"
    if folds.n_folds != n_folds:
        raise UserError(
            f"{where}: already deals these rows into {folds.n_folds} folds, not {n_folds}, and a "
            f"fold file is written once; keep --folds {folds.n_folds}, or choose another --out"
        )
    wrong = np.flatnonzero(folds.pinned != expected_pins(rows, folds.group_ids, pin))
    if wrong.size:
        raise UserError(
            f"{where}: {wrong.size} rows, e.g. {folds.row_ids[wrong[0]]}, are pinned to every training "
            f"there and not by this command's --pin, or the reverse, {remedy}"
        )
    manifest = _read_manifest(where.parent)
    stated = None if manifest is None else _stated_near(manifest, where.parent / MANIFEST)
    if stated is not None and stated != near:
        raise UserError(
            f"{where}: was made with near-duplicates from {stated.threshold}, not "
            f"{near.threshold if near else 'off'}, {remedy}"
        )
    if near is not None and stated is None:
        check_near(folds, rows, near, where)


def sources_of(rows: Rows) -> dict[str, int]:
    """How many rows each source has."""
    names = source_names(rows)
    if names is None:
        return {"unknown source": len(rows)}
    counts = names.value_counts().to_pylist()
    return {str(entry["values"]): int(entry["counts"]) for entry in counts}


def describe(rows: Rows, folds: Folds, near: Near | None, pin: Collection[str]) -> dict[str, Any]:
    """What a manifest says of rows and folds."""
    labels = rows.labels
    counts = np.bincount(labels[labels >= 0], minlength=rows.classes.n).tolist()
    sources = sources_of(rows)
    return {
        "kind": "data",
        "format": FORMAT,
        "source": listing(sources, 3, names=False),
        "sources": sources,
        "n_rows": len(rows),
        "classes": list(rows.classes.names),
        "swap": None if rows.classes.swap is None else list(rows.classes.swap),
        **({} if rows.sizes is None else {CANDIDATES: _set_sizes(rows.sizes)}),
        "rows_hash": rows.content_hash,
        "folds_hash": folds.content_hash,
        "n_folds": folds.n_folds,
        "n_groups": len(set(folds.group_ids)),
        "near": None if near is None else {"threshold": near.threshold},
        "pin": sorted(pin),
        "n_pinned": int(folds.pinned.sum()),
        "label_counts": {
            **dict(zip(rows.classes.names, counts, strict=True)),
            **({"unlabelled": int((labels < 0).sum())} if (labels < 0).any() else {}),
        },
    }


def _set_sizes(sizes: np.ndarray) -> dict[str, Any]:
    return {"least": int(sizes.min()), "most": int(sizes.max()), "mean": round(float(sizes.mean()), 3)}


def check_prepared(path: Path) -> tuple[Rows, Folds, dict[str, Any]]:
    """Prove from the files alone that prepared data keep their contract.

    Rows and folds are read, validated and hashed; every group, as the file states it, as the prompts
    make it, and by near-duplicates where the manifest claims those, lies in one fold; pinned rows share
    a group with no validated one; and everything the manifest says is what the files hold.

    Raises
    ------
    UserError
        Naming the file and what does not hold.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such directory of prepared data")
    manifest = _read_manifest(path)
    if manifest is None:
        raise UserError(f"{path / MANIFEST}: no such manifest; prepare the data again to finish them")
    rows, folds = load_prepared(path)
    near = _stated_near(manifest, path / MANIFEST)
    if near is not None:
        check_near(folds, rows, near, path / FOLDS)
    pin = manifest.get("pin")
    if not isinstance(pin, list) or not all(isinstance(name, str) for name in pin):
        raise UserError(f"{path / MANIFEST}: its list of pinned sources is damaged ({brief(pin, 60)})")
    if (folds.pinned != expected_pins(rows, folds.group_ids, pin)).any():
        raise UserError(
            f"{path / FOLDS}: pins other rows to every training than those of the sources that the manifest "
            f"names ({listing(pin) or 'none'}); prepare the data again"
        )
    found = describe(rows, folds, near, pin)
    for name, value in found.items():
        if manifest.get(name) != value:
            raise UserError(
                f"{path / MANIFEST}: {name} is {brief(manifest.get(name), 60)} there and {brief(value, 60)} "
                "in the files; they do not belong together, prepare the data again"
            )
    for name, stated in _stated_files(manifest).items():
        if stated != _file_hashes(path).get(name):
            raise UserError(f"{path / name}: {CHANGED}")
    return rows, folds, manifest


def columns_of(path: Path, source: str | None = None) -> dict[str, str]:
    """Return which column held each field where data were prepared from a plain table.

    Rows to predict come in such a table too, and are read in the same way.

    Parameters
    ----------
    path : Path
        Directory of prepared data.
    source : str, optional
        Which of several sources; the first, by default.

    Returns
    -------
    dict of str to str
        Field to column, as ``SourceOptions.columns`` takes; empty where they were no plain table.
    """
    found = (_read_manifest(path) or {}).get("columns") or {}
    columns = found.get(source or next(iter(found), ""), {}) if isinstance(found, dict) else {}
    return {str(name): str(column) for name, column in columns.items()}


def group_sizes(folds: Folds) -> dict[int, tuple[int, int]]:
    """Rows and groups of every fold, pinned rows under ``PINNED``."""
    rows = Counter(folds.fold.tolist())
    groups = Counter(fold for _, fold in set(zip(folds.group_ids, folds.fold.tolist(), strict=True)))
    numbers = [*range(folds.n_folds), *([PINNED] if PINNED in rows else [])]
    return {k: (rows[k], groups[k]) for k in numbers}
