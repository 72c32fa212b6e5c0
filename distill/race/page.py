"""The race as a page and a picture: learning curves with bands, differences, treatments, the verdict."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from data.files import write_text
from distill.race.intervals import error_of
from distill.race.race import Race
from distill.race.treatment import HEADER, treatment, treatment_line
from ensemble.report.charts import Axes, point_list
from ensemble.report.frame import render

HERE = Path(__file__).parent
DASHES = ("none", "8 4", "2 4", "10 3 2 3", "5 5", "14 4")
"""How curves are told apart without their colours, of which the picture has as many."""
DIFFERENCES = ["pair", "budget", "difference", "from", "to", "shown"]
_LINE = 15
"""What a name needs of height in the picture."""


def write_pages(race: Race, verdict: str) -> tuple[Path, Path]:
    """Write ``race.html`` and ``race.svg`` into the race's directory; return both paths."""
    page, picture = race.out / "race.html", race.out / "race.svg"
    curves = curves_svg(race)
    write_text(picture, curves)
    text = render(
        "race.jinja",
        HERE,
        names=" and ".join(c.name for c in race.contestants),
        verdict=verdict,
        curves=curves,
        difference_header=DIFFERENCES,
        differences=difference_lines(race),
        treatment_header=HEADER,
        treatments=[treatment_line(treatment(c)) for c in race.contestants],
    )
    write_text(page, text)
    return page, picture


def difference_lines(race: Race) -> list[list[str]]:
    """Every look at every pair, as cells under :data:`DIFFERENCES`."""
    lines = []
    for (i, j), looks in race.pairs.items():
        one, two = race.contestants[i].name, race.contestants[j].name
        for look in looks.looks:
            shown = f"{one} is worse" if look.worse else f"{two} is worse" if look.better else ""
            known = np.isfinite(look.half)
            ends = [f"{value:+.4f}" for value in (look.low, look.high)] if known else ["", ""]
            numbers = [f"{look.difference:+.4f}", *ends]
            lines.append([f"{one} - {two}", f"{look.share:.0%}", *numbers, shown])
    return lines


def curve_points(race: Race) -> list[dict[str, Any]]:
    """Share of the budget, mean loss and half a band of each contestant's looks."""
    groups = np.unique([race.folds.group_ids[i] for i in race.validation], return_inverse=True)[1]
    student = t.isf(0.025, max(1, groups.max()))
    found = []
    for contestant in race.contestants:
        points = []
        for look, losses in zip(contestant.looks, contestant.losses, strict=True):
            half = student * float(np.sqrt((error_of(losses, groups) ** 2).sum()))
            points.append((float(look["share"]), float(losses.mean()), half))
        found.append({"name": contestant.name, "points": points, "stopped": contestant.stopped is not None})
    return found


def curves_svg(race: Race) -> str:
    """Learning curves with bands; a stopped backbone's curve ends in a cross."""
    curves = curve_points(race)
    every = [p for curve in curves for p in curve["points"]]
    low, high = min(p[1] - p[2] for p in every), max(p[1] + p[2] for p in every)
    axes = Axes(64, 24, 546, 252, low, high)
    for curve, (number, dash) in zip(curves, cycle(enumerate(DASHES)), strict=False):
        shares, losses, halves = np.array(curve["points"]).T
        upper, lower = (np.stack([shares, losses + side * halves], axis=1) for side in (1, -1))
        band = [(axes.x(share), axes.y(loss)) for share, loss in [*upper, *lower[::-1]]]
        curve |= {"number": number, "dash": dash, "band": point_list(band), "line": axes.line(shares, losses)}
    label = -np.inf
    for curve in sorted(curves, key=lambda c: -c["points"][-1][1]):  # from the top, as they are drawn
        label = max(axes.y(curve["points"][-1][1]) + 4, label + _LINE)
        curve["label"] = label
    return render("curves.jinja", HERE, axes=axes, curves=curves)
