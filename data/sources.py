"""Readers from the sources people have to the row table.

Four layouts are known: the LMSYS human-preference CSV, PandaLM's JSON, a plain table read through a
column map, and a row table of our own. Each reader says exactly which row and field it cannot take,
and counts what it changes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.clean import TIED_VOTES, Cleaning, clean_turns
from data.errors import UserError, listing
from data.load import Columns, load_columns
from data.schema import PREFERENCE, PREFERENCE_NO_TIE, Classes, Rows, make_rows, read_rows

FORMATS = ("auto", "lmsys", "pandalm", "table")
FIELDS = ("row_id", "prompt", "response_a", "response_b", "label", "label_probs", "model_a", "model_b")
PANDALM_VOTES = {"0": 2, "1": 0, "2": 1}
"""PandaLM writes 0 for a tie, 1 and 2 for the better response; ours are A wins, B wins, tie."""

_LMSYS_TEXTS = ("prompt", "response_a", "response_b")


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source.

    Parameters
    ----------
    format : str
        One of ``FORMATS``; ``auto`` decides by the columns.
    columns : mapping of str to str
        For the plain table: which source column holds a field of the row table, e.g.
        ``{"prompt": "question"}``. ``label_probs`` takes one column of lists, or K comma-separated ones.
        Fields that are not named are taken from a column of their own name, ``row_id`` also from ``id``.
    classes : tuple of str, optional
        Class names of the plain table, in order.
    swap : tuple of int, optional
        Class permutation under a swap of the responses, where it is not the usual one.
    ids : str
        ``column``, or ``row-number`` to number the rows of a plain table that has no ids.
    split : str
        Split of a data set.
    limit : int, optional
        Keep the first rows only.
    """

    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    swap: tuple[int, ...] | None = None
    ids: str = "column"
    split: str = "train"
    limit: int | None = None


def read_source(source: str, options: SourceOptions | None = None) -> tuple[Rows, Cleaning]:
    """Read ``source`` into validated rows.

    Parameters
    ----------
    source : str
        A file, a directory, or the name of a Hugging Face data set.
    options : SourceOptions, optional

    Returns
    -------
    rows : Rows
    cleaning : Cleaning
        What was changed on the way, counted.

    Raises
    ------
    UserError
        The source cannot be read, or a row or column of it cannot be taken.
    """
    options = options or SourceOptions()
    if options.format not in FORMATS:
        raise UserError(f"format {options.format} is unknown; choose one of {listing(FORMATS)}")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"a limit of {options.limit} rows leaves none; give 1 or more")
    cleaning = Cleaning()
    path = Path(source)
    if (path / "rows.parquet").is_file():
        _only_for_tables(options, source, "row table")
        rows = read_rows(path)
    else:
        columns = load_columns(source, options.split)
        layout = detect_format(columns, options) if options.format == "auto" else options.format
        if layout == "table":
            rows = read_plain_table(columns, source, options, cleaning)
        else:
            _only_for_tables(options, source, layout)
            reader = read_lmsys if layout == "lmsys" else read_pandalm
            rows = reader(columns, source, cleaning)
    if options.limit is not None:
        rows = rows.take(np.arange(min(options.limit, len(rows))))
    return rows, cleaning


def detect_format(columns: Columns, options: SourceOptions) -> str:
    """Tell the layout of a source by its columns: ``lmsys``, ``pandalm`` or ``table``."""
    if options.columns or options.classes:
        return "table"
    if {"instruction", "response1", "response2"} <= set(columns):
        return "pandalm"
    if {"id", *_LMSYS_TEXTS} <= set(columns):
        winners = set(PREFERENCE.names) & set(columns)
        first = columns["prompt"][0]
        if winners or (isinstance(first, str) and first.startswith("[") and first.endswith("]")):
            return "lmsys"
    return "table"


def read_lmsys(columns: Columns, where: str, cleaning: Cleaning) -> Rows:
    """Read the LMSYS layout: texts as JSON lists of turns, the label one-hot over three winner columns.

    Without winner columns, as in the competition's test file, the rows are unlabelled.
    """
    _require(columns, ["id", *_LMSYS_TEXTS], where)
    ids = _text_ids(columns["id"])
    out: Columns = {"row_id": ids, "source": [_short_name(where)] * len(ids)}
    for name in _LMSYS_TEXTS:
        cells = zip(ids, columns[name], strict=True)
        out[name] = [_json_turns(cell, cleaning, f"{where}: row {key}, column {name}") for key, cell in cells]
    if any(name in columns for name in PREFERENCE.names):
        _require(columns, list(PREFERENCE.names), where)
        votes = zip(*(columns[name] for name in PREFERENCE.names), strict=True)
        out["label"] = [_one_hot(row, key, where) for key, row in zip(ids, votes, strict=True)]
    _copy_models(columns, out)
    return make_rows(out, PREFERENCE, where)


def read_pandalm(columns: Columns, where: str, cleaning: Cleaning) -> Rows:
    """Read PandaLM's test set: instruction and input make the prompt, the annotators' votes the label.

    The label is the majority's, a tie where there is none; ``label_probs`` holds the shares of the votes.
    """
    _require(columns, ["idx", "instruction", "response1", "response2"], where)
    ids = _text_ids(columns["idx"])
    out: Columns = {"row_id": ids, "source": [_short_name(where)] * len(ids), "prompt": []}
    inputs = columns.get("input", [None] * len(ids))
    for key, instruction, given in zip(ids, columns["instruction"], inputs, strict=True):
        turns = clean_turns(instruction, cleaning, f"{where}: row {key}, column instruction")
        extra = clean_turns(given or "", cleaning, f"{where}: row {key}, column input")
        out["prompt"].append(["\n\n".join(text for text in turns + extra if text.strip())])
    for name, theirs in (("response_a", "response1"), ("response_b", "response2")):
        cells = zip(ids, columns[theirs], strict=True)
        out[name] = [
            clean_turns(cell, cleaning, f"{where}: row {key}, column {theirs}") for key, cell in cells
        ]
    annotators = sorted(name for name in columns if re.fullmatch(r"annotator\d+", name))
    if annotators:
        votes = np.zeros((len(ids), PREFERENCE.n))
        for name in annotators:
            for i, vote in enumerate(columns[name]):
                if str(vote) not in PANDALM_VOTES:
                    raise UserError(
                        f"{where}: row {ids[i]}, column {name} holds {vote}; a vote is 0 (tie), 1 or 2"
                    )
                votes[i, PANDALM_VOTES[str(vote)]] += 1
        majority = votes.max(axis=1) * 2 > len(annotators)
        cleaning.note(TIED_VOTES, int((~majority).sum()))
        out["label"] = np.where(majority, votes.argmax(axis=1), 2).tolist()
        out["label_probs"] = (votes / len(annotators)).tolist()
    if "cmp_key" in columns:  # "<first model>_<second model>"
        pairs = [str(key).split("_") for key in columns["cmp_key"]]
        if all(len(pair) == 2 for pair in pairs):
            out["model_a"], out["model_b"] = [a for a, _ in pairs], [b for _, b in pairs]
    return make_rows(out, PREFERENCE, where)


def read_plain_table(columns: Columns, where: str, options: SourceOptions, cleaning: Cleaning) -> Rows:
    """Read a plain table through a column map; without responses it is a K-class text table."""
    chosen = _choose_columns(columns, where, options)
    n = len(next(iter(columns.values())))
    if "row_id" in chosen:
        ids = _text_ids(columns[chosen["row_id"]])
    elif options.ids == "row-number":
        ids = [str(i) for i in range(n)]
    else:
        raise UserError(
            f"{where}: no column row_id or id among {listing(columns, 12)}; name one with "
            "--columns row_id=COLUMN, or number the rows with --ids row-number"
        )
    out: Columns = {"row_id": ids, "source": [_short_name(where)] * n}
    for name in ("prompt", "response_a", "response_b"):
        if name in chosen:
            cells = zip(ids, columns[chosen[name]], strict=True)
            at = f"column {chosen[name]}"
            out[name] = [clean_turns(cell, cleaning, f"{where}: row {key}, {at}") for key, cell in cells]
    pair = "response_a" in chosen
    labels: list[str | None] = [None] * n
    if "label" in chosen:
        labels = [_label_text(value) for value in columns[chosen["label"]]]
    classes = _classes(labels, where, options, pair)
    out["label"] = [_label_index(label, classes, key, where) for key, label in zip(ids, labels, strict=True)]
    if "label_probs" in chosen:
        out["label_probs"] = _soft_labels(columns, chosen["label_probs"], ids, classes, where)
    for name in ("model_a", "model_b"):
        if name in chosen:
            out[name] = [None if value is None else str(value) for value in columns[chosen[name]]]
    return make_rows(out, classes, where)


def _choose_columns(columns: Columns, where: str, options: SourceOptions) -> dict[str, str]:
    unknown = [name for name in options.columns if name not in FIELDS]
    if unknown:
        raise UserError(
            f"column map: no field {listing(unknown)} in a row table; it has {listing(FIELDS, 8)}"
        )
    chosen = {name: name for name in FIELDS if name in columns}
    if "row_id" not in chosen and "id" in columns:
        chosen["row_id"] = "id"
    chosen.update(options.columns)
    for name, theirs in chosen.items():
        _require(columns, theirs.split(",") if name == "label_probs" else [theirs], where)
    if "prompt" not in chosen:
        raise UserError(
            f"{where}: no column prompt among {listing(columns, 12)}; "
            "name the text's column with --columns prompt=COLUMN"
        )
    if ("response_a" in chosen) != ("response_b" in chosen):
        raise UserError(
            f"{where}: has one of response_a and response_b; name the other with --columns, "
            "both are needed for a pair and neither for a plain text"
        )
    return chosen


def _classes(labels: list[str | None], where: str, options: SourceOptions, pair: bool) -> Classes:
    """The classes as the options name them, else as the labels show them."""
    names = options.classes
    if names is None:
        seen = {label for label in labels if label is not None}
        if pair:
            if not seen or seen <= {"0", "1", "2"} or seen <= set(PREFERENCE.names):
                two = bool(seen) and not seen & {"2", PREFERENCE.names[2]}
                names = (PREFERENCE_NO_TIE if two else PREFERENCE).names
            else:
                raise UserError(
                    f"{where}: cannot tell which of the labels {listing(sorted(seen))} means that response A "
                    "wins; give --classes in the order A wins, B wins, tie"
                )
        else:
            if len(seen) < 2:
                raise UserError(
                    f"{where}: the labels show {len(seen)} classes, at least two are needed; name all of "
                    "them with --classes, or the label's column with --columns label=COLUMN"
                )
            whole = all(re.fullmatch(r"-?\d+", label) for label in seen)
            names = tuple(sorted(seen, key=int) if whole else sorted(seen))
    swap = options.swap
    if swap is None and pair:
        if len(names) > 3:
            raise UserError(
                f"{where}: {len(names)} classes of a pair; say with --swap which class each becomes when "
                "the responses change places"
            )
        swap = (1, 0, 2)[: len(names)]
    if swap is not None and not pair:
        raise UserError(f"{where}: a swap was given, but the rows have no two responses to swap")
    return Classes(names, swap)


def _label_text(value: object) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column with gaps turns whole numbers into floats
    return str(value).strip() or None


def _label_index(label: str | None, classes: Classes, row_id: object, where: str) -> int | None:
    if label is None:
        return None
    if label in classes.names:
        return classes.names.index(label)
    if label.isdecimal() and int(label) < classes.n:
        return int(label)
    raise UserError(
        f"{where}: row {row_id} has label {label}; a label is a class name ({listing(classes.names)}) "
        f"or an index from 0 to {classes.n - 1}"
    )


def _soft_labels(columns: Columns, names: str, ids: list, classes: Classes, where: str) -> list:
    """Distributions from one column of lists or from K columns; a row with all cells empty has none."""
    theirs = names.split(",")
    cells = columns[theirs[0]] if len(theirs) == 1 else list(zip(*(columns[n] for n in theirs), strict=True))
    out: list[list[float] | None] = []
    for row_id, cell in zip(ids, cells, strict=True):
        if cell is None or (len(theirs) > 1 and all(value in (None, "") for value in cell)):
            out.append(None)
            continue
        try:
            values = [float(value) for value in (json.loads(cell) if isinstance(cell, str) else cell)]
        except (TypeError, ValueError):
            values = []
        if len(values) != classes.n:
            raise UserError(
                f"{where}: row {row_id}, column {names} holds {cell}, not {classes.n} numbers, one a class"
            )
        out.append(values)
    return out


def _json_turns(cell: object, cleaning: Cleaning, where: str) -> list[str]:
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not a JSON list of turns ({error})") from error
    if not isinstance(cell, list):
        raise UserError(f"{where} holds {cell!r:.40} where a JSON list of turns was expected")
    return clean_turns(cell, cleaning, where)


def _one_hot(values: tuple[object, ...], row_id: object, where: str) -> int | None:
    texts = [_label_text(value) for value in values]
    if all(text is None for text in texts):
        return None
    if sorted(str(text) for text in texts) != ["0", "0", "1"]:
        shown = listing(f"{name}={value}" for name, value in zip(PREFERENCE.names, values, strict=True))
        raise UserError(f"{where}: row {row_id} has {shown}; exactly one of them must be 1 and the others 0")
    return texts.index("1")


def _copy_models(columns: Columns, out: Columns) -> None:
    for name in ("model_a", "model_b"):
        if name in columns:
            out[name] = columns[name]


def _text_ids(values: list) -> list[str | None]:
    return [None if value is None else str(value) for value in values]


def _short_name(where: str) -> str:
    """The source's name as rows keep it: without the folder, so that it is the same on every machine."""
    path = Path(where)
    return path.resolve().name if path.exists() else where


def _require(columns: Columns, names: list[str], where: str) -> None:
    missing = [name for name in names if name not in columns]
    if missing:
        raise UserError(f"{where}: no column {listing(missing)}; it has {listing(columns, 12)}")


def _only_for_tables(options: SourceOptions, where: str, layout: str) -> None:
    for name, given in (
        ("columns", options.columns),
        ("classes", options.classes),
        ("swap", options.swap),
        ("ids", options.ids != "column"),
    ):
        if given:
            raise UserError(
                f"{where}: is read as {layout}, where --{name} has no meaning; leave it out, "
                "or read the source as a plain table with --format table"
            )
