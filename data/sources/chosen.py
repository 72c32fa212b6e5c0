"""Preference as a chosen and a rejected response: the layout of reward modelling, as texts or as messages.

``prompt`` stands in a column of its own, as a text or a list of messages, or the two responses are whole
conversations that begin alike. The chosen one always stands first in such a file, which a model would
learn; which of the two becomes response A follows from a hash of the row's id.
"""

from __future__ import annotations

import itertools
from typing import Any

from data.classes import PREFERENCE_NO_TIE
from data.errors import UserError, brief, listing
from data.ids import id_column
from data.schema import Rows, make_rows
from data.sources.clean import DEALT, clean_text
from data.sources.formats import SourceOptions, source_format
from data.sources.messages import read_turns
from data.sources.open import Columns, Table
from data.sources.place import Place, are_unique, is_turned, json_list

SIDES = ("chosen", "rejected")
SPEAKERS = ("\n\nAssistant:", "\n\nassistant:", "<|assistant|>", "<|im_start|>assistant")
"""What a conversation written as one text has before an answer."""


def is_chosen(table: Table) -> bool:
    """Whether columns are a chosen and a rejected response, without ratings that could tie."""
    return set(SIDES) <= set(table.names) and "score_chosen" not in table.names


@source_format("chosen", is_chosen, takes=("ids",))
class ChosenReader:
    """Reads pairs of a chosen and a rejected response; no ties."""

    def __init__(self, table: Table, where: str, options: SourceOptions) -> None:
        wanted = id_column([name for name in table.names if name not in ("prompt", *SIDES)])
        if wanted is not None and wanted.lower() not in ("id", "row_id") and not are_unique(table, wanted):
            wanted = None  # of a prompt that has several pairs
        self.id_column = None if options.ids == "row-number" else wanted
        if wanted is None and options.ids == "column":
            raise UserError(f"{where}: no column row_id or id among {listing(table.names, 12)}; add one")

    def __call__(self, columns: Columns, place: Place) -> Rows:
        """Read one batch."""
        n = len(columns["chosen"])
        if place.start == 0:
            place.cleaning.read_as({} if self.id_column is None else {"row_id": self.id_column})
        numbered = [str(place.start + i) for i in range(n)]
        ids = numbered if self.id_column is None else place.ids(columns[self.id_column])
        out: Columns = {**place.begin(ids), "prompt": [], "response_a": [], "response_b": [], "label": []}
        for i, key in enumerate(ids):
            cells = [columns[name][i] for name in SIDES]
            prompt, pair = self._pair(
                columns["prompt"][i] if "prompt" in columns else None, cells, key, place
            )
            turned = is_turned(key)
            out["prompt"].append(prompt)
            out["response_a"].append([pair[turned]])
            out["response_b"].append([pair[not turned]])
            out["label"].append(int(turned))
        place.cleaning.note(DEALT, n)
        return make_rows(out, PREFERENCE_NO_TIE, place.where)

    def _pair(
        self, prompt: Any, cells: list[Any], key: str, place: Place
    ) -> tuple[list[str], tuple[str, str]]:
        """The prompt's one turn, and the chosen and the rejected answer to it."""
        where = f"{place.where}: row {brief(key)}"
        prompt, chosen, rejected = (_messages(cell) for cell in (prompt, *cells))
        texts = isinstance(chosen, str) and isinstance(rejected, str)
        if texts and isinstance(prompt, str):
            pair = tuple(clean_text(text, place.cleaning, where) for text in (chosen, rejected))
            return [clean_text(prompt, place.cleaning, where)], (pair[0], pair[1])
        if texts and prompt is None:
            alike = itertools.takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))
            shared = "".join(character for character, _ in alike)
            at = max((shared.rfind(s) + len(s) for s in SPEAKERS if s in shared), default=0)
            if not at:
                raise UserError(
                    f"{where} has no prompt, and chosen and rejected do not begin with one conversation "
                    f"(an answer after one of {listing(map(repr, SPEAKERS), names=False)}); give a column "
                    "prompt"
                )
            pair = tuple(clean_text(text[at:].strip(), place.cleaning, where) for text in (chosen, rejected))
            return [clean_text(shared[:at].strip(), place.cleaning, where)], (pair[0], pair[1])
        sides = []
        for name, cell in zip(SIDES, (chosen, rejected), strict=True):
            if cell is None or not cell:
                raise UserError(f"{where}, column {name} is empty; a pair needs both responses")
            answer = [{"role": "assistant", "content": cell}] if isinstance(cell, str) else list(cell)
            begins = isinstance(answer[0], dict) and answer[0].get("role") in ("user", "system")
            before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt or [])
            questions, answers = read_turns(
                answer if begins else before + answer, place, f"row {key}, column {name}"
            )
            sides.append((questions, answers))
        (asked, one), (same, two) = sides
        if asked != same or one[:-1] != two[:-1]:
            raise UserError(f"{where}: chosen and rejected answer different conversations")
        history = [text for turn in zip(asked, one[:-1], strict=False) for text in turn]
        return ["\n\n".join([*history, asked[-1]])], (one[-1], two[-1])


def _messages(cell: Any) -> Any:
    """A list of messages, also where it is written as JSON; other cells as they are."""
    found = json_list(cell)
    sound = isinstance(found, list) and found and all(isinstance(m, dict) and "role" in m for m in found)
    return found if sound else cell
