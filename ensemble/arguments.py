"""What the commands that fit on labelled rows take: labels, prepared data, folds, and whom to trust."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_labelled_rows(parser: argparse.ArgumentParser) -> None:
    """Add ``--labels``, ``--data``, ``--folds`` and ``--trust``."""
    parser.add_argument("--labels", type=Path, metavar="FILE", help="id with label or class columns")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared data: rows and folds")
    parser.add_argument("--folds", type=Path, metavar="FILE", help="fold file: row_id, group_id, fold")
    parser.add_argument(
        "--trust",
        nargs="+",
        default=[],
        metavar="NAME",
        help="keep a model that looks as if it had seen the labels it is scored on",
    )
