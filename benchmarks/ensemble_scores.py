"""The stack's log-loss beside its peers': ``python -m benchmarks.ensemble_scores SET... [--fresh]``.

A set is a directory of members' predictions with labels, or ``table=SEED``: ten scikit-learn models on a
simulated table of 2,000 rows. Everything is fitted on the same folds, and with ``--fresh`` on one half of the
rows, drawn by groups, and scored on the other, which no choice saw. With ``--deals`` ours alone is scored on
several deals of the folds. Markdown, to be kept in ``benchmarks/ensemble.md``.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.ensemble import problem_of, tabular
from benchmarks.ensemble_peers import Fit, fits
from ensemble.methods.catalogue import family
from ensemble.reading.problem import Problem
from ensemble.scoring.bootstrap import bootstrap
from ensemble.scoring.choice import choice_included, mixed, mixture
from ensemble.scoring.crossfit import cross_fit, fit_on, predict_all
from ensemble.solvers.folds import group_folds
from ensemble.solvers.numbers import cross_entropy
from ensemble.solvers.threads import one_blas_thread

OURS = "ours, by default"


def of(problem: Problem, rows: np.ndarray) -> Problem:
    """Some rows of a problem, dealt into folds of their own."""
    y, groups = problem.y[rows], np.unique(problem.groups[rows], return_inverse=True)[1]
    return replace(
        problem,
        row_ids=[problem.row_ids[i] for i in rows],
        P=problem.P[rows],
        y=y,
        groups=groups,
        fold=group_folds(y, groups, len(np.unique(problem.fold)), 0),
        weight=None if problem.weight is None else problem.weight[rows],
        features=None if problem.features is None else problem.features[rows],
        given=None,
    )


def ours_nested(problem: Problem) -> dict[str, np.ndarray]:
    """Nested predictions of the stack, its choice cross-fitted, and of every kind."""
    probs = cross_fit(problem).probs
    chosen = choice_included(probs, problem.y, problem.fold, problem.weight)
    # The same kind with a calibration differs in the fourth digit.
    return {OURS: chosen, **{name: part for name, part in probs.items() if family(name) == name}}


def ours_fresh(known: Problem, later: Problem) -> dict[str, np.ndarray]:
    """Predictions of rows that nothing saw."""
    shares = mixture(cross_fit(known).probs, known.y, known.weight)
    parts = predict_all(fit_on(known, np.arange(len(known))), later, np.arange(len(later)))
    found: dict[str, list[np.ndarray]] = {}
    for _, probs in parts:
        for name in [name for name in probs if family(name) == name]:
            found.setdefault(name, []).append(probs[name])
        found.setdefault(OURS, []).append(mixed({name: probs[name] for name in shares}, shares))
    return {name: np.concatenate(pieces) for name, pieces in found.items()}


def peers(
    named: Mapping[str, Fit], splits: list[tuple[Problem, Problem, np.ndarray]], shape: tuple[int, ...]
) -> Iterator[tuple[str, np.ndarray | str, float]]:
    """Each peer's predictions (n, K), or why there are none, and its seconds of CPU.

    A split is what it is fitted on, what it predicts, and where that stands.
    """
    for name, fit in named.items():
        found, begun = np.empty(shape), busy()
        try:
            for known, later, rows in splits:
                found[rows] = fit(known.P, known.y)(later.P)
        except ImportError as error:
            yield name, str(error), 0.0
            continue
        yield name, found, busy() - begun


def deals(problem: Problem, number: int) -> None:
    """Print each method's nested log-loss over so many deals of the folds, the first as given."""
    found: dict[str, list[float]] = {}
    for deal in range(number):
        fold = group_folds(problem.y, problem.groups, len(np.unique(problem.fold)), deal)
        for name, probs in ours_nested(replace(problem, fold=fold) if deal else problem).items():
            loss = float(problem.weighted(cross_entropy(probs, problem.y)).mean())
            found.setdefault(name, []).append(loss)
    print(f"| method | mean of {number} deals | standard deviation | each |\n|---|---|---|---|")
    for name, losses in found.items():
        each = ", ".join(f"{loss:.5f}" for loss in losses)
        print(f"| {name} | {np.mean(losses):.5f} | {np.std(losses, ddof=1):.5f} | {each} |", flush=True)


def busy() -> float:
    """Seconds of CPU that this process and its children have taken."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def table(
    problem: Problem,
    ours: Callable[[], dict[str, np.ndarray]],
    splits: list[tuple[Problem, Problem, np.ndarray]],
    autogluon: Path | None,
    times: float,
    limit: float | None,
) -> None:
    """Print a line for each method: its log-loss, how far above ours, seconds of CPU."""
    begun = busy()
    found = ours()
    seconds = busy() - begun
    base = cross_entropy(found[OURS], problem.y)
    draws = bootstrap(problem.groups, weight=problem.weight)
    print("| method | log-loss | less ours, 95 % | seconds of CPU |\n|---|---|---|---|")

    def line(name: str, probs: np.ndarray, took: str) -> None:
        gap = cross_entropy(probs, problem.y) - base
        ends = draws.interval(problem.weighted(gap))
        above = (
            "" if name == OURS else f"{problem.weighted(gap).mean():+.4f} [{ends.low:+.4f}, {ends.high:+.4f}]"
        )
        shown = f"**{name}**" if name == OURS else name
        print(f"| {shown} | {problem.weighted(gap + base).mean():.4f} | {above} | {took} |", flush=True)

    line(OURS, found.pop(OURS), f"{seconds:.0f}, all kinds of ours")
    for name, probs in found.items():
        line(name, probs, "")
    each = limit or max(30.0, times * seconds / len(splits) / (os.cpu_count() or 1))
    missing = []
    for name, probs, took in peers(fits(autogluon, each), splits, problem.y.shape):
        if isinstance(probs, str):
            missing.append(f"{name}: {probs}")
        else:
            line(f"peer: {name}", probs, f"{took:.0f}")
    for left_out in missing:
        print(f"\nLeft out: {left_out}.", flush=True)


def read(name: str) -> tuple[str, Problem]:
    """A set's title and its problem."""
    simulated = name.startswith("table=")
    problem = tabular(int(name.removeprefix("table="))) if simulated else problem_of(Path(name))
    return f"Ten scikit-learn models, {name}" if simulated else Path(name).name, problem


def score(name: str, fresh: bool, autogluon: Path | None, times: float, limit: float | None) -> None:
    """Print a set's tables."""
    title, problem = read(name)
    rows, members, classes = problem.P.shape
    print(f"\n### {title}: {rows:,} rows, {members} members, {classes} classes, nested\n")
    splits = []
    for number in np.unique(problem.fold):
        test, rest = np.flatnonzero(problem.fold == number), np.flatnonzero(problem.fold != number)
        splits.append((of(problem, rest), of(problem, test), test))
    table(problem, lambda: ours_nested(problem), splits, autogluon, times, limit)
    if fresh:
        half = group_folds(problem.y, problem.groups, 2, 1) == 0
        known, later = of(problem, np.flatnonzero(half)), of(problem, np.flatnonzero(~half))
        print(f"\n### {title}: fitted on {len(known):,} rows, scored on {len(later):,} others\n")
        split = (known, later, np.arange(len(later)))
        table(later, lambda: ours_fresh(known, later), [split], autogluon, times, limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("sets", nargs="+", metavar="SET", help="a directory, or table=SEED")
    parser.add_argument("--fresh", action="store_true", help="score on a half held out, too")
    parser.add_argument("--autogluon", type=Path, metavar="PYTHON", help="of an environment with AutoGluon")
    parser.add_argument("--deals", type=int, metavar="N", help="ours alone, on so many deals of the folds")
    parser.add_argument("--times", type=float, default=10, help="our seconds of CPU that AutoGluon is given")
    parser.add_argument("--seconds", type=float, help="of the clock for a fit of AutoGluon's, instead")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(f"On {os.cpu_count()} cores; it is {time.strftime('%Y-%m-%d %H:%M')}.")
    with one_blas_thread():
        for name in args.sets:
            if args.deals:
                title, problem = read(name)
                print(f"\n### {title}: {len(problem):,} rows, nested\n")
                deals(problem, args.deals)
            else:
                score(name, args.fresh, args.autogluon, args.times, args.seconds)


if __name__ == "__main__":
    main()
