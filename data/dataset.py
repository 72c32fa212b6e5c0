"""Prepared data on disk: a row table, its folds, and a manifest that names both by their hashes.

Written in an order that survives a kill at any point: rows, then folds, then the manifest. Whatever is
already there and fits is kept; whatever does not fit is refused, never overwritten.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError
from data.files import read_json, require_file, write_json
from data.folds import FOLDS, Folds, check_folds, make_folds, read_folds, write_folds
from data.schema import Rows, read_rows, write_rows

ROWS = "rows.parquet"
MANIFEST = "manifest.json"
FORMAT = 1


def prepare(rows: Rows, out: Path, n_folds: int = 5, seed: int = 0) -> Folds:
    """Write ``rows`` and their folds into the directory ``out``, or finish what is begun there.

    Parameters
    ----------
    rows : Rows
        Validated rows.
    out : Path
        Directory for ``rows.parquet``, ``folds.parquet`` and ``manifest.json``. A fold file already
        there for the same rows is kept as it is, and ``seed`` then has no effect.
    n_folds, seed : int
        As in :func:`data.folds.make_folds`.

    Raises
    ------
    UserError
        ``out`` holds other rows or another number of folds, or is a file.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file where a directory is to be written; choose another --out")
    if (out / ROWS).exists():
        _refuse_other_rows(read_rows(out / ROWS), rows, out)
    elif (out / FOLDS).exists():
        raise UserError(
            f"{out}: holds {FOLDS} but no {ROWS}, so the folds belong to unknown rows; "
            "choose another --out, or delete the fold file"
        )
    if (out / FOLDS).exists():
        folds = check_folds(read_folds(out), rows, out / FOLDS)
        if folds.n_folds != n_folds:
            raise UserError(
                f"{out / FOLDS}: already deals these rows into {folds.n_folds} folds, not {n_folds}, and a "
                f"fold file is written once; keep --folds {folds.n_folds}, or choose another --out"
            )
    else:
        folds = make_folds(rows, n_folds, seed)
        if not (out / ROWS).exists():
            write_rows(out / ROWS, rows)
        write_folds(out, folds)
    manifest = _manifest(rows, folds)
    if not (out / MANIFEST).exists() or read_json(out / MANIFEST, "manifest") != manifest:
        write_json(out / MANIFEST, manifest)
    return folds


def load_prepared(path: Path) -> tuple[Rows, Folds]:
    """Read prepared data: a directory of :func:`prepare`, or a row table with its fold file beside it.

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


def _refuse_other_rows(found: Rows, wanted: Rows, out: Path) -> None:
    if found.content_hash == wanted.content_hash and found.classes == wanted.classes:
        return
    differs = "classes" if found.classes != wanted.classes else "rows"
    raise UserError(
        f"{out}: already holds other {differs} ({len(found)} rows of {_source(found)}; "
        f"wanted {len(wanted)} rows of {_source(wanted)}); choose another --out, or delete that directory"
    )


def _source(rows: Rows) -> str:
    if "source" not in rows.table.column_names:
        return "unknown source"
    values = [str(value) for value in rows.table.column("source").unique().to_pylist()]
    return ", ".join(values[:3])


def _manifest(rows: Rows, folds: Folds) -> dict[str, Any]:
    labels = rows.labels
    counts = np.bincount(labels[labels >= 0], minlength=rows.classes.n).tolist()
    return {
        "kind": "data",
        "format": FORMAT,
        "source": _source(rows),
        "n_rows": len(rows),
        "classes": list(rows.classes.names),
        "swap": None if rows.classes.swap is None else list(rows.classes.swap),
        "rows_hash": rows.content_hash,
        "folds_hash": folds.content_hash,
        "n_folds": folds.n_folds,
        "n_groups": len(set(folds.group_ids)),
        "label_counts": {
            **dict(zip(rows.classes.names, counts, strict=True)),
            **({"unlabelled": int((labels < 0).sum())} if (labels < 0).any() else {}),
        },
    }
