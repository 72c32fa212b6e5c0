"""Races with known truth: how often a rule stops the wrong backbone, and what it saves.

``python -m benchmarks.race`` simulates 1,000 races of two backbones for each of five ways their learning
curves may lie, writes ``benchmarks/race.md`` and draws ``benchmarks/race.svg``. No model is trained.

A row's loss difference is the true gap at that look plus noise of standard deviation 0.5 that stays with the
row from look to look (correlation 0.9), as re-scoring the same validation rows does; measured on real pairs
of LMSYS models the deviation is 0.3 to 0.6. In some races all rows' differences also wander together, by .03
a look at first and ever less as the learning rate falls, as real models' do (``benchmarks/study.md``).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np

from data.files import write_text
from distill.race import intervals
from distill.race.intervals import PairedLooks

HERE = Path(__file__).parent
LOOKS, ROWS, ALPHA, NOISE, STAY = 10, 1000, 0.05, 0.5, 0.9
T = np.arange(1, LOOKS + 1) / LOOKS

CURVES: dict[str, np.ndarray] = {
    "no difference": np.zeros(LOOKS),
    "gap of .03 throughout": np.full(LOOKS, 0.03),
    "gap opens late to .04 (the thread)": 0.04 * T**2,
    "closes from .06 to .01": 0.01 + 0.05 * (1 - T) ** 1.5,
    "crosses: .05 behind, .03 ahead": -0.03 + 0.08 * (1 - T) ** 1.5,
    "no difference, losses wander": np.zeros(LOOKS),
    "gap of .03, losses wander": np.full(LOOKS, 0.03),
}
"""True loss of A less that of B at each look; at the last look it says who wins."""
WANDER = {"no difference, losses wander": 0.03, "gap of .03, losses wander": 0.03}
"""Standard deviation of what all rows share at a look, at the start; it falls with the rate's root."""

Rule = Callable[[np.ndarray], tuple[int, int]]
"""Maps differences (looks, rows) to the look of the stop and who is stopped: 1 A, -1 B, 0 neither."""


def simulate(curve: np.ndarray, wander: float, rng: np.random.Generator) -> np.ndarray:
    """Row differences (looks, rows): the curve, noise that mostly stays with its row, what all share."""
    noise = np.empty((LOOKS, ROWS))
    noise[0] = rng.standard_normal(ROWS)
    for look in range(1, LOOKS):
        noise[look] = STAY * noise[look - 1] + np.sqrt(1 - STAY**2) * rng.standard_normal(ROWS)
    shared = wander * np.sqrt(1 - T) * rng.standard_normal(LOOKS)
    return (curve + shared)[:, None] + NOISE * noise


def spending(rows: np.ndarray, forecast: bool = True) -> tuple[int, int]:
    """The race's rule: alpha spending and wander, with the forecast of a closing gap or without."""
    looks = PairedLooks(np.arange(ROWS), ALPHA, draws=10_000)
    for number in range(LOOKS):
        look = looks.add(rows[number], T[number], 1 - T[number])
        if look.worse if forecast else look.low > 0:
            return number + 1, 1
        if look.better if forecast else look.high < 0:
            return number + 1, -1
    return LOOKS, 0


def by_rows(rows: np.ndarray) -> tuple[int, int]:
    """The race's rule blind to how losses wander, as it was at first: intervals of the rows alone."""
    blind = {"wander": lambda looks, groups, rates: 0.0, "KNOWN_LOOKS": 1, "MIN_LOOKS": 2}
    with patch.multiple(intervals, **blind):
        return spending(rows)


def naive(rows: np.ndarray) -> tuple[int, int]:
    """A t-test at every look at 1.96."""
    z = rows.mean(axis=1) / (rows.std(axis=1, ddof=1) / np.sqrt(ROWS))
    crossed = np.flatnonzero(np.abs(z) > 1.96)
    return (int(crossed[0]) + 1, int(np.sign(z[crossed[0]]))) if crossed.size else (LOOKS, 0)


def fixed(rows: np.ndarray) -> tuple[int, int]:
    """One t-test at the end of the budget."""
    z = rows[-1].mean() / (rows[-1].std(ddof=1) / np.sqrt(ROWS))
    return LOOKS, int(np.sign(z)) if abs(z) > 1.96 else 0


def confidence_sequence(rows: np.ndarray) -> tuple[int, int]:
    """Asymptotic confidence sequence (Waudby-Smith et al. 2021) on rows dealt out over the looks.

    It needs fresh rows at every look, so each look adds a tenth of them; tightest after half of the rows.
    """
    block = ROWS // LOOKS
    seen = np.concatenate([rows[k, k * block : (k + 1) * block] for k in range(LOOKS)])
    best = ROWS / 2
    rho2 = (-2 * np.log(ALPHA) + np.log(-2 * np.log(ALPHA) + 1)) / best
    for number in range(1, LOOKS + 1):
        t = number * block
        values = seen[:t]
        margin = np.sqrt(2 * (t * rho2 + 1) / (t**2 * rho2) * np.log(np.sqrt(t * rho2 + 1) / ALPHA))
        if abs(values.mean()) > values.std(ddof=1) * margin:
            return number, int(np.sign(values.mean()))
    return LOOKS, 0


RULES: dict[str, Rule] = {
    "distill.race": spending,
    "the same, no forecast": lambda rows: spending(rows, forecast=False),
    "the same, by rows alone": by_rows,
    "confidence sequence, fresh rows": confidence_sequence,
    "t-test at every look": naive,
    "t-test at the end": fixed,
}


def measure(name: str, rule: Rule, races: int, seed: int) -> tuple[float, float, float]:
    """Shares of wrong stops, of losers named, and of the loser's steps saved, over curves of a name."""
    curve = CURVES[name]
    wrong = named = saved = 0.0
    for race in range(races):
        look, stopped = rule(simulate(curve, WANDER.get(name, 0.0), np.random.default_rng([seed, race])))
        if stopped:
            truth = np.sign(curve[-1])
            wrong += stopped != truth
            named += stopped == truth
            saved += 1 - look / LOOKS
    return wrong / races, named / races, saved / races


def picture(results: dict[tuple[str, str], tuple[float, float, float]]) -> str:
    """Wrong stops against steps saved, a panel of bars a curve."""
    width, panel, left, top = 860, 151, 240, 30
    names = list(RULES)
    colours = dict(
        zip(names, ["#1d4ed8", "#93b4f5", "#7c3aed", "#64748b", "#c2410c", "#a3a3a3"], strict=True)
    )
    height = top + panel * len(CURVES) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="18" fill="#223" font-weight="600">wrong stops (line: {ALPHA:.0%})</text>',
        f'<text x="{left + 320}" y="18" fill="#223" font-weight="600">loser\'s steps saved</text>',
    ]
    for k, curve in enumerate(CURVES):
        y0 = top + panel * k
        parts.append(f'<text x="12" y="{y0 + 20}" fill="#223" font-weight="600">{curve}</text>')
        for i, name in enumerate(names):
            wrong, _, saved = results[curve, name]
            y = y0 + 28 + 19 * i
            parts.append(f'<text x="{left - 10}" y="{y + 11}" text-anchor="end" fill="#445">{name}</text>')
            for x, value in ((left, wrong), (left + 320, saved)):
                parts.append(
                    f'<rect x="{x}" y="{y}" width="{max(1, 230 * value):.1f}" height="13" '
                    f'fill="{colours[name]}"/><text x="{x + 236 * value + 6:.1f}" y="{y + 11}" '
                    f'fill="#445">{value:.1%}</text>'
                )
        x = left + 230 * ALPHA
        parts.append(f'<path d="M{x} {y0 + 24}V{y0 + 141}" stroke="#c2410c" stroke-dasharray="3 3"/>')
    return "".join([*parts, "</svg>"])


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--races", type=int, default=1000)
    args = parser.parse_args()
    started = time.perf_counter()
    results = {
        (curve, name): measure(curve, rule, args.races, k)
        for k, curve in enumerate(CURVES)
        for name, rule in RULES.items()
    }
    lines = [
        "| true gap of A to B | rule | wrong stops | loser stopped | loser's steps saved |",
        "|---|---|---|---|---|",
    ]
    for (curve, name), (wrong, named, saved) in results.items():
        right = "-" if CURVES[curve][-1] == 0 else f"{named:.1%}"
        lines.append(f"| {curve} | {name} | {wrong:.1%} | {right} | {saved:.1%} |")
    table = "\n".join(lines)
    error = 1.96 * np.sqrt(ALPHA * (1 - ALPHA) / args.races)
    text = (
        "# Races with known truth\n\n"
        f"Made by `python -m benchmarks.race`: {args.races:,} simulated races a line, {LOOKS} looks at "
        f"{ROWS:,} validation rows, stated level {ALPHA:.0%}. A stop is wrong if the stopped backbone is no "
        f"worse at the end of the budget; simulation error at the level is ± {error:.1%}. A quarter of an "
        f"hour on one busy core.\n\n{table}\n\n"
        "![wrong stops and steps saved](race.svg)\n\n"
        "Curves that cross are where early stopping of any kind errs, for at that look the stopped backbone "
        "is worse. The forecast of a closing gap is what keeps the race's rule below its level there. The "
        "confidence sequence judges the average gap so far, by a tenth of the rows a look, which is why it "
        "is slower to see.\n\nWhere losses wander, a rule that knows the rows alone takes a passing mood for "
        "a model's worth. The race reads off its looks how far a pair wanders, and names fewer losers.\n"
    )
    write_text(HERE / "race.md", text)
    write_text(HERE / "race.svg", picture(results) + "\n")
    print(table)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
