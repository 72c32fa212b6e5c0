"""What is shown of an encoded row is the row, whatever the tokenizer; nothing in it steers the screen."""

from __future__ import annotations

import numpy as np
import pytest
from small_tokenizers import KINDS, small_tokenizer

from data.classes import PREFERENCE, Classes
from data.encoding.encode import Encoder
from data.encoding.show import explain, show_row
from data.encoding.template import Template
from data.encoding.truncate import Truncation
from data.schema import make_rows


def conversation(texts, n=5):
    return make_rows(
        {
            "row_id": ["short", "long"],
            "prompt": [["Why?"], [f"question {i} {texts}" for i in range(n)]],
            "response_a": [["So."], [f"first {i}" for i in range(n - 2)]],
            "response_b": [["No."], [f"second {i} {texts}" for i in range(n)]],
        },
        PREFERENCE,
        "t",
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right", "middle"])
@pytest.mark.parametrize("turns", [True, False])
def test_the_pieces_are_the_sequence(kind, side, turns):
    rows = conversation("and so on " * 30)
    encoder = Encoder(small_tokenizer(kind), Template("winner"), Truncation(400, side=side, turns=turns))
    tokens, encoded = encoder.tokenize(rows), encoder.encode(rows)
    for i in range(len(rows)):
        pieces, dropped = explain(encoder, tokens, i, True)
        assert np.concatenate([piece.ids for piece in pieces]).tolist() == encoded[2 * i].tolist()
        assert bool(dropped) == (turns and i == 1)
    n = len(encoded[0])
    assert f"{n} tokens of {n}" in show_row(encoder, tokens, rows, 0, colour=False)


def test_a_row_of_plain_text_is_shown_too():
    rows = make_rows({"row_id": ["x"], "prompt": [["hello", "there"]]}, Classes(("no", "yes")), "t")
    encoder = Encoder(small_tokenizer("wordpiece"), Template(), Truncation(32))
    shown = show_row(encoder, encoder.tokenize(rows), rows, 0, colour=False)
    assert "unlabelled" in shown
    assert shown.count("\u27e6[CLS]\u27e7") == shown.count("\u27e6[SEP]\u27e7") == 1


@pytest.mark.parametrize("control", ["\x1b[2J", "\r", "\x07", "\x9b31m", "\u202e", "\u2066"])
def test_a_row_does_not_steer_the_screen(control):
    rows = conversation(control)
    encoder = Encoder(small_tokenizer("byte_bpe"), Template(), Truncation(1024))
    assert control[0] not in show_row(encoder, encoder.tokenize(rows), rows, 1, colour=False)
