"""Text to ids as nothing but text: no special token comes out, whatever a row spells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np

from data.encoding.fast_bpe import LONGEST, FastBpe, fast_bpe, is_known
from data.encoding.tokenizer import uncut
from data.errors import UserError, brief

FAST_FROM = 10_000_000
"""Characters from which on a faster form of the tokenizer is worth looking for, which takes a second."""
KNOWN_FROM = 500_000
"""The same where it is known already."""


class PlainText:
    """Tokenizes text as nothing but text: no special token comes out, whatever is spelled in it.

    Parameters
    ----------
    load : callable
        Returns the ``tokenizers.Tokenizer``; called only once it is needed.
    special : dict of int to str
        Ids that must not come out, and what they are called.
    fast : FastBpe, optional
        Its faster form where that is known already.
    seek : bool
        Whether to look for one, once there is much to tokenize.
    """

    def __init__(
        self, load: Callable[[], Any], special: dict[int, str], fast: FastBpe | None = None, seek: bool = True
    ) -> None:
        self._load = load
        self.special = special
        self.fast = fast
        self._seek = seek and fast is None
        self._characters = 0
        self._ids = np.array(sorted(special), dtype=np.uint32)

    @cached_property
    def backend(self) -> Any:
        """The tokenizer itself."""
        return self._load()

    @cached_property
    def definition(self) -> str:
        """All there is to know of the tokenizer, as JSON."""
        return str(uncut(self.backend).to_str())

    @cached_property
    def _is_known(self) -> bool:
        return is_known(self.definition)

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of each text."""
        return split_ids(*self.flat(texts))

    def flat(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all texts one after another, and the tokens of each; both uint32."""
        self._characters += sum(map(len, texts))
        if (
            self._seek
            and self._characters >= KNOWN_FROM
            and (self._characters >= FAST_FROM or self._is_known)
        ):
            self.seek_fast()
        fast = self.fast
        if fast is None:
            return joined(self._slowly(texts))
        others = iter(self._slowly([text for text in texts if len(text) > LONGEST]))
        return joined([next(others) if len(text) > LONGEST else fast.encode(text) for text in texts])

    def seek_fast(self) -> None:
        """Look for a faster form, once."""
        if self._seek:
            self._seek = False
            with self._as_text() as backend:
                self.fast = fast_bpe(backend, self.definition)

    @contextmanager
    def _as_text(self) -> Iterator[Any]:
        """Lend the tokenizer while it takes special tokens for text, and neither cuts nor pads."""
        backend = uncut(self.backend)
        before = backend.encode_special_tokens
        backend.encode_special_tokens = True
        try:
            yield backend
        finally:
            backend.encode_special_tokens = before

    def _slowly(self, texts: list[str]) -> list[np.ndarray]:
        if not texts:
            return []
        with self._as_text() as backend:
            pieces = [
                np.array(encoding.ids, dtype=np.uint32)
                for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)
            ]
            return [
                np.array(self._spelled(backend, text), dtype=np.uint32)
                if len(self._ids) and np.isin(piece, self._ids).any()
                else piece
                for text, piece in zip(texts, pieces, strict=True)
            ]

    def _spelled(self, backend: Any, text: str) -> list[int]:
        """Encode special tokens that a text spells by their letters: a unigram model knows them as pieces.

        Where they stand the tokenizer says, for a normaliser may have made them of something else.
        """
        encoding = backend.encode(text, add_special_tokens=False)
        found = [
            at for number, at in zip(encoding.ids, encoding.offsets, strict=True) if number in self.special
        ]
        if not found:
            return list(encoding.ids)
        pieces: list[str] = []
        end = 0
        for start, stop in found:
            pieces += [text[end:start], *text[start:stop]]
            end = stop
        pieces.append(text[end:])
        if text in pieces:
            name = next(self.special[number] for number in encoding.ids if number in self.special)
            raise UserError(
                f"this tokenizer turns the plain text {brief(text, 60)!r} into its special token {name}; "
                "take a tokenizer that keeps text and special tokens apart"
            )
        return [number for piece in pieces if piece for number in self._spelled(backend, piece)]


def joined(pieces: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return arrays of ids as one, and the length of each; both uint32."""
    flat = np.concatenate(pieces) if pieces else np.zeros(0, np.uint32)
    return flat, np.fromiter(map(len, pieces), np.uint32, len(pieces))


def split_ids(flat: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Split ids at the given lengths; the arrays are views."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return [flat[end - n : end] for end, n in zip(ends.tolist(), lengths.tolist(), strict=True)]


def special_ids(tokenizer: Any) -> dict[int, str]:
    """The ids that must never stand in a row's text: all special tokens but the one for the unknown."""
    found = {
        int(number): token.content
        for number, token in tokenizer.backend_tokenizer.get_added_tokens_decoder().items()
        if token.special
    }
    found |= dict(zip(map(int, tokenizer.all_special_ids), tokenizer.all_special_tokens, strict=True))
    if tokenizer.unk_token_id is not None:
        found.pop(int(tokenizer.unk_token_id), None)  # what such tokenizers make of an unknown character
    return found
