"""What must hold of any text whatever: length, one BOS, no special token, symmetry, idempotence."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tokenizers import KINDS, small_tokenizer
from tokenizers import normalizers

from data.classes import PREFERENCE
from data.encoding.encode import Encoder
from data.encoding.plain_text import special_ids
from data.encoding.template import Template
from data.encoding.truncate import Truncation, budgets, cut, fit, share_evenly
from data.errors import UserError
from data.schema import make_rows

length = st.integers(0, 400)
SPELLED = (
    "<|begin_of_text|>",
    "<bos>",
    "<s>",
    "[CLS]",
    "<|eot_id|>",
    "</s>",
    "<pad>",
    "[SEP]",
    "<start_of_turn>",
)
text = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
    st.lists(st.sampled_from([*SPELLED, " ", "word ", "\n", "東京", "🙂", "<", ">"]), max_size=12).map(
        "".join
    ),
    st.text("ab \n", min_size=200, max_size=400),
)
turns = st.lists(text, min_size=1, max_size=4)
truncation = st.builds(
    Truncation,
    max_length=st.integers(150, 260),
    prompt_share=st.floats(0, 1),
    side=st.sampled_from(["left", "right", "middle"]),
    turns=st.just(True),
    marker=st.sampled_from(["", " […] ", "<bos>"]),
)


def pair(prompt, a, b):
    return make_rows(
        {"row_id": ["r"], "prompt": [prompt], "response_a": [a], "response_b": [b]}, PREFERENCE, "t"
    )


def decoded_parts(tokens):
    return [[ids.tolist() for ids in part] for part in tokens]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(prompt=turns, a=turns, b=turns, how=truncation)
def test_invariants_of_any_text(kind, prompt, a, b, how):
    tokenizer = small_tokenizer(kind)
    encoder = Encoder(tokenizer, Template("winner"), how)
    bos, special = encoder.prefix[0], special_ids(tokenizer)
    rows, exchanged = pair(prompt, a, b), pair(prompt, b, a)
    encoded, other = encoder.encode(rows), encoder.encode(exchanged)
    for sequence in (encoded[0], encoded[1]):
        assert len(sequence) <= how.max_length
        assert sequence[0] == bos
        end = len(sequence) - len(encoder.suffix)
        assert sequence[end:].tolist() == encoder.suffix
        assert not set(sequence[1:end].tolist()) & set(special)
    # Truncating, then swapping, is swapping, then truncating.
    np.testing.assert_array_equal(encoded[1], other[0])
    np.testing.assert_array_equal(encoded[0], other[1])

    (parts,) = encoder.tokenize(rows).parts()
    fitted = encoder.fit(parts, True)
    again = encoder.fit(fitted, True)
    assert again is fitted  # idempotent: what was cut fits, and what fits is left alone
    whole = len(encoder.prefix) + sum(len(ids) for part in parts for ids in part)
    whole += encoder.fixed_length(tuple(len(part) for part in parts), True) - len(encoder.prefix)
    assert (fitted is parts) == (whole <= how.max_length)
    assert encoded.truncated == (0 if fitted is parts else 2)


@pytest.mark.parametrize("kind", ["byte_bpe", "sentencepiece_bpe"])
@settings(max_examples=60, deadline=None)
@given(content=text)
def test_plain_text_comes_back_as_it_was(kind, content):
    tokenizer = small_tokenizer(kind)
    encoder = Encoder(tokenizer, Template(), Truncation(4096))
    (ids,) = encoder.plain([content])
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == content


def test_a_unigram_model_that_knows_special_tokens_as_pieces_is_kept_from_using_them():
    tokenizer = small_tokenizer("sentencepiece_unigram")
    raw = tokenizer.backend_tokenizer
    raw.encode_special_tokens = True
    try:
        naive = raw.encode("see <s> here", add_special_tokens=False).ids
    finally:
        raw.encode_special_tokens = False
    assert tokenizer.bos_token_id in naive  # the trap
    (ids,) = Encoder(tokenizer, Template(), Truncation(64)).plain(["see <s> here"])
    assert tokenizer.bos_token_id not in ids
    assert tokenizer.backend_tokenizer.encode_special_tokens is False


@pytest.mark.parametrize(
    ("normalizer", "text"),
    [
        (normalizers.NFKC(), "see ＜s＞ here"),
        (normalizers.Lowercase(), "<S><S>"),
        (normalizers.Replace("(", "<"), "(s>(s>"),
        (normalizers.Prepend("▁"), "<s>"),
    ],
)
def test_a_normaliser_that_spells_special_tokens_makes_none(normalizer, text):
    tokenizer = copy.deepcopy(small_tokenizer("sentencepiece_unigram"))
    tokenizer.backend_tokenizer.normalizer = normalizer
    encoder = Encoder(tokenizer, Template(), Truncation(64))
    (ids,) = encoder.plain([text])
    assert not set(ids.tolist()) & set(encoder.plain.special)
    assert len(ids) > 2


@given(length, length, length, st.integers(0, 600), st.floats(0, 1))
def test_budgets_fit_the_room_and_are_symmetric(prompt, first, second, room, share):
    p, a, b = budgets(prompt, first, second, room, share)
    assert 0 <= p <= prompt
    assert 0 <= a <= first
    assert 0 <= b <= second
    assert p + a + b <= room
    assert (p, b, a) == budgets(prompt, second, first, room, share)
    assert p + a + b >= min(room - 1, prompt + first + second)  # an odd token may stay unused
    if a < first and b < second:
        assert a == b  # both give way only once they are equally long
    if first < second and prompt == 0:
        assert first - a <= second - b  # the longer first


@given(st.lists(length, max_size=8), st.integers(0, 900))
def test_turns_share_all_of_a_budget_and_the_longest_give_way(lengths, budget):
    limits = share_evenly(lengths, budget)
    assert sum(limits) == min(budget, sum(lengths))
    assert all(limit <= n for limit, n in zip(limits, lengths, strict=True))
    cut_turns = [limit for limit, n in zip(limits, lengths, strict=True) if limit < n]
    if cut_turns:
        assert max(limits) - min(cut_turns) <= 1


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(0, 40), st.integers(0, 3))
def test_cut_keeps_the_asked_sides(ids, budget, mark):
    ids = np.array(ids, dtype=np.uint32)
    marker = np.full(mark, 99, dtype=np.uint32)
    kept = min(len(ids), budget)
    assert cut(ids, budget, "right", marker).tolist() == ids[:kept].tolist()
    assert cut(ids, budget, "left", marker).tolist() == ids[len(ids) - kept :].tolist()
    both = cut(ids, budget, "middle", marker)
    assert len(both) == kept
    if kept < len(ids):
        marks = np.flatnonzero(both == 99)
        assert len(marks) == (mark if kept >= mark + 2 else 0)
        if len(marks):
            assert both[: marks[0]].tolist() == ids[: marks[0]].tolist()
            tail = len(both) - marks[-1] - 1
            assert tail >= 1
            assert both[-tail:].tolist() == ids[-tail:].tolist()


def row(*lengths):
    return tuple([np.arange(n, dtype=np.uint32) for n in part] for part in lengths)


def fitted(parts, how):
    return fit(parts, how, lambda shape: 4 * max(shape), np.zeros(0, np.uint32))


def test_whole_middle_turns_go_first_and_the_oldest_of_them_first():
    parts = row([10, 11, 12, 13], [20, 21, 22, 23], [30, 31, 32, 33])
    out = fitted(parts, Truncation(240))
    assert [[len(t) for t in part] for part in out] == [[10, 12, 13], [20, 22, 23], [30, 32, 33]]
    assert all(
        a is b
        for mine, theirs in zip(out, parts, strict=True)
        for a, b in zip(mine, [theirs[0], *theirs[2:]], strict=True)
    )
    out = fitted(parts, Truncation(150))
    assert [[len(t) for t in part] for part in out] == [[10, 13], [20, 23], [30, 33]]


def test_the_last_question_is_cut_last_and_the_longer_response_first():
    out = fitted(row([200, 30], [100, 40], [10, 10]), Truncation(128, prompt_share=0.4))
    prompt, first, second = ([len(t) for t in part] for part in out)
    assert prompt == [18, 30]
    assert second == [10, 10]
    assert sum(first) == 120 - 48 - 20


def test_turns_may_be_kept_on_request():
    out = fitted(row([10] * 5, [30] * 5, [30] * 5), Truncation(200, turns=False))
    assert [len(part) for part in out] == [5, 5, 5]


def test_a_row_of_which_nothing_would_be_left_is_refused():
    parts = row([9], [9], [9])
    for length in (20, 21, 22):
        with pytest.raises(
            UserError, match="tags alone take 20 tokens for a row of 1 turns; raise max_length"
        ):
            fit(parts, Truncation(length), lambda _: 20, np.zeros(0, np.uint32))
    out = fit(parts, Truncation(23), lambda _: 20, np.zeros(0, np.uint32))
    assert sum(len(ids) for part in out for ids in part) > 1
    fits = row([1], [], [])
    assert fit(fits, Truncation(21), lambda _: 20, np.zeros(0, np.uint32)) is fits


def test_a_template_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="tags alone take 20 tokens for a row of 5 turns; raise max_length"):
        fitted(row([10] * 5, [1] * 5, [1] * 5), Truncation(16, turns=False))
