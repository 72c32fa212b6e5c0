"""A faster road to the same ids for tokenizers of Llama 3's kind, taken only where it provably leads there.

Byte-level BPE whose merges are all that its vocabulary allows, in the order of the vocabulary, is what
the tiktoken library computes, several times faster than the tokenizers library. Whether a tokenizer is
of that kind is read from its definition, or known where it was made from tiktoken's own file, and a set of
awkward probes must give equal ids; otherwise, and for very long texts, nothing changes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data.files import sha256_text

LONGEST = 20_000
"""Characters; tiktoken's regular expressions overflow the stack on enormous runs of white space."""

PROBES = (
    "", " ", "  a", "a  ", " \n \n\n x", "\r\n\t", "I'll it'S 'ſ Don'T", "123456 7", "x=1;\n\n-",
    "…\u00a0\u3000", "naïve Straße ÅΩ", "東京は日本の首都です。", "🙂👩‍👩‍👧 \u200d", "aaaaaaaaaaaaaaa",
    "ababababab ^^^^^^^", "\ufffd\u0085\u2028\ue000",
    "<|begin_of_text|> <|eot_id|>", "<bos>", "http://a.b/c?d=e&f", "    def f():\n        return 'x'\n",
)  # fmt: skip


@dataclass(frozen=True)
class FastBpe:
    """What tiktoken needs to know of a tokenizer.

    Attributes
    ----------
    pattern : str
        The regular expression that splits text.
    ranks : dict of bytes to int
    """

    pattern: str
    ranks: dict[bytes, int]

    @cached_property
    def _encoding(self) -> Any:
        import tiktoken

        return tiktoken.Encoding("same", pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens={})

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text, special tokens spelled in it being text; uint32."""
        return np.array(self._encoding.encode_ordinary(text), dtype=np.uint32)


_known: dict[str, FastBpe] = {}
"""By hash of the tokenizer's definition: to read it off the definition takes a second."""


def remember(definition: str, pattern: str, ranks: dict[bytes, int]) -> None:
    """Tell of a tokenizer that was made from tiktoken's ranks."""
    _known[sha256_text(definition)] = FastBpe(pattern, ranks)


def is_known(definition: str) -> bool:
    """Whether :func:`fast_bpe` has nothing to read."""
    return sha256_text(definition) in _known


def fast_bpe(backend: Any, definition: str) -> FastBpe | None:
    """Return the faster form of a tokenizer, or None where it has none.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
        With ``encode_special_tokens`` set, for the probes.
    definition : str
        Its JSON, which takes a while to write and is at hand where this is called.
    """
    key = sha256_text(definition)
    found = _known.get(key) or read_definition(definition)
    if found is None:
        return None
    for probe in PROBES:
        if backend.encode(probe, add_special_tokens=False).ids != found.encode(probe).tolist():
            return None
    _known[key] = found
    return found


def read_definition(definition: str) -> FastBpe | None:
    """Return the faster form of a tokenizer if its definition says that it has one."""
    described = json.loads(definition)
    pattern, model = _pattern(described), described["model"]
    if pattern is None or not _merges_all(model):
        return None
    letters = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}
    try:
        ranks = {bytes(letters[c] for c in token): number for token, number in model["vocab"].items()}
    except KeyError:  # a piece that no bytes make
        return None
    if any(bytes([byte]) not in ranks for byte in range(256)):
        return None
    return FastBpe(pattern, ranks)


def merges_of(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Return every merge of two tokens that makes a token, lower ids first."""
    merges: list[tuple[str, str]] = []
    for token in sorted(vocabulary, key=vocabulary.__getitem__):
        pairs = _splits(token, vocabulary)
        merges += sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges


def _splits(token: str, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    return [
        (token[:i], token[i:])
        for i in range(1, len(token))
        if token[:i] in vocabulary and token[i:] in vocabulary
    ]


def _pattern(definition: dict[str, Any]) -> str | None:
    """The splitting expression of a definition that does nothing else to a text."""
    if definition.get("normalizer") or any(not token["special"] for token in definition["added_tokens"]):
        return None
    steps = (definition.get("pre_tokenizer") or {}).get("pretokenizers", [])
    if [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return None
    split, to_bytes = steps
    plain = split["behavior"] == "Isolated" and not split["invert"]
    plain = plain and not to_bytes["add_prefix_space"] and not to_bytes["use_regex"]
    return split["pattern"].get("Regex") if plain else None


def _merges_all(model: dict[str, Any]) -> bool:
    """Whether a BPE model merges every pair that makes a token, lower token ids first."""
    if model["type"] != "BPE" or model.get("dropout") or not model.get("ignore_merges"):
        return False
    if any(model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")):
        return False
    vocabulary: dict[str, int] = model["vocab"]
    merges = [(first, second) for first, second in model["merges"]]
    made = [vocabulary[first + second] for first, second in merges]
    return made == sorted(made) and len(set(merges)) == sum(len(_splits(t, vocabulary)) for t in vocabulary)


def _byte_letters() -> list[str]:
    """The printable letter that byte-level tokenizers write for each byte (the table of GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [""] * 256
    following = 256
    for byte in range(256):
        if byte in printable:
            letters[byte] = chr(byte)
        else:
            letters[byte] = chr(following)
            following += 1
    return letters


BYTE_LETTERS = _byte_letters()
