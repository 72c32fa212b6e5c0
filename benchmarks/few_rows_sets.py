"""The sets that ``benchmarks.few_rows`` draws rows from, by name.

- a directory of prediction sets with labels: real members (``benchmarks.argument_members`` leaves one);
- ``members=K``: K simulated language models, which are nearly alike;
- ``unequal``, ``strong``: simulated members of unequal strength.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.ensemble import correlated, problem_of
from data.softmax import softmax


def unequal() -> tuple[np.ndarray, np.ndarray]:
    """Ten members whose noise grows from .3 to 3."""
    rng, n = np.random.default_rng(5), 12_000
    z = 1.2 * rng.normal(size=(n, 3))
    labels = (rng.random((n, 1)) > softmax(z).cumsum(axis=1)).sum(axis=1).clip(0, 2)
    noise = 0.6 * rng.normal(size=(n, 1, 3))
    noise = noise + np.geomspace(0.3, 3, 10)[None, :, None] * rng.normal(size=(n, 10, 3))
    return softmax((z[:, None] + noise) * rng.uniform(0.5, 1.5, size=(1, 10, 1))), np.eye(3)[labels]


def strong() -> tuple[np.ndarray, np.ndarray]:
    """One member of which five others are noisy copies."""
    rng, n, m = np.random.default_rng(7), 20_000, 6
    z = 1.5 * rng.normal(size=(n, 3))
    labels = (rng.random((n, 1)) > softmax(z).cumsum(axis=1)).sum(axis=1).clip(0, 2)
    seen = z + 0.6 * rng.normal(size=(n, 3))
    own = seen[:, None] + rng.uniform(1.5, 2.5, size=(1, m, 1)) * rng.normal(size=(n, m, 3))
    own[:, 0] = seen
    sharpness = np.full((1, m, 1), 0.75)
    sharpness[:, 1:] = rng.uniform(0.3, 0.6, size=(1, m - 1, 1))
    return softmax(own * sharpness), np.eye(3)[labels]


SIMULATED = {"unequal": unequal, "strong": strong}


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Members' predictions (n, members, K) and targets (n, K) of a set."""
    kind, _, what = name.partition("=")
    if kind == "members" and what:
        P, labels = correlated(20_000, int(what), seed=1)
        return P, np.eye(3)[labels]
    if name in SIMULATED:
        return SIMULATED[name]()
    problem = problem_of(Path(name))
    return problem.P, problem.y
