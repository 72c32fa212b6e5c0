"""Features of the rows themselves, from the row table: lengths, turns, scripts and code.

A judge's errors depend on what it judges: long answers, many turns, languages it reads badly. Trees may use
these beside the members' predictions; nested evidence says whether that helps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from data.schema import Rows

TEXTS = ("prompt", "response_a", "response_b")
SCRIPTS = {
    "latin beyond ascii": re.compile("[\u00c0-\u024f]"),
    "cyrillic": re.compile("[\u0400-\u04ff]"),
    "east asian": re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"),
    "other": re.compile("[\u0370-\u03ff\u0590-\u1fff]"),
}
"""Ranges of letters that tell languages apart well enough for a tree; plain English has none of them."""
NAMES = (
    *(f"log characters of {text}" for text in TEXTS),
    "log ratio of the responses",
    "turns",
    *(f"share of letters: {name}" for name in SCRIPTS),
    "code in prompt",
    "code in response_a",
    "code in response_b",
    "lines of response_a",
    "lines of response_b",
)
_READ = 4000
"""Characters looked at for scripts, code and lines: enough to tell, whatever a row's length."""


def row_features(rows: Rows) -> np.ndarray:
    """Return the features of every row, shape (n, len(NAMES)).

    Parameters
    ----------
    rows : Rows
        A row without responses has features of zero for them.
    """
    values = np.zeros((len(rows), len(NAMES)))
    columns = [rows.table.column(name).to_pylist() for name in TEXTS]
    for i, turns in enumerate(zip(*columns, strict=True)):
        values[i] = _one(turns)
    return values


def _one(turns: Sequence[Sequence[str | None] | None]) -> list[float]:
    texts = ["\n".join(turn or "" for turn in part or []) for part in turns]
    prompt, first, second = texts
    lengths = [float(np.log1p(len(text))) for text in texts]
    seen = (prompt + first + second)[:_READ]
    scripts = [len(pattern.findall(seen)) / max(len(seen), 1) for pattern in SCRIPTS.values()]
    code = [float("```" in text) for text in texts]
    lines = [float(np.log1p(text[:_READ].count("\n"))) for text in (first, second)]
    return [*lengths, lengths[1] - lengths[2], float(len(turns[0] or [])), *scripts, *code, *lines]
