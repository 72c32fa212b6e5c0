"""Rows become segments; a template never sees their text, and swapping exchanges the responses alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from small_tokenizers import small_tokenizer

from data.classes import PREFERENCE
from data.encoding.encode import Encoder, Truncation
from data.encoding.template import Template, read_template, template_names
from data.errors import UserError
from data.schema import make_rows

TURNS = (["Hi", None], ["one"], ["two", "three"])
LLAMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{{ message['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def texts(template=None, **options):
    return [(s.part, s.text) for s in (template or Template()).segments(*TURNS, **options)]


def test_a_pair_is_laid_out_turn_by_turn():
    parts = [part for part, text in texts() if part != "tag"]
    assert parts == ["prompt", "response_a", "response_b", "prompt", "response_b"]
    assert "".join(text for _, text in texts()) == (
        "<prompt>:\nHi\n\n<response_a>:\none\n\n<response_b>:\ntwo\n\n"
        "<prompt>:\n\n\n<response_a>:\n\n\n<response_b>:\nthree\n\n<verdict>:"
    )


@pytest.mark.parametrize("name", sorted(set(template_names()) - {"chat"}))
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 3, 3), (3, 2, 1), (1, 1, 2), (2, 0, 0)])
def test_shipped_templates_hold_every_turn_once(name, shape):
    layout = Template(name).layout(shape)
    turns = [piece for piece in layout if not isinstance(piece, str)]
    assert sorted(turns) == [(part, turn) for part, n in enumerate(shape) for turn in range(n)]
    if name != "notebook":  # which ends in response B
        assert isinstance(layout[-1], str)


def test_the_public_notebook_is_met_to_the_letter():
    text = "".join(s.text for s in Template("notebook").segments(["p", "q"], ["a", "b"], ["c", "d"]))
    assert text == "<prompt>: p q\n\n<response_a>: a b\n\n<response_b>: c d"


def test_swap_exchanges_the_responses_and_nothing_else():
    one = Template().segments(["p"], ["a"], ["b"])
    two = Template().segments(["p"], ["a"], ["b"], swap=True)
    assert [s.text for s in two] == [{"a": "b", "b": "a"}.get(s.text, s.text) for s in one]


def test_a_plain_text_row_is_its_prompt_alone():
    assert texts(pair=False) == [("prompt", "Hi"), ("tag", "\n"), ("prompt", "")]


def test_a_template_of_one_s_own_lays_out_plain_texts_too(tmp_path):
    """It was ignored for them, and recorded all the same."""
    own = tmp_path / "own.jinja"
    own.write_text('Text: {{ prompts | join(" / ") }}\nTopic:')
    found = read_template(str(own)).segments(["one", "two"], [], [], pair=False)
    assert [(s.part, s.text) for s in found] == [
        ("tag", "Text: "), ("prompt", "one"), ("tag", " / "), ("prompt", "two"), ("tag", "\nTopic:"),
    ]  # fmt: skip
    assert Template(**asdict(read_template(str(own)))).layout((2, 0, 0), False) == read_template(
        str(own)
    ).layout((2, 0, 0), False)


@pytest.mark.parametrize("name", [name for name in template_names() if name != "pair"])
def test_a_shipped_template_for_pairs_is_refused_for_plain_texts(name):
    with pytest.raises(UserError, match=rf"template {name} lays out pairs"):
        Template(name).layout((1, 0, 0), False)


def test_a_template_survives_a_manifest(tmp_path):
    own = tmp_path / "own.jinja"
    own.write_text(
        "{% for t in turns %}Q {{ t.prompt }} 1 {{ t.response_a }} 2 {{ t.response_b }}{% endfor %} ="
    )
    template = read_template(str(own))
    assert template.name == "own"
    own.unlink()
    assert Template(**asdict(template)) == template
    assert Template(**asdict(Template())) == Template()


def test_a_row_that_spells_jinja_or_marks_changes_nothing():
    hostile = "{{ turns }} {% raw %} \ue0001:0\ue001"
    (text,) = [s.text for s in Template().segments([hostile], ["a"], ["b"]) if s.part == "prompt"]
    assert text == hostile


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for t in turns %}{{ t.prompt }}", "not a Jinja template"),
        ("{{ turns[0].prompt }} {{ turns[0].response_a }}", "puts turn 1 of response_b nowhere"),
        ("{{ turns[0].prompt }}{{ turns[0].prompt }}", "puts turn 1 of prompt more than once"),
        ("{{ prompts | join | replace('0', '9') }}", "turn"),
        ("{{ prompts[0][1:] }}", "changes the text of a turn"),
        ("{{ nothing }}", "cannot be rendered.*undefined"),
        ("{{ turns.__class__.__mro__ }}", "cannot be rendered.*unsafe"),
        ("{{ turns.append(1) }}", "cannot be rendered"),
        ("{% include '/etc/passwd' %}", "cannot be rendered"),
        ("{{ 1 / 0 }}", "cannot be rendered"),
        ("{{ range(10 ** 9) | list }}", "cannot be rendered"),
        ("{{ range(99999999) | list }}", "cannot be rendered"),
        ("{{ 2 ** (9 ** 9) }}", "cannot be rendered.*no use for powers"),
        ("{{ '%99999999999999d' % 1 }}", "cannot be rendered"),
        ("{% for i in range(9999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "does it loop?"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "cannot be rendered.*recursion"),
        ("{{ prompts | random }}", "not a Jinja template.*random"),
        ("{{ lipsum() }}", "cannot be rendered.*undefined"),
        ("{{ '\\ud800' }}", "cannot be rendered"),
        ("{{ prompts[0] | trim }}", "changes the text of a turn"),
        ("{{ prompts[0] | upper }}", "changes the text of a turn"),
        ("{{ prompts[0] | e }}", "changes the text of a turn"),
        ("{{ prompts[0] | truncate(2000) }}", "changes the text of a turn"),
        ("{{ prompts[0] | replace('\n', ' ') }}", "changes the text of a turn"),
        ("{{ prompts[0][:2000] }}", "changes the text of a turn"),
        ("x \ue000", "reserved characters"),
        ("  \n", "is empty"),
    ],
)
def test_bad_templates_are_named(tmp_path: Path, text, message):
    path = tmp_path / "bad.jinja"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        read_template(str(path)).layout((1, 1, 1))
    assert "bad" in str(caught.value)


def test_a_chat_template_may_trim_the_message_that_is_one_turn():
    own = Template("own", "{{ chat(prompts[0]) }}1: {{ responses_a[0] }} 2: {{ responses_b[0] }}")
    layout = own.layout((1, 1, 1), chat=lambda text: f"<user>{text.strip()}<end>")
    assert layout == ["<user>", (0, 0), "<end>1: ", (1, 0), " 2: ", (2, 0)]


def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text("Q {{ prompts[0] }}{{ responses_a[0] }}{{ responses_b[0] }}", encoding="utf-8-sig")
    assert read_template(str(path)).layout((1, 1, 1))[0] == "Q "


def test_unknown_templates_are_named(tmp_path):
    with pytest.raises(UserError, match="no template fancy; there are chat, notebook, pair, winner"):
        read_template("fancy")
    with pytest.raises(UserError, match="no such template"):
        read_template(str(tmp_path / "gone.jinja"))
    (tmp_path / "latin.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(UserError, match="cannot be read as a template"):
        read_template(str(tmp_path / "latin.jinja"))


def chat_tokenizer():
    import copy

    tokenizer = copy.deepcopy(small_tokenizer("byte_bpe"))
    tokenizer.chat_template = LLAMA_CHAT
    return tokenizer


def one_row():
    return make_rows(
        {"row_id": ["r"], "prompt": [["Why?"]], "response_a": [["a b"]], "response_b": [["c"]]},
        PREFERENCE,
        "t",
    )


def test_a_chat_template_brings_no_second_bos():
    tokenizer = chat_tokenizer()
    encoder = Encoder(tokenizer, Template("chat"), Truncation(512))
    ids = encoder.encode(one_row())[0]
    assert (ids == tokenizer.bos_token_id).sum() == 1
    text = tokenizer.decode(ids)
    assert text.startswith("<|begin_of_text|><|user|>\nTwo assistants")
    assert text.endswith("<|end|>\n<|assistant|>\nVerdict:")
    baked = encoder.describe()["template"]
    assert baked["chat_template"] == LLAMA_CHAT
    tokenizer.chat_template = "{{ messages[0]['content'] }}"  # the manifest's is used, not a later one
    assert (
        Encoder(tokenizer, Template(**baked), Truncation(512)).encode(one_row())[0].tolist() == ids.tolist()
    )


def test_chat_without_or_with_a_broken_chat_template_is_a_users_mistake():
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="template chat needs a chat template and the tokenizer has none"):
        Encoder(tokenizer, Template("chat"), Truncation(512))
    tokenizer.chat_template = "{{ raise_exception('no users here') }}"
    with pytest.raises(UserError, match="no users here"):
        Encoder(tokenizer, Template("chat"), Truncation(512)).encode(one_row())
    with pytest.raises(UserError, match="needs a tokenizer"):
        Template("chat").segments(["p"], ["a"], ["b"])


@pytest.mark.parametrize("family", ["gemma-it", "llama-3-instruct"])
def test_real_chat_templates(real_data: Path, family):
    import copy

    source = (real_data / "chat_templates" / f"{family}.jinja").read_text()
    kind = "sentencepiece_bpe" if family == "gemma-it" else "byte_bpe"
    tokenizer = copy.deepcopy(small_tokenizer(kind))
    tokenizer.chat_template = source.replace("    ", "").replace("\n", "").replace("\\n", "\n")
    encoder = Encoder(tokenizer, Template("chat"), Truncation(1024))
    ids = encoder.encode(one_row())[0]
    assert ids[0] == tokenizer.bos_token_id
    assert (ids == tokenizer.bos_token_id).sum() == 1
    whole = "".join(
        s if isinstance(s, str) else {0: "Why?", 1: "a b", 2: "c"}[s[0]]
        for s in encoder.template.layout((1, 1, 1), chat=encoder.chat)
    )
    if family == "gemma-it":  # turns are marked by special tokens, kept whole
        assert tokenizer.convert_tokens_to_ids("<start_of_turn>") in ids
    assert tokenizer.decode(ids).removeprefix(tokenizer.bos_token) == whole.removeprefix(tokenizer.bos_token)


def test_a_bos_inside_a_template_is_refused():
    tokenizer = small_tokenizer("byte_bpe")
    own = Template(
        "own", "{{ turns[0].prompt }}<|begin_of_text|>{{ turns[0].response_a }}{{ turns[0].response_b }}"
    )
    with pytest.raises(UserError, match="writes the BOS token"):
        Encoder(tokenizer, own, Truncation(64)).encode(one_row())
