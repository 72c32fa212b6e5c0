"""A row as segments of text: fixed tags around the prompt and the two responses, in either order.

Segments are tokenized one by one (:mod:`data.encode`), so a response has the same tokens in slot A and
in slot B and truncation commutes with swapping. The default is the layout of the public LMSYS
notebooks: ``<prompt>: … <response_a>: … <response_b>: …``, with each tag on a line of its own so that
no token straddles a tag and the text behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Part = Literal["tag", "prompt", "response_a", "response_b"]


@dataclass(frozen=True)
class Segment:
    """A stretch of text and what it is; only tags are never truncated."""

    part: Part
    text: str


@dataclass(frozen=True)
class Template:
    """The fixed text around a row's parts.

    Attributes
    ----------
    prompt_tag, response_a_tag, response_b_tag : str
        Text before each part. For a plain text row only the prompt itself is used, without tags.
    turn_separator : str
        Text between the turns of one part.
    closing : str
        Text after the last part; the classifier reads the hidden state of its last token.
    """

    prompt_tag: str = "<prompt>:\n"
    response_a_tag: str = "\n\n<response_a>:\n"
    response_b_tag: str = "\n\n<response_b>:\n"
    turn_separator: str = "\n"
    closing: str = "\n\n<verdict>:"

    def segments(
        self,
        prompt: Sequence[str],
        response_a: Sequence[str],
        response_b: Sequence[str],
        *,
        pair: bool = True,
        swap: bool = False,
    ) -> list[Segment]:
        """Lay out one row.

        Parameters
        ----------
        prompt, response_a, response_b : sequence of str
            One entry a turn; a null turn counts as empty.
        pair : bool
            False for a plain text row: the prompt is the whole text.
        swap : bool
            Put response B into slot A and response A into slot B.
        """
        if not pair:
            return [Segment("prompt", self._join(prompt))]
        first, second = (response_b, response_a) if swap else (response_a, response_b)
        return [
            Segment("tag", self.prompt_tag),
            Segment("prompt", self._join(prompt)),
            Segment("tag", self.response_a_tag),
            Segment("response_a", self._join(first)),
            Segment("tag", self.response_b_tag),
            Segment("response_b", self._join(second)),
            Segment("tag", self.closing),
        ]

    def _join(self, turns: Sequence[str]) -> str:
        return self.turn_separator.join(turn or "" for turn in turns)
