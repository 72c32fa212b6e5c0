"""Print `docs/results.md`'s table and draw its picture from a finished demo: ``python -m benchmarks.demo``.

Run ``make demo`` first. Reads ``runs/demo/stack/stack.json``, prints Markdown, and writes
``benchmarks/demo.svg``.
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path
from typing import Any

from data.files import write_text

WIDTH, ROW, LEFT, RIGHT, TOP = 760, 34, 190, 90, 26


def shown(stack: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """The lines to show: name, log-loss, and its 95 % interval, worst first, the optimum last."""
    methods = {method["name"]: method for method in stack["methods"]}

    def method(label: str, name: str) -> tuple[str, float, float, float]:
        return (label, methods[name]["nested_log_loss"], *methods[name]["log_loss_ci95"])

    plain = [stack["prior"], *stack["member_scores"]]
    lines = [(score["name"], score["log_loss"], *score["log_loss_ci95"]) for score in plain]
    lines += [
        method("equal-weight mean", "mean"),
        method(f"chosen stack ({stack['chosen']})", stack["chosen"]),
    ]
    if stack["bayes"]:
        lines.append((stack["bayes"]["name"], stack["bayes"]["log_loss"], *stack["bayes"]["log_loss_ci95"]))
    return lines


def markdown(lines: list[tuple[str, float, float, float]]) -> str:
    """Return the lines as a Markdown table."""
    rows = [f"| {name} | {loss:.4f} | {low:.4f} – {high:.4f} |" for name, loss, low, high in lines]
    return "\n".join(["| model | log-loss | 95 % interval |", "|---|---|---|", *rows])


def picture(lines: list[tuple[str, float, float, float]]) -> str:
    """Return the lines as dots with whiskers, in SVG."""
    low, high = min(line[2] for line in lines) - 0.02, max(line[3] for line in lines) + 0.02
    height = TOP + ROW * len(lines) + 40

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    bottom = TOP + ROW * len(lines)
    for tick in (t / 100 for t in range(70, 115, 5)):
        if low <= tick <= high:
            parts.append(f'<path d="M{x(tick):.1f} {TOP - 8}V{bottom}" stroke="#e3e6ea"/>')
            at = f'x="{x(tick):.1f}" y="{bottom + 18}"'
            parts.append(f'<text {at} text-anchor="middle" fill="#667">{tick:.2f}</text>')
    for i, (name, loss, left, right) in enumerate(lines):
        y = TOP + ROW * i + ROW / 2
        colour = "#c2410c" if name.startswith("chosen") else "#64748b" if name in EDGES else "#1d4ed8"
        short = escape(name.split(" (")[0])
        parts += [
            f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end" fill="#223">{short}</text>',
            f'<path d="M{x(left):.1f} {y}H{x(right):.1f}" stroke="{colour}" stroke-width="3" opacity=".45"/>',
            f'<circle cx="{x(loss):.1f}" cy="{y}" r="5.5" fill="{colour}"/>',
            f'<text x="{WIDTH - RIGHT + 14}" y="{y + 4}" fill="#223">{loss:.4f}</text>',
        ]
    parts.append(
        f'<text x="{LEFT}" y="{bottom + 36}" fill="#667">log-loss, lower is better; whiskers: 95 % '
        "bootstrap over prompts</text></svg>"
    )
    return "".join(parts)


EDGES = ("prior", "Bayes optimum")


def main() -> None:
    """Print the table and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stack", type=Path, default=Path("runs/demo/stack"))
    parser.add_argument("--picture", type=Path, default=Path(__file__).with_name("demo.svg"))
    args = parser.parse_args()
    lines = shown(json.loads((args.stack / "stack.json").read_text(encoding="utf-8")))
    print(markdown(lines))
    write_text(args.picture, picture(lines) + "\n")


if __name__ == "__main__":
    main()
