"""The router's report: one self-contained HTML page, without network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ensemble.report.charts import LINE, Axes
from ensemble.report.frame import render
from ensemble.routing.summary import HEADER, amount, lines, sentences

HERE = Path(__file__).parent
TITLE = "Router report"


def render_report(content: Mapping[str, Any]) -> str:
    """Return the page as text, from what ``router.json`` says."""
    measured = content["measured"]
    points = measured["curve"]
    losses = [point[name] for point in points for name in ("routed", "lot")]
    axes = Axes(LINE.left, LINE.top, LINE.width, LINE.height, min(losses), max(losses))
    shares = [point["share"] for point in points]
    cells = lines(content)
    return render(
        "router.jinja",
        HERE,
        title=TITLE,
        content=content,
        told=sentences(content),
        header=HEADER,
        cells=cells,
        landing=len(cells) - 1,
        axes=axes,
        curves={name: axes.line(shares, [point[name] for point in points]) for name in ("routed", "lot")},
        at=measured["at_budget"],
        models=[
            [
                name,
                "of the row" if content["cost"][name] is None else amount(content["cost"][name]),
                f"{content['temperatures'][name]:.4f}",
                f"{content['blend'][name]:.4f}",
            ]
            for name in (content["cheap"], *content["dear"])
        ],
    )
