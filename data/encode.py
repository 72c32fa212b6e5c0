"""Segments to token ids: the one path by which any row becomes a model's input.

Exactly one BOS, put in by id and asserted, whatever the tokenizer's own habits (a missing BOS is
transformers #32172; a double one, OpenRLHF #393). Special tokens spelled out in a row's text stay
text. Truncation has a budget a segment, keeps every tag, and commutes with swapping the responses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.errors import UserError
from data.files import sha256_text
from data.schema import Rows
from data.template import Part, Segment, Template

RESERVED_PADS = ("<|finetune_right_pad_id|>", "<pad>", "<|reserved_special_token_0|>", "[PAD]", "<unk>")
KEEP_SIDES = ("start", "end", "both")
PARTS: tuple[Part, ...] = ("prompt", "response_a", "response_b")
CHUNK_ROWS = 2048


@dataclass(frozen=True)
class Truncation:
    """How a row is cut to fit.

    Attributes
    ----------
    max_length : int
        Tokens a row may have, BOS and tags included.
    prompt_share : float
        Share of the room that the prompt is sure of when the row is too long. What the responses
        leave over also goes to the prompt, and the reverse.
    keep : {"start", "end", "both"}
        Which side of a part that is too long stays; "both" cuts out its middle.
    """

    max_length: int = 1024
    prompt_share: float = 0.25
    keep: str = "both"

    def __post_init__(self) -> None:
        if self.max_length < 16:
            raise UserError(f"max_length is {self.max_length}; a row needs at least 16 tokens")
        if not 0 <= self.prompt_share <= 1:
            raise UserError(f"prompt_share is {self.prompt_share}; it must lie between 0 and 1")
        if self.keep not in KEEP_SIDES:
            raise UserError(f"keep is {self.keep!r}; it must be one of {', '.join(KEEP_SIDES)}")


@dataclass(frozen=True)
class Encoded:
    """Token ids of many sequences: sequence ``i * orders + o`` is row ``i`` in order ``o``.

    Attributes
    ----------
    ids : ndarray of int32
        All sequences one after another.
    offsets : ndarray of int64, one more than there are sequences
        Sequence ``s`` is ``ids[offsets[s]:offsets[s + 1]]``.
    orders : int
        Orders encoded a row: 2 for a pair, else 1.
    truncated : int
        Sequences that did not fit whole.
    """

    ids: np.ndarray
    offsets: np.ndarray
    orders: int
    truncated: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens a sequence."""
        return np.diff(self.offsets)

    def __getitem__(self, sequence: int) -> np.ndarray:
        return self.ids[self.offsets[sequence] : self.offsets[sequence + 1]]


def budgets(prompt: int, first: int, second: int, room: int, prompt_share: float) -> tuple[int, int, int]:
    """Share ``room`` tokens among a prompt and two responses of the given lengths.

    Symmetric in the responses: exchanging their lengths exchanges their budgets.
    """
    room = max(room, 0)
    if prompt + first + second <= room:
        return prompt, first, second
    prompt_budget = min(prompt, max(int(room * prompt_share), room - first - second))
    rest = room - prompt_budget
    half = rest // 2
    return prompt_budget, min(first, max(half, rest - second)), min(second, max(half, rest - first))


def cut(ids: list[int], budget: int, keep: str) -> list[int]:
    """Cut ``ids`` to ``budget`` tokens, keeping the start, the end, or both ends."""
    if len(ids) <= budget:
        return ids
    if keep == "start":
        return ids[:budget]
    if keep == "end":
        return ids[len(ids) - budget :]
    head = (budget + 1) // 2
    return ids[:head] + ids[len(ids) - (budget - head) :]


class Encoder:
    """Turns rows into token ids.

    Parameters
    ----------
    tokenizer : transformers fast tokenizer
    template : Template
    truncation : Truncation

    Raises
    ------
    UserError
        The tokenizer is not a fast one, or the template's tags alone exceed ``max_length``.
    """

    def __init__(self, tokenizer: Any, template: Template, truncation: Truncation) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise UserError("this tokenizer has no fast form (tokenizer.json); convert it first")
        self.tokenizer = tokenizer
        self.template = template
        self.truncation = truncation
        bos, cls = tokenizer.bos_token_id, tokenizer.cls_token_id
        bos = cls if bos is None else bos
        self.prefix: list[int] = [] if bos is None else [int(bos)]
        # An encoder's texts stand between [CLS] and [SEP]; a decoder's have no end.
        encoder = cls is not None and tokenizer.sep_token_id is not None
        self.suffix: list[int] = [int(tokenizer.sep_token_id)] if encoder else []

    def encode(self, rows: Rows) -> Encoded:
        """Encode every row in all its orders."""
        orders = rows.classes.orders
        pair = rows.classes.swap is not None
        sequences: list[list[int]] = []
        truncated = 0
        for start in range(0, len(rows), CHUNK_ROWS):
            chunk = rows.table.slice(start, CHUNK_ROWS)
            texts = zip(*(chunk.column(c).to_pylist() for c in PARTS), strict=True)
            laid_out = [
                self.template.segments(prompt or [], a or [], b or [], pair=pair, swap=swap)
                for prompt, a, b in texts
                for swap in orders
            ]
            tokens = self._tokenize({segment.text for segments in laid_out for segment in segments})
            for segments in laid_out:
                ids, whole = self._assemble(segments, tokens)
                sequences.append(ids)
                truncated += not whole
        offsets = np.zeros(len(sequences) + 1, dtype=np.int64)
        offsets[1:] = np.cumsum([len(ids) for ids in sequences])
        flat = np.fromiter(
            (token for ids in sequences for token in ids), dtype=np.int32, count=int(offsets[-1])
        )
        return Encoded(flat, offsets, len(orders), truncated)

    def _tokenize(self, texts: Iterable[str]) -> dict[str, list[int]]:
        unique = sorted(texts)
        backend = self.tokenizer.backend_tokenizer
        before = backend.encode_special_tokens
        backend.encode_special_tokens = True
        try:
            encodings = backend.encode_batch_fast(unique, add_special_tokens=False)
        finally:
            backend.encode_special_tokens = before
        return {text: encoding.ids for text, encoding in zip(unique, encodings, strict=True)}

    def _assemble(self, segments: list[Segment], tokens: dict[str, list[int]]) -> tuple[list[int], bool]:
        lengths = dict.fromkeys(PARTS, 0)
        lengths |= {segment.part: len(tokens[segment.text]) for segment in segments if segment.part != "tag"}
        tags = sum(len(tokens[segment.text]) for segment in segments if segment.part == "tag")
        tags += len(self.suffix)
        room = self.truncation.max_length - len(self.prefix) - tags
        if room < 0:
            raise UserError(
                f"max_length is {self.truncation.max_length}, but the template's tags alone take "
                f"{tags + len(self.prefix)} tokens; raise max_length"
            )
        prompt, first, second = (lengths[part] for part in PARTS)
        shares = budgets(prompt, first, second, room, self.truncation.prompt_share)
        budget = dict(zip(PARTS, shares, strict=True))
        ids = list(self.prefix)
        for segment in segments:
            piece = tokens[segment.text]
            ids += piece if segment.part == "tag" else cut(piece, budget[segment.part], self.truncation.keep)
        ids += self.suffix
        if self.prefix and ids.count(self.prefix[0]) != 1:
            raise AssertionError("a sequence must hold exactly one BOS")
        return ids, sum(lengths.values()) <= room

    def describe(self) -> dict[str, Any]:
        """Template and truncation for a manifest."""
        return {"template": asdict(self.template), "truncation": asdict(self.truncation)}


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of a fast tokenizer's whole definition."""
    return sha256_text(tokenizer.backend_tokenizer.to_str())


def pad_token_id(tokenizer: Any) -> int:
    """Choose a pad id that is never eos or bos: the tokenizer's own, else a reserved token.

    Llama has no pad token, and eos as pad mis-pools a text that really ends in eos (transformers
    #35352). Falls back to id 0, which is harmless: padding is masked and pooling is by explicit index.
    """
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in taken:
        return int(tokenizer.pad_token_id)
    vocabulary = tokenizer.get_vocab()
    for name in RESERVED_PADS:
        if name in vocabulary and vocabulary[name] not in taken:
            return int(vocabulary[name])
    return 0
