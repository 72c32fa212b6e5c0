"""Encoded rows as a person wants to see them: parts coloured, special tokens visible, cuts counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.encoding.encode import Encoder, Tokens, sets
from data.encoding.plain_text import special_ids
from data.schema import Rows

COLOURS = {
    "template": "90",
    "prompt": "36",
    "response_a": "32",
    "response_b": "35",
    "special": "7",
    "cut": "31",
}
NAMES = ("prompt", "response_a", "response_b")
DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that turn around the text behind them, on the screen alone."""


@dataclass(frozen=True)
class Piece:
    """A stretch of an encoded row.

    Attributes
    ----------
    kind : str
        "template", "prompt", "response_a" or "response_b".
    turn : int or None
        Turn of the row's own text, counted in the row as it was.
    ids : ndarray
        What is left of it.
    whole : ndarray
        What there was.
    """

    kind: str
    turn: int | None
    ids: np.ndarray
    whole: np.ndarray


def explain(
    encoder: Encoder, tokens: Tokens, row: int, pair: bool, sizes: np.ndarray | None = None
) -> tuple[list[Piece], list[int]]:
    """Take one row apart, in the order as given; with the ``sizes`` of sets of candidates, one of these.

    Returns
    -------
    pieces : list of Piece
        Their ids one after another are the encoded sequence.
    dropped : list of int
        Turns that were left out whole.
    """
    starts, sizes = sets(len(tokens), sizes)
    own = int(np.searchsorted(starts, row, side="right")) - 1
    start = int(starts[own])
    together = list(tokens.slice(start, start + int(sizes[own])).parts())
    parts, fitted = together[row - start], encoder.fit_alike(together, pair)[row - start]
    kept = _kept_turns(parts, fitted)
    pieces = [
        Piece("template", None, np.array(encoder.prefix, np.uint32), np.array(encoder.prefix, np.uint32))
    ]
    for slot in encoder.layout(fitted, pair):
        if isinstance(slot, np.ndarray):
            pieces.append(Piece("template", None, slot, slot))
        else:
            part, turn = slot
            own = kept[turn]
            pieces.append(Piece(NAMES[part], own, fitted[part][turn], parts[part][own]))
    end = np.array(encoder.suffix, np.uint32)
    pieces.append(Piece("template", None, end, end))
    turns = max(len(part) for part in parts)
    return pieces, [turn for turn in range(turns) if turn not in kept]


def _kept_turns(parts: tuple[list[np.ndarray], ...], fitted: tuple[list[np.ndarray], ...]) -> list[int]:
    """Which turns are left: dropping takes the oldest middle ones, so the first and the latest stay."""
    turns, left = max(len(part) for part in parts), max(len(part) for part in fitted)
    return list(range(turns)) if left == turns else [0, *range(turns - left + 1, turns)]


def show_row(
    encoder: Encoder, tokens: Tokens, rows: Rows, row: int, colour: bool, sizes: np.ndarray | None = None
) -> str:
    """Return one encoded row as text for a terminal, in colours or plain; notes of cuts stand in either."""
    pair = rows.classes.swap is not None
    pieces, dropped = explain(encoder, tokens, row, pair, sizes)
    total = sum(len(piece.ids) for piece in pieces)
    whole = int(encoder.lengths(tokens.slice(row, row + 1), pair)[0])
    label = int(rows.labels[row])
    named = rows.classes.names[label] if label >= 0 else "unlabelled"
    lines = [f"── row {rows.row_ids[row]} · {named} · {total:,} tokens of {whole:,}"]
    if dropped:
        shown = ", ".join(str(turn + 1) for turn in dropped)
        lines.append(_paint(f"   turns left out whole: {shown}", "cut", colour))
    specials = special_ids(encoder.tokenizer)
    text = "".join(_piece(encoder, piece, specials, colour) for piece in pieces)
    lines += ["   │ " + line for line in text.split("\n")]
    return "\n".join(lines)


def _piece(encoder: Encoder, piece: Piece, specials: dict[int, str], colour: bool) -> str:
    """One piece, its special tokens spelled out and a note behind it where something was cut."""
    text = "".join(
        _paint(part, "special" if special else piece.kind, colour)
        for part, special in _runs(encoder, piece.ids, specials)
    )
    if piece.turn is None:
        return text
    lost = len(piece.whole) - len(piece.ids)
    if not lost:
        return text
    note = f"⟨{piece.kind}, turn {piece.turn + 1}: cut to {len(piece.ids):,} of {len(piece.whole):,} tokens⟩"
    return text + _paint(note, "cut", colour)


def _runs(encoder: Encoder, ids: np.ndarray, specials: dict[int, str]) -> Iterator[tuple[str, bool]]:
    """Decode ids in runs of ordinary tokens, each special token on its own."""
    backend = encoder.tokenizer.backend_tokenizer
    run: list[int] = []
    for number in ids.tolist():
        if number not in specials:
            run.append(number)
            continue
        if run:
            yield _printable(backend.decode(run, skip_special_tokens=False)), False
        run = []
        yield f"⟦{specials[number]}⟧", True
    if run:
        yield _printable(backend.decode(run, skip_special_tokens=False)), False


def _printable(text: str) -> str:
    """Control characters as their pictures: a row must not steer the terminal it is shown on."""
    return "".join(
        f"<U+{ord(c):04X}>"
        if c in DIRECTIONS
        else c
        if c in "\n\t" or ord(c) >= 0xA0 or 0x20 <= ord(c) < 0x7F
        else chr(0x2400 + ord(c))
        if ord(c) < 0x20
        else "␡"
        for c in text
    )


def _paint(text: str, kind: str, colour: bool) -> str:
    """Colour a text line by line, so that a pager which cuts lines keeps the colours apart."""
    if not colour:
        return text
    code = COLOURS[kind]
    return "\n".join(f"\x1b[{code}m{line}\x1b[0m" if line else line for line in text.split("\n"))


def legend(colour: bool) -> str:
    """One line that says which colour is what; empty without colours."""
    names = {
        "prompt": "prompt",
        "response_a": "response A",
        "response_b": "response B",
        "template": "template",
    }
    if not colour:
        return ""
    painted = "  ".join(_paint(name, kind, True) for kind, name in names.items())
    return f"{painted}  {_paint('special token', 'special', True)}  {_paint('cut', 'cut', True)}"
