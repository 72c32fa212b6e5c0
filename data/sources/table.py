"""Any table through a column map: which of its columns holds which field of a row.

Without responses it is a K-class text table. Classes come from the options, else from the labels; these
are looked through once before any row is made, so that the first batch and the last agree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from data.errors import UserError, brief, listing
from data.labels import cell_text, label_index
from data.schema import MAX_CLASSES, PREFERENCE, PREFERENCE_NO_TIE, Classes, Rows, make_rows
from data.sources.formats import SourceOptions, source_format
from data.sources.open import Columns, Table
from data.sources.place import MODELS, Place, require
from data.sources.votes import soft_label_cells

FIELDS = ("row_id", "prompt", "response_a", "response_b", "label", "label_probs", "model_a", "model_b")


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
    """

    def __init__(self, table: Table, where: str, options: SourceOptions) -> None:
        self.chosen = _choose_columns(table.names, where, options.columns)
        self.number_rows = "row_id" not in self.chosen
        if self.number_rows and options.ids != "row-number":
            raise UserError(
                f"{where}: no column row_id or id among {listing(table.names, 12)}; name one with "
                "--columns row_id=COLUMN, or number the rows with --ids row-number"
            )
        self.pair = "response_a" in self.chosen
        seen: dict[str, int] = {}
        if "label" in self.chosen and options.classes is None:
            seen = _first_rows(table, self.chosen["label"], where)
        self.classes = _classes(seen, where, options.classes, options.swap, self.pair)

    def __call__(self, columns: Columns, place: Place) -> Rows:
        """Read one batch."""
        where, chosen = place.where, self.chosen
        n = len(next(iter(columns.values())))
        ids = (
            [str(place.start + i) for i in range(n)]
            if self.number_rows
            else place.ids(columns[chosen["row_id"]])
        )
        out = place.begin(ids)
        for name in ("prompt", "response_a", "response_b"):
            if name in chosen:
                out[name] = place.turns(columns, ids, chosen[name])
        if "label" in chosen:
            cells = zip(ids, columns[chosen["label"]], strict=True)
            out["label"] = [label_index(cell_text(cell), self.classes, key, where) for key, cell in cells]
        if "label_probs" in chosen:
            out["label_probs"] = soft_label_cells(columns, chosen["label_probs"], ids, self.classes, where)
        place.copy_models(columns, out, {name: chosen[name] for name in MODELS if name in chosen})
        return make_rows(out, self.classes, where)


def _first_rows(table: Table, column: str, where: str) -> dict[str, int]:
    """The labels of a column and the first row of each, counted from 0."""
    seen: dict[str, int] = {}
    start = 0
    for batch in table.batches():
        for i, value in enumerate(batch[column]):
            text = cell_text(value)
            if text is not None and text not in seen:
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
                two = bool(seen) and not seen.keys() & {"2", PREFERENCE.names[2]}
                names = (PREFERENCE_NO_TIE if two else PREFERENCE).names
            else:
                raise UserError(
                    f"{where}: cannot tell which of the labels {listing(sorted(seen))} means that response A "
                    f"wins ({brief(odd[0], 40)} is first in row {seen[odd[0]]}, counted from 0); correct the "
                    "label, or give --classes in the order A wins, B wins, tie"
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
        raise UserError(f"{where}: a swap was given, but the rows have no two responses to swap")
    return Classes(names, swap)
