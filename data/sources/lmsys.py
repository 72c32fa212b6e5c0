"""The LMSYS competition's CSV, and the 55k set on the hub, which is the same table."""

from __future__ import annotations

import json

from data.classes import PREFERENCE
from data.errors import UserError, brief
from data.schema import Rows, make_rows
from data.sources.clean import PLAIN_TEXTS, Cleaning, clean_turns
from data.sources.formats import SourceOptions, source_format
from data.sources.open import Columns, Table
from data.sources.place import TEXTS, Place, require
from data.sources.votes import copy_labels


def is_lmsys(table: Table) -> bool:
    """Whether columns are those of this format: they name the winners, or the texts are lists of turns."""
    if not {"id", *TEXTS} <= set(table.names):
        return False
    if set(PREFERENCE.names) & set(table.names):
        return True
    return _are_lists(table)


@source_format("lmsys", is_lmsys)
class LmsysReader:
    """Reads the LMSYS layout: texts as JSON lists of turns, the label one-hot over three winner columns.

    The winner columns may hold shares, which are soft labels. Labels may also be in a ``winner`` or
    ``label``, soft ones in ``label_probs``; without any, as in the competition's test file, the rows are
    unlabelled. Texts of which the first are no lists are one turn each.
    """

    def __init__(self, table: Table, where: str, options: SourceOptions) -> None:
        first = next((batch for batch in table.batches() if batch["id"]), {})
        cells = [cell for name in TEXTS for cell in first.get(name, [])[:1]]
        self.lists = any(isinstance(cell, list) or str(cell).startswith("[") for cell in cells)

    def __call__(self, columns: Columns, place: Place) -> Rows:
        """Read one batch."""
        where = place.where
        require(columns, ["id", *TEXTS], where)
        ids = place.ids(columns["id"])
        out = place.begin(ids)
        for name in TEXTS:
            if not self.lists:
                out[name] = place.turns(columns, ids, name)
                place.cleaning.note(PLAIN_TEXTS, len(ids))
                continue
            cells = zip(ids, columns[name], strict=True)
            out[name] = [
                _json_turns(cell, place.cleaning, f"{where}: row {key}, column {name}") for key, cell in cells
            ]
        copy_labels(columns, out, PREFERENCE, place)
        place.copy_models(columns, out)
        return make_rows(out, PREFERENCE, where)


def _are_lists(table: Table) -> bool:
    first = next((batch for batch in table.batches() if batch["prompt"]), None)
    return first is not None and all(_is_list(first[name][0]) for name in TEXTS)


def _is_list(cell: object) -> bool:
    if not isinstance(cell, str) or not cell.startswith("["):
        return isinstance(cell, list)
    try:
        return isinstance(json.loads(cell), list)
    except (ValueError, RecursionError):
        return False


def _json_turns(cell: object, cleaning: Cleaning, where: str) -> list[str]:
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not a JSON list of turns ({brief(error)})") from error
    if not isinstance(cell, list):
        raise UserError(f"{where} holds {cell!r:.40} where a JSON list of turns was expected")
    return clean_turns(cell, cleaning, where)
