"""Where things stand in the report's small charts; ``templates/charts.jinja`` draws them.

No script and no network: HTML and inline SVG in colours from the page's variables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensemble.scoring.bootstrap import Interval

MAP_CORNERS = ((200.0, 30.0), (22.0, 338.0), (378.0, 338.0))
"""Where the map draws the three members."""
SHADES = 10


@dataclass(frozen=True)
class Axes:
    """A box in an SVG that values are drawn in.

    Attributes
    ----------
    left, top, width, height : float
    low, high : float
        The values at its bottom and its top. The horizontal axis goes from 0 to 1.
    """

    left: float
    top: float
    width: float
    height: float
    low: float = 0.0
    high: float = 1.0

    @property
    def right(self) -> float:
        """Where it ends."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """Where it ends."""
        return self.top + self.height

    def x(self, share: float) -> float:
        """Place of a share from 0 to 1."""
        return self.left + self.width * share

    def y(self, value: float) -> float:
        """Place of a value; halfway where all are the same."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.top + self.height * (1 - share)

    def line(self, shares: Iterable[float], values: Iterable[float]) -> str:
        """Return the points of a line, as an SVG lists them."""
        return point_list((self.x(a), self.y(b)) for a, b in zip(shares, values, strict=True))

    def ticks(self, count: int) -> list[tuple[float, float]]:
        """Return so many shares from 0 to 1, and the values at the same heights."""
        return [(float(t), self.low + float(t) * (self.high - self.low)) for t in np.linspace(0, 1, count)]


RELIABILITY = Axes(40, 10, 280, 280)
LINE = Axes(52.0, 14.0, 332.0, 180.0)


def point_list(points: Iterable[Sequence[float]]) -> str:
    """Points (x, y) as an SVG lists them."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


@dataclass(frozen=True)
class Whisker:
    """A dot with whiskers, on a line of its own.

    Attributes
    ----------
    name : str
    value : float
    interval : Interval
    kind : str
        CSS class that marks the line.
    before : str
        Stands at the right, before the value and its interval.
    """

    name: str
    value: float
    interval: Interval
    kind: str = ""
    before: str = ""


@dataclass(frozen=True)
class Whiskers:
    """Lines of one scale, with a reference line at ``zero`` where it is given."""

    rows: Sequence[Whisker]
    zero: float | None = None

    def place(self, value: float) -> float:
        """Where a value stands, in percent from the left."""
        ends = [end for row in self.rows for end in (row.value, row.interval.low, row.interval.high)]
        ends += [] if self.zero is None else [self.zero]
        low, high = min(ends), max(ends)
        margin = 0.04 * (high - low) or 1e-6
        return 100 * (value - low + margin) / (high - low + 2 * margin)


def differences(rows: Iterable[Whisker], better: int) -> Whiskers:
    """Lines against zero, marked good or bad where the interval leaves it out.

    Parameters
    ----------
    rows : iterable of Whisker
    better : int
        1 where more is better, -1 where less is.
    """
    kinds = {0: "", better: "good", -better: "bad"}
    sides = ((row, int(row.interval.low > 0) - int(row.interval.high < 0)) for row in rows)
    return Whiskers([replace(row, kind=kinds[side]) for row, side in sides], zero=0.0)


def map_cells(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Map of log-loss over three members' weights, from :func:`ensemble.scoring.explore.ternary_map`.

    Returns
    -------
    dict
        ``cells`` (shade, points, loss) in order, the point ``at`` which the best weights stand, and ``low``
        and ``high``, the least loss and the greatest.
    """
    loss, corners = found["loss"], np.array(MAP_CORNERS)
    low, high = float(loss.min()), float(loss.max())
    shares = (loss - low) / (high - low) if high > low else np.zeros_like(loss)
    shades = np.minimum(SHADES - 1, (SHADES * np.sqrt(shares)).astype(int))
    cells = [
        (level, point_list(cell @ corners), value)
        for level, cell, value in zip(shades.tolist(), found["corners"], loss.tolist(), strict=True)
    ]
    return {"cells": cells, "at": found["best"] @ corners, "low": low, "high": high}


def shade(strength: float) -> int:
    """The shade of a table's cell: 0, the darkest, for a strength of 1."""
    return SHADES - 1 - min(SHADES - 1, int(SHADES * max(strength, 0.0)))
