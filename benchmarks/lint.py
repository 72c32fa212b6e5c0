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
from ensemble.lint.suspects import in_sample_suspects
from ensemble.solvers.numbers import cross_entropy

STRENGTHS = {"like the others": 1.0, "half the noise": 0.5, "a fifth of the noise": 0.2, "no noise": 0.0}
REMEMBERED = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.97)


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


def rare(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes, one of them rare, and members of very unequal strength."""
    z = np.stack([np.full(n, rng.uniform(1.5, 3.5)), np.zeros(n)], axis=1) + rng.normal(size=(n, 2))
    labels = (rng.random(n) > softmax(z)[:, 0]).astype(int)
    noise = rng.uniform(0.1, 2.0, size=(1, int(rng.integers(2, 6)), 1))
    return softmax(z[:, None] + noise * rng.normal(size=(n, noise.shape[1], 2))), np.eye(2)[labels]


def copied(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A strong member and a weak one, each there twice, one of the two a little worse."""
    P, y = honest(rng, 0.5, n)
    worse = P[:, :2] * np.exp(0.1 * rng.normal(size=P[:, :2].shape))
    return np.concatenate([P, worse / worse.sum(axis=2, keepdims=True)], axis=1), y


def table(seed: int, n: int) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Real learners on a noisy table: honest members, trees' predictions of their own rows, and targets."""
    from lightgbm import LGBMClassifier
    from sklearn.datasets import make_classification
    from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 4))
    X, labels = make_classification(
        n,
        24,
        n_informative=int(rng.integers(4, 10)),
        n_classes=k,
        weights=[0.9] if k == 2 and seed % 2 else None,
        flip_y=rng.uniform(0.05, 0.4),
        class_sep=rng.uniform(0.5, 1.2),
        random_state=seed,
    )

    def boosted(leaves: int, rounds: int) -> LGBMClassifier:
        return LGBMClassifier(
            num_leaves=leaves, n_estimators=rounds, learning_rate=0.06, num_threads=1, verbosity=-1
        )

    models = [
        LogisticRegression(C=0.1),
        GaussianNB(),
        KNeighborsClassifier(40),
        ExtraTreesClassifier(40, min_samples_leaf=8, random_state=0),
        boosted(8, 40),
        boosted(16, 80),
    ]
    members = [cross_val_predict(model, X, labels, cv=4, method="predict_proba") for model in models]
    seen = {
        "boosting, 60 trees": boosted(8, 60),
        "boosting, 150 trees": boosted(8, 150),
        "a forest of leaves of 15": RandomForestClassifier(40, min_samples_leaf=15, random_state=1),
        "a forest of leaves of 4": RandomForestClassifier(40, min_samples_leaf=4, random_state=1),
    }
    leaks = {name: model.fit(X, labels).predict_proba(X) for name, model in seen.items()}
    return np.stack(members, axis=1), leaks, np.eye(k)[labels]


def leaking(P: np.ndarray, y: np.ndarray, remembered: float) -> np.ndarray:
    """The same members, the first of which remembers this share of every label."""
    leaked = P.copy()
    leaked[:, 0] = (1 - remembered) * P[:, 0] + remembered * y
    return leaked


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sets", type=int, default=1000, help="of each strength")
    parser.add_argument("--tables", type=int, default=30, help="of real learners")
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
    for title, simulate in (("two classes, one rare", rare), ("copies", copied)):
        named = [suspects_of(*simulate(np.random.default_rng(seed), args.rows)) for seed in range(args.sets)]
        print(f"| {title} | | {np.mean([bool(n) for n in named]):.1%} ({sum(bool(n) for n in named)}) |")
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
    print(f"\n| real learners, {args.tables} tables | named | another named |\n|---|---|---|")
    counts: dict[str, list[int]] = {}
    for seed in range(args.tables):
        P, leaks, y = table(seed, args.rows)
        counts.setdefault("all by fold", []).append(bool(suspects_of(P, y)))
        for name, own in leaks.items():
            found = suspects_of(np.concatenate([P, own[:, None]], axis=1), y)
            counts.setdefault(name + ", of their own rows", []).append(str(P.shape[1]) in found)
            counts.setdefault(name + ", another", []).append(bool(found - {str(P.shape[1])}))
    for name in [name for name in counts if not name.endswith(", another")]:
        other = counts.get(name.replace(", of their own rows", ", another"))
        print(
            f"| {name} | {np.mean(counts[name]):.0%} | {'' if other is None else f'{np.mean(other):.0%}'} |"
        )


def suspects_of(P: np.ndarray, y: np.ndarray) -> set[str]:
    """Names of the suspects, which are numbers here."""
    return {suspect.name for suspect in in_sample_suspects(P, y, [str(m) for m in range(P.shape[1])])}


if __name__ == "__main__":
    main()
