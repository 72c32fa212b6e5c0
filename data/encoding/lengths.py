"""How long rows are in tokens, and what each ``max_length`` would cut: as numbers and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import islice

import numpy as np

from data.encoding.encode import CHUNK_ROWS, Encoder, Tokens, sets
from data.encoding.truncate import Parts
from data.errors import UserError

LIMITS = (256, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192)
PERCENTILES = (5, 25, 50, 75, 90, 95, 99, 100)
BINS = 48


@dataclass(frozen=True)
class Lengths:
    """Lengths of whole rows, before truncation.

    Attributes
    ----------
    rows : ndarray of shape (n,), int64
        Tokens a row, template and BOS included.
    parts : ndarray of shape (n, 3), int64
        Of which in prompt, response A and response B.
    sizes : ndarray of int64 or None
        Of candidates, each of which is a row here: how many are cut alike.
    """

    rows: np.ndarray
    parts: np.ndarray
    sizes: np.ndarray | None = None

    def cut(self, limit: int) -> float:
        """Share of rows that do not fit, candidates where the longest of their set does not."""
        if self.sizes is None:
            return float((self.rows > limit).mean())
        longest = np.maximum.reduceat(self.rows, sets(len(self.rows), self.sizes)[0])
        return float(self.sizes[longest > limit].sum() / len(self.rows))

    def percentiles(self) -> list[tuple[str, list[float]]]:
        """Name and ``PERCENTILES`` of the rows and of each part."""
        named = [("row", self.rows), *zip(("prompt", "response A", "response B"), self.parts.T, strict=True)]
        return [(name, np.percentile(values, PERCENTILES).tolist()) for name, values in named if values.any()]


def measure(encoder: Encoder, tokens: Tokens, pair: bool, sizes: np.ndarray | None = None) -> Lengths:
    """Return the length of every row as it would be if nothing were cut."""
    return Lengths(encoder.lengths(tokens, pair), tokens.totals(), sizes)


def cuts(
    encoder: Encoder, tokens: Tokens, lengths: Lengths, pair: bool, limits: Sequence[int] = LIMITS
) -> list[tuple[int, float, float]]:
    """For each limit: share of rows that do not fit, and share of all tokens that would be lost.

    A row of several turns loses more than it is too long by, for whole turns go; it is cut to be counted.
    """
    total = max(1, int(lengths.rows.sum()))
    several = tokens.turns.max(axis=1) > 2 if encoder.truncation.turns else np.zeros(len(tokens), bool)
    if lengths.sizes is not None:
        several[:] = True
    lost = [int(np.maximum(lengths.rows[~several] - limit, 0).sum()) for limit in limits]
    starts, sizes = sets(len(tokens), lengths.sizes)
    for chunk in range(0, len(starts), CHUNK_ROWS):
        begins, counts = starts[chunk : chunk + CHUNK_ROWS], sizes[chunk : chunk + CHUNK_ROWS]
        start, stop = int(begins[0]), int(begins[-1] + counts[-1])
        if not several[start:stop].any():
            continue
        sequences = tokens.slice(start, stop).parts()
        for at, size in zip(begins.tolist(), counts.tolist(), strict=True):
            row, whole = list(islice(sequences, size)), lengths.rows[at : at + size]
            for i, limit in enumerate(limits):
                if several[at] and whole.max() > limit:
                    lost[i] += int(whole.sum()) - _kept(encoder, row, pair, limit)
    return [
        (limit, lengths.cut(limit), tokens_lost / total)
        for limit, tokens_lost in zip(limits, lost, strict=True)
    ]


def _kept(encoder: Encoder, row: Sequence[Parts], pair: bool, limit: int) -> int:
    """Tokens of a row's sequences cut to a limit; the limit for each where the template alone is longer."""
    try:
        fitted = encoder.fit_alike(row, pair, replace(encoder.truncation, max_length=limit))
    except UserError:
        return limit * len(row)
    fixed = (encoder.fixed_length((len(a), len(b), len(c)), pair) for a, b, c in fitted)
    return sum(fixed) + sum(len(ids) for parts in fitted for part in parts for ids in part)


def plot(lengths: Lengths, max_length: int, title: str) -> str:
    """Draw a histogram of row lengths on a logarithmic axis, and the share of rows that fit, as SVG."""
    width, height, left, right, top, bottom = 860, 420, 64, 64, 56, 56
    low, high = np.log2(max(1, lengths.rows.min())), np.log2(lengths.rows.max() + 1)
    low, high = min(low, np.log2(max_length)) - 0.2, max(high, np.log2(max_length)) + 0.2
    counts, edges = np.histogram(np.log2(np.maximum(lengths.rows, 1)), bins=BINS, range=(low, high))
    tallest = max(1, int(counts.max()))
    inner_width, inner_height = width - left - right, height - top - bottom

    def x(log_length: float) -> float:
        return left + (log_length - low) / (high - low) * inner_width

    def y(share: float) -> float:
        return top + (1 - share) * inner_height

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{left}" y="24" font-size="15" fill="#111827">{escape(title)}</text>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        out.append(f'<path d="M{left} {y(share):.1f}H{width - right}" stroke="#e5e7eb"/>')
        out.append(f'<text x="{width - right + 8}" y="{y(share) + 4:.1f}" fill="#b45309">{share:.0%}</text>')
    for count in (tallest, tallest // 2):
        out.append(
            f'<text x="{left - 8}" y="{y(count / tallest) + 4:.1f}" text-anchor="end" '
            f'fill="#1d4ed8">{count:,}</text>'
        )
    for count, start, end in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            tip = f"{2**start:,.0f} to {2**end:,.0f} tokens: {count:,} rows"
            out.append(
                f'<rect x="{x(start):.1f}" y="{y(count / tallest):.1f}" width="{x(end) - x(start) - 1:.1f}" '
                f'height="{count / tallest * inner_height:.1f}" fill="#93c5fd"><title>{tip}</title></rect>'
            )
    ordered = np.sort(lengths.rows)
    logs = np.linspace(low, high, 200)
    fits = np.searchsorted(ordered, 2**logs, side="right") / len(ordered)
    path = "L".join(f"{x(log):.1f} {y(share):.1f}" for log, share in zip(logs, fits, strict=True))
    out.append(f'<path d="M{path}" fill="none" stroke="#b45309" stroke-width="2"/>')
    for exponent in range(int(np.ceil(low)), int(high) + 1):
        out.append(f'<path d="M{x(exponent):.1f} {y(0):.1f}v5" stroke="#6b7280"/>')
        out.append(
            f'<text x="{x(exponent):.1f}" y="{y(0) + 20:.1f}" text-anchor="middle" '
            f'fill="#374151">{2**exponent:,}</text>'
        )
    at = x(float(np.log2(max_length)))
    fitting = 1 - lengths.cut(max_length)
    anchor, shift = ("end", -6) if at > width / 2 else ("start", 6)
    out += [
        f'<path d="M{at:.1f} {top - 10}V{y(0):.1f}" stroke="#b91c1c" stroke-width="2" '
        'stroke-dasharray="5 4"/>',
        f'<text x="{at + shift:.1f}" y="{top - 2}" text-anchor="{anchor}" fill="#b91c1c">max_length '
        f"{max_length:,}: {fitting:.1%} of rows fit whole</text>",
        f'<text x="{left}" y="{height - 12}" fill="#374151">tokens a row, before truncation (bars: rows; '
        "line: share of rows that fit)</text></svg>",
    ]
    return "\n".join(out) + "\n"
