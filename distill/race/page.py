"""The race as a page and a picture: learning curves with bands, differences, treatments, the verdict."""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from data.files import write_text
from distill.race.race import Race
from distill.race.treatment import HEADER, treatment, treatment_line

COLOURS = ("#1d4ed8", "#c2410c", "#0b7a53", "#7c3aed", "#a16207", "#475569")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 320, 64, 150, 24, 44

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,
  initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Race of $names</title><style>
:root { --bg:#fbfbfa; --card:#fff; --ink:#1d2430; --soft:#5d6675; --line:#dfe3e8; color-scheme:light dark }
@media (prefers-color-scheme: dark) { :root { --bg:#14171c; --card:#1c2027; --ink:#e6e9ee; --soft:#9ba5b3;
  --line:#333a45 } }
* { box-sizing:border-box } body { margin:0; background:var(--bg); color:var(--ink);
  font:15px/1.5 system-ui,sans-serif; overflow-wrap:anywhere }
main { max-width:900px; margin:0 auto; padding:24px 16px 64px } h1 { font-size:1.5rem; margin:0 0 8px }
h2 { font-size:1.1rem; margin:0 0 6px } p { margin:4px 0 10px; color:var(--soft) }
.verdict { color:var(--ink); font-size:1.05rem } section { background:var(--card); border:1px solid
  var(--line); border-radius:10px; padding:16px 18px; margin:16px 0 } .scroll { overflow-x:auto }
table { border-collapse:collapse; font-size:.83rem; font-variant-numeric:tabular-nums; width:100% }
th,td { text-align:right; padding:4px 8px; border-bottom:1px solid var(--line); white-space:nowrap }
th:first-child,td:first-child { text-align:left } svg { width:100%; height:auto; display:block;
  background:#fff; border-radius:6px }
</style></head><body><main><h1>Race of $names</h1><p class="verdict">$verdict</p>
<section><h2>Learning curves</h2><p>Validation log-loss, lower is better; bands are 95 % for each
backbone's own loss over prompts, wider than those of the differences.</p>$curves</section>
<section><h2>Differences</h2><p>Paired, on the same rows. Intervals hold at every look at once:
repeated confidence intervals under alpha spending (Jennison and Turnbull 1989, Lan and DeMets 1983).</p>
<div class="scroll">$differences</div></section>
<section><h2>What each backbone got</h2><div class="scroll">$treatments</div></section>
</main></body></html>
""")


def write_pages(race: Race, verdict: str) -> tuple[Path, Path]:
    """Write ``race.html`` and ``race.svg`` into the race's directory; return both paths."""
    curves = curves_svg(race)
    page, picture = race.out / "race.html", race.out / "race.svg"
    write_text(picture, curves + "\n")
    treatments = [treatment_line(treatment(c)) for c in race.contestants]
    write_text(
        page,
        PAGE.substitute(
            names=escape(" and ".join(c.name for c in race.contestants)),
            verdict=escape(verdict),
            curves=curves,
            differences=_table(
                ["pair", "budget", "difference", "from", "to", "shown"], difference_lines(race)
            ),
            treatments=_table(HEADER, treatments),
        ),
    )
    return page, picture


def difference_lines(race: Race) -> list[list[str]]:
    """Every look at every pair, as cells."""
    lines = []
    for (i, j), looks in race.pairs.items():
        one, two = race.contestants[i].name, race.contestants[j].name
        for look in looks.looks:
            shown = f"{one} is worse" if look.worse else f"{two} is worse" if look.better else ""
            lines.append(
                [
                    f"{one} - {two}",
                    f"{look.share:.0%}",
                    f"{look.difference:+.4f}",
                    f"{look.low:+.4f}",
                    f"{look.high:+.4f}",
                    shown,
                ]
            )
    return lines


def _table(header: list[str], lines: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in line) + "</tr>" for line in lines)
    return f"<table><tr>{head}</tr>{body}</table>"


def curve_points(race: Race) -> list[dict[str, Any]]:
    """Share of the budget, mean loss and half a band of each contestant's looks."""
    groups = np.unique([race.folds.group_ids[i] for i in race.validation], return_inverse=True)[1]
    found = []
    for contestant in race.contestants:
        points = []
        for look, losses in zip(contestant.looks, contestant.losses, strict=True):
            sums = np.bincount(groups, weights=losses - losses.mean())
            half = 1.96 * float(np.sqrt((sums**2).sum())) / len(losses)
            points.append((float(look["share"]), float(losses.mean()), half))
        found.append({"name": contestant.name, "points": points, "stopped": contestant.stopped is not None})
    return found


def curves_svg(race: Race) -> str:
    """Learning curves with bands; a stopped backbone's curve ends in a cross."""
    curves = curve_points(race)
    every = [p for curve in curves for p in curve["points"]]
    low, high = min(p[1] - p[2] for p in every), max(p[1] + p[2] for p in every)
    room = max(high - low, 1e-6)

    def x(share: float) -> float:
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return TOP + (high - loss) / room * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="Validation log-loss against share of the budget" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for k in range(5):
        share, loss = k / 4, low + room * k / 4
        parts.append(
            f'<path d="M{x(share):.1f} {TOP}V{HEIGHT - BOTTOM}M{LEFT} {y(loss):.1f}H{WIDTH - RIGHT}" '
            'stroke="#e3e6ea" fill="none"/>'
            f'<text x="{x(share):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="#667">'
            f"{share:.0%}</text>"
            f'<text x="{LEFT - 8}" y="{y(loss) + 4:.1f}" text-anchor="end" fill="#667">{loss:.3f}</text>'
        )
    last_label = -1e9
    for curve in sorted(curves, key=lambda c: -c["points"][-1][1]):
        colour = COLOURS[curves.index(curve) % len(COLOURS)]
        points = curve["points"]
        upper = " ".join(f"{x(s):.1f},{y(m + h):.1f}" for s, m, h in points)
        lower = " ".join(f"{x(s):.1f},{y(m - h):.1f}" for s, m, h in reversed(points))
        line = " ".join(f"{x(s):.1f},{y(m):.1f}" for s, m, _ in points)
        s, m, _ = points[-1]
        label = max(y(m) + 4, last_label + 15)
        last_label = label
        parts += [
            f'<polygon points="{upper} {lower}" fill="{colour}" opacity=".13"/>',
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>',
            *(f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.5" fill="{colour}"/>' for a, b, _ in points),
            f'<text x="{x(s) + 10:.1f}" y="{label:.1f}" fill="{colour}">'
            f"{escape(curve['name'])} {m:.4f}</text>",
        ]
        if curve["stopped"]:
            cx, cy = x(s), y(m)
            parts.append(
                f'<path d="M{cx - 6:.1f} {cy - 6:.1f}l12 12m0 -12l-12 12" stroke="{colour}" '
                'stroke-width="2.5"/>'
            )
    parts.append(
        f'<text x="{x(0.5):.1f}" y="{HEIGHT - 8}" text-anchor="middle" fill="#667">share of the budget'
        "</text></svg>"
    )
    return "".join(parts)
