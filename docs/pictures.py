"""Pictures of how it works, as SVG: ``python -m docs.pictures`` draws them anew beside the pages."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

TRAINED, SCORED, UNSEEN, TAUGHT = "#cfe0f7", "#f8d9a8", "#ececec", "#cfe9d4"
CELL_WIDTH, CELL_HEIGHT, GAP, LEFT, TOP = 92, 30, 5, 232, 46


def text(x: float, y: float, words: str, anchor: str = "start", size: int = 13) -> str:
    """A line of text."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}">{escape(words)}</text>'


def cell(x: float, y: float, colour: str, words: str, width: float = CELL_WIDTH) -> str:
    """A box with a word in it."""
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{CELL_HEIGHT}"'
    box = f'<rect {place} rx="4" fill="{colour}" stroke="#778"/>'
    return box + text(x + width / 2, y + 20, words, "middle", 12)


def sheet(width: float, height: float, parts: list[str]) -> str:
    """A picture of its parts, on white, so that it reads on a dark page too."""
    size = f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>", ""])


def table(title: str, columns: list[str], lines: list[tuple[str, list[tuple[str, str]]]], note: str) -> str:
    """A grid: a line is a name and its cells, each a colour and a word."""
    width = LEFT + len(columns) * (CELL_WIDTH + GAP) + 12
    parts = [text(12, 20, title, size=14)]
    parts += [
        text(LEFT + i * (CELL_WIDTH + GAP) + CELL_WIDTH / 2, TOP - 8, name, "middle")
        for i, name in enumerate(columns)
    ]
    for row, (name, cells) in enumerate(lines):
        y = TOP + row * (CELL_HEIGHT + GAP)
        parts.append(text(12, y + 20, name))
        parts += [cell(LEFT + i * (CELL_WIDTH + GAP), y, *one) for i, one in enumerate(cells)]
    bottom = TOP + len(lines) * (CELL_HEIGHT + GAP) + 18
    return sheet(width, bottom + 12, [*parts, text(12, bottom, note, size=12)])


def folds() -> str:
    """Three folds of prompt groups; every row is predicted by the one model that did not train on it."""
    lines = [
        (f"model {k + 1}", [(SCORED, "predicts") if i == k else (TRAINED, "trains") for i in range(3)])
        for k in range(3)
    ]
    lines.append(("soft labels, out of fold", [(TAUGHT, f"of model {k + 1}") for k in range(3)]))
    return table(
        "Cross-fitting",
        ["fold 1", "fold 2", "fold 3"],
        lines,
        "A prompt, with all that are nearly the same, lies in one fold.",
    )


def leakage() -> str:
    """Whose soft labels teach the student that is scored on fold 1."""
    lines = [
        ("standard: all are heard", [(SCORED, "is scored"), (TRAINED, "of model 2"), (TRAINED, "of model 3")])
    ]
    lines.append(("their makers trained on", [(UNSEEN, ""), (SCORED, "1 and 3"), (SCORED, "1 and 2")]))
    lines.append(
        (
            "apart: model 1 alone is heard",
            [(SCORED, "is scored"), (TAUGHT, "of model 1"), (TAUGHT, "of model 1")],
        )
    )
    lines.append(("its maker trained on", [(UNSEEN, ""), (TRAINED, "2 and 3"), (TRAINED, "2 and 3")]))
    lines.append(
        (
            "strict: models of their own",
            [(SCORED, "is scored"), (TAUGHT, "a fourth's"), (TAUGHT, "a fifth's")],
        )
    )
    lines.append(("their makers trained on", [(UNSEEN, ""), (TRAINED, "3 alone"), (TRAINED, "2 alone")]))
    return table(
        "The student that is scored on fold 1 learns from folds 2 and 3",
        ["fold 1", "fold 2", "fold 3"],
        lines,
        "Orange under a label: its maker saw the rows that the student is scored on.",
    )


def nested() -> str:
    """A blend is scored on rows that it was not fitted on, and the choice of a blend, too."""
    lines = [
        (
            f"part {k + 1} is scored",
            [(SCORED, "score") if i == k else (TRAINED, "fit, choose") for i in range(4)],
        )
        for k in range(4)
    ]
    lines.append(("the stack that is kept", [(TAUGHT, "fit, choose")] * 4))
    return table(
        "Nested scores",
        [f"part {k + 1}" for k in range(4)],
        lines,
        "Weights, temperature and the choice of a method come from the blue parts alone.",
    )


PICTURES: dict[str, Callable[[], str]] = {"folds.svg": folds, "leakage.svg": leakage, "nested.svg": nested}


def main() -> None:
    """Draw all."""
    for name, draw in PICTURES.items():
        Path(__file__).with_name(name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
