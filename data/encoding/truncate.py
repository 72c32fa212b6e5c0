"""How a row that is too long is cut: on token ids, with a budget a part, the same for either order.

First whole turns go, the oldest of those between the first and the last; then the prompt and the two
responses share what room is left, the longer response giving way first; then the turns of a part share
its budget, the longest giving way first, but the last question of the prompt last of all. The template's
own text, its closing question and verdict cue, is never cut. What fits is left alone, so cutting twice
is cutting once.

Candidates of a row are compared with each other, so all are read behind one prompt: it is cut as the longest
candidate needs it (:func:`fit_alike`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data.encoding.template import Shape
from data.errors import UserError, listing

SIDES = ("left", "right", "middle")
LEAST_ROOM = 3
"""Tokens beside the template's own, one a part: with fewer nothing of a row would be left."""

Parts = tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]
"""Token ids a turn, of the prompt and the two responses."""


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
    side : {"middle", "right", "left"}
        Where a turn that is too long is cut: "right" keeps its start, "left" its end, "middle" both
        ends with the marker between.
    turns : bool
        Whether to drop whole middle turns before any turn is cut.
    marker : str
        What stands for the middle that was cut out.
    """

    max_length: int = 1024
    prompt_share: float = 0.25
    side: str = "middle"
    turns: bool = True
    marker: str = " […] "

    def __post_init__(self) -> None:
        if self.max_length < 16:
            raise UserError(f"max_length is {self.max_length}; a row needs at least 16 tokens")
        if not 0 <= self.prompt_share <= 1:
            raise UserError(f"prompt_share is {self.prompt_share}; it must lie between 0 and 1")
        if self.side not in SIDES:
            raise UserError(f"side is {self.side!r}; it must be one of {listing(SIDES)}")


def fit(parts: Parts, truncation: Truncation, fixed: Callable[[Shape], int], marker: np.ndarray) -> Parts:
    """Cut the turns of a row so that they fit beside the template's own text.

    Parameters
    ----------
    parts : three lists of ndarray
        Token ids a turn.
    truncation : Truncation
    fixed : callable
        Turns a part to the tokens of the template's own text, BOS included.
    marker : ndarray
        Token ids of the marker.

    Returns
    -------
    three lists of ndarray
        Of fewer turns where whole ones were dropped; ``parts`` itself if everything fits.

    Raises
    ------
    UserError
        The template's own text leaves no room for the row's.
    """
    kept = list(range(max(len(part) for part in parts)))
    lengths = [[len(ids) for ids in part] for part in parts]

    def own() -> int:
        first, second, third = (sum(turn < len(part) for turn in kept) for part in parts)
        return fixed((first, second, third))

    def total() -> int:
        return own() + sum(part[turn] for part in lengths for turn in kept if turn < len(part))

    if total() <= truncation.max_length:
        return parts
    while truncation.turns and len(kept) > 2 and total() > truncation.max_length:
        del kept[1]
    room = truncation.max_length - own()
    if room < LEAST_ROOM:
        raise UserError(
            f"max_length is {truncation.max_length}, but the template's tags alone take {own()} tokens "
            f"for a row of {len(kept)} turns; raise max_length"
        )
    chosen = [[part[turn] for turn in kept if turn < len(part)] for part in parts]
    sizes = [[len(ids) for ids in part] for part in chosen]
    shares = budgets(sum(sizes[0]), sum(sizes[1]), sum(sizes[2]), room, truncation.prompt_share)
    limits = [
        _prompt_limits(sizes[0], shares[0]),
        share_evenly(sizes[1], shares[1]),
        share_evenly(sizes[2], shares[2]),
    ]
    prompt, first, second = (
        [cut(ids, limit, truncation.side, marker) for ids, limit in zip(part, limit_of, strict=True)]
        for part, limit_of in zip(chosen, limits, strict=True)
    )
    return prompt, first, second


def fit_alike(
    row: Sequence[Parts], truncation: Truncation, fixed: Callable[[Shape], int], marker: np.ndarray
) -> list[Parts]:
    """Cut the sequences of a row: one alone, or of candidates one each, all of them behind the same prompt.

    A candidate gives way where it does not fit behind that prompt. Further parameters as :func:`fit`.
    """
    longest = max(row, key=lambda parts: sum(map(len, parts[1])))
    fitted = fit(longest, truncation, fixed, marker)
    if fitted is longest or len(row) == 1:
        return [fitted] if len(row) == 1 else list(row)
    prompt = fitted[0]
    room = truncation.max_length - fixed((len(prompt), 1, 0)) - sum(map(len, prompt))
    return [(prompt, [cut(parts[1][0], room, truncation.side, marker)], parts[2]) for parts in row]


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


def share_evenly(lengths: Sequence[int], budget: int) -> list[int]:
    """Share a budget among turns: the longest give way first, tokens left over go to the earliest."""
    limits = [0] * len(lengths)
    left = min(budget, sum(lengths))
    waiting = [i for i, n in enumerate(lengths) if n]
    while left and waiting:
        each = left // len(waiting)
        short = [i for i in waiting if lengths[i] <= each]
        if not short:  # all of those left are longer than an even share
            for place, i in enumerate(waiting):
                limits[i] = each + (place < left % len(waiting))
            break
        for i in short:
            limits[i] = lengths[i]
            left -= lengths[i]
        waiting = [i for i in waiting if lengths[i] > each]
    return limits


def _prompt_limits(lengths: Sequence[int], budget: int) -> list[int]:
    if not lengths:
        return []
    last = min(lengths[-1], budget)
    return [*share_evenly(lengths[:-1], budget - last), last]


def cut(ids: np.ndarray, budget: int, side: str, marker: np.ndarray) -> np.ndarray:
    """Cut ``ids`` to ``budget`` tokens, keeping the start, the end, or both with the marker between.

    The marker counts, and is left out where it would leave no token on either side of it.
    """
    if len(ids) <= budget:
        return ids
    if side == "right":
        return ids[:budget]
    if side == "left":
        return ids[len(ids) - budget :]
    if budget < len(marker) + 2:
        marker = marker[:0]
    head = (budget - len(marker) + 1) // 2
    tail = budget - len(marker) - head
    return np.concatenate([ids[:head], marker, ids[len(ids) - tail :]])
