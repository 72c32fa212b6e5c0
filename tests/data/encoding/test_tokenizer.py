"""Tokenizers of every origin through one path; the real Llama 3 one where it is at hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import KINDS, small_tokenizer
from tokenizers import Tokenizer

from data.encoding import plain_text as plain_text_module
from data.encoding.encode import Encoder, pad_token_id, tokenizer_hash
from data.encoding.fast_bpe import LONGEST, fast_bpe, read_definition
from data.encoding.plain_text import PlainText
from data.encoding.template import Template
from data.encoding.tokenizer import load_tokenizer
from data.encoding.truncate import Truncation
from data.errors import UserError
from data.sources.read import read_source


@pytest.fixture(scope="module")
def llama(real_data: Path):
    return load_tokenizer(str(real_data / "llama3_tokenizer"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_comes_back_with_its_roles(tmp_path: Path, kind: str) -> None:
    made = small_tokenizer(kind)
    made.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    made.save_pretrained(tmp_path / "whole")
    for source in (tmp_path / "tokenizer.json", tmp_path / "whole"):
        loaded = load_tokenizer(str(source))
        assert loaded.is_fast
        for role in ("bos_token_id", "cls_token_id", "eos_token_id", "unk_token_id"):
            assert getattr(loaded, role) == getattr(made, role), role
        encoder, other = (Encoder(t, Template(), Truncation(64)) for t in (made, loaded))
        assert encoder.prefix == other.prefix != []
        assert encoder.plain(["Paris, 東京"])[0].tolist() == other.plain(["Paris, 東京"])[0].tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{}", "not a tokenizer.json or tiktoken file"),
        ("tokenizer.model", b"\x00\x01", "not a tokenizer.json or tiktoken file"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "holds 2 ranks where a Llama 3 tokenizer has 128000"),
        ("tokenizer.model", b"IQ== 0\nIg", "not a readable tiktoken file"),
        ("other", None, "no tokenizer could be loaded"),
        ("gone.model", None, "no such tokenizer file"),
    ],
)
def test_bad_tokenizers_are_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(str(tmp_path / name))


def test_a_tiktoken_file_is_read_each_time(real_data: Path, tmp_path: Path) -> None:
    """tiktoken's own reader keeps a copy by path, and would not see that the file is now another."""
    content = (real_data / "llama3_tokenizer" / "tokenizer.model").read_bytes()
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    load_tokenizer(str(tmp_path))
    lines = content.splitlines(keepends=True)
    for changed, message in (
        (content[: len(content) // 2], "is it cut off"),
        (b"".join(lines[:-1]), "holds 127999 ranks where a Llama 3 tokenizer has 128000"),
        (b"".join([*lines[:500], *lines[501:]]), "line 501 has rank 501"),
        (b"".join([*lines[:-1], lines[7].split()[0] + b" 127999\n"]), "that was there before"),
    ):
        path.write_bytes(changed)
        with pytest.raises(UserError, match=message):
            load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_cuts_and_pads_leaves_no_trace(kind: str) -> None:
    tokenizer = copy.deepcopy(small_tokenizer(kind))
    encoder = Encoder(tokenizer, Template("winner"), Truncation(64))
    before = tokenizer_hash(tokenizer)
    text = "xyzzy plugh quux, 98 times"
    expected = encoder.plain([text])[0].tolist()
    tokenizer([text, "x"], padding="max_length", truncation=True, max_length=4)
    assert encoder.plain([text])[0].tolist() == expected
    tokenizer([text, "x"], padding="max_length", truncation=True, max_length=4)
    assert encoder.fixed_length((1, 1, 1), True) > 12
    tokenizer([text, "x"], padding="max_length", truncation=True, max_length=4)
    assert tokenizer_hash(tokenizer) == before


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_truncation_saved_with_a_tokenizer_are_dropped(tmp_path: Path, kind: str) -> None:
    """As sentence encoders are saved: every text padded to a length, and cut at it."""
    made = small_tokenizer(kind)
    made.save_pretrained(tmp_path / "honest")
    made.save_pretrained(tmp_path / "cutting")
    path = tmp_path / "cutting" / "tokenizer.json"
    cutting = Tokenizer.from_file(str(path))
    cutting.enable_padding(length=12)
    cutting.enable_truncation(12)
    cutting.save(str(path))
    texts = ["Paris", "xyzzy plugh quux, 98 times; " * 4]
    for source in (tmp_path / "cutting", path):
        found = Encoder(load_tokenizer(str(source)), Template(), Truncation(64)).plain(texts)
        expected = Encoder(load_tokenizer(str(tmp_path / "honest")), Template(), Truncation(64)).plain(texts)
        assert [ids.tolist() for ids in found] == [ids.tolist() for ids in expected]
        assert len(found[0]) < 12 < len(found[1])


def test_real_llama_tokenizer(llama, real_data: Path) -> None:
    assert llama.is_fast
    assert (llama.bos_token_id, llama.eos_token_id, pad_token_id(llama)) == (128000, 128001, 128004)
    assert llama.convert_tokens_to_ids(["<|eot_id|>", "<|reserved_special_token_247|>"]) == [128009, 128255]
    encoder = Encoder(llama, Template(), Truncation(1024))
    assert encoder.plain(["Hello world"])[0].tolist() == [9906, 1917]
    assert llama("Hello world").input_ids == [128000, 9906, 1917]
    assert llama("Hello", "Hello").input_ids == [128000, 9906, 128000, 9906]
    rows, _ = read_source(str(real_data / "lmsys" / "preferences.csv"))
    lengths = encoder.tokenize(rows).totals().sum(axis=1)
    expected = {5: 93, 25: 254, 50: 527, 90: 1309, 95: 1755, 99: 3563}  # as counted on the whole set
    for percentile, value in expected.items():
        assert abs(np.percentile(lengths, percentile) / value - 1) < 0.25
    encoded = encoder.encode(rows)
    assert encoded.lengths.max() == 1024
    assert (encoded.ids == 128000).sum() == 2 * len(rows)
    assert (encoded.ids > 128000).sum() == 0


def test_the_faster_road_is_taken_for_llama_and_gives_the_same_ids(llama, real_data: Path) -> None:
    backend = llama.backend_tokenizer
    backend.encode_special_tokens = True
    try:
        fast = fast_bpe(backend, backend.to_str())
        assert fast is not None
        assert (
            read_definition(backend.to_str()) == fast
        )  # known from its file, or read off what was made of it
        rows, _ = read_source(str(real_data / "lmsys" / "preferences.csv"))
        texts = [t for turns in rows.table["response_a"].to_pylist()[:400] for t in turns]
        rng = np.random.default_rng(0)
        letters = list(
            "abcdefgxyzABéñабв日本語の한국-_=+*/.,;:!?#'\"()<>|\\^$@0123456789 \t\n\r  \u00a0\u2028🙂ſ"
        )
        for _ in range(3000):
            few = rng.choice(letters, rng.integers(1, 5))
            texts.append("".join(rng.choice(few, rng.integers(1, 40))))
        texts += [f"a{chr(c)}b {chr(c)}1'{chr(c)}\n{chr(c)}" for c in range(0x20, 0x3100) if c != 0xD800]
        texts += ["<|begin_of_text|>", " " * LONGEST, "a" * LONGEST, "\n " * (LONGEST // 2)]
        slow = backend.encode_batch_fast(texts, add_special_tokens=False)
    finally:
        backend.encode_special_tokens = False
    for text, encoding in zip(texts, slow, strict=True):
        assert fast.encode(text).tolist() == encoding.ids, text[:80]


def test_texts_too_long_for_the_faster_road_take_the_other(llama) -> None:
    plain = Encoder(llama, Template(), Truncation(64)).plain
    plain.seek_fast()
    assert plain.fast is not None
    long = " " * 300_000 + "end"
    backend = llama.backend_tokenizer
    one, two, three, four = plain([long, "short", long + "s", "last"])
    assert one.tolist() == backend.encode(long, add_special_tokens=False).ids
    assert two.tolist() == backend.encode("short", add_special_tokens=False).ids
    assert three.tolist() == backend.encode(long + "s", add_special_tokens=False).ids
    assert four.tolist() == backend.encode("last", add_special_tokens=False).ids


def test_one_long_text_does_not_send_the_others_the_slower_road(
    llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Encoder(llama, Template(), Truncation(64)).plain
    plain.seek_fast()
    slow: list[int] = []
    monkeypatch.setattr(plain, "_slowly", lambda texts: slow.append(len(texts)) or [np.zeros(0)] * len(texts))
    plain(["short"] * 50 + ["x" * (LONGEST + 1)])
    assert slow == [1]


def test_a_faster_road_is_sought_once_there_was_enough_to_tokenize(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Encoder(small_tokenizer("byte_bpe"), Template(), Truncation(64)).plain
    sought: list[int] = []
    monkeypatch.setattr(plain_text_module, "KNOWN_FROM", 500)
    monkeypatch.setattr(plain_text_module, "FAST_FROM", 1000)
    monkeypatch.setattr(plain_text_module, "fast_bpe", lambda *_: sought.append(1))
    for _ in range(9):
        plain(["x" * 100])
    assert not sought
    for _ in range(9):
        plain(["x" * 100])
    assert sought == [1]


def test_a_faster_road_that_is_known_is_taken_sooner(llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_text_module, "KNOWN_FROM", 1000)
    plain = Encoder(llama, Template(), Truncation(64)).plain
    plain(["x" * 900])
    assert plain.fast is None
    plain(["x" * 100])
    assert plain.fast is not None


def test_a_worker_that_is_told_the_faster_road_never_loads_the_tokenizer(llama) -> None:
    known = Encoder(llama, Template(), Truncation(64)).plain
    known.seek_fast()
    told = PlainText(lambda: pytest.fail("loaded"), known.special, known.fast, seek=False)
    assert sum(map(len, told(["word " * 1000] * 200))) == 200 * 1001


@pytest.mark.parametrize("kind", KINDS)
def test_other_tokenizers_keep_their_own_road(kind: str) -> None:
    backend = small_tokenizer(kind).backend_tokenizer
    assert fast_bpe(backend, backend.to_str()) is None


def small_llama():
    """A tokenizer of Llama 3's kind over a few letters, every possible merge in it."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    letters = [chr(c) for c in range(256)]
    table = {bytes([b]): letter for b, letter in enumerate(_byte_letters())}
    tokens = [*table.values(), "ab", "ba", "aba", "bb", "abab", "babb", "aa", "aaa"]
    vocab = {token: i for i, token in enumerate(tokens)}
    assert len(letters) == 256
    merges = [
        (token[:i], token[i:])
        for token in tokens
        for i in range(1, len(token))
        if token[:i] in vocab and token[i:] in vocab
    ]
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|[^\p{L}]+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return backend


def _byte_letters() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    level = ByteLevel(add_prefix_space=False, use_regex=False)
    known = {}
    for c in range(0x100):
        for byte, letter in zip(chr(c).encode(), level.pre_tokenize_str(chr(c))[0][0], strict=True):
            known[byte] = letter
    rest = iter(sorted(set(ByteLevel.alphabet()) - set(known.values())))
    return [known.get(b) or next(rest) for b in range(256)]


SMALL = small_llama()


@settings(max_examples=300, deadline=None)
@given(st.text("ab c", max_size=24))
def test_the_faster_road_on_a_small_vocabulary(text: str) -> None:
    fast = fast_bpe(SMALL, SMALL.to_str())
    assert fast is not None
    assert fast.encode(text).tolist() == SMALL.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["model"].update(ignore_merges=False),
        lambda d: d["model"]["merges"].pop(),
        lambda d: d["model"]["merges"].reverse(),
        lambda d: d.update(normalizer={"type": "NFC"}),
        lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        lambda d: d["pre_tokenizer"]["pretokenizers"].pop(0),
    ],
)
def test_a_tokenizer_that_differs_in_anything_keeps_its_own_road(change) -> None:
    from tokenizers import Tokenizer

    definition = json.loads(SMALL.to_str())
    change(definition)
    changed = Tokenizer.from_str(json.dumps(definition))
    assert fast_bpe(changed, changed.to_str()) is None
