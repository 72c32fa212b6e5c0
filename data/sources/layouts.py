"""Readers of the layouts that published preference sets come in, one batch of rows at a time.

The LMSYS competition's CSV (and the 55k set on the hub, which is the same table), the WSDM Cup's
Parquet, and PandaLM's JSON. Each reader says exactly which row and field it cannot take, and counts
what it changes. Conversations and ratings are read in :mod:`data.sources.conversations`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.errors import UserError, brief, listing
from data.schema import PREFERENCE, PREFERENCE_NO_TIE, Classes, Rows, make_rows
from data.sources.clean import TIED_VOTES, Cleaning, clean_text, clean_turns, is_utf8
from data.sources.open import Columns

PANDALM_VOTES = {"0": 2, "1": 0, "2": 1}
"""PandaLM writes 0 for a tie, 1 and 2 for the better response; ours are A wins, B wins, tie."""
WINNERS = {"model_a": 0, "model_b": 1}

TEXTS = ("prompt", "response_a", "response_b")
MODELS = {"model_a": "model_a", "model_b": "model_b"}


@dataclass
class Place:
    """Where a reader is in its source, for its messages, and what it must know of earlier batches.

    Attributes
    ----------
    where : str
        The source as the user named it.
    name : str
        The source as its rows name it.
    cleaning : Cleaning
    start : int
        Rows of the source before this batch.
    id_kind : tuple or None
        Type of the ids so far, and the first of them.
    """

    where: str
    name: str
    cleaning: Cleaning
    start: int = 0
    id_kind: tuple[str, object] | None = field(default=None, repr=False)

    def ids(self, values: list) -> list[str]:
        """Return ids as text; refuse a missing one, and ids that would differ only by their type."""
        out = []
        for i, value in enumerate(values):
            if value is None or (isinstance(value, str) and not value.strip()):
                raise UserError(f"{self.where}: row {self.start + i} (counted from 0) has no row_id")
            if isinstance(value, bool) or not isinstance(value, (str, int)):
                raise UserError(
                    f"{self.where}: row {self.start + i} (counted from 0) has the id {brief(value)!r} of "
                    "type "
                    f"{type(value).__name__}; an id is text or a whole number"
                )
            kind = "text" if isinstance(value, str) else "number"
            if self.id_kind is None:
                self.id_kind = (kind, value)
            elif self.id_kind[0] != kind:
                raise UserError(
                    f"{self.where}: ids mix numbers and text ({brief(repr(self.id_kind[1]))} and "
                    f"{brief(repr(value))}), so that two may differ only by type; write them all as text"
                )
            text = str(value)
            if "\x00" in text or len(text) > 1000 or not is_utf8(text):
                raise UserError(
                    f"{self.where}: row {self.start + i} (counted from 0) has an id of {len(text):,} "
                    "characters, or with a NUL or a lone surrogate in it; give short ids of plain text"
                )
            out.append(text)
        return out

    def turns(self, columns: Columns, ids: list[str], name: str) -> list[list[str]]:
        """Clean the texts of one column."""
        return [
            clean_turns(cell, self.cleaning, f"{self.where}: row {key}, column {name}")
            for key, cell in zip(ids, columns[name], strict=True)
        ]

    def begin(self, ids: list[str]) -> Columns:
        """Return the columns that every source's rows have."""
        return {"row_id": ids, "source": [self.name] * len(ids)}

    def copy_models(self, columns: Columns, out: Columns, names: Mapping[str, str] = MODELS) -> None:
        """Copy the models' names, where the source has them; ``names`` says in which of its columns."""
        for ours, theirs in names.items():
            if theirs in columns:
                cells = zip(out["row_id"], columns[theirs], strict=True)
                out[ours] = [self.model_name(value, key, theirs) for key, value in cells]

    def model_name(self, value: object, row_id: str, column: str) -> str | None:
        """Return a model's name as text; refuse what is neither text nor a number."""
        where = f"{self.where}: row {row_id}, column {column}"
        if value is None:
            return None
        if not isinstance(value, (str, int, float)):
            raise UserError(f"{where} holds {brief(value, 40)} where a model's name was expected")
        return clean_text(str(value), self.cleaning, where)


def source_name(where: str) -> str:
    """The source's name as rows keep it: without the folder, so that it is the same on every machine."""
    path = Path(where)
    return path.resolve().name if path.exists() else where


def require(columns: Columns | list[str], names: list[str], where: str) -> None:
    """Refuse columns that lack one of ``names``."""
    missing = [name for name in names if name not in columns]
    if missing:
        raise UserError(f"{where}: no column {listing(missing)}; it has {listing(columns, 12)}")


def read_lmsys(columns: Columns, place: Place) -> Rows:
    """Read the LMSYS layout: texts as JSON lists of turns, the label one-hot over three winner columns.

    Labels may also be in a ``winner`` or ``label``, soft ones in ``label_probs``; without any, as in the
    competition's test file, the rows are unlabelled.
    """
    where = place.where
    require(columns, ["id", *TEXTS], where)
    ids = place.ids(columns["id"])
    out = place.begin(ids)
    for name in TEXTS:
        cells = zip(ids, columns[name], strict=True)
        out[name] = [
            _json_turns(cell, place.cleaning, f"{where}: row {key}, column {name}") for key, cell in cells
        ]
    _copy_labels(columns, out, PREFERENCE, where)
    place.copy_models(columns, out)
    return make_rows(out, PREFERENCE, where)


def read_wsdm(columns: Columns, place: Place) -> Rows:
    """Read the WSDM Cup's layout: plain texts and a ``winner`` that is one of two models; no ties."""
    where = place.where
    require(columns, ["id", *TEXTS], where)
    ids = place.ids(columns["id"])
    out = place.begin(ids)
    for name in TEXTS:
        out[name] = place.turns(columns, ids, name)
    _copy_labels(columns, out, PREFERENCE_NO_TIE, where)
    place.copy_models(columns, out)
    return make_rows(out, PREFERENCE_NO_TIE, where)


def _copy_labels(columns: Columns, out: Columns, classes: Classes, where: str) -> None:
    """Read a source's labels, one-hot, as a ``winner`` or in ``label``, and the soft ones beside them."""
    if "label_probs" in columns:
        out["label_probs"] = soft_label_cells(columns, "label_probs", out["row_id"], classes, where)
    winners = {**WINNERS, "tie": 2} if classes.n == 3 else WINNERS
    if classes.n == 3 and any(name in columns for name in PREFERENCE.names):
        require(columns, list(PREFERENCE.names), where)
        votes = zip(*(columns[name] for name in PREFERENCE.names), strict=True)
        out["label"] = [_one_hot(row, key, where) for key, row in zip(out["row_id"], votes, strict=True)]
    elif "winner" in columns:
        cells = zip(out["row_id"], columns["winner"], strict=True)
        out["label"] = [winner_index(cell, winners, key, where) for key, cell in cells]
    elif "label" in columns:
        cells = zip(out["row_id"], columns["label"], strict=True)
        out["label"] = [label_index(cell_text(cell), classes, key, where) for key, cell in cells]


def label_index(label: str | None, classes: Classes, row_id: str, where: str) -> int | None:
    """Return the class that a label names or numbers; none where it is empty."""
    if label is None:
        return None
    if label in classes.names:
        return classes.names.index(label)
    if label in map(str, range(classes.n)):
        return int(label)
    raise UserError(
        f"{where}: row {row_id} has label {brief(label)}; a label is a class name ({listing(classes.names)}) "
        f"or an index from 0 to {classes.n - 1}"
    )


def soft_label_cells(columns: Columns, names: str, ids: list, classes: Classes, where: str) -> list:
    """Distributions from one column of lists or from K columns; a row with all cells empty has none."""
    theirs = names.split(",")
    cells = columns[theirs[0]] if len(theirs) == 1 else list(zip(*(columns[n] for n in theirs), strict=True))
    out: list[list[float] | None] = []
    for row_id, cell in zip(ids, cells, strict=True):
        if cell in (None, "") or (len(theirs) > 1 and all(value in (None, "") for value in cell)):
            out.append(None)
            continue
        try:
            values = [float(value) for value in (json.loads(cell) if isinstance(cell, str) else cell)]
        except (TypeError, ValueError, RecursionError, OverflowError):
            values = []
        if len(values) != classes.n:
            raise UserError(
                f"{where}: row {row_id}, column {names} holds {brief(cell)}, not {classes.n} numbers, one "
                "a class"
            )
        out.append(values)
    return out


def winner_index(value: object, winners: dict[str, int], row_id: str, where: str) -> int | None:
    """Return the class that a ``winner`` cell names; none where it is empty."""
    text = cell_text(value)
    if text is None:
        return None
    if text not in winners:
        raise UserError(
            f"{where}: row {row_id} has winner {brief(text)}; it must be one of {listing(winners, 9)}"
        )
    return winners[text]


def read_pandalm(columns: Columns, place: Place) -> Rows:
    """Read PandaLM's test set: instruction and input make the prompt, the annotators' votes the label.

    The label is the majority's, a tie where there is none; ``label_probs`` holds the shares of the votes.
    """
    where, cleaning = place.where, place.cleaning
    require(columns, ["idx", "instruction", "response1", "response2"], where)
    ids = place.ids(columns["idx"])
    out: Columns = {**place.begin(ids), "prompt": []}
    inputs = columns.get("input", [None] * len(ids))
    for key, instruction, given in zip(ids, columns["instruction"], inputs, strict=True):
        turns = clean_turns(instruction, cleaning, f"{where}: row {key}, column instruction")
        extra = clean_turns("" if given is None else given, cleaning, f"{where}: row {key}, column input")
        out["prompt"].append(["\n\n".join(text for text in turns + extra if text.strip())])
    for name, theirs in (("response_a", "response1"), ("response_b", "response2")):
        out[name] = place.turns(columns, ids, theirs)
    annotators = sorted(name for name in columns if re.fullmatch(r"annotator\d+", name))
    if annotators:
        votes = np.zeros((len(ids), PREFERENCE.n))
        for name in annotators:
            for i, vote in enumerate(columns[name]):
                if cell_text(vote) not in PANDALM_VOTES:
                    raise UserError(
                        f"{where}: row {ids[i]}, column {name} holds {brief(vote)}; a vote is 0 (tie), 1 or 2"
                    )
                votes[i, PANDALM_VOTES[str(cell_text(vote))]] += 1
        majority = votes.max(axis=1) * 2 > len(annotators)
        cleaning.note(TIED_VOTES, int((~majority).sum()))
        out["label"] = np.where(majority, votes.argmax(axis=1), 2).tolist()
        out["label_probs"] = (votes / len(annotators)).tolist()
    if "cmp_key" in columns:  # "<first model>_<second model>"
        parts = [str(key).split("_") for key in columns["cmp_key"]]
        pairs = [part if len(part) == 2 else (None, None) for part in parts]  # a name with an underscore
        place.copy_models({"model_a": [a for a, _ in pairs], "model_b": [b for _, b in pairs]}, out)
    return make_rows(out, PREFERENCE, where)


def cell_text(value: object) -> str | None:
    """A label's cell as text: null, NaN and blank become None, whole numbers lose their point."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column with gaps turns whole numbers into floats
    text = str(value).strip()
    return re.sub(r"^(\d+)\.0+$", r"\1", text) or None  # and written to a CSV such floats are "1.0"


def _json_turns(cell: object, cleaning: Cleaning, where: str) -> list[str]:
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not a JSON list of turns ({brief(error)})") from error
    if not isinstance(cell, list):
        raise UserError(f"{where} holds {cell!r:.40} where a JSON list of turns was expected")
    return clean_turns(cell, cleaning, where)


def _one_hot(values: tuple[object, ...], row_id: object, where: str) -> int | None:
    texts = [cell_text(value) for value in values]
    if all(text is None for text in texts):
        return None
    if sorted(str(text) for text in texts) != ["0", "0", "1"]:
        shown = listing(
            f"{name}={brief(value, 40)}" for name, value in zip(PREFERENCE.names, values, strict=True)
        )
        raise UserError(f"{where}: row {row_id} has {shown}; exactly one of them must be 1 and the others 0")
    return texts.index("1")
