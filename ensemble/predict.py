"""Apply a stack to fresh predictions: ``python -m ensemble.predict --stack DIR --oof MODEL... --out FILE``.

Members are matched by name, rows by id, classes by name; the numbers are those of the fitted stack.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.command import run
from data.errors import UserError, listing
from data.ids import places

if TYPE_CHECKING:
    from ensemble.reading.members import Member


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = build_parser().parse_args(argv)
    from ensemble.reading.members import split_name
    from ensemble.saved import classes_of, load_stack, refuse_overwriting

    if args.out.suffix.lower() not in (".csv", ".parquet"):
        raise UserError(
            f"{args.out}: a prediction set is written as .csv or .parquet; give --out such a name"
        )
    inputs = [split_name(argument)[1] for argument in args.oof]
    refuse_overwriting(args.out, [*inputs, args.stack / "predictions.parquet", args.data or args.stack])
    content, method = load_stack(args.stack)
    ids, P = load_fresh(args.oof, content, args.stack, args.average_folds)
    X = load_features(args.data, ids, args.stack) if method.needs_rows else None
    write_predictions(args.out, ids, method.predict(P, X), classes_of(content).names)
    print(f"{len(ids)} rows by {content['chosen']} of {listing(content['members'])}: {args.out}")


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(prog="python -m ensemble.predict", description=__doc__.split("\n\n")[0])
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
        metavar="FILE_OR_DIR",
        help="the row table of the fresh rows; only a stack that uses the rows' own features needs it",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .csv or .parquet to write")
    return parser


def load_fresh(
    arguments: Sequence[str], content: dict, stack: Path, average_folds: bool = False
) -> tuple[list[str], np.ndarray]:
    """Load fresh predictions in the stack's member and class order; returns ids and P (n, members, K).

    Parameters
    ----------
    arguments : sequence of str
        ``PATH`` or ``NAME=PATH``.
    content : dict
        What ``stack.json`` says.
    stack : Path
        For messages.
    average_folds : bool
        Average the probabilities of sets that bear the same name.

    Raises
    ------
    UserError
        A member is missing, unknown or given twice, or the sets predict different rows.
    """
    from ensemble.reading.members import load_member, split_name
    from ensemble.saved import classes_of

    members: dict[str, list[Member]] = {}
    for argument in arguments:
        name, path = split_name(argument)
        member = load_member(path, classes_of(content), name)
        if member.name in members and not average_folds:
            raise UserError(
                f"{path}: a second set named {member.name}; name it with --oof NAME={path}, or average the "
                "models of several folds with --average-folds"
            )
        members.setdefault(member.name, []).append(member)
    wanted = list(content["members"])
    missing = [name for name in wanted if name not in members]
    unknown = [name for name in members if name not in wanted]
    if missing or unknown:
        parts = [f"no predictions of {listing(missing)}"] if missing else []
        parts += [f"{listing(unknown)} is no member"] if unknown else []
        raise UserError(
            f"{stack}: {'; '.join(parts)}; its members are {listing(wanted, 12)}, and a set of another name "
            "is matched with --oof NAME=PATH"
        )
    first = members[wanted[0]][0]
    P = np.zeros((len(first.row_ids), len(wanted), len(content["classes"])))
    for m, name in enumerate(wanted):
        for member in members[name]:
            differing = sorted(set(first.row_ids).symmetric_difference(member.row_ids))
            if differing:
                raise UserError(
                    f"{first.path} and {member.path} predict different rows: {len(differing)} are in one "
                    f"alone, e.g. {listing(differing, 3)}"
                )
            P[places(member.row_ids, first.row_ids), m] += member.probs / len(members[name])
    return first.row_ids, P


def load_features(data: Path | None, ids: Sequence[str], stack: Path) -> np.ndarray:
    """Load the features (n, d) of the rows that a stack also looks at.

    Raises
    ------
    UserError
        No row table, or one that lacks a row.
    """
    from data.schema import read_rows
    from ensemble.reading.features import row_features

    if data is None:
        raise UserError(f"{stack}: looks at the rows themselves too; give their row table with --data")
    rows = read_rows(data)
    at = places(ids, rows.row_ids)
    absent = [row_id for row_id, place in zip(ids, at.tolist(), strict=True) if place < 0]
    if absent:
        raise UserError(f"{data}: lacks {len(absent)} of the predicted rows, e.g. {listing(absent, 3)}")
    return row_features(rows.take(at))


def write_predictions(path: Path, ids: list[str], probs: np.ndarray, classes: Sequence[str]) -> None:
    """Write a prediction set, CSV or Parquet by extension, atomically."""
    import pyarrow as pa
    from pyarrow import csv

    from data.files import atomic_write, write_parquet

    columns = {"id": pa.array(ids, pa.string())}
    columns |= {name: pa.array(probs[:, k]) for k, name in enumerate(classes)}
    table = pa.table(columns)
    if path.suffix.lower() == ".parquet":
        write_parquet(path, table)
        return
    with atomic_write(path) as temporary:
        csv.write_csv(table, temporary)


if __name__ == "__main__":
    run(main)
