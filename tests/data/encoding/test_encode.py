"""Exactly one BOS, special tokens in text stay text, truncation that commutes with swapping."""

import copy

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tokenizers import KINDS, small_tokenizer

from data.classes import PREFERENCE, Classes
from data.encoding.encode import Encoder, pad_token_id, tokenizer_hash
from data.encoding.template import Template
from data.encoding.truncate import Truncation
from data.errors import UserError
from data.schema import make_rows
from distill.model.tiny import train_tokenizer

TEXTS = ["What is the capital of France?", "Paris is the capital.", "I do not know, sorry."] * 20


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def tokenizer(request):
    return train_tokenizer(request.param, TEXTS, 400)


def preference_rows(prompt="Where?", a="Here.", b="There, I think."):
    return make_rows(
        {"row_id": ["r0"], "prompt": [[prompt]], "response_a": [[a]], "response_b": [[b]], "label": [0]},
        PREFERENCE,
        "test",
    )


def test_every_sequence_starts_with_the_only_bos(tokenizer):
    hostile = preference_rows(a=f"see {tokenizer.bos_token}{tokenizer.eos_token} here", b=tokenizer.bos_token)
    encoded = Encoder(tokenizer, Template(), Truncation(256)).encode(hostile)
    for sequence in (encoded[0], encoded[1]):
        assert sequence[0] == tokenizer.bos_token_id
        assert (sequence == tokenizer.bos_token_id).sum() == 1
        assert tokenizer.eos_token_id not in sequence
    text = tokenizer.decode(encoded[0][1:])
    assert tokenizer.eos_token in text  # spelled out, it stays in the text


@pytest.mark.parametrize("side", ["left", "right", "middle"])
@pytest.mark.parametrize("max_length", [60, 75, 100, 512])
def test_truncation_commutes_with_swap(tokenizer, side, max_length):
    a, b = "Paris is the capital. " * 9, "I do not know. " * 14
    encoder = Encoder(tokenizer, Template(), Truncation(max_length, side=side))
    as_given = encoder.encode(preference_rows(a=a, b=b))
    exchanged = encoder.encode(preference_rows(a=b, b=a))
    np.testing.assert_array_equal(as_given[1], exchanged[0])
    np.testing.assert_array_equal(as_given[0], exchanged[1])
    assert as_given.lengths.max() <= max_length
    assert as_given.truncated == (2 if max_length < 512 else 0)


def test_the_template_survives_truncation(tokenizer):
    rows = preference_rows(prompt="Where? " * 300, a="Here. " * 300, b="There. " * 300)
    text = tokenizer.decode(Encoder(tokenizer, Template(), Truncation(128)).encode(rows)[0])
    for tag in ("<prompt>:", "<response_a>:", "<response_b>:", "<verdict>:", "Where?", "Here.", "There."):
        assert tag in text


def test_tags_that_do_not_fit_are_refused(tokenizer):
    with pytest.raises(UserError, match="raise max_length"):
        Encoder(tokenizer, Template(), Truncation(16)).encode(preference_rows())


def test_a_separator_that_is_the_bos_does_not_stand_at_the_end():
    tokenizer = copy.deepcopy(small_tokenizer("byte_bpe"))
    tokenizer.cls_token = tokenizer.sep_token = tokenizer.bos_token
    encoded = Encoder(tokenizer, Template(), Truncation(256)).encode(preference_rows())
    assert (encoded.ids == tokenizer.bos_token_id).sum() == 2


def test_a_plain_text_row_has_one_order(tokenizer):
    rows = make_rows({"row_id": ["x"], "prompt": [["hello"]], "label": [1]}, Classes(("no", "yes")), "test")
    encoded = Encoder(tokenizer, Template(), Truncation(32)).encode(rows)
    assert encoded.orders == 1
    assert len(encoded.lengths) == 1


def test_pad_is_never_eos_or_bos(tokenizer):
    assert pad_token_id(tokenizer) not in {tokenizer.eos_token_id, tokenizer.bos_token_id}
    tokenizer_like_llama = train_tokenizer("llama", TEXTS, 400)
    tokenizer_like_llama.pad_token = tokenizer_like_llama.eos_token
    assert pad_token_id(tokenizer_like_llama) == tokenizer_like_llama.convert_tokens_to_ids(
        "<|finetune_right_pad_id|>"
    )


def test_tokenizer_hash_sees_the_vocabulary(tokenizer):
    assert tokenizer_hash(tokenizer) == tokenizer_hash(tokenizer)
    assert tokenizer_hash(tokenizer) != tokenizer_hash(train_tokenizer("llama", TEXTS, 270))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 3}, "max_length"),
        ({"prompt_share": 2.0}, "prompt_share"),
        ({"side": "both"}, "side"),
    ],
)
def test_bad_truncation_is_named(options, message):
    with pytest.raises(UserError, match=message):
        Truncation(**options)


SEAMS = {
    "byte_bpe": "<|eot_id|>",
    "sentencepiece_bpe": "<end_of_turn>",
    "sentencepiece_unigram": "</s>",
    "wordpiece": "[SEP]",
}
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
parts = st.lists(texts, min_size=1, max_size=3)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(prompt=parts, a=parts, b=parts)
def test_ids_are_those_of_the_whole_text_where_nothing_merges_across_a_seam(kind, prompt, a, b):
    tokenizer, seam = small_tokenizer(kind), SEAMS[kind]
    turn = "Q|{{ t.prompt }}|A|{{ t.response_a }}|B|{{ t.response_b }}|".replace("|", seam)
    template = Template("seamless", f"{{% for t in turns %}}{turn}{{% endfor %}}Better")
    rows = make_rows(
        {"row_id": ["r"], "prompt": [prompt], "response_a": [a], "response_b": [b]}, PREFERENCE, "t"
    )
    encoder = Encoder(tokenizer, template, Truncation(10_000))
    encoded = encoder.encode(rows)
    for order in (False, True):
        text = "".join(s.text for s in template.segments(prompt, a, b, swap=order))
        whole = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert encoded[int(order)].tolist() == encoder.prefix + whole + encoder.suffix


def test_added_tokens_that_are_not_flagged_special_stay_text_too(tokenizer):
    """Gemma's <2mass> and HTML tags, Qwen's <tool_call>; runs of line breaks are text, and stay tokens."""
    from tokenizers import AddedToken

    changed = copy.deepcopy(tokenizer)
    names = ["<tool_call>", "<2mass>", "[multimodal]", "\n\n"]
    changed.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])
    *markers, breaks = changed.convert_tokens_to_ids(names)
    encoder = Encoder(changed, Template(), Truncation(512))
    encoded = encoder.encode(preference_rows(a="call <tool_call><2mass> now [multimodal]", b="one\n\ntwo"))
    assert not np.isin(encoded.ids, markers).any()
    assert (encoded.ids == breaks).any()
    assert "<tool_call><2mass> now [multimodal]" in changed.decode(encoded[0][1:])


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_chat_template_may_open_every_turn_with_the_bos():
    """ChatML where <|im_start|> is the BOS, as SmolLM2 has it; twice in a row it is refused as before."""
    tokenizer = copy.deepcopy(train_tokenizer("llama", TEXTS, 400))
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    tokenizer.chat_template = CHATML
    encoded = Encoder(tokenizer, Template("chat"), Truncation(512)).encode(
        preference_rows(a="see <|im_start|>system here")
    )
    for sequence in (encoded[0], encoded[1]):
        assert np.flatnonzero(sequence == tokenizer.bos_token_id).tolist()[0] == 0
        assert (sequence == tokenizer.bos_token_id).sum() == 2  # the user's turn and the answer's
    tokenizer.chat_template = "<|im_start|>" + CHATML
    with pytest.raises(UserError, match="writes the BOS token"):
        Encoder(tokenizer, Template("chat"), Truncation(512)).encode(preference_rows())
