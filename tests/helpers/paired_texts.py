"""Pairs of texts whose states, made up, decide which is better."""

from __future__ import annotations

import numpy as np

from data.classes import PREFERENCE
from data.schema import Rows, make_rows
from distill.race.probe import texts_of


def pairs(n: int, seed: int = 0) -> tuple[Rows, np.ndarray]:
    """Pairs of numbered words, and a state of each distinct text whose first number decides."""
    rng = np.random.default_rng(seed)
    first, second = rng.permutation(n), rng.permutation(n)
    states = rng.normal(size=(n, 6)).astype(np.float32)
    label = (states[second, 0] > states[first, 0]).astype(int)
    columns = {
        "row_id": [str(i) for i in range(n)],
        "prompt": [[f"q{i % 20}"] for i in range(n)],
        "response_a": [[f"word{i:04d}"] for i in first],
        "response_b": [[f"word{i:04d}"] for i in second],
        "label": label.tolist(),
    }
    rows = make_rows(columns, PREFERENCE, "test")
    texts = texts_of(rows).texts
    return rows, states[[int(text.removeprefix("word")) for _, text in texts]]
