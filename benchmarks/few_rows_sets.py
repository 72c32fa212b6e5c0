"""The sets that ``benchmarks.few_rows`` draws rows from, by name.

- a directory of prediction sets with labels: real members (``benchmarks.argument_members`` leaves one);
- ``members=K``: K simulated language models, which are nearly alike;
- ``unequal``, ``strong``: simulated members of unequal strength;
- ``world=SEED``: 2 to 10 simulated members of 2 to 6 classes, alike, graded, of two tiers, or one above all.
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


def world(seed: int, n: int = 7_000) -> tuple[np.ndarray, np.ndarray]:
    """Members whose number, strength, common error and sharpness are drawn by lot."""
    rng = np.random.default_rng([seed, 77])
    k, m = int(rng.choice([2, 2, 3, 3, 3, 4, 6])), int(rng.integers(2, 11))
    z = rng.uniform(0.7, 2.5) * rng.normal(size=(n, k))
    if rng.random() < 0.3:
        z[:, 0] += rng.uniform(0.5, 2.5)
    labels = (rng.random((n, 1)) > softmax(z).cumsum(axis=1)).sum(axis=1).clip(0, k - 1)
    common, kind = rng.uniform(0.2, 1.2), rng.choice(["alike", "graded", "tiers", "one"])
    if kind == "alike":
        own = rng.uniform(0.15, 0.7, size=m)
    elif kind == "graded":
        own = np.geomspace(rng.uniform(0.2, 0.6), rng.uniform(1, 4), m)
    elif kind == "tiers":
        own, weak = rng.uniform(0.3, 0.8, size=m), rng.random(m) < 0.4
        own[weak] = rng.uniform(1.5, 4, size=weak.sum())
    else:
        own = np.append(rng.uniform(0, 0.3), rng.uniform(1, 2.5, size=m - 1))
    least = rng.uniform(0.3, 1)
    sharpness = rng.uniform(least, least * rng.uniform(1, 3), size=m)
    if rng.random() < 0.4:  # one is far too sure of itself
        sharpness[rng.integers(m)] *= rng.uniform(2, 6)
    if rng.random() < 0.5:  # those who see little say little
        sharpness = sharpness / np.sqrt(1 + common**2 + own**2)
    seen = z[:, None] + common * rng.normal(size=(n, 1, k)) + own[None, :, None] * rng.normal(size=(n, m, k))
    P = np.clip(softmax(seen * sharpness[None, :, None])[:, rng.permutation(m)], 1e-9, None)
    return P / P.sum(axis=2, keepdims=True), np.eye(k)[labels]


SIMULATED = {"unequal": unequal, "strong": strong}


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Members' predictions (n, members, K) and targets (n, K) of a set."""
    kind, _, what = name.partition("=")
    if kind == "members" and what:
        P, labels = correlated(20_000, int(what), seed=1)
        return P, np.eye(3)[labels]
    if kind == "world" and what:
        return world(int(what))
    if name in SIMULATED:
        return SIMULATED[name]()
    problem = problem_of(Path(name))
    return problem.P, problem.y
