"""``python -m distill.predict``: predict new rows with trained teachers and students.

A student predicts with its final model, a teacher with the average of its fold models, a model of
``distill.export`` at its temperature; all in both orders of a pair. One model gives one prediction set;
several give a directory of them, named so that ``ensemble.predict`` finds each member. Killed and started
again, it goes on.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data.command import format_table, run
from data.errors import UserError

SUFFIXES = (".csv", ".parquet")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m distill.predict", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", nargs="+", type=Path, metavar="DIR", help="finished runs")
    which.add_argument(
        "--cascade",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="runs on the same rows: a cheap one for all rows, dear ones for those where they pay",
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=0.3,
        help="of a cascade: share of the dear models' cost on all rows that may be spent (default 0.3)",
    )
    parser.add_argument(
        "--data", required=True, metavar="FILE", help="rows to predict: any source that data.prepare reads"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="a .csv or .parquet file; with several models, a directory"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    args = arguments(argv)
    targets = output_files(args.out, args.model or args.cascade[:1])
    from data.softlabels import softmax
    from data.sources import read_source
    from distill.processes import join_others, on_first
    from distill.saved import predict_rows, read_saved
    from ensemble.predict import write_predictions

    join_others()
    models = [read_saved(path) for path in args.model or args.cascade]
    if args.cascade:
        from distill.cascade_run import check_cascade

        check_cascade(models, args.budget)
    rows, _ = read_source(args.data)
    if args.cascade:
        from distill.cascade_run import run_cascade

        found = run_cascade(models, rows, args.budget)
        on_first(lambda: write_predictions(targets[0], rows.row_ids, found.probs, rows.classes.names))
        print(
            format_table(["budget", "s for 1,000 rows", "log-loss, by gain", "log-loss, by lot"], found.table)
        )
        dear = " + ".join(model.name for model in models[1:])
        print(f"{models[0].name}: {len(rows)} rows, {found.routed} of them also {dear}: {targets[0]}")
        return
    for model, out in zip(models, targets, strict=True):
        shards = out.with_name(f".{out.name}.predicting")
        probs = softmax(predict_rows(model, rows, shards).mean(axis=1) / model.temperature)
        on_first(partial(write_predictions, out, rows.row_ids, probs, rows.classes.names))
        on_first(partial(shutil.rmtree, shards, ignore_errors=True))
        print(f"{model.name}: {len(rows)} rows, {len(model.weights)} model(s) averaged: {out}")


def output_files(out: Path, models: Sequence[Path]) -> list[Path]:
    """Return one output file a model."""
    if len(models) == 1:
        if out.suffix.lower() not in SUFFIXES:
            raise UserError(f"{out}: a prediction set is written as .csv or .parquet; give --out such a name")
        return [out]
    names = [path.resolve().name for path in models]
    if out.suffix or out.is_file() or len(set(names)) != len(names):
        raise UserError(f"{out}: several models of distinct names need a directory as --out")
    return [out / f"{name}.csv" for name in names]


if __name__ == "__main__":
    run(main)
