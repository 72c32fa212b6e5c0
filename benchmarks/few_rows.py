"""The stack on few rows: ``python -m benchmarks.few_rows SET... [--draws 50] [--seeds 2] [--kept FILE]``.

A SET is a directory of prediction sets with ``labels.csv``, ``members=K`` for K simulated language models, or
``unequal`` or ``strong`` for simulated members of unequal strength.
Each draw takes some of its rows and up to ten of its members, fits the whole stack by default settings, and
predicts the rows that are left. Printed, by rows drawn: the stack's loss on these less that of the geometric
mean at one temperature and less that of the best single member, as it is and at one temperature, all of the
same draw; in how many draws it is significantly above; and how far another seed moves it. Draws are kept in a
file of JSON lines as they come, and one that stands there is not made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.ensemble import as_problem, correlated, problem_of
from data.softmax import softmax
from ensemble.methods.blend import BestSingle
from ensemble.methods.pool import LogPool
from ensemble.methods.temperature import TemperatureScaling
from ensemble.scoring.choice import mixed, mixture
from ensemble.scoring.crossfit import cross_fit, fit_on, predict_all
from ensemble.solvers.folds import group_folds
from ensemble.solvers.numbers import cross_entropy, log_probs
from ensemble.solvers.threads import one_blas_thread

Fit = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]
"""From members' predictions, targets, fresh predictions and a seed to probabilities of the fresh rows."""
SIZES = (150, 300, 500, 1000)
MEMBERS, FRESH = 10, 6000
SURE = 1.96
SIMPLE = ("geometric mean+temperature", "best single", "best single+temperature")


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
    if name.startswith("members="):
        P, labels = correlated(20_000, int(name.removeprefix("members=")), seed=1)
        return P, np.eye(3)[labels]
    if name in SIMULATED:
        return SIMULATED[name]()
    problem = problem_of(Path(name))
    return problem.P, problem.y


def stacked(P: np.ndarray, y: np.ndarray, fresh: np.ndarray, seed: int) -> np.ndarray:
    """What the whole stack, fitted by default settings, predicts of fresh rows."""
    problem = as_problem(P, y.argmax(axis=1), seed)
    problem.y[:] = y
    problem.fold[:] = group_folds(y, None, 5, seed)
    shares = mixture(cross_fit(problem, seed, workers=1).probs, y)
    fitted = fit_on(problem, np.arange(len(y)), seed)
    wanted = {name: fitted[name] for name in shares}
    later = as_problem(fresh, np.zeros(len(fresh), dtype=int))
    return np.concatenate(
        [mixed(probs, shares) for _, probs in predict_all(wanted, later, np.arange(len(fresh)))]
    )


def pooled(P: np.ndarray, y: np.ndarray, fresh: np.ndarray, seed: int) -> np.ndarray:
    """What the log-pool alone, from which the stack departs, predicts of fresh rows."""
    return LogPool(seed=seed).fit(P, y).predict_proba(fresh)


def simple(P: np.ndarray, y: np.ndarray, fresh: np.ndarray) -> dict[str, np.ndarray]:
    """What it is held against."""
    single = BestSingle().fit(P, y)
    pairs = [
        (softmax(log_probs(P).mean(axis=1)), softmax(log_probs(fresh).mean(axis=1))),
        (single.predict_proba(P), single.predict_proba(fresh)),
    ]
    mean, best = (TemperatureScaling().fit(own, y).predict_on(later) for own, later in pairs)
    return dict(zip(SIMPLE, (mean, pairs[1][1], best), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("sets", nargs="+", metavar="SET")
    parser.add_argument("--draws", type=int, default=50, help="of each set")
    parser.add_argument("--first", type=int, default=0, help="number of the first draw")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--pool", action="store_true", help="the log-pool alone, which takes no time")
    parser.add_argument("--kept", type=Path, metavar="FILE", help="where draws are kept as they come")
    args = parser.parse_args()
    print("| set | rows | draws | " + " | ".join(f"less {name} | worse" for name in SIMPLE) + " | seeds |")
    print("|---" * (4 + 2 * len(SIMPLE)) + "|", flush=True)
    with one_blas_thread():
        for name in args.sets:
            fit = pooled if args.pool else stacked
            judge(name, range(args.first, args.first + args.draws), args.seeds, args.kept, fit)


def judge(name: str, draws: range, seeds: int, file: Path | None, fit: Fit = stacked) -> None:
    """Print a line for each number of rows and one for all of a set."""
    (P, y), short = load(name), Path(name).name
    lines = file.read_text(encoding="utf-8").splitlines() if file and file.exists() else []
    kept = {(line["set"], line["draw"]): line["found"] for line in map(json.loads, lines)}
    found: dict[int, list[list[float]]] = {size: [] for size in SIZES}
    for number in draws:
        if (short, number) in kept:
            found[SIZES[number % len(SIZES)]].append(kept[short, number])
            continue
        rng, size = np.random.default_rng([number, 20]), SIZES[number % len(SIZES)]
        rows = rng.permutation(len(P))
        members = np.sort(rng.permutation(P.shape[1])[:MEMBERS])
        drawn, rest = rows[:size], rows[size:][:FRESH]
        part, fresh = P[drawn][:, members], P[rest][:, members]
        losses = [cross_entropy(fit(part, y[drawn], fresh, seed), y[rest]) for seed in range(seeds)]
        line = []
        for probs in simple(part, y[drawn], fresh).values():
            gap = losses[0] - cross_entropy(probs, y[rest])
            gap = np.where(np.abs(gap) < 1e-9, 0, gap)
            line += [float(gap.mean()), float(gap.mean() > SURE * gap.std() / len(gap) ** 0.5)]
        moved = [abs(float(loss.mean() - losses[0].mean())) for loss in losses[1:]]
        found[size].append([*line, float(np.mean(moved)) if moved else np.nan])
        if file:
            with file.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps({"set": short, "draw": number, "found": found[size][-1]}) + "\n")
    every = [line for lines in found.values() for line in lines]
    for size, some in (*found.items(), ("all", every)):
        if some:
            *pairs, seeds_move = np.mean(some, axis=0).tolist()
            cells = [f"{a:+.4f} | {b:.1%}" for a, b in zip(pairs[::2], pairs[1::2], strict=True)]
            print(f"| {short} | {size} | {len(some)} | {' | '.join(cells)} | {seeds_move:.4f} |", flush=True)


if __name__ == "__main__":
    main()
