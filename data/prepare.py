"""``python -m data.prepare``: from sources to rows, folds and tokens that everything downstream reads.

Reads the sources, checks and cleans them, finds repeated pairs and near-duplicate prompts, deals the rows
into folds, writes ``rows.parquet``, ``folds.parquet`` and ``manifest.json``, and prints what it found and
changed. With a tokenizer it also builds the token store and shows rows as a model will see them.
``--check`` proves what an earlier run left, from its files alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.console.command import format_table, parser_of, run
from data.errors import UserError, printable
from data.files import refuse_impossible

if TYPE_CHECKING:
    from data.encoding.encode import Encoder
    from data.folds import Folds
    from data.frames import Frame
    from data.schema import Rows
    from data.sources.formats import SourceOptions
    from data.sources.plan import Plan

ARENA = "arena"
SCRATCH = ".scratch"
PLOT = "lengths.svg"
MOST_SHOWN, SHOWN_CLASSES = 12, 8
"""The fold table has a column a class up to so many classes, and of more the most frequent."""


def main(argv: Sequence[str]) -> None:
    """Run the command with the given arguments."""
    args = _parse(argv)
    if args.check is not None:
        _check(args)
    elif args.source:
        _prepare(args)
    else:
        _inspect_prepared(args)


def prepare_rows(
    source: str | Path | Frame | Sequence[str | Path],
    out: str | Path,
    *,
    folds: int = 5,
    seed: int = 0,
    near: float | None = 0.8,
    pin: Sequence[str] = (),
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
    swap: Sequence[int] | None = None,
    ids: str = "auto",
) -> tuple[Rows, Folds]:
    """Prepare rows and prompt-grouped folds, as the command does.

    Parameters
    ----------
    source : path, data frame, or sequence of paths
        Files, directories, data sets, sources files (``.yaml``), or one data frame.
    out : path
        Directory for ``rows.parquet``, ``folds.parquet`` and ``manifest.json``. Folds already there for the
        same rows are kept.
    folds, seed : int
    near : float, optional
        Prompts at least this similar share a fold; none: equal prompts alone.
    pin : sequence of str
        Sources whose rows train every fold, unvalidated.
    format, columns, classes, swap, ids
        As in :class:`data.SourceOptions`.

    Returns
    -------
    rows : Rows
    folds : Folds

    Raises
    ------
    UserError
        A source cannot be read, or ``out`` holds other rows or other folds.
    """
    from data.dataset import load_prepared
    from data.frames import as_file
    from data.sources.formats import SourceOptions
    from data.sources.plan import IDS, read_plan

    if ids not in IDS:
        raise UserError(f"ids {ids}: is one of {', '.join(IDS)}")
    names = None if classes is None else tuple(classes)
    options = SourceOptions(format, columns or {}, names, None if swap is None else tuple(swap), ids)
    given = {"folds": folds, "seed": seed, "near": near, "pin": list(pin)}
    sources = list(source) if isinstance(source, list | tuple) else [source]
    if not sources:
        raise UserError("no source to prepare; give one or more")
    with as_file(sources[0]) as first:
        plan = read_plan([first, *map(str, sources[1:])], options, given)
        with _nothing_left_behind(Path(out)) as scratch:
            _written(plan, Path(out), *_read(plan, scratch))
    return load_prepared(Path(out))


def _written(plan: Plan, out: Path, rows: Rows, notes: list[str], details: dict[str, Any]) -> Folds:
    from data.dataset import prepare
    from data.groups import Near

    near = None if plan.near is None else Near(plan.near)
    return prepare(rows, out, plan.folds, plan.seed, near, plan.pin, details, notes)


def _prepare(args: argparse.Namespace) -> None:
    from data.folds import class_notes
    from data.groups import largest_groups

    out = refuse_impossible(Path(_required_out(args)))
    encoder = _encoder(args)
    plan = _plan(args)
    folds_stood = (out / "folds.parquet").exists()
    with _nothing_left_behind(out) as scratch:
        if args.source == [ARENA]:
            rows, notes, details = _simulate(args), ["cleaning: nothing was changed"], dict[str, Any]()
        else:
            rows, notes, details = _read(plan, scratch)
        folds = _written(plan, out, rows, notes, details)

        groups = len(set(folds.group_ids))
        names = ", ".join(args.source)
        _say(f"{names} -> {out}: {len(rows):,} rows, {groups:,} prompt groups, {folds.n_folds} folds")
        _say(_fold_table(rows, folds))
        _say("\n".join([*notes, *(f"note: {line}" for line in class_notes(rows, folds))]))
        for group, n, prompt in largest_groups(rows, folds.group_ids):
            _say(f"group {group}: {n:,} rows, {prompt}")
        if plan.pin:
            _report_pins(rows, folds, plan)
    if encoder is not None:  # the store has its own way with other commands: it waits for them
        _tokens(args, encoder, rows, out)
    _say(f"{out / 'folds.parquet'}: {'kept as it was' if folds_stood else 'written'}")


def _read(plan: Plan, scratch: Path) -> tuple[Rows, list[str], dict]:
    """Read and combine the sources; return rows, what was changed, and what the manifest says of it."""
    from data.sources.combine import combine
    from data.sources.read import read_source

    parts, notes, reading = [], [], {}
    for source in plan.sources:
        rows, cleaning = read_source(source.path, source.options, scratch)
        parts.append((source.name, rows))
        of = f" {source.name}" if len(plan.sources) > 1 else ""
        notes += [f"cleaning{of}: {line}" for line in cleaning.lines()]
        if cleaning.columns:
            reading[source.name] = cleaning.columns
    rows, repeats = combine(parts, plan.repeats == "keep", plan.prefix_ids)
    notes += [f"repeats: {line}" for line in repeats.lines()]
    details: dict[str, Any] = {"repeats": repeats.counts()}
    return rows, notes, details | ({"columns": reading} if reading else {})


def _check(args: argparse.Namespace) -> None:
    """Prove prepared data from their files; print fold balance."""
    from data.dataset import check_prepared
    from data.encoding.tokens import check_store

    for name in ("source", "out", "inspect", "tokenizer"):
        if getattr(args, name):
            raise UserError(f"--{name} has no meaning with --check; check first, then run the other command")
    path = refuse_impossible(Path(args.check))
    rows, folds, manifest = check_prepared(path)
    _say(f"{path}: {len(rows):,} rows, {len(set(folds.group_ids)):,} prompt groups, {folds.n_folds} folds")
    _say(_fold_table(rows, folds))
    how = "equal prompts"
    if manifest["near"]:
        how += f" and near-duplicates (similarity {manifest['near']['threshold']} and above)"
    _say(f"no group of {how} is split; every hash and count of the manifest holds")
    for store in sorted(path.glob("tokens-*")):
        wrong = check_store(store, {"rows_hash": manifest["rows_hash"], "n_rows": len(rows)})
        if wrong is not None:
            raise UserError(f"{store}: {wrong}; delete it, or build it again with --tokenizer")
        _say(f"{store}: every byte as it was written")


def _inspect_prepared(args: argparse.Namespace) -> None:
    """Show rows that an earlier run prepared."""
    from data.dataset import load_prepared

    if not args.tokenizer:
        raise UserError(
            "nothing to do: give --source with --out, --check DIR, or --out DIR with --tokenizer and "
            "--inspect"
        )
    out = refuse_impossible(Path(_required_out(args)))
    encoder = _encoder(args)
    assert encoder is not None
    rows, _ = load_prepared(out)
    _tokens(args, encoder, rows, out)


def _tokens(args: argparse.Namespace, encoder: Encoder, rows: Rows, out: Path) -> None:
    """Build or open the token store, and show rows, lengths and cuts if asked."""
    from data.encoding.encode import candidate_rows
    from data.encoding.lengths import measure
    from data.encoding.tokens import open_tokens

    sizes = rows.sizes
    if sizes is not None:  # a training tokenizes them itself, each text once
        rows = candidate_rows(rows)
        tokens, what = encoder.tokenize(rows), "of each candidate, not kept"
    else:
        tokens, what = open_tokens(rows, encoder, out)
    lengths = measure(encoder, tokens, rows.classes.swap is not None, sizes)
    _say(
        f"tokens: {what}, {len(tokens.ids):,} in {len(tokens):,} rows; at max_length {args.max_length:,} "
        f"{lengths.cut(args.max_length):.1%} of rows are cut"
    )
    if args.inspect is None:
        return
    import numpy as np

    from data.encoding.lengths import PERCENTILES, cuts, plot
    from data.encoding.show import legend, show_row
    from data.files import write_text

    colour = "NO_COLOR" not in os.environ and (sys.stdout.isatty() or "FORCE_COLOR" in os.environ)
    order = np.argsort(lengths.rows, kind="stable")
    shown = order[np.linspace(0, len(order) - 1, min(args.inspect, len(order))).astype(int)]
    if colour:
        print(legend(colour))
    for row in shown.tolist():
        print(show_row(encoder, tokens, rows, row, colour, sizes))
    header = ["tokens", *(f"{p} %" if p < 100 else "longest" for p in PERCENTILES)]
    _say(format_table(header, [[n, *(f"{v:,.0f}" for v in vs)] for n, vs in lengths.percentiles()]))
    shares = cuts(encoder, tokens, lengths, rows.classes.swap is not None)
    lines = [[f"{limit:,}", f"{cut:.1%}", f"{lost:.1%}"] for limit, cut, lost in shares]
    _say(format_table(["max_length", "rows cut", "tokens lost"], lines))
    title = f"{Path(args.tokenizer).name}, template {encoder.template.name}, {len(rows):,} rows"
    write_text(out / PLOT, plot(lengths, args.max_length, title))
    _say(f"{out / PLOT}: the distribution as a plot")


@contextmanager
def _nothing_left_behind(out: Path) -> Iterator[Path]:
    """Yield a scratch directory in ``out``; after a mistake, a directory that was not there is gone again."""
    from data.files import locked, make_directory

    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file where a directory is to be written; choose another --out")
    made = [parent for parent in [out, *out.parents] if not parent.exists()]
    with locked(out):
        scratch = out / SCRATCH
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed run left
        try:
            make_directory(scratch)
            yield scratch
        except UserError:
            if made and not (out / "manifest.json").exists():
                shutil.rmtree(out, ignore_errors=True)
                with suppress(OSError):  # another command may have put something into a parent by now
                    for parent in made[1:]:
                        parent.rmdir()
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    from data.sources.formats import AUTO, EARLIER_NAMES
    from data.sources.plan import IDS
    from data.sources.read import FORMATS  # with every format in it

    parser = parser_of(
        "data.prepare",
        __doc__,
        "data.prepare --source votes.csv --out prepared\ndata.prepare --check prepared",
    )
    add = parser.add_argument
    add(
        "--source",
        nargs="+",
        help="CSV, Parquet, JSON or JSON-lines files, directories, Hugging Face data sets, a .yaml file "
        f"that lists sources with their options, or '{ARENA}' for the simulated arena",
    )
    add("--out", help="directory to write")
    add("--check", metavar="DIR", help="prove prepared data from their files: groups, folds, hashes, tokens")
    sources = parser.add_argument_group("reading")
    add = sources.add_argument
    add(
        "--format",
        default=AUTO,
        type=lambda name: EARLIER_NAMES.get(name, name),
        choices=[AUTO, *sorted(FORMATS)],
        help="layout of the source",
    )
    add(
        "--columns",
        nargs="+",
        default=[],
        metavar="MAP",
        help="for a table: pairs such as prompt=question, or a YAML file of them; fields are row_id, prompt, "
        "response_a, response_b, label, label_probs, model_a, model_b; of rows with options of their own "
        "row_id, prompt, candidates, label, label_probs",
    )
    add("--classes", help="for a table: class names in order, e.g. A,B,TIE")
    add("--swap", help="for a table: what each class becomes when the responses change places, e.g. 1,0,2")
    add(
        "--ids",
        default="auto",
        choices=IDS,
        help="row ids: a column, or row numbers (default: numbers where there is none)",
    )
    add("--split", default="train", help="split of a data set (default: train)")
    add("--streaming", action="store_true", help="stream a data set instead of downloading it whole")
    add("--limit", type=int, help="keep the first rows only")
    add(
        "--margin", type=float, default=0.0, help="for ratings: a difference up to this is a tie (default: 0)"
    )
    add("--rows", type=int, help=f"rows to simulate with --source {ARENA}")
    groups = parser.add_argument_group("combining and folds")
    add = groups.add_argument
    add("--repeats", choices=["drop", "keep"], help="pairs that a later source repeats (default: drop)")
    add("--prefix-ids", action="store_true", default=None, help="put the source's name before each row id")
    add(
        "--near",
        metavar="SIMILARITY",
        help="prompts at least this similar share a fold (default: 0.8; 'off' for equal prompts only)",
    )
    add(
        "--pin",
        nargs="+",
        default=[],
        metavar="NAME",
        help="sources whose rows train every fold, unvalidated",
    )
    add("--folds", type=int, help="number of folds (default: 5)")
    add("--seed", type=int, help="seed of the folds and of the arena (default: 0)")
    tokens = parser.add_argument_group("tokens")
    add = tokens.add_argument
    add("--tokenizer", help="directory, file or hub name of a tokenizer: build the token store")
    add("--template", default="pair", help="name of a template or a .jinja file (default: pair)")
    add("--max-length", type=int, default=1024, help="tokens a row may have (default: 1024)")
    add("--prompt-share", type=float, default=0.25, help="room the prompt is sure of (default: 0.25)")
    add("--side", default="middle", choices=["left", "right", "middle"], help="where long turns are cut")
    add("--keep-turns", action="store_true", help="cut turns, but never drop whole middle ones")
    add("--inspect", type=int, metavar="N", help="show N rows as the model sees them, and what is cut")
    return parser.parse_args(argv)


def _say(text: str) -> None:
    """Print lines, whatever text of rows and paths is in them: none commands the terminal."""
    print("\n".join(printable(line) for line in text.split("\n")))


def _required_out(args: argparse.Namespace) -> str:
    if not args.out:
        raise UserError("--out is missing; say which directory to write")
    return str(args.out)


def _encoder(args: argparse.Namespace) -> Encoder | None:
    """Make the encoder before anything is read, so that a mistake in it costs no time."""
    if args.inspect is not None and not args.tokenizer:
        raise UserError("--inspect shows rows as token ids; say of which tokenizer with --tokenizer")
    if args.inspect is not None and args.inspect < 1:
        raise UserError(f"--inspect {args.inspect} shows nothing; give 1 or more")
    if not args.tokenizer:
        return None
    from data.encoding.encode import Encoder
    from data.encoding.template import read_template
    from data.encoding.tokenizer import load_tokenizer
    from data.encoding.truncate import Truncation

    truncation = Truncation(args.max_length, args.prompt_share, args.side, not args.keep_turns)
    template = read_template(args.template)
    encoder = Encoder(load_tokenizer(args.tokenizer), template, truncation)
    # A template that no pair, candidate or plain text fits into is refused before rows are read.
    mistakes = []
    for shape, pair in (((1, 1, 1), True), ((1, 1, 0), False), ((1, 0, 0), False)):
        try:
            encoder.fixed_length(shape, pair)
            return encoder
        except UserError as mistake:
            mistakes.append(mistake)
    raise mistakes[0]


def _plan(args: argparse.Namespace) -> Plan:
    from data.sources.plan import Plan, checked, read_plan

    given = {name: getattr(args, name) for name in ("folds", "seed", "repeats", "prefix_ids")}
    given = {name: value for name, value in given.items() if value is not None}
    if args.near is not None:
        try:
            given["near"] = None if args.near == "off" else float(args.near) or None
        except ValueError:
            raise UserError(f"--near {args.near}: give a similarity such as 0.8, or off") from None
    given["pin"] = list(args.pin)
    if ARENA in args.source:
        if len(args.source) > 1:
            raise UserError(f"--source {ARENA} stands alone; prepare it in a directory of its own")
        # Its prompts come from a grammar: near ones are not equal.
        return checked(Plan([], **{"near": None, **given}), f"--source {ARENA}")
    return read_plan(args.source, _source_options(args), given)


def _simulate(args: argparse.Namespace) -> Rows:
    from data.arena import ArenaConfig, simulate_arena

    usual = {"format": "auto", "ids": "auto", "split": "train"}
    others = ("columns", "classes", "swap", "limit", "streaming", "margin", "repeats", "prefix_ids")
    for name in (*usual, *others):
        value = getattr(args, name)
        if value and value != usual.get(name):
            raise UserError(f"--{name.replace('_', '-')} has no meaning with --source {ARENA}; leave it out")
    seed = args.seed or 0
    if args.rows is None:
        return simulate_arena(ArenaConfig(seed=seed))
    return simulate_arena(ArenaConfig(n_rows=args.rows, seed=seed))


def _source_options(args: argparse.Namespace) -> SourceOptions:
    from data.sources.formats import SourceOptions
    from data.sources.plan import read_column_map

    if args.rows is not None:
        raise UserError(f"--rows sizes the simulated arena (--source {ARENA}); for other sources use --limit")
    swap = None
    if args.swap is not None:
        numbers = args.swap.split(",")
        if not all(number.strip().isdecimal() for number in numbers):
            raise UserError(f"--swap {args.swap}: give one class index a class, e.g. 1,0,2")
        swap = tuple(int(number) for number in numbers)
    return SourceOptions(
        format=args.format,
        columns=read_column_map(args.columns),
        classes=tuple(name.strip() for name in args.classes.split(",")) if args.classes else None,
        swap=swap,
        ids=args.ids,
        split=args.split,
        limit=args.limit,
        streaming=args.streaming,
        margin=args.margin,
    )


def _report_pins(rows: Rows, folds: Folds, plan: Plan) -> None:
    from data.dataset import sources_of

    wanted = sum(n for name, n in sources_of(rows).items() if name in plan.pin)
    pinned = int(folds.pinned.sum())
    line = f"pinned to every training: {pinned:,} of the {wanted:,} rows of {', '.join(plan.pin)}"
    if pinned < wanted:
        line += f"; the other {wanted - pinned:,} share a prompt with validated rows and are dealt with them"
    _say(line)


def _fold_table(rows: Rows, folds: Folds) -> str:
    """Rows, groups and label shares a fold and in all."""
    import numpy as np

    from data.dataset import group_sizes
    from data.folds import PINNED

    frequent = np.argsort(
        -np.bincount(rows.labels[rows.labels >= 0], minlength=rows.classes.n), kind="stable"
    )
    shown = SHOWN_CLASSES if rows.classes.n > MOST_SHOWN else MOST_SHOWN
    strata = sorted(frequent[:shown].tolist())
    names = [rows.classes.names[k] for k in strata]
    if (rows.labels < 0).any():
        names.append("unlabelled")
        strata.append(-1)
    lines = []
    for k, (n, groups) in group_sizes(folds).items():
        mask = folds.fold == k
        shares = [f"{np.mean(rows.labels[mask] == stratum):.3f}" for stratum in strata]
        lines.append(["pinned" if k == PINNED else str(k), f"{n:,}", f"{groups:,}", *shares])
    shares = [f"{np.mean(rows.labels == stratum):.3f}" for stratum in strata]
    lines.append(["all", f"{len(rows):,}", f"{len(set(folds.group_ids)):,}", *shares])
    table = format_table(["fold", "rows", "groups", *names], lines)
    rest = rows.classes.n - len([stratum for stratum in strata if stratum >= 0])
    return f"{table}\n{rest:,} rarer classes are not shown" if rest else table


if __name__ == "__main__":
    run(main)
