"""Pictures of the ablation, in SVG: differences with their intervals, and a grid as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np


@dataclass(frozen=True)
class Difference:
    """A paired difference of regrets, with its 95 % interval and one value a seed."""

    mean: float
    low: float
    high: float
    seeds: list[float]

    @property
    def sure(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def shown(self) -> str:
        """The difference as text."""
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def whiskers(drawn: Sequence[tuple[str, Difference]], caption: str) -> str:
    """Differences as dots with intervals, and small dots for the seeds, in SVG."""
    left, width, row, top = 260, 820, 30, 20
    ends = [v for _, d in drawn for v in (d.low, d.high, *d.seeds)] + [0.0]
    low, high = min(ends), max(ends)
    pad = 0.05 * (high - low) or 1e-3
    low, high = low - pad, high + pad
    height = top + row * len(drawn) + 44

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - 110)

    bottom = top + row * len(drawn)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<path d="M{x(0):.1f} {top - 8}V{bottom}" stroke="#94a3b8" stroke-dasharray="4 3"/>',
    ]
    for i, (name, d) in enumerate(drawn):
        y = top + row * i + row / 2
        colour = "#64748b" if not d.sure else "#15803d" if d.mean < 0 else "#c2410c"
        parts += [
            f'<text x="{left - 12}" y="{y + 4}" text-anchor="end" fill="#223">{escape(name)}</text>',
            f'<path d="M{x(d.low):.1f} {y}H{x(d.high):.1f}" stroke="{colour}" stroke-width="3" '
            'opacity=".4"/>',
            *(f'<circle cx="{x(v):.1f}" cy="{y}" r="2" fill="#334155" opacity=".5"/>' for v in d.seeds),
            f'<circle cx="{x(d.mean):.1f}" cy="{y}" r="5" fill="{colour}"/>',
            f'<text x="{width - 100}" y="{y + 4}" fill="#223">{d.mean:+.4f}</text>',
        ]
    parts.append(
        f'<text x="{left}" y="{bottom + 28}" fill="#667">{escape(caption)}; below zero is better; '
        "small dots: seeds</text></svg>"
    )
    return "".join(parts)


def heat_map(cells: Sequence[tuple[str, str, float]]) -> str:
    """Regret by temperature (rows) and weight (columns), in SVG; darker is better."""
    ts, ws = (list(dict.fromkeys(c[i] for c in cells)) for i in (0, 1))
    values = [v for *_, v in cells if np.isfinite(v)]
    low, high = min(values), max(values)
    size = (96, 44)
    width, height = 90 + size[0] * len(ws), 40 + size[1] * len(ts) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for i, w in enumerate(ws):
        parts.append(
            f'<text x="{90 + size[0] * (i + 0.5)}" y="26" text-anchor="middle" fill="#223">w = {w}</text>'
        )
    for t, w, value in cells:
        i, j = ts.index(t), ws.index(w)
        x, y = 90 + size[0] * j, 40 + size[1] * i
        if j == 0:
            parts.append(f'<text x="78" y="{y + 26}" text-anchor="end" fill="#223">T = {t}</text>')
        if not np.isfinite(value):
            continue
        good = 1 - (value - low) / ((high - low) or 1)
        ink = "#ffffff" if good > 0.55 else "#223"
        parts.append(
            f'<rect x="{x}" y="{y}" width="{size[0] - 3}" height="{size[1] - 3}" fill="#1d4ed8" '
            f'fill-opacity="{0.08 + 0.9 * good:.2f}"/>'
            f'<text x="{x + size[0] / 2}" y="{y + 26}" text-anchor="middle" fill="{ink}">{value:.4f}</text>'
        )
    parts.append(f'<text x="90" y="{height - 10}" fill="#667">regret, nats; darker is better</text></svg>')
    return "".join(parts)
