"""Apply a stack to fresh predictions: ``python -m ensemble.predict --stack DIR --oof MODEL... --out FILE``.

Members are matched by name, whatever their files are called (NAME=FILE), rows by id, classes by name; the
numbers are those of the fitted stack. Rows come in the order of --data where it is given, else in that of the
first member.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.console.command import parser_of, run
from data.errors import UserError, listing, printable
from data.ids import places

if TYPE_CHECKING:
    import numpy as np

    from data.classes import Classes
    from data.schema import Rows
    from ensemble.methods.base import Blender


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = build_parser().parse_args(argv)
    import numpy as np

    from data.candidates import CANDIDATES
    from data.files import locked
    from data.sources.plan import read_column_map
    from ensemble.reading.fresh import read_fresh
    from ensemble.reading.members import split_name
    from ensemble.records import refuse_overwriting
    from ensemble.saved import apply_stack, classes_of, interval_of, load_stack, maps_of
    from ensemble.sets import pool  # noqa: F401 (a stack may hold any of its kinds)

    if args.out.suffix.lower() not in (".csv", ".parquet"):
        raise UserError(
            f"{args.out}: a prediction set is written as .csv or .parquet; give --out such a name"
        )
    inputs = [split_name(argument)[1] for argument in args.oof]
    refuse_overwriting(args.out, [*inputs, args.stack / "predictions.parquet", args.data or args.stack])
    content, method = load_stack(args.stack)
    if content.get(CANDIDATES):
        apply_to_sets(args, content, method)
        return
    classes = classes_of(content)
    if args.interval and not content.get("draws"):
        raise UserError(f"{args.stack}: holds no draws for --interval, which stacks of judges have")
    with locked(args.out.with_name(f".{args.out.name}.predicting")):  # as distill.predict does
        fresh = read_fresh(args.oof, content["members"], classes, args.stack, args.average_folds)
        ids, P, rows, names = fresh.row_ids, fresh.seen(maps_of(args.stack, content)), None, classes.names
        at = np.arange(len(ids))
        if args.data is not None:
            rows = load_rows(args.data, ids, classes, read_column_map(args.columns))
            at, ids = places(rows.row_ids, ids), rows.row_ids
        probs = apply_stack(args.stack, method, P[at], rows)
        if args.interval:
            ends = interval_of(args.stack, content, fresh, probs, at)
            probs = np.concatenate([probs, *ends], axis=1)
            names = (*names, *(f"{name}_{end}" for end in ("low", "high") for name in names))
        write_predictions(args.out, ids, probs, names)
    told = f"{len(ids)} rows by {content['chosen']} of {listing(content['members'])}: {args.out}"
    print(printable(told))


def apply_to_sets(args: argparse.Namespace, content: dict, method: Blender) -> None:
    """Run the command with a stack of rows with candidates of their own."""
    from data.files import locked
    from ensemble.saved import apply_stack
    from ensemble.sets.fresh import fresh_sets
    from ensemble.sets.long import write_sets

    if args.interval or args.data is not None:
        named = "--interval" if args.interval else "--data"
        raise UserError(f"{named} has no meaning for a stack of rows with candidates; leave it out")
    with locked(args.out.with_name(f".{args.out.name}.predicting")):
        ids, candidates, P = fresh_sets(args.oof, content["members"], args.stack, args.average_folds)
        write_sets(args.out, ids, candidates, apply_stack(args.stack, method, P, None))
    told = f"{len(ids)} rows by {content['chosen']} of {listing(content['members'])}: {args.out}"
    print(printable(told))


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = parser_of(
        "ensemble.predict",
        __doc__,
        "ensemble.predict --stack runs/demo/stack --oof llama.csv gemma2=other.csv --out blend.csv",
    )
    parser.add_argument("--stack", type=Path, required=True, metavar="DIR", help="what ensemble.stack wrote")
    parser.add_argument(
        "--oof",
        nargs="+",
        required=True,
        metavar="MODEL",
        help="a fresh prediction set or store for every member, PATH or NAME=PATH; matched by name",
    )
    parser.add_argument(
        "--average-folds",
        action="store_true",
        help="average several sets of one name: a member's models of several folds on the same test rows",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="the fresh rows: any source that distill.predict reads; a stack that looks at the rows "
        "themselves needs it",
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="MAP",
        help="where the data are a plain table: pairs such as prompt=question, or a YAML file of them",
    )
    parser.add_argument(
        "--interval",
        action="store_true",
        help="write for each class CLASS_low and CLASS_high too: the ends of an interval of 95 %% for its "
        "chance, by fits to labels drawn anew; of a stack of judges",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .csv or .parquet to write")
    return parser


def load_fresh(
    arguments: Sequence[str], content: dict, stack: Path, average_folds: bool = False
) -> tuple[list[str], np.ndarray]:
    """Load fresh predictions in the stack's member and class order; returns ids and P (n, members, K).

    :func:`ensemble.reading.fresh.read_fresh` says what the arguments are and what is refused.
    """
    from ensemble.reading.fresh import read_fresh
    from ensemble.saved import classes_of, maps_of

    fresh = read_fresh(arguments, content["members"], classes_of(content), stack, average_folds)
    return fresh.row_ids, fresh.seen(maps_of(stack, content))


def load_rows(data: Path, ids: Sequence[str], classes: Classes, columns: Mapping[str, str]) -> Rows:
    """Load the rows that were predicted, in the order of their source.

    Parameters
    ----------
    data : Path
        Anything that :func:`data.sources.read.read_source` reads; labels are not looked at.
    ids : sequence of str
        Of the predicted rows. Others are left out.
    classes : Classes
        Of a plain table that does not name its own.
    columns : mapping of str to str
        As in :class:`data.sources.read.SourceOptions`.

    Raises
    ------
    UserError
        The source cannot be read, or lacks a row.
    """
    import numpy as np

    from data.sources.read import SourceOptions, read_source

    try:
        rows, _ = read_source(str(data), SourceOptions(columns=columns))
    except UserError as mistake:
        named = SourceOptions(classes=classes.names, swap=classes.swap, columns=columns)
        try:
            rows, _ = read_source(str(data), named)
        except UserError:
            raise mistake from None
    at = places(ids, rows.row_ids)
    absent = [row_id for row_id, place in zip(ids, at.tolist(), strict=True) if place < 0]
    if absent:
        raise UserError(
            f"{data}: lacks {len(absent)} of the predicted rows, e.g. {listing(absent, 3)}; its own ids are "
            f"{listing(rows.row_ids, 3)}"
        )
    return rows.take(np.sort(at))


def write_predictions(
    path: Path,
    ids: list[str],
    probs: np.ndarray,
    classes: Sequence[str],
    more: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a prediction set, CSV or Parquet by extension, atomically, with ``more`` columns where given."""
    import pyarrow as pa
    from pyarrow import csv

    from data.files import atomic_write, sweep, write_parquet

    sweep(path.parent, path.name)
    columns = {"id": pa.array(ids, pa.string())}
    columns |= {name: pa.array(probs[:, k]) for k, name in enumerate(classes)}
    columns |= {name: pa.array(values) for name, values in (more or {}).items()}
    table = pa.table(columns)
    if path.suffix.lower() == ".parquet":
        write_parquet(path, table)
        return
    with atomic_write(path) as temporary:
        csv.write_csv(table, temporary)


def write_for(path: Path, rows: Rows, probs: np.ndarray) -> None:
    """Write predictions (n, K) of rows: a column a class, or of rows with candidates a line a candidate."""
    from ensemble.sets.long import write_sets

    if rows.classes.candidates:
        write_sets(path, rows.row_ids, rows.candidates, probs)
    else:
        write_predictions(path, rows.row_ids, probs, rows.classes.names)


if __name__ == "__main__":
    run(main)
