"""What each limit would cut is what it does cut."""

from __future__ import annotations

import numpy as np
import pytest
from small_tokenizers import small_tokenizer

from data.classes import PREFERENCE
from data.encoding.encode import Encoder
from data.encoding.lengths import cuts, measure, plot
from data.encoding.template import Template
from data.encoding.truncate import Truncation
from data.schema import make_rows


def rows_of_many_turns(n=40):
    rng = np.random.default_rng(0)

    def part():
        return [["word " * int(rng.integers(0, 60)) for _ in range(1 + i % 6)] for i in range(n)]

    columns = {"prompt": part(), "response_a": part(), "response_b": part()}
    return make_rows({"row_id": [str(i) for i in range(n)], **columns}, PREFERENCE, "t")


@pytest.mark.parametrize("turns", [True, False])
def test_tokens_lost_are_counted_with_the_turns_that_go(turns, monkeypatch):
    monkeypatch.setattr("data.encoding.lengths.CHUNK_ROWS", 16)
    rows = rows_of_many_turns()
    encoder = Encoder(small_tokenizer("byte_bpe"), Template("notebook"), Truncation(1024, turns=turns))
    tokens = encoder.tokenize(rows)
    lengths = measure(encoder, tokens, True)
    found = cuts(encoder, tokens, lengths, True, [64, 200, 400, 100_000])
    for limit, cut, lost in found:
        encoded = Encoder(encoder.tokenizer, encoder.template, Truncation(limit, turns=turns)).encode(
            rows, tokens
        )
        assert cut == encoded.truncated / 2 / len(rows)
        # An odd token may stay unused, see data.encoding.truncate.budgets.
        assert lost == pytest.approx(1 - encoded.lengths[::2].sum() / lengths.rows.sum(), abs=0.01)
    assert found[-1][1:] == (0, 0)
    assert found[0][1] >= found[1][1] > found[2][1] > 0
    assert cuts(encoder, tokens, lengths, True, [16])[0][1] == 1  # below the template's own length


def test_the_plot_says_how_many_fit():
    encoder = Encoder(small_tokenizer("byte_bpe"), Template("notebook"), Truncation(1024))
    lengths = measure(encoder, encoder.tokenize(rows_of_many_turns()), True)
    svg = plot(lengths, 300, "a <title>")
    assert "a &lt;title&gt;" in svg
    assert f"max_length 300: {(lengths.rows <= 300).mean():.1%} of rows fit whole" in svg
