"""What the ensemble takes, and its calibrations: ``python -m benchmarks.ensemble [--lmsys DIR]``.

Prints, all from one run: the simplex solver's time beside SLSQP with gradient and greedy selection; the whole
command's on many rows, members and classes; calibrations beside probmetrics' on two real models, where their
predictions are given. Markdown, to be kept in ``benchmarks/ensemble.md``; log-loss beside peers is what
``benchmarks.ensemble_scores`` prints.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.ensemble_peers import autogluon_greedy, likelihoods_of, slsqp
from benchmarks.greedy import greedy_weights
from data.classes import Classes
from data.softmax import softmax
from ensemble.methods.base import Blender
from ensemble.methods.blend import EqualMean, GeometricMean, SimplexBlend
from ensemble.methods.pool import LogPool
from ensemble.methods.scalings import KINDS, LinearScaling
from ensemble.methods.temperature import TemperatureScaling
from ensemble.reading.load import load_problem
from ensemble.reading.problem import Problem
from ensemble.scoring.crossfit import cross_fit
from ensemble.solvers.folds import group_folds
from ensemble.solvers.numbers import log_loss
from ensemble.solvers.simplex import solve_simplex
from ensemble.solvers.threads import one_blas_thread

SHAPES = (
    *((1_000, 3, 3), (4_000, 3, 3), (1_000, 12, 3), (1_000, 3, 12)),
    *((1_000, 3, 50), (1_000, 3, 200), (1_000, 3, 800), (4_000, 3, 200), (1_000, 12, 200)),
)
"""Rows, members and classes whose cost is compared."""
REQUIRED = ((400, 2, 65), (5_000, 5, 1_000), (36_765, 35, 3))


def members(n: int, m: int, k: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated and miscalibrated members of unequal strength with shared errors; and labels."""
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.normal(size=(n, k))
    labels = np.minimum((rng.random((n, 1)) > softmax(z).cumsum(axis=1)).sum(axis=1), k - 1)
    noise = z[:, None] + 0.5 * rng.normal(size=(n, 1, k))
    noise = noise + rng.uniform(0.3, 1.5, size=(1, m, 1)) * rng.normal(size=(n, m, k))
    return softmax(noise * rng.uniform(0.6, 1.6, size=(1, m, 1))), labels


def as_problem(P: np.ndarray, labels: np.ndarray, seed: int = 0, n_folds: int = 5) -> Problem:
    """A problem of nothing but predictions and labels."""
    n, m, k = P.shape
    y, names = np.eye(k)[labels], tuple(f"m{j}" for j in range(m))
    classes = Classes(tuple(f"class {c}" for c in range(k)))
    return Problem(
        [str(i) for i in range(n)], P, y, group_folds(y, None, n_folds, seed), np.arange(n), classes, names
    )


def problem_of(folder: Path) -> Problem:
    """The prediction sets of a directory, with their labels."""
    labels = next(path for path in sorted(folder.iterdir()) if path.name.endswith("labels.csv"))
    members = [path for path in folder.iterdir() if path.suffix in (".csv", ".parquet") and path != labels]
    if labels.name != "labels.csv":  # beside other tables
        members = [path for path in members if path.stem.endswith("predictions")]
    return load_problem(sorted(map(str, members)), labels)


def tabular(seed: int, n: int = 2000) -> Problem:
    """Out-of-fold predictions by ten scikit-learn models on rows that linear models cannot part."""
    from sklearn.datasets import make_gaussian_quantiles
    from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeClassifier

    rng = np.random.default_rng(seed)
    X, y = make_gaussian_quantiles(n_samples=n, n_features=6, n_classes=3, random_state=seed)
    X = np.c_[X, rng.normal(size=(n, 4))]
    y = np.where(rng.random(n) < 0.05, rng.integers(3, size=n), y)
    models = [
        make_pipeline(StandardScaler(), LogisticRegression()),
        KNeighborsClassifier(5),
        KNeighborsClassifier(40),
        GaussianNB(),
        RandomForestClassifier(100, max_features=0.3, random_state=seed),
        ExtraTreesClassifier(100, min_samples_leaf=3, random_state=seed),
        HistGradientBoostingClassifier(max_iter=40, random_state=seed),
        make_pipeline(StandardScaler(), MLPClassifier((30,), max_iter=60, random_state=seed)),
        DecisionTreeClassifier(min_samples_leaf=20, random_state=seed),
        ExtraTreesClassifier(100, max_features=None, random_state=seed),
    ]
    cv = StratifiedKFold(5, shuffle=True, random_state=seed)
    P = np.stack([cross_val_predict(model, X, y, cv=cv, method="predict_proba") for model in models], axis=1)
    return as_problem(P, y, seed)


def correlated(n: int, m: int, k: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Members as fine-tunings of language models are: most of their error is shared; and labels."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, k))
    labels = np.minimum((rng.random((n, 1)) > softmax(z).cumsum(axis=1)).sum(axis=1), k - 1)
    seen = (z + 0.8 * rng.normal(size=(n, k)))[:, None]
    own = rng.uniform(0.15, 0.6, size=(1, m, 1)) * rng.normal(size=(n, m, k))
    return softmax((seen + own) * rng.uniform(0.5, 1.0, size=(1, m, 1))), labels


def time_simplex(rows: int, m: int, autogluon: Path | None, kind: str) -> None:
    """The least of three process times: what else the machine does counts for less in it."""
    print(f"\n### Simplex weights, {rows:,} rows by {m} {kind} members\n")
    print("| solver | seconds of CPU | times ours | loss above best | certified gap |\n|---|---|---|---|---|")
    P, y = (correlated if kind == "correlated" else members)(rows, m)
    likelihoods = likelihoods_of(P, y)
    even = np.full(rows, 1 / rows)
    solvers: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: solve_simplex(likelihoods, even).weights,
        "SLSQP with gradient, tolerance 1e-10": lambda: slsqp(likelihoods),
        "SLSQP with gradient, tolerance 1e-15": lambda: slsqp(likelihoods, 1e-15),
        "greedy, 100 picks, ours": lambda: greedy_weights(P, y),
    }
    found = {}
    for name, solve in solvers.items():
        times = []
        for _ in range(1 if name.startswith("greedy") else 3):
            start = time.process_time()
            weights = solve()
            times.append(time.process_time() - start)
        found[name] = (weights, min(times))
    if autogluon:
        found["greedy, 100 picks, AutoGluon"] = autogluon_greedy(autogluon, P, y)
    ours, own_seconds = found["ours"]
    best = -np.log(likelihoods @ ours).mean()
    for name, (weights, seconds) in found.items():
        mixture = likelihoods @ weights
        gap = float((likelihoods / mixture[:, None]).mean(axis=0).max() - 1)
        above = -np.log(mixture).mean() - best
        cells = f"{seconds:.3f} | {seconds / own_seconds:.1f} | {above:.1e} | {gap:.0e}"
        print(f"| {name} | {cells} |", flush=True)


def calibrations(title: str, problem: Problem) -> None:
    """Every calibration of the mean and of two members, and probmetrics' structured matrix, nested."""
    from probmetrics.calibrators import get_calibrator

    def structured(probs: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        scaling = get_calibrator("sms")
        scaling.fit(probs, y.argmax(axis=1))
        return scaling.predict_proba

    def ours(kind: str) -> Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]:
        return lambda probs, y: LinearScaling(kind).fit(probs, y).predict_on

    ways = {"none": lambda probs, y: lambda fresh: fresh}
    ways["temperature"] = lambda probs, y: TemperatureScaling().fit(probs, y).predict_on
    ways |= {kind: ours(kind) for kind in KINDS} | {"probmetrics' structured matrix": structured}
    given = {"mean": problem.P.mean(axis=1), "first member": problem.P[:, 0], "second": problem.P[:, 1]}
    print(f"\n### Calibration: {title}\n\n| calibration | {' | '.join(given)} |\n|---|---|---|---|")
    for name, fit in ways.items():
        losses = []
        for probs in given.values():
            held_out = np.empty_like(probs)
            for fold in np.unique(problem.fold):
                train, test = problem.fold != fold, problem.fold == fold
                held_out[test] = fit(probs[train], problem.y[train])(probs[test])
            losses.append(f"{log_loss(held_out, problem.y).mean():.4f}")
        print(f"| {name} | {' | '.join(losses)} |", flush=True)


def time_command(problem: Problem, what: str = "") -> float:
    """The whole command in a process of its own: nested scores, a thousand bootstrap draws, the report.

    Prints a line and returns its seconds of CPU.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names, (rows, m, k) = problem.classes.names, problem.P.shape
    ids = pa.array(problem.row_ids)
    with tempfile.TemporaryDirectory() as folder:
        for j in range(m):
            columns = {name: problem.P[:, j, k] for k, name in enumerate(names)}
            pq.write_table(pa.table({"id": ids, **columns}), f"{folder}/m{j}.parquet")
        pq.write_table(
            pa.table({"id": ids, "label": np.array(names)[problem.labels]}), f"{folder}/labels.parquet"
        )
        del ids
        files = [f"{folder}/m{j}.parquet" for j in range(m)]
        command = [sys.executable, "-m", "ensemble.stack", "--oof", *files]
        command += ["--labels", f"{folder}/labels.parquet", "--out", f"{folder}/stack"]
        start = time.perf_counter()
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(running.pid, 0)
        wall = time.perf_counter() - start
    busy = used.ru_utime + used.ru_stime
    cells = f"{wall:.0f} | {busy:.0f} | {used.ru_maxrss / 2**20:.2f}"
    shape = f"{rows:,} x {m}" + (f" x {k:,}" if k != 3 else "")
    print(f"| {shape}{what} | {cells} |" + (f" exit status {status}" if status else ""), flush=True)
    return busy


def time_growth() -> None:
    """How seconds of CPU grow with rows, members and classes, one of them four times as many at a time."""
    print("\n### Growth\n\n| rows x members | seconds | of CPU | peak GiB |\n|---|---|---|---|")
    seconds = {shape: time_command(as_problem(*correlated(*shape))) for shape in SHAPES}
    print("\n| four times as many | from | exponent |\n|---|---|---|")
    for shape, busy in seconds.items():
        for place, what in enumerate(("rows", "members", "classes")):
            more = tuple(4 * number if i == place else number for i, number in enumerate(shape))
            if more in seconds:
                exponent = np.log(seconds[more] / busy) / np.log(4)
                print(f"| {what} | {' x '.join(f'{number:,}' for number in shape)} | {exponent:.2f} |")


def time_first_methods(problem: Problem) -> None:
    """From equal weights to the log-opinion pool: what one needs to explore blend weights by hand."""

    def fit(P: np.ndarray, y: np.ndarray, groups: np.ndarray) -> dict[str, Blender]:
        return {
            "mean": EqualMean().fit(P, y),
            "geometric mean": GeometricMean().fit(P, y),
            "simplex": SimplexBlend().fit(P, y),
            "log-pool": LogPool().fit(P, y, groups=groups),
        }

    start, busy = time.perf_counter(), time.process_time()
    cross_fit(problem, fit=fit)
    seconds = f"{time.perf_counter() - start:.1f} | {time.process_time() - busy:.1f}"
    rows, m, _ = problem.P.shape
    print(f"| {rows:,} x {m}, equal weights to log-pool, nested | {seconds} | |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--lmsys", type=Path, metavar="DIR", help="teacher_m1, teacher_m2 and labels as CSV")
    parser.add_argument("--rows", type=int, default=55_000, help="of the simplex solver's timing")
    parser.add_argument("--autogluon", type=Path, metavar="PYTHON", help="of an environment with AutoGluon")
    parser.add_argument(
        "--only",
        choices=("solver", "command", "cost", "calibration"),
        help="one part of it",
    )
    parser.add_argument("--large", action="store_true", help="the command on a million rows too, 20 minutes")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    with one_blas_thread():
        if args.only in (None, "solver"):
            for kind in ("correlated", "independent"):
                time_simplex(args.rows, 20, args.autogluon, kind)
            time_simplex(1_000_000, 10, None, "correlated")
        if args.only in (None, "command"):
            print("\n### The whole command\n")
            print("| rows x members | seconds | of CPU | peak GiB |\n|---|---|---|---|")
            usual = as_problem(*correlated(55_000, 10))
            time_first_methods(usual)
            time_command(usual)
            if args.large:
                time_command(tabular(0, 55_000), ", where trees matter")
                time_command(as_problem(*correlated(1_000_000, 20)))
        if args.only in (None, "cost"):
            print("\n### Many classes, many members\n")
            print("| rows x members (x classes) | seconds | of CPU | peak GiB |\n|---|---|---|---|")
            for shape in REQUIRED:
                time_command(as_problem(*correlated(*shape)))
            time_growth()
        if args.lmsys and args.only in (None, "calibration"):
            calibrations("two real language models", problem_of(args.lmsys))
            calibrations("ten scikit-learn models, seed 0", tabular(0))


if __name__ == "__main__":
    main()
