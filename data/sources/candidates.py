"""Rows that bring their own options: a table with a column ``candidates``, a list of texts a row.

``label`` is a candidate's text or its place, counted from 0; ``label_probs`` a list of shares, as many as the
row has candidates. In a CSV a list is written in JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.candidates import CANDIDATES
from data.classes import place_classes
from data.errors import UserError, brief, listing
from data.ids import id_column
from data.labels import cell_text, is_missing
from data.schema import Rows, make_rows
from data.sources.clean import TEXT_TURNS, clean_text
from data.sources.formats import SourceOptions, source_format
from data.sources.open import Columns, Table
from data.sources.place import Place, are_unique, json_list, require
from data.sources.table import USUAL, holds_turns

FIELDS = ("row_id", "prompt", CANDIDATES, "label", "label_probs")


def has_candidates(table: Table) -> bool:
    """Whether a table has a column ``candidates`` that begins with a list, and no responses beside it."""
    if CANDIDATES not in table.names or "response_a" in table.names:
        return False
    cells = (cell for batch in table.batches() for cell in batch[CANDIDATES])
    first = next((cell for cell in cells if cell not in (None, "")), None)
    return isinstance(first, list) or (isinstance(first, str) and first.lstrip().startswith("["))


@source_format(CANDIDATES, has_candidates, takes=("columns", "ids"))
class CandidatesReader:
    """Reads a table of rows with candidates.

    Parameters
    ----------
    table : Table
    where : str
        The source, for messages.
    options : SourceOptions
        Of which it follows ``columns`` and ``ids``.

    Attributes
    ----------
    chosen : dict of str to str
        Which column holds each field.
    """

    def __init__(self, table: Table, where: str, options: SourceOptions) -> None:
        self.chosen = _choose_columns(table, where, options.columns)
        if options.ids == "row-number":
            self.chosen.pop("row_id", None)
        elif options.ids == "column" and "row_id" not in self.chosen:
            raise UserError(
                f"{where}: no column row_id or id among {listing(table.names, 12)}; name one with "
                "--columns row_id=COLUMN"
            )
        self.turns = holds_turns(table, self.chosen["prompt"])
        most, self.places = 0, set[int]()
        for batch in table.batches():
            lists = [json_list(cell) for cell in batch[self.chosen[CANDIDATES]]]
            most = max(most, *(len(found) for found in lists if isinstance(found, list)), 0)
            if "label" in self.chosen:
                pairs = zip(batch[self.chosen["label"]], lists, strict=True)
                self.places |= {found for cell, own in pairs if (found := _as_place(cell, own)) is not None}
        self.classes = place_classes(most)
        if len(self.places) > 1 and 0 not in self.places:
            raise UserError(
                f"{where}: the labels are the numbers {listing(sorted(self.places))} and none is 0, so that "
                "nothing shows whether they count the candidates from 0 or from 1; write the right "
                "candidate's text in their place"
            )

    def __call__(self, columns: Columns, place: Place) -> Rows:
        """Read one batch."""
        where, chosen = place.where, self.chosen
        n = len(next(iter(columns.values())))
        if place.start == 0:
            place.cleaning.read_as(chosen)
        numbered = [str(place.start + i) for i in range(n)]
        ids = place.ids(columns[chosen["row_id"]]) if "row_id" in chosen else numbered
        out = place.begin(ids)
        if self.turns:
            columns[chosen["prompt"]] = [json_list(cell) for cell in columns[chosen["prompt"]]]
            place.cleaning.note(TEXT_TURNS, n)
        out["prompt"] = place.turns(columns, ids, chosen["prompt"])
        cells = zip(ids, columns[chosen[CANDIDATES]], strict=True)
        out[CANDIDATES] = [
            _texts(cell, f"{where}: row {key}, column {chosen[CANDIDATES]}", place) for key, cell in cells
        ]
        if "label" in chosen:
            both = zip(columns[chosen["label"]], out[CANDIDATES], ids, strict=True)
            out["label"] = [_label(cell, own, key, where) for cell, own, key in both]
        if "label_probs" in chosen:
            cells = zip(columns[chosen["label_probs"]], ids, strict=True)
            out["label_probs"] = [_shares(cell, key, where) for cell, key in cells]
        return make_rows(out, self.classes, where)


def _choose_columns(table: Table, where: str, columns: Mapping[str, str]) -> dict[str, str]:
    unknown = [name for name in columns if name not in FIELDS]
    if unknown:
        raise UserError(
            f"column map: no field {listing(unknown)} in a table of candidates; it has {listing(FIELDS, 8)}"
        )
    chosen = {name: name for name in FIELDS if name in table.names} | dict(columns)
    rest = [name for name in table.names if name not in chosen.values()]
    if "row_id" not in chosen:
        found = id_column(rest)
        if found is not None and (found == "id" or are_unique(table, found)):
            chosen["row_id"] = found
    usual = [name for name in rest if name.lower() in USUAL["prompt"]]
    if "prompt" not in chosen and len(usual) == 1:
        chosen["prompt"] = usual[0]
    for name in ("prompt", CANDIDATES):
        if name not in chosen:
            raise UserError(
                f"{where}: no column {name} among {listing(table.names, 12)}; name it with "
                f"--columns {name}=COLUMN"
            )
    require(table.names, list(chosen.values()), where)
    return chosen


def _texts(cell: object, where: str, place: Place) -> list[str]:
    found = json_list(cell)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise UserError(f"{where} holds {brief(repr(cell), 60)} where a list of texts, in JSON, was expected")
    return [clean_text(text, place.cleaning, where) for text in found]


def _as_place(cell: object, candidates: object) -> int | None:
    """The place that a label's cell names by number; none where it is a candidate's text, or neither."""
    text = cell_text(cell)
    if text is None or not text.isdecimal() or not isinstance(candidates, list) or text in candidates:
        return None
    return int(text)


def _label(cell: Any, candidates: list[str], row_id: str, where: str) -> int | None:
    """The place of the candidate that a cell names by its text or its number; none where it is empty."""
    if isinstance(cell, str) and cell in candidates:
        return candidates.index(cell)
    text = cell_text(cell)
    if text in candidates:
        return candidates.index(text)
    if is_missing(text):
        return None
    place = _as_place(cell, candidates)
    if place is None or place >= len(candidates):
        raise UserError(
            f"{where}: row {brief(row_id)} has label {brief(str(text), 60)}, none of its {len(candidates)} "
            f"candidates ({listing(candidates, 3)}); give the right one's text, or its place from 0 to "
            f"{len(candidates) - 1}"
        )
    return place


def _shares(cell: object, row_id: str, where: str) -> list[float] | None:
    found = json_list(cell)
    if found is None or found == "":
        return None
    if not isinstance(found, list) or not all(
        isinstance(share, (int, float)) and not isinstance(share, bool) for share in found
    ):
        raise UserError(
            f"{where}: row {brief(row_id)} has label_probs {brief(repr(cell), 60)} where a list of numbers, "
            "one a candidate, was expected"
        )
    return [float(share) for share in found]
