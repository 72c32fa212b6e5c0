"""``python -m distill.predict``: predict new rows with trained teachers and students.

A student predicts with its final model, a teacher with the average of its fold models, a model of
``distill.export`` at its temperature; all in both orders of a pair. One model gives one prediction set;
several give a directory of them, named so that ``ensemble.predict`` finds each member.

Parquet files with a directory as ``--out`` are predicted shard by shard, of any number of rows, here or on a
Ray cluster, and what is finished is not done again: see :mod:`distill.prediction.labelling`.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data.console.command import format_table, parser_of, run
from data.errors import UserError
from data.storage import fetch, is_address, local_path, publish, shown
from distill.arguments import access_of, add_access_arguments, check_models

if TYPE_CHECKING:
    import numpy as np

    from data.schema import Rows
    from distill.runs.saved import SavedModel

SUFFIXES = (".csv", ".parquet")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = parser_of(
        "distill.predict",
        __doc__,
        "distill.predict --model runs/demo/student --data test.csv --out student.csv",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", nargs="+", type=local_path, metavar="DIR", help="finished runs")
    which.add_argument(
        "--cascade",
        nargs="+",
        type=local_path,
        metavar="DIR",
        help="runs on the same rows: a cheap one for all rows, dear ones for those where they pay",
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--budget",
        type=float,
        default=0.3,
        help="of a cascade: share of the dear models' cost on all rows that may be spent (default 0.3)",
    )
    budget.add_argument(
        "--minutes",
        type=float,
        help="of a cascade: the time that the command may take; the dear models see rows by expected gain "
        "until it is up, the file is whole at any moment",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="rows to predict: any source that data.prepare reads, or Parquet files of any size",
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="MAP",
        help="where the data are a plain table: pairs such as prompt=question, or a YAML file of them, as "
        "data.prepare takes",
    )
    parser.add_argument(
        "--out",
        type=local_path,
        required=True,
        help="a .csv or .parquet file; with several models, or for shards, a directory",
    )
    parser.add_argument(
        "--launcher",
        choices=("local", "ray"),
        default="local",
        help="who predicts shards (default: local)",
    )
    parser.add_argument("--shard-rows", type=int, default=8192, help="rows of a shard (default 8192)")
    parser.add_argument(
        "--workers", type=int, default=0, help="on a cluster: models to load (default: as many as find room)"
    )
    parser.add_argument("--gpus", type=float, help="on a cluster: GPUs of a worker, or a fraction of one")
    parser.add_argument(
        "--precision",
        choices=("fp8", "fp16", "int8"),
        help="hold the layers of a run trained in 16 or 32 bits so: fp8 is faster on cards that have it, "
        "fp16 on those without bfloat16, such as T4, int8 takes half the memory; a run in nf4 keeps it "
        "(default: the run's own precision, a single adapter merged where that is exact)",
    )
    parser.add_argument(
        "--compute",
        choices=("auto", "bf16", "fp16", "fp32", "fp8", "int8"),
        help="multiply a quantised base so, as backbone.compute does in training: int8 one in nf4 or int8, "
        "fp8 one in nf4 (default: the run's own; --precision fp8 multiplies in FP8 by itself)",
    )
    add_access_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    begun = time.monotonic()
    args = arguments(argv)
    args.data = args.data.removeprefix("file://")
    check_models(args.model or args.cascade)
    sharded = in_shards(args)
    targets = [] if sharded else output_files(args.out, args.model or args.cascade[:1])
    from data.classes import refuse_candidates
    from data.sources.plan import read_column_map
    from distill.processes import held, join_others, on_first
    from distill.runs.loaded import check_finite, predict_rows, probabilities, rows_for
    from distill.runs.saved import read_saved
    from ensemble.predict import write_for, write_predictions

    join_others()
    access = replace(access_of(args), precision=args.precision or "", compute=args.compute or "")
    models = [read_saved(fetch(path), access) for path in args.model or args.cascade]
    if sharded or args.cascade:
        way, instead = "shard by shard", "give one source, and a file as --out"
        if args.cascade:
            way, instead = "--cascade", "predict with each as --model, and blend by ensemble.predict"
        for model in models:
            refuse_candidates(model.classes, f"{model.path}: {way}", instead)
    if sharded:
        return label_shards(args, models)
    if args.cascade:
        from distill.prediction.cascade_run import check_cascade

        check_cascade(models, args.budget)
        if args.minutes is not None and not args.minutes > 0:
            raise UserError(f"--minutes is {args.minutes}; it must be above 0")
    elif args.minutes is not None:
        raise UserError(
            "--minutes is of a --cascade, which has a cheap model for the rows that time is too short for"
        )
    for model in models[1:]:
        if not models[0].classes.suit(model.classes):
            raise UserError(
                f"{model.path} and {models[0].path}: have other classes; predict with each in a command of "
                "its own"
            )
    source = str(fetch(local_path(args.data))) if is_address(args.data) else args.data
    rows = rows_for(models[0], source, read_column_map(args.columns))
    if args.cascade and args.minutes is not None:
        return predict_in_time(models, rows, targets[0], args.minutes, begun)
    if args.cascade:
        from distill.prediction.cascade_run import run_cascade

        found = run_cascade(models, rows, args.budget)
        check_finite(models[0], rows, found.probs)
        on_first(lambda: write_predictions(targets[0], rows.row_ids, found.probs, rows.classes.names))
        print(
            format_table(["budget", "s for 1,000 rows", "log-loss, by gain", "log-loss, by lot"], found.table)
        )
        dear = " + ".join(model.name for model in models[1:])
        publish(targets[0])
        print(f"{models[0].name}: {len(rows)} rows, {found.routed} of them also {dear}: {shown(targets[0])}")
        return 0
    for model, out in zip(models, targets, strict=True):
        waiting = out.with_name(f".{out.name}.predicting")
        with held(waiting):
            probs = probabilities(model, rows, predict_rows(model, rows, waiting))
            on_first(partial(write_for, out, rows, probs))
            on_first(partial(publish, out))
            on_first(partial(shutil.rmtree, waiting, ignore_errors=True))
        print(f"{model.name}: {len(rows)} rows, {len(model.weights)} model(s) averaged: {shown(out)}")
    return 0


def predict_in_time(models: Sequence[SavedModel], rows: Rows, out: Path, minutes: float, begun: float) -> int:
    """Predict with a cascade until time is up, and say how far it came."""
    from data.console.progress import in_words
    from distill.prediction.timed import Clock, run_in_time
    from distill.processes import held, on_first
    from ensemble.predict import write_predictions

    def write(probs: np.ndarray) -> None:
        write_predictions(out, rows.row_ids, probs, rows.classes.names)

    waiting = out.with_name(f".{out.name}.predicting")
    with held(waiting):
        found = run_in_time(models, rows, Clock(60 * minutes, begun), waiting, write)
        on_first(partial(publish, out))
        on_first(partial(shutil.rmtree, waiting, ignore_errors=True))
    dear = " + ".join(model.name for model in models[1:])
    lines = [
        f"{models[0].name}: {len(rows)} rows, {found.routed} of them also {dear}, in "
        f"{in_words(found.seconds)} of {in_words(60 * minutes)}: {shown(out)}"
    ]
    if found.seconds > 60 * minutes:
        lines.append("more time was taken than given: no row is left out; give a cheaper first model")
    if found.unpromising:
        lines.append(
            f"{found.unpromising} rows were left to {models[0].name}, as nothing is expected of {dear}"
        )
    if found.refused:
        lines.append(f"{found.refused} rows have no finite prediction of {dear}, and keep {models[0].name}'s")
    print("\n".join(lines))
    return 0


def in_shards(args: argparse.Namespace) -> bool:
    """Whether the rows are predicted in shards: Parquet files, and a directory as ``--out``."""
    wanted = bool(args.model) and not args.out.suffix and not args.out.is_file()
    if wanted and (len(args.model) == 1 or Path(args.data).is_dir() or is_address(args.data)):
        from data.shards import parquet_files

        files = parquet_files(args.data)
        wanted = bool(files) and not (Path(args.data) / "rows.parquet").is_file()
        if not files and is_address(args.data):
            raise UserError(
                f"{args.data}: holds no Parquet files there, which --out {shown(args.out)} is for"
            )
    else:
        wanted = False
    if args.launcher == "ray" and not wanted:
        raise UserError(
            "--launcher ray predicts in shards: give Parquet files as --data and a directory as --out"
        )
    if wanted and args.columns:
        raise UserError("--columns maps one table read whole; shards are read by the names of a row table")
    if args.shard_rows < 1:
        raise UserError(f"--shard-rows is {args.shard_rows}; give 1 or more")
    return wanted


def label_shards(args: argparse.Namespace, models: Sequence[SavedModel]) -> int:
    """Label the input with each model, in turn, behind a bar of rows; return 1 if a shard failed."""
    if args.launcher == "ray":
        from distill.cluster.connect import connect

        connect()  # before anything is written
    failed = False
    for model in models:
        home = args.out if len(models) == 1 else args.out / model.name
        failed = label_one(args, model, home) or failed
    return int(failed)


def label_one(args: argparse.Namespace, model: SavedModel, home: Path) -> bool:
    """Label the input with one model into a directory that no other command writes to; whether it failed."""
    from tqdm import tqdm

    from data.console.progress import is_terminal
    from data.shards import place_of
    from distill.cluster.labelling import label_on_cluster
    from distill.prediction.labelling import label_here, open_job
    from distill.processes import held

    with held(home):
        out = place_of(home)
        job, plan = open_job(model, args.data, out, args.shard_rows)
        asked = model.model.resources
        asked = asked if args.gpus is None else replace(asked, gpus=args.gpus)
        with tqdm(total=plan.rows, desc=f"{model.name} labels", unit="row", disable=not is_terminal()) as bar:
            if args.launcher == "ray":
                ended = label_on_cluster(job, plan, asked, args.workers, bar.update)
            else:
                ended = label_here(job, plan, bar.update)
        lines = [f"{model.name}: {ended.rows} rows labelled, {ended.kept} had been before: {out}"]
        lines += [f"failed: shard {number}: {why}" for number, why in sorted(ended.errors.items())]
        print("\n".join(lines))
    return bool(ended.errors)


def output_files(out: Path, models: Sequence[Path]) -> list[Path]:
    """Return one output file a model."""
    if len(models) == 1:
        if out.suffix.lower() not in SUFFIXES:
            raise UserError(
                f"{shown(out)}: a prediction set is written as .csv or .parquet; give --out such a name"
            )
        if out.is_dir():
            raise UserError(f"{out}: is a directory; give --out the name of a file")
        return [out]
    names = [path.resolve().name for path in models]
    if out.suffix or out.is_file() or len(set(names)) != len(names):
        raise UserError(f"{out}: several models of distinct names need a directory as --out")
    return [out / f"{name}.csv" for name in names]


if __name__ == "__main__":
    run(main)
