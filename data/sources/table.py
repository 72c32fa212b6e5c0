"""Any table through a column map: which of its columns holds which field of a row.

Without responses it is a K-class text table. Classes come from the options, else from the labels; these
are looked through once before any row is made, so that the first batch and the last agree, as are ids and
texts: a column of unique ids is known by its name's ending, turns by cells that are JSON lists throughout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from data.classes import MAX_CLASSES, PREFERENCE, PREFERENCE_NO_TIE, Classes
from data.errors import UserError, brief, listing
from data.ids import id_column
from data.labels import BOTH_BAD, cell_text, is_missing, refuse_counting
from data.schema import Rows, make_rows
from data.sources.clean import TEXT_TURNS
from data.sources.formats import SourceOptions, source_format
from data.sources.open import Columns, Table
from data.sources.place import MODELS, TEXTS, Place, are_unique, json_list, require
from data.sources.votes import copy_labels, label_cells, soft_label_cells

FIELDS = ("row_id", "prompt", "response_a", "response_b", "label", "label_probs", "model_a", "model_b")
USUAL = {
    "prompt": ("text", "sentence", "content", "question", "full_text", "body", "document", "comment_text"),
    "label": ("labels", "target", "class", "category"),
}
"""What the text and the label are often called; taken where a table has one of them, the label only beside
the text alone."""


@source_format("table", lambda table: False, takes=("columns", "classes", "swap", "ids"))  # where none fits
class TableReader:
    """Reads the batches of a plain table.

    Parameters
    ----------
    table : Table
    where : str
        The source, for messages.
    options : SourceOptions
        Of which it follows ``columns``, ``classes``, ``swap`` and ``ids``.

    Attributes
    ----------
    chosen : dict of str to str
        Which column holds each field.
    """

    def __init__(self, table: Table, where: str, options: SourceOptions) -> None:
        self.chosen = _choose_columns(table.names, where, options.columns)
        if options.ids == "row-number":
            self.chosen.pop("row_id", None)
        elif "row_id" not in self.chosen:
            self._find_ids(table, where, options)
        self.pair = "response_a" in self.chosen
        self.votes = self.pair and "label" not in self.chosen and _has_votes(table.names)
        self.turns = {name for name in TEXTS if name in self.chosen and holds_turns(table, self.chosen[name])}
        self.indices: set[int] = set()
        seen: dict[str, int] = {}
        if "label" in self.chosen:
            seen = _first_rows(table, self.chosen["label"], where, options.classes or ())
        if self.votes:
            self.classes = _vote_classes(table)
        else:
            self.classes = _classes(seen, where, options.classes, options.swap, self.pair)
            numbers = {int(text) for text in seen if text.isdecimal() and text not in self.classes.names}
            if not all(re.fullmatch(r"[+-]?\d+", name) for name in self.classes.names):
                self.indices = {k for k in numbers if k < self.classes.n}

    def _find_ids(self, table: Table, where: str, options: SourceOptions) -> None:
        found = id_column([name for name in table.names if name not in self.chosen.values()])
        if found is not None and are_unique(table, found):
            self.chosen["row_id"] = found
        elif options.ids == "column":
            raise UserError(
                f"{where}: no column row_id or id among {listing(table.names, 12)}; name one with "
                "--columns row_id=COLUMN"
            )

    def __call__(self, columns: Columns, place: Place) -> Rows:
        """Read one batch."""
        where, chosen = place.where, self.chosen
        n = len(next(iter(columns.values())))
        place.indices |= self.indices
        if place.start == 0:
            place.cleaning.read_as(chosen)
        if "row_id" in chosen:
            ids = place.ids(columns[chosen["row_id"]])
        else:
            ids = [str(place.start + i) for i in range(n)]
        out = place.begin(ids)
        for name in TEXTS:
            if name in self.turns:
                columns[chosen[name]] = [_turns(cell) for cell in columns[chosen[name]]]
                place.cleaning.note(TEXT_TURNS, n)
            if name in chosen:
                out[name] = place.turns(columns, ids, chosen[name])
        if self.votes:
            copy_labels(columns, out, self.classes, place)
        elif "label" in chosen:
            out["label"] = label_cells(columns[chosen["label"]], ids, self.classes, place)
        if "label_probs" in chosen:
            out["label_probs"] = soft_label_cells(columns, chosen["label_probs"], ids, self.classes, where)
        place.copy_models(columns, out, {name: chosen[name] for name in MODELS if name in chosen})
        return make_rows(out, self.classes, where)


def _has_votes(names: list[str]) -> bool:
    return "winner" in names or set(PREFERENCE.names) <= set(names)


def _vote_classes(table: Table) -> Classes:
    """The classes of a pair's votes: without ties only where a ``winner`` column has none."""
    if "winner" not in table.names or set(PREFERENCE.names) <= set(table.names):
        return PREFERENCE
    ties = {"tie", *BOTH_BAD}
    tied = any(cell_text(cell) in ties for batch in table.batches() for cell in batch["winner"])
    return PREFERENCE if tied else PREFERENCE_NO_TIE


def holds_turns(table: Table, column: str) -> bool:
    """Whether a column's texts are JSON lists of texts, all that are not empty."""
    found = False
    for batch in table.batches():
        for cell in batch[column]:
            if cell in (None, ""):
                continue
            if not isinstance(cell, str) or not isinstance(_turns(cell), list):
                return False
            found = True
    return found


def _turns(cell: object) -> object:
    """The list of turns that a text is in JSON; other cells as they are."""
    turns = json_list(cell)
    sound = isinstance(turns, list) and turns and all(turn is None or isinstance(turn, str) for turn in turns)
    return turns if sound else cell


def _first_rows(table: Table, column: str, where: str, names: tuple[str, ...]) -> dict[str, int]:
    """The labels of a column and the first row of each, counted from 0; those that are missing left out."""
    seen: dict[str, int] = {}
    start = 0
    for batch in table.batches():
        for i, value in enumerate(batch[column]):
            text = cell_text(value)
            if text is not None and text not in seen and not is_missing(text, names):
                seen[text] = start + i
        start += len(batch[column])
        if len(seen) > MAX_CLASSES:
            raise UserError(
                f"{where}: column {column} holds more than {MAX_CLASSES} different labels; is it the label's "
                "column?"
            )
    return seen


def _choose_columns(names: list[str], where: str, columns: Mapping[str, str]) -> dict[str, str]:
    unknown = [name for name in columns if name not in FIELDS]
    if unknown:
        raise UserError(
            f"column map: no field {listing(unknown)} in a row table; it has {listing(FIELDS, 8)}"
        )
    chosen = {name: name for name in FIELDS if name in names}
    if "row_id" not in chosen and "id" in names:
        chosen["row_id"] = "id"
    chosen.update(columns)
    for field, usual in USUAL.items():
        rest = [name for name in names if name not in chosen.values() and name != id_column(names)]
        there = [name for name in rest if name.lower() in usual]
        alone = field == "prompt" or (
            len(rest) == 1 and "response_a" not in chosen
        )  # else it may be any fact
        if field not in chosen and len(there) == 1 and alone:
            chosen[field] = there[0]
    for name, theirs in chosen.items():
        other = next((field for field in chosen if field != name and chosen[field] == theirs), None)
        if other is not None:
            raise UserError(
                f"{where}: column {theirs} is to be both {name} and {other}; name another for one"
            )
        require(names, theirs.split(",") if name == "label_probs" else [theirs], where)
    if "prompt" not in chosen:
        raise UserError(
            f"{where}: no column prompt among {listing(names, 12)}; "
            "name the text's column with --columns prompt=COLUMN"
        )
    if ("response_a" in chosen) != ("response_b" in chosen):
        raise UserError(
            f"{where}: has one of response_a and response_b; name the other with --columns, "
            "both are needed for a pair and neither for a plain text"
        )
    return chosen


def _classes(
    seen: dict[str, int], where: str, names: tuple[str, ...] | None, swap: tuple[int, ...] | None, pair: bool
) -> Classes:
    """The classes as the options name them, else as the labels show them."""
    if names is None:
        if pair:
            usual: set[str] = {"0", "1", "2"} if seen.keys() & {"0", "1", "2"} else set(PREFERENCE.names)
            odd = [label for label in seen if label not in usual]
            if not odd:
                numbers = seen.keys() & {"0", "1", "2"}
                if numbers and "0" not in numbers:
                    refuse_counting({int(text) for text in numbers}, PREFERENCE, where)
                two = bool(seen) and not seen.keys() & {"2", PREFERENCE.names[2]}
                names = (PREFERENCE_NO_TIE if two else PREFERENCE).names
            else:
                raise UserError(
                    f"{where}: cannot tell which of the labels {listing(sorted(seen))} means that response A "
                    f"wins ({brief(odd[0], 40)} is first in row {seen[odd[0]]}, counted from 0); correct the "
                    "label, or give --classes NAME,NAME,NAME in the order A wins, B wins, tie"
                )
        else:
            if len(seen) < 2:
                raise UserError(
                    f"{where}: the labels show {len(seen)} classes, at least two are needed; name all of "
                    "them with --classes, or the label's column with --columns label=COLUMN"
                )
            whole = all(re.fullmatch(r"-?\d+", label) for label in seen)
            names = tuple(sorted(seen, key=int) if whole else sorted(seen))
    if swap is None and pair:
        if len(names) > 3:
            raise UserError(
                f"{where}: {len(names)} classes of a pair; say with --swap which class each becomes when "
                "the responses change places"
            )
        swap = (1, 0, 2)[: len(names)]
    if swap is not None and not pair:
        raise UserError(
            f"{where}: a swap was given, but the rows have no two responses to swap; where their columns are "
            "named otherwise, give --columns prompt=COLUMN response_a=COLUMN response_b=COLUMN"
        )
    try:
        return Classes(names, swap)
    except UserError as mistake:
        raise UserError(f"{where}: {mistake}") from None
