"""What a router's figures look like in print: the curve, where the budget lands, what rows will cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from data.console.command import format_table
from data.errors import listing
from ensemble.scoring.bootstrap import NORMAL

HEADER = ["cost a row", "share spent", "by rule", "by lot", "rule on lot", "95 %", "oracle", "regret"]


def amount(value: float) -> str:
    """An amount in the unit of the costs, to four figures."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def lines(content: Mapping[str, Any]) -> list[list[str]]:
    """The curve as cells under :data:`HEADER`, where the budget lands last."""
    measured = content["measured"]
    points = [(amount(point["cost"]), point) for point in measured["curve"]]
    at = measured["at_budget"]
    points.append((f"budget: {amount(at['cost'])}", at))
    return [
        [
            cost,
            f"{100 * point['share']:.0f} %",
            *(f"{point[name]:.4f}" for name in ("routed", "lot")),
            f"{point['gain']['value']:+.4f}",
            "[{:+.4f}, {:+.4f}]".format(*point["gain"]["ci95"]),
            f"{point['oracle']:.4f}",
            f"{point['regret']['value']:.4f}",
        ]
        for cost, point in points
    ]


def sentences(content: Mapping[str, Any]) -> list[str]:
    """The verdict, the regret, and what new rows will cost."""
    at = content["measured"]["at_budget"]
    low, high = at["regret"]["ci95"]
    return [
        f"verdict: {content['measured']['verdict']}",
        f"regret: {at['regret']['value']:.4f} ({low:.4f} to {high:.4f}) to an oracle that knows each row's "
        f"gain, luck included, which no rule can: an upper bound; the rule has {100 * at['captured']:.0f} % "
        "of what the oracle gains on rows drawn by lot",
        f"cost: {spending(content)}",
    ]


def spending(content: Mapping[str, Any]) -> str:
    """What rows were found to cost beside what they may, and how far many new rows may stray from it."""
    at, rows, n = content["measured"]["at_budget"], content["budget"]["rows"], content["rows"]["n"]
    found = (
        f"{amount(at['cost'])} a row of {amount(at['budget'])}, cross-fitted, with {100 * at['sent']:.1f} % "
        f"of the rows sent to {listing(content['dear'])}"
    )
    if rows is None:
        return found
    most = NORMAL * at["deviation"] * rows * math.sqrt(1 / rows + 1 / n)
    return (
        f"{found}; {rows:,} new rows like these cost some {amount(at['cost'] * rows)} of "
        f"{amount(at['budget'] * rows)}, give or take {amount(most)}"
    )


def summary(content: Mapping[str, Any]) -> str:
    """All of it, as a command prints it."""
    return "\n".join([format_table(HEADER, lines(content)), *sentences(content)])
