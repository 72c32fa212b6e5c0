"""Segments to token ids: the one path by which any row becomes a model's input.

Each turn is tokenized once, on its own, and spliced between the template's ids; the other order of a
pair exchanges the responses' ids and costs no tokenization. A seam is the border of a turn: no token
ever crosses one. The ids are those of the whole text wherever the tokenizer has no merge across a seam
and treats the text behind it as it does a text's beginning: behind a special token, most do. One that puts
a space before a text (Llama 2's, XLM-R's) puts one before each turn.

Exactly one BOS, put in by id and asserted, whatever the tokenizer's own habits (a missing BOS is
transformers #32172; a double one, OpenRLHF #393); where a tokenizer has none, its CLS stands for it. A chat
template that opens every turn with it, as ChatML does where ``<|im_start|>`` is the BOS, may write more.
Special tokens spelled out in a row's text stay text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from data.candidates import CANDIDATES
from data.encoding.plain_text import PlainText, joined, special_ids
from data.encoding.template import PARTS, Shape, Template
from data.encoding.tokenizer import uncut
from data.encoding.truncate import Parts, Truncation, fit_alike
from data.errors import UserError, brief
from data.files import sha256_text
from data.schema import Rows

if TYPE_CHECKING:
    import pyarrow as pa

RESERVED_PADS = ("<|finetune_right_pad_id|>", "<pad>", "<|reserved_special_token_0|>", "[PAD]", "<unk>")
CHUNK_ROWS = 2048

__all__ = ["Encoded", "Encoder", "Tokens", "Truncation", "pad_token_id", "tokenizer_hash"]


@dataclass(frozen=True)
class Encoded:
    """Token ids of many sequences: sequence ``i * orders + o`` is row ``i`` in order ``o``.

    Of rows with candidates of their own each has a sequence a candidate, one behind another.

    Attributes
    ----------
    ids : ndarray of int32
        All sequences one after another.
    offsets : ndarray of int64, one more than there are sequences
        Sequence ``s`` is ``ids[offsets[s]:offsets[s + 1]]``.
    orders : int
        Orders encoded a row: 2 for a pair, else 1.
    truncated : int
        Sequences of which something was cut.
    sizes : ndarray of shape (n,) or None
        Sequences a row, where it has one a candidate.
    """

    ids: np.ndarray
    offsets: np.ndarray
    orders: int
    truncated: int
    sizes: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        """Tokens a sequence."""
        return np.diff(self.offsets)

    @cached_property
    def row_lengths(self) -> np.ndarray:
        """Tokens a row, shape (n,): of a pair in the order as given, of candidates those of all together."""
        if self.sizes is None:
            return self.lengths[:: self.orders]
        return np.diff(self.offsets[np.concatenate([[0], np.cumsum(self.sizes)])])

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """Numbers of all sequences of these rows, in all orders or of all candidates, row by row."""
        if self.sizes is None:
            return (rows[:, None] * self.orders + np.arange(self.orders)).ravel()
        sizes, starts = self.sizes[rows], (np.cumsum(self.sizes) - self.sizes)[rows]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.repeat(starts, sizes) + within

    def rows_of(self, sequences: np.ndarray) -> np.ndarray:
        """Number of the row that each of these sequences is of."""
        if self.sizes is None:
            return sequences // self.orders
        return np.searchsorted(np.cumsum(self.sizes), sequences, side="right")

    def __getitem__(self, sequence: int) -> np.ndarray:
        return self.ids[self.offsets[sequence] : self.offsets[sequence + 1]]


@dataclass(frozen=True)
class Tokens:
    """The turns of many rows as token ids, before any template or truncation.

    Attributes
    ----------
    ids : ndarray of uint32
        All turns one after another: of a row the prompt's, then response A's, then response B's.
    lengths : ndarray of uint32
        Tokens a turn.
    turns : ndarray of shape (n, 3), uint32
        Turns a part of each row.
    """

    ids: np.ndarray
    lengths: np.ndarray
    turns: np.ndarray

    def __len__(self) -> int:
        return len(self.turns)

    def totals(self) -> np.ndarray:
        """Tokens a part of each row, shape (n, 3), int64."""
        ends = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        borders = np.concatenate([[0], np.cumsum(self.turns, dtype=np.int64)])
        return np.diff(ends[borders]).reshape(len(self), 3)

    def slice(self, start: int, stop: int) -> Tokens:
        """Return the rows ``start`` to ``stop``, as views."""
        turn = int(self.turns[:start].sum(dtype=np.int64))
        turns = self.turns[start:stop]
        lengths = self.lengths[turn : turn + int(turns.sum(dtype=np.int64))]
        at = int(self.lengths[:turn].sum(dtype=np.int64))
        return Tokens(self.ids[at : at + int(lengths.sum(dtype=np.int64))], lengths, turns)

    def parts(self) -> Iterator[Parts]:
        """Iterate over rows as lists of ids a turn; the arrays are views."""
        ends = np.cumsum(self.lengths, dtype=np.int64).tolist()
        ids = self.ids.view(np.ndarray)  # slices of a memory map are slow to make
        pieces = [ids[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        place = 0
        for prompt, first, second in self.turns.tolist():
            a, b, c = place + prompt, place + prompt + first, place + prompt + first + second
            yield pieces[place:a], pieces[a:b], pieces[b:c]
            place = c


class Encoder:
    """Turns rows into token ids.

    Parameters
    ----------
    tokenizer : transformers fast tokenizer
    template : Template
    truncation : Truncation

    Attributes
    ----------
    prefix : list of int
        The BOS, where the tokenizer has one.

    Raises
    ------
    UserError
        The tokenizer is not a fast one, the template needs a chat template that the tokenizer lacks, or
        writes a BOS into the text.
    """

    def __init__(self, tokenizer: Any, template: Template, truncation: Truncation) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise UserError("this tokenizer has no fast form (tokenizer.json); convert it first")
        self.tokenizer = tokenizer
        self.template = template.bound_to(tokenizer)
        self.truncation = truncation
        bos, cls = tokenizer.bos_token_id, tokenizer.cls_token_id
        bos = cls if bos is None else bos
        self.prefix: list[int] = [] if bos is None else [int(bos)]
        # An encoder's texts stand between [CLS] and [SEP]; a decoder's have no end.
        encoder = cls is not None and tokenizer.sep_token_id not in (None, bos)
        self.suffix: list[int] = [int(tokenizer.sep_token_id)] if encoder else []
        self.plain = PlainText(lambda: tokenizer.backend_tokenizer, special_ids(tokenizer))
        self.marker = self.plain([truncation.marker])[0] if truncation.marker else np.zeros(0, np.uint32)
        self._layouts: dict[tuple[Shape, bool], list[np.ndarray | tuple[int, int]]] = {}
        self._fixed: dict[tuple[Shape, bool], int] = {}
        self._one_start = True

    def encode(self, rows: Rows, tokens: Tokens | None = None) -> Encoded:
        """Encode every row in all its orders; from ``tokens`` of the same rows, where they are at hand.

        Rows with candidates are encoded a candidate at a time, and need no ``tokens``.
        """
        chunks = []
        if rows.sizes is not None:
            for start in range(0, len(rows), CHUNK_ROWS):
                each = candidate_rows(rows, start, start + CHUNK_ROWS)
                sizes = rows.sizes[start : start + CHUNK_ROWS]
                chunks.append(self.assemble(self.tokenize(each), each.classes.orders, sizes=sizes))
            return replace(join_encoded(chunks, 1), sizes=rows.sizes)
        for start in range(0, len(rows), CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, len(rows))
            part = self.tokenize(rows, start, stop) if tokens is None else tokens.slice(start, stop)
            chunks.append(self.assemble(part, rows.classes.orders))
        return join_encoded(chunks, len(rows.classes.orders))

    def tokenize(self, rows: Rows, start: int = 0, stop: int | None = None) -> Tokens:
        """Tokenize the turns of rows, equal texts once."""
        length = (len(rows) if stop is None else stop) - start
        return tokenize_turns(rows.table.select(list(PARTS)).slice(start, length), self.plain)

    def assemble(
        self,
        tokens: Tokens,
        orders: Sequence[bool],
        start: int = 0,
        stop: int | None = None,
        sizes: np.ndarray | None = None,
    ) -> Encoded:
        """Splice template and turns of the rows ``start`` to ``stop`` in the given orders.

        ``orders`` is that of the rows' classes: (False, True) for a pair, (False,) for plain text; ``sizes``
        how many candidates each row has, whose tokens come one after another.
        """
        pair = len(orders) > 1
        if start or stop is not None:
            tokens = tokens.slice(start, len(tokens) if stop is None else stop)
        pieces: list[np.ndarray] = []
        lengths: list[int] = []
        prefix, suffix = np.array(self.prefix, dtype=np.uint32), np.array(self.suffix, dtype=np.uint32)
        whole = self.lengths(tokens, pair)
        for fitted in self.fitted(tokens, whole, pair, sizes):
            for swap in orders:
                ordered = (fitted[0], fitted[2], fitted[1]) if swap else fitted
                sequence = [prefix]
                for slot in self.layout(ordered, pair):
                    sequence.append(ordered[slot[0]][slot[1]] if isinstance(slot, tuple) else slot)
                sequence.append(suffix)
                lengths.append(sum(map(len, sequence)))
                pieces += sequence
        if sizes is None:
            truncated = int((whole > self.truncation.max_length).sum()) * len(orders)
        else:
            truncated = int((np.array(lengths) < whole).sum())
        flat = np.concatenate(pieces).astype(np.int32) if pieces else np.zeros(0, np.int32)
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        offsets[1:] = np.cumsum(lengths)
        if self.prefix:
            starts = flat == self.prefix[0]
            if not starts[offsets[:-1]].all() or (self._one_start and int(starts.sum()) != len(lengths)):
                raise AssertionError("a sequence must hold exactly one BOS")
        return Encoded(flat, offsets, len(orders), truncated)

    def lengths(self, tokens: Tokens, pair: bool) -> np.ndarray:
        """Tokens of every row, BOS and template included, if nothing is cut, shape (n,), int64."""
        shapes, shape_of_row = np.unique(tokens.turns, axis=0, return_inverse=True)
        fixed = [self.fixed_length((p, a, b), pair) for p, a, b in shapes.tolist()]
        return np.array(fixed, dtype=np.int64)[shape_of_row.ravel()] + tokens.totals().sum(axis=1)

    def fit(self, parts: Parts, pair: bool) -> Parts:
        """Cut a row's turns to fit; ``parts`` itself where they do. Symmetric in the responses."""
        return self.fit_alike([parts], pair)[0]

    def fit_alike(
        self, row: Sequence[Parts], pair: bool, truncation: Truncation | None = None
    ) -> list[Parts]:
        """Cut the turns of a row's sequences: :func:`data.encoding.truncate.fit_alike`."""
        fixed = partial(self.fixed_length, pair=pair)
        return fit_alike(row, truncation or self.truncation, fixed, self.marker)

    def fitted(
        self, tokens: Tokens, whole: np.ndarray, pair: bool, sizes: np.ndarray | None
    ) -> Iterator[Parts]:
        """Iterate over the turns of rows of these :meth:`lengths`, cut to fit where they are too long."""
        starts, sizes = sets(len(tokens), sizes)
        fits = np.maximum.reduceat(whole, starts) <= self.truncation.max_length if len(starts) else starts
        sequences = tokens.parts()
        for size, fit in zip(sizes.tolist(), fits.tolist(), strict=True):
            row = list(islice(sequences, size))
            yield from row if fit else self.fit_alike(row, pair)

    def layout(self, parts: Parts, pair: bool) -> list[np.ndarray | tuple[int, int]]:
        """The template for a row of this shape: its own ids, and (part, turn) in between."""
        return self._layout((len(parts[0]), len(parts[1]), len(parts[2])), pair)

    def _layout(self, shape: Shape, pair: bool) -> list[np.ndarray | tuple[int, int]]:
        if (shape, pair) not in self._layouts:
            self._layouts[shape, pair] = self._lay_out(shape, pair)
        return self._layouts[shape, pair]

    def fixed_length(self, shape: Shape, pair: bool) -> int:
        """Tokens of BOS and template for rows of a shape, in whichever order takes more."""
        if (shape, pair) not in self._fixed:
            lengths = [
                sum(len(slot) for slot in self._layout(s, pair) if isinstance(slot, np.ndarray))
                for s in {shape, (shape[0], shape[2], shape[1]) if pair else shape}
            ]
            self._fixed[shape, pair] = len(self.prefix) + max(lengths) + len(self.suffix)
        return self._fixed[shape, pair]

    def _lay_out(self, shape: Shape, pair: bool) -> list[np.ndarray | tuple[int, int]]:
        pieces = self.template.layout(shape, pair, self.chat)
        slots: list[np.ndarray | tuple[int, int]] = []
        names = (self.tokenizer.bos_token, getattr(self.tokenizer, "cls_token", None))
        for piece in pieces:
            if not isinstance(piece, str):
                slots.append(piece)
                continue
            text = piece
            for name in names:
                if not slots and name and text.lstrip().startswith(name):  # a chat template brings its own
                    text = text.lstrip().removeprefix(name)
            ids = uncut(self.tokenizer.backend_tokenizer).encode(text, add_special_tokens=False).ids
            if self.prefix and self.prefix[0] in ids:
                self._one_start = False
                twice = not slots and ids[0] == self.prefix[0]
                if twice or not (self.template.uses_chat and opens_turns(self.tokenizer)):
                    raise UserError(
                        f"template {self.template.name}: writes the BOS token into its text; leave it out, "
                        "every row gets exactly one, first"
                    )
            if ids:
                slots.append(np.array(ids, dtype=np.uint32))
        return slots

    def chat(self, text: str) -> str:
        """Return a user's message in the tokenizer's chat template."""
        try:
            rendered = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                chat_template=self.template.chat_template,
                add_generation_prompt=True,
                tokenize=False,
            )
        except Exception as error:  # a chat template raises what its author liked
            raise UserError(f"the tokenizer's chat template cannot be used ({brief(error)})") from error
        return str(rendered)

    def describe(self) -> dict[str, Any]:
        """Template and truncation for a manifest."""
        return {"template": asdict(self.template), "truncation": asdict(self.truncation)}


def opens_turns(tokenizer: Any) -> bool:
    """Whether a tokenizer's BOS opens each turn of its chat template, as in ChatML, and not only a text."""
    if tokenizer.bos_token is None or not tokenizer.chat_template:
        return False
    talk = [{"role": role, "content": "Hello"} for role in ("user", "assistant", "user")]
    one, three = (tokenizer.apply_chat_template(turns, tokenize=False) for turns in (talk[:1], talk))
    return bool(three.count(tokenizer.bos_token) - one.count(tokenizer.bos_token) >= 2)


def candidate_rows(rows: Rows, start: int = 0, stop: int | None = None) -> Rows:
    """Rows ``start`` to ``stop`` once for each candidate, which stands where a pair has response A."""
    import pyarrow as pa

    table = rows.table.slice(start, None if stop is None else stop - start)
    lists = [found for chunk in table.column(CANDIDATES).chunks for found in chunk.to_pylist()]
    at = pa.array(np.repeat(np.arange(len(lists)), [len(found) for found in lists]))
    wide = table.select(["row_id", "prompt", "response_b", "label"]).take(at)
    each = pa.array([[candidate] for found in lists for candidate in found], pa.list_(pa.string()))
    return Rows(wide.append_column("response_a", each), rows.classes)


def sets(n: int, sizes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Where each row's sequences begin among ``n``, and how many they are: one, or one a candidate."""
    sizes = np.ones(n, np.int64) if sizes is None else sizes
    return np.cumsum(sizes) - sizes, sizes


def tokenize_turns(table: pa.Table, plain: PlainText) -> Tokens:
    """Tokenize the turns of a table of prompts and responses, equal texts once."""
    texts: list[str] = []
    turns: list[int] = []
    for row in zip(*(table.column(name).to_pylist() for name in PARTS), strict=True):
        for part in row:
            texts += part
            turns.append(len(part))
    unique = dict.fromkeys(texts)
    ids = dict(zip(unique, plain(list(unique)), strict=True))
    flat, lengths = joined([ids[text] for text in texts])
    return Tokens(flat, lengths, np.array(turns, dtype=np.uint32).reshape(-1, len(PARTS)))


def join_encoded(chunks: Sequence[Encoded], orders: int) -> Encoded:
    """Join encoded chunks, in order."""
    ends = np.cumsum([0, *(len(chunk.ids) for chunk in chunks)])
    offsets = [chunk.offsets[1:] + end for chunk, end in zip(chunks, ends[:-1], strict=True)]
    return Encoded(
        np.concatenate([chunk.ids for chunk in chunks]) if chunks else np.zeros(0, np.int32),
        np.concatenate([np.zeros(1, np.int64), *offsets]),
        orders,
        sum(chunk.truncated for chunk in chunks),
    )


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of a fast tokenizer's whole definition."""
    return sha256_text(uncut(tokenizer.backend_tokenizer).to_str())


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
