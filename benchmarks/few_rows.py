"""The stack on few rows: ``python -m benchmarks.few_rows SET... [--draws 50] [--workers N] [--kept FILE]``.

What a SET is stands in :mod:`benchmarks.few_rows_sets`. Each draw takes some of its rows and up to ten of its
members, fits the whole stack by default settings, and predicts the rows that are left. Printed, by rows
drawn: the stack's loss on these less that of the geometric mean at one temperature and less that of the best
single member, as it is and at one temperature, all of the same draw; in how many draws it is significantly
above; and how far another seed moves it. Draws are kept in a file of JSON lines as they come, and one that
stands there is not made again. Workers are processes that make draws of their own; one process alone writes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.ensemble import as_problem
from benchmarks.few_rows_sets import load
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


@cache
def rows_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A set, read once a process."""
    return load(name)


def draw(name: str, number: int, seeds: int, pool: bool) -> list[float]:
    """One draw of a set.

    Returns
    -------
    list of float
        For each of :data:`SIMPLE` how far the fit's fresh loss is above it, and whether significantly (0 or
        1); last, how far other seeds move the loss, NaN where there is one seed.
    """
    P, y = rows_of(name)
    rng, size = np.random.default_rng([number, 20]), SIZES[number % len(SIZES)]
    rows = rng.permutation(len(P))
    members = np.sort(rng.permutation(P.shape[1])[:MEMBERS])
    drawn, rest = rows[:size], rows[size:][:FRESH]
    part, fresh = P[drawn][:, members], P[rest][:, members]
    fit: Fit = pooled if pool else stacked
    found = []
    with one_blas_thread():
        losses = [cross_entropy(fit(part, y[drawn], fresh, seed), y[rest]) for seed in range(seeds)]
        for probs in simple(part, y[drawn], fresh).values():
            gap = losses[0] - cross_entropy(probs, y[rest])
            gap = np.where(np.abs(gap) < 1e-9, 0, gap)
            found += [float(gap.mean()), float(gap.mean() > SURE * gap.std() / len(gap) ** 0.5)]
    moved = [abs(float(loss.mean() - losses[0].mean())) for loss in losses[1:]]
    return [*found, float(np.mean(moved)) if moved else np.nan]


def draws(
    name: str, numbers: range, seeds: int, pool: bool, workers: int, file: Path | None
) -> Iterator[tuple[int, list[float]]]:
    """Each draw's number and what was found, those that are kept first."""
    kept, missing = read(file, name, pool, seeds), []
    for number in numbers:
        if number in kept:
            yield number, kept[number]
        else:
            missing.append(number)
    for number, found in made(name, missing, seeds, pool, workers):
        if file:
            keep(file, {"set": Path(name).name, "draw": number, "pool": pool, "seeds": seeds, "found": found})
        yield number, found


def made(
    name: str, numbers: list[int], seeds: int, pool: bool, workers: int
) -> Iterator[tuple[int, list[float]]]:
    """Draws as they are made, by so many processes."""
    if min(workers, len(numbers)) < 2:
        for number in numbers:
            yield number, draw(name, number, seeds, pool)
        return
    # Forking would copy the locks of other threads, LightGBM's among them.
    with ProcessPoolExecutor(min(workers, len(numbers)), multiprocessing.get_context("spawn")) as processes:
        going = {processes.submit(draw, name, number, seeds, pool): number for number in numbers}
        try:
            for done in as_completed(going):
                yield going[done], done.result()
        finally:
            processes.shutdown(wait=False, cancel_futures=True)


def read(file: Path | None, name: str, pool: bool, seeds: int) -> dict[int, list[float]]:
    """What a file keeps of a set's draws, by number; a line that was cut off counts for nothing."""
    kept = {}
    for text in file.read_text(encoding="utf-8").splitlines() if file and file.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if [line["set"], line["pool"], line["seeds"]] == [Path(name).name, pool, seeds]:
            kept[line["draw"]] = line["found"]
    return kept


def keep(file: Path, line: dict) -> None:
    """Append a line, which begins anew where the last one was cut off."""
    with file.open("a+b") as handle:
        handle.seek(max(0, handle.tell() - 1))
        begin = b"" if handle.read() in (b"", b"\n") else b"\n"
        handle.write(begin + json.dumps(line).encode() + b"\n")


def show(name: str, found: dict[int, list[float]]) -> None:
    """Print a line for each number of rows and one for all of a set."""
    sizes = {
        size: [some for number, some in found.items() if SIZES[number % len(SIZES)] == size] for size in SIZES
    }
    for size, some in (*sizes.items(), ("all", list(found.values()))):
        if some:
            *pairs, moved = np.mean(some, axis=0).tolist()
            cells = [f"{a:+.4f} | {b:.1%}" for a, b in zip(pairs[::2], pairs[1::2], strict=True)]
            print(
                f"| {Path(name).name} | {size} | {len(some)} | {' | '.join(cells)} | {moved:.4f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("sets", nargs="+", metavar="SET")
    parser.add_argument("--draws", type=int, default=50, help="of each set")
    parser.add_argument("--first", type=int, default=0, help="number of the first draw")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes, each making draws of its own")
    parser.add_argument("--pool", action="store_true", help="the log-pool alone, which takes no time")
    parser.add_argument("--kept", type=Path, metavar="FILE", help="where draws are kept as they come")
    args = parser.parse_args()
    print("| set | rows | draws | " + " | ".join(f"less {name} | worse" for name in SIMPLE) + " | seeds |")
    print("|---" * (4 + 2 * len(SIMPLE)) + "|", flush=True)
    numbers = range(args.first, args.first + args.draws)
    for name in args.sets:
        show(name, dict(draws(name, numbers, args.seeds, args.pool, args.workers, args.kept)))


if __name__ == "__main__":
    main()
