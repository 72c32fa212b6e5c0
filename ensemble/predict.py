"""Apply a stack to fresh predictions: ``python -m ensemble.predict --stack DIR --oof MODEL... --out FILE``.

Members are matched by name, rows by id, classes by name; the numbers are those of the fitted stack.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.command import run
from data.errors import UserError, listing


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = build_parser().parse_args(argv)
    from ensemble.saved import classes_of, load_stack

    if args.out.suffix.lower() not in (".csv", ".parquet"):
        raise UserError(
            f"{args.out}: a prediction set is written as .csv or .parquet; give --out such a name"
        )
    content, method = load_stack(args.stack)
    ids, P = load_fresh(args.oof, content, args.stack)
    write_predictions(args.out, ids, method.predict_proba(P), classes_of(content).names)
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
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .csv or .parquet to write")
    return parser


def load_fresh(arguments: Sequence[str], content: dict, stack: Path) -> tuple[list[str], np.ndarray]:
    """Load fresh predictions in the stack's member and class order; returns ids and P (n, members, K).

    Raises
    ------
    UserError
        A member is missing, unknown or given twice, or the sets predict different rows.
    """
    from ensemble.oof import load_member, split_name
    from ensemble.saved import classes_of

    members = {}
    for argument in arguments:
        name, path = split_name(argument)
        member = load_member(path, classes_of(content), name)
        if member.name in members:
            raise UserError(f"{path}: a second set named {member.name}; name it with --oof NAME={path}")
        members[member.name] = member
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
    first = members[wanted[0]]
    index = {row_id: i for i, row_id in enumerate(first.row_ids)}
    P = np.empty((len(index), len(wanted), len(content["classes"])))
    for m, name in enumerate(wanted):
        member = members[name]
        differing = sorted(set(index) ^ set(member.row_ids))
        if differing:
            raise UserError(
                f"{first.path} and {member.path} predict different rows: {len(differing)} are in one alone, "
                f"e.g. {listing(differing, 3)}"
            )
        P[[index[row_id] for row_id in member.row_ids], m] = member.probs
    return first.row_ids, P


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
