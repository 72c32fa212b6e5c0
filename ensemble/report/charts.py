"""Small charts as HTML and inline SVG strings: no script, no network, colours from the page's variables.

Everything that is text goes through :func:`html.escape` here or at the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from ensemble.scoring.slices import Reliability


def _position(value: float, low: float, high: float) -> float:
    return 100 * min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 50.0


def whisker_rows(
    rows: Sequence[tuple[str, float, float, float, str, str]], zero: float | None = None, label: str = ""
) -> str:
    """Dots with whiskers, a line each: (name, value, low, high, text, CSS class).

    Parameters
    ----------
    rows : sequence of tuple
        ``text`` stands at the right; the CSS class marks the line.
    zero : float, optional
        Where to draw a reference line.
    label : str
        Spoken description of the chart.
    """
    if not rows:
        return ""
    ends = [value for row in rows for value in row[1:4]] + ([zero] if zero is not None else [])
    low, high = min(ends), max(ends)
    margin = 0.04 * (high - low) or 1e-6
    low, high = low - margin, high + margin
    mark = ""
    if zero is not None:
        mark = f'<i class="zero" style="left:{_position(zero, low, high):.2f}%"></i>'
    lines = []
    for name, value, a, b, text, kind in rows:
        left, right = _position(a, low, high), _position(b, low, high)
        lines.append(
            f'<div class="row {kind}"><span class="name">{escape(name)}</span>'
            f'<span class="strip">{mark}'
            f'<i class="bar" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'
            f'<i class="dot" style="left:{_position(value, low, high):.2f}%"></i></span>'
            f'<span class="num">{escape(text)}</span></div>'
        )
    return f'<div class="chart" role="img" aria-label="{escape(label)}">{"".join(lines)}</div>'


def bars(rows: Sequence[tuple[str, float]], label: str = "") -> str:
    """Horizontal bars from 0 (negative weights are drawn to the same scale, marked): (name, value)."""
    top = max((abs(value) for _, value in rows), default=0) or 1
    lines = [
        f'<div class="row"><span class="name">{escape(name)}</span><span class="strip">'
        f'<i class="fill{" neg" if value < 0 else ""}" style="width:{100 * abs(value) / top:.2f}%"></i>'
        f'</span><span class="num">{value:.4f}</span></div>'
        for name, value in rows
    ]
    return f'<div class="chart weights" role="img" aria-label="{escape(label)}">{"".join(lines)}</div>'


def reliability_svg(curves: Sequence[tuple[str, str, Reliability]]) -> str:
    """Reliability diagram with counts below: (name, CSS class, reliability) a curve."""
    size, left, top, under = 280, 40, 10, 62
    width, height = left + size + 12, top + size + 30 + under + 20

    def x(value: float) -> float:
        return left + size * value

    def y(value: float) -> float:
        return top + size * (1 - value)

    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Reliability: observed frequency against '
        'predicted probability, before and after">'
    ]
    for tick in np.linspace(0, 1, 6):
        parts.append(
            f'<path class="grid" d="M{x(tick):.1f} {top}V{top + size}M{left} {y(tick):.1f}H{left + size}"/>'
            f'<text x="{x(tick):.1f}" y="{top + size + 15}" text-anchor="middle">{tick:.1f}</text>'
            f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.1f}</text>'
        )
    parts.append(f'<path class="ideal" d="M{x(0)} {y(0)}L{x(1)} {y(1)}"/>')
    for name, kind, curve in curves:
        points = [(x(a), y(b)) for a, b in zip(curve.predicted, curve.observed, strict=True)]
        smooth = zip(curve.smooth.predicted, curve.smooth.observed, strict=True)
        parts.append(
            f'<polyline class="curve {kind}" points="'
            + " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in smooth)
            + '"/>'
        )
        parts += [
            f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="3.5"><title>{escape(name)}: '
            f"predicted {p:.3f}, observed {o:.3f}, {int(c)} probabilities</title></circle>"
            for (a, b), p, o, c in zip(points, curve.predicted, curve.observed, curve.count, strict=True)
        ]
    floor = top + size + 30 + under
    most = max(int(curve.count.max()) for _, _, curve in curves)
    for i, (name, kind, curve) in enumerate(curves):
        for p, c in zip(curve.predicted, curve.count, strict=True):
            tall = under * float(np.sqrt(c / most))
            parts.append(
                f'<rect class="{kind}" x="{x(p) - 6 + 6 * i:.1f}" y="{floor - tall:.1f}" width="5" '
                f'height="{tall:.1f}"><title>{escape(name)}: {int(c)} probabilities</title></rect>'
            )
    parts.append(
        f'<path class="axis" d="M{left} {floor}H{left + size}"/><text x="{left}" y="{floor + 14}">'
        f"counts (square-root scale; tallest {most})</text></svg>"
    )
    return "".join(parts)


MAP_CORNERS = ((200.0, 30.0), (22.0, 338.0), (378.0, 338.0))
"""Where the map draws the three members."""
MAP_LEVELS = 10
LINE_BOX = {"left": 52.0, "top": 14.0, "width": 332.0, "height": 180.0}


def shorten(name: str, length: int = 22) -> str:
    """Cut a name to ``length`` characters."""
    return name if len(name) <= length else name[: length - 1] + "…"


def _on_map(weights: np.ndarray) -> np.ndarray:
    return weights @ np.array(MAP_CORNERS)


def ternary_svg(found: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """Map of log-loss over three members' weights, from :func:`ensemble.scoring.explore.ternary_map`.

    The page's script finds its parts by id: cells in order, ``corner0`` to ``corner2``, ``best``, ``here``.
    """
    loss = found["loss"]
    low, high = float(loss.min()), float(loss.max())
    parts = [
        '<svg id="map" viewBox="0 0 400 372" role="img" aria-label="Log-loss over the weights of three '
        'members">'
    ]
    for corners, value in zip(found["corners"], loss, strict=True):
        share = (value - low) / (high - low) if high > low else 0.0
        level = min(MAP_LEVELS - 1, int(MAP_LEVELS * np.sqrt(share)))
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in _on_map(corners))
        parts.append(f'<polygon class="t{level}" points="{points}"><title>{value:.4f}</title></polygon>')
    places = ((200, 20, "middle"), (4, 360, "start"), (396, 360, "end"))
    for i, ((x, y, anchor), name) in enumerate(zip(places, names, strict=True)):
        parts.append(
            f'<text id="corner{i}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(shorten(name))}</text>'
        )
    x, y = _on_map(found["best"])
    parts.append(f'<circle id="best" class="best" cx="{x:.1f}" cy="{y:.1f}" r="6"/>')
    parts.append(f'<circle id="here" class="here" cx="{x:.1f}" cy="{y:.1f}" r="4"/></svg>')
    return "".join(parts)


def line_svg(curve: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """Log-loss against the first of two members' weight: :func:`ensemble.scoring.explore.weight_curve`."""
    box, loss = LINE_BOX, curve["loss"]
    low, high = float(loss.min()), float(loss.max())
    floor = box["top"] + box["height"]

    def at(weight: float, value: float) -> tuple[float, float]:
        share = (value - low) / (high - low) if high > low else 0.5
        return box["left"] + box["width"] * weight, box["top"] + box["height"] * (1 - share)

    parts = [
        '<svg id="line" viewBox="0 0 400 240" role="img" aria-label="Log-loss against the weight of the '
        'first member">'
    ]
    for tick in np.linspace(0, 1, 5):
        x, y = box["left"] + box["width"] * tick, box["top"] + box["height"] * (1 - tick)
        parts.append(
            f'<path class="grid" d="M{x:.1f} {box["top"]}V{floor}M{box["left"]} {y:.1f}'
            f'H{box["left"] + box["width"]}"/>'
            f'<text x="{x:.1f}" y="{floor + 15}" text-anchor="middle">{tick:.2f}</text>'
            f'<text x="{box["left"] - 6}" y="{y + 4:.1f}" text-anchor="end">{low + tick * (high - low):.4f}'
            "</text>"
        )
    points = [at(w, v) for w, v in zip(curve["weight"], loss, strict=True)]
    parts.append(
        '<polyline class="curve after" points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in points) + '"/>'
    )
    x, y = points[int(loss.argmin())]
    parts.append(f'<circle id="here" class="here" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    parts.append(
        f'<text x="{box["left"] + box["width"] / 2}" y="{floor + 34}" text-anchor="middle">weight of '
        f"{escape(shorten(names[0], 30))}</text></svg>"
    )
    return "".join(parts)


def heat_table(
    cells: Sequence[Sequence[tuple[str, float]]], rows: Sequence[str], columns: Sequence[str], corner: str
) -> str:
    """Table of (text, strength from 0 to 1) cells, shaded by strength."""
    head = "".join(f'<th scope="col">{escape(shorten(name, 18))}</th>' for name in columns)
    lines = [f"<tr><th>{escape(corner)}</th>{head}</tr>"]
    for name, line in zip(rows, cells, strict=True):
        body = "".join(
            f'<td class="t{MAP_LEVELS - 1 - min(MAP_LEVELS - 1, int(MAP_LEVELS * max(value, 0.0)))}">'
            f"{escape(text)}</td>"
            for text, value in line
        )
        lines.append(f'<tr><th scope="row">{escape(shorten(name, 60))}</th>{body}</tr>')
    return f'<div class="scroll"><table class="heat">{"".join(lines)}</table></div>'
