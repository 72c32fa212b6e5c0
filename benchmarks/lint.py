"""How often is an honest member called a leak? ``python -m benchmarks.lint [--sets 1000]``.

Each set simulates honest members of unequal strength, who see the truth through noise; some labels are wrong.
The first member is stronger than the rest by a known step, up to one that knows the true class probabilities.
Then it is replaced by one that saw the labels and moves from its own answer towards them by the share that it
remembers. Counted is how often an honest member is named, and how often that one.
"""

from __future__ import annotations

import argparse

import numpy as np

from data.softmax import softmax
from ensemble.reading.lint import in_sample_suspects
from ensemble.solvers.numbers import cross_entropy

STRENGTHS = {"like the others": 1.0, "half the noise": 0.5, "a fifth of the noise": 0.2, "no noise": 0.0}
REMEMBERED = (0.5, 0.7, 0.8, 0.9, 0.97)


def honest(rng: np.random.Generator, share: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Members' predictions (n, members, K), the first with ``share`` of the others' noise, and targets."""
    k, members = int(rng.integers(2, 6)), int(rng.integers(2, 9))
    z = rng.uniform(0.8, 4.0) * rng.normal(size=(n, k))
    labels = (rng.random((n, 1)) > softmax(z).cumsum(axis=1)).sum(axis=1).clip(0, k - 1)
    wrong = rng.random(n) < rng.uniform(0, 0.1)
    labels[wrong] = rng.integers(k, size=wrong.sum())
    noise = rng.uniform(0, 1.5) * rng.normal(size=(n, 1, k))
    noise = noise + rng.uniform(0.3, 2.0, size=(1, members, 1)) * rng.normal(size=(n, members, k))
    noise[:, 0] *= share
    sharpness = rng.uniform(0.6, 1.6, size=(1, members, 1))
    return softmax((z[:, None] + noise) * sharpness), np.eye(k)[labels]


def leaking(P: np.ndarray, y: np.ndarray, remembered: float) -> np.ndarray:
    """The same members, the first of which remembers this share of every label."""
    leaked = P.copy()
    leaked[:, 0] = (1 - remembered) * P[:, 0] + remembered * y
    return leaked


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sets", type=int, default=1000, help="of each strength")
    parser.add_argument("--rows", type=int, default=2000)
    args = parser.parse_args()
    print(f"\n### The lint, {args.sets} sets of {args.rows} rows a line; 2-8 members, 2-5 classes\n")
    print("| first member, honest | its loss over the next best's | sets with one named |\n|---|---|---|")
    for name, share in STRENGTHS.items():
        named, ratios = [], []
        for seed in range(args.sets):
            P, y = honest(np.random.default_rng(seed), share, args.rows)
            losses = np.array([cross_entropy(P[:, m], y).mean() for m in range(P.shape[1])])
            ratios.append(losses[0] / losses[1:].min())
            named.append(bool(in_sample_suspects(P, y, [str(m) for m in range(P.shape[1])])))
        low, middle, high = np.quantile(ratios, (0.05, 0.5, 0.95))
        print(
            f"| {name} | {middle:.2f} ({low:.2f} to {high:.2f}) | {np.mean(named):.1%} ({sum(named)}) |",
            flush=True,
        )
    print("\n| first member remembers of each label | named | another named |\n|---|---|---|")
    for remembered in REMEMBERED:
        caught, others = 0, 0
        for seed in range(args.sets):
            P, y = honest(np.random.default_rng(seed), 1.0, args.rows)
            suspects = in_sample_suspects(leaking(P, y, remembered), y, [str(m) for m in range(P.shape[1])])
            found = {suspect.name for suspect in suspects}
            caught += "0" in found
            others += bool(found - {"0"})
        print(f"| {remembered:.0%} | {caught / args.sets:.1%} | {others / args.sets:.1%} |", flush=True)


if __name__ == "__main__":
    main()
