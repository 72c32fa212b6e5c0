"""Text cleaning that is counted: what a reader changes, it reports; nothing is fixed in silence."""

from __future__ import annotations

import re
from collections import Counter

from data.errors import UserError, printable

NULL_TURNS = "null turns read as empty text"
SURROGATES = "lone surrogates replaced with U+FFFD"
BARE_VALUES = "bare numbers or truth values written as text"
TIED_VOTES = "rows without a majority among their annotators labelled a tie"
BOTH_BAD = "rows judged both bad labelled a tie (kept in column both_bad)"
SOFT_VOTES = "rows whose winner columns hold shares, kept as soft labels"
BOTH_BAD_TIES = "rows judged both bad labelled a tie"
MISSING_LABELS = (
    "labels such as nan, NA or none read as missing (name them with --classes where they are classes)"
)
TEXT_TURNS = "cells of JSON lists read as lists of turns"
PLAIN_TEXTS = "texts that are no JSON lists read as one turn each"
DEALT = "pairs of a chosen and a rejected response, which of them stands first by a hash of the row's id"
IMAGES = "images left out of conversations"
UNANSWERED = "questions without an answer given an empty one"
RATED_TIES = "pairs rated within the margin labelled a tie"
UNPAIRED = "instructions left out that have no two completions to compare"

MAX_TEXT = 4 << 20
"""A text of more characters (4,194,304) is refused: no prompt or answer is that long, a broken file is."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: it holds no lone surrogate."""
    return text.isascii() or _SURROGATE.search(text) is None


class Cleaning:
    """Counts of what a reader changed.

    Attributes
    ----------
    counts : Counter
        How often each change was made, by its description.
    columns : dict of str to str
        Of a plain table, which of its columns holds each field.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.columns: dict[str, str] = {}

    def read_as(self, columns: dict[str, str]) -> None:
        """Keep which column of a plain table holds each field; without ``row_id``, rows are numbered."""
        self.columns = dict(columns)

    def note(self, change: str, times: int = 1) -> None:
        """Count ``times`` more occurrences of ``change``."""
        if times:
            self.counts[change] += times

    def lines(self) -> list[str]:
        """One line a kind of change, or one that says nothing was changed."""
        lines = [f"{count} {change}" for change, count in self.counts.items()]
        if self.columns and "row_id" not in self.columns:
            lines.append(
                "rows numbered from 0: the table has no column of ids (name one with --columns row_id=COLUMN)"
            )
        usual = {"row_id": "id"}
        lines += [
            f"column {printable(theirs)} read as {name}"
            for name, theirs in self.columns.items()
            if theirs not in (name, usual.get(name))
        ]
        return lines or ["nothing was changed"]


def clean_text(text: str | None, cleaning: Cleaning, where: str = "a text") -> str:
    """Return ``text`` fit for UTF-8: null becomes empty, a lone surrogate U+FFFD; both are counted.

    Raises
    ------
    UserError
        The text holds a NUL character, or more than ``MAX_TEXT`` characters; ``where`` names it.
    """
    if text is None:
        cleaning.note(NULL_TURNS)
        return ""
    if len(text) > MAX_TEXT:
        raise UserError(
            f"{where} holds a text of {len(text):,} characters, more than {MAX_TEXT:,}; is a quote or a line "
            "break missing in the file? Cut the text, or leave the row out"
        )
    if "\x00" in text:
        raise UserError(
            f"{where} holds a NUL character; is the file damaged, or in another encoding than UTF-8? "
            "Remove the character, or leave the row out"
        )
    cleaned, replaced = _SURROGATE.subn("\ufffd", text)
    cleaning.note(SURROGATES, replaced)
    return cleaned


def clean_turns(value: object, cleaning: Cleaning, where: str) -> list[str]:
    """Return the turns of one cell: a text is one turn, a list holds one text (or null) a turn.

    A bare number or truth value becomes its text, counted: JSON writers tend to lose such a text's quotes.

    Raises
    ------
    UserError
        The cell holds something else; ``where`` names it.
    """
    turns = []
    for turn in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(turn, (bool, int, float)):
            cleaning.note(BARE_VALUES)
            turn = str(turn)
        if turn is not None and not isinstance(turn, str):
            raise UserError(f"{where} holds {_shorten(turn)} where text or a list of texts was expected")
        turns.append(clean_text(turn, cleaning, where))
    return turns


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
