"""The ensemble beside its peers: ``python -m benchmarks.ensemble [--lmsys DIR] [--rows 55000]``.

Prints, all from one run: the simplex solver's time beside SLSQP with gradient and greedy selection; nested
log-loss beside peers on two simulated sets of ten members by 2,000 rows, and on two real models where their
predictions are given. Markdown, to be kept in ``benchmarks/ensemble.md``.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import lightgbm
import numpy as np
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegressionCV
from threadpoolctl import threadpool_limits

from data.schema import Classes
from ensemble.base import softmax
from ensemble.blend import SimplexBlend
from ensemble.evaluate import choice_included, cross_fit, log_loss
from ensemble.greedy import GreedySelection
from ensemble.problem import Problem, load_problem
from ensemble.splits import group_folds
from ensemble.stackers import stack_features


def members(n: int, m: int, k: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated and miscalibrated members of unequal strength with shared errors; and labels."""
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.normal(size=(n, k))
    labels = np.minimum((rng.random((n, 1)) > softmax(z).cumsum(axis=1)).sum(axis=1), k - 1)
    noise = z[:, None] + 0.5 * rng.normal(size=(n, 1, k))
    noise = noise + rng.uniform(0.3, 1.5, size=(1, m, 1)) * rng.normal(size=(n, m, k))
    return softmax(noise * rng.uniform(0.6, 1.6, size=(1, m, 1))), labels


def tabular(seed: int) -> Problem:
    """Out-of-fold predictions by ten scikit-learn models on 2,000 rows that linear models cannot part."""
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
    X, y = make_gaussian_quantiles(n_samples=2000, n_features=6, n_classes=3, random_state=seed)
    X = np.c_[X, rng.normal(size=(2000, 4))]
    y = np.where(rng.random(2000) < 0.05, rng.integers(3, size=2000), y)
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
    targets, names = np.eye(3)[y], tuple(f"m{i}" for i in range(len(models)))
    fold = group_folds(targets, None, 5, seed)
    return Problem(
        [str(i) for i in range(2000)], P, targets, fold, np.arange(2000), Classes(("a", "b", "c")), names
    )


def slsqp(likelihoods: np.ndarray) -> np.ndarray:
    """Mixture weights by SciPy's SLSQP with the gradient given."""

    def both(x: np.ndarray) -> tuple[float, np.ndarray]:
        mixture = np.maximum(likelihoods @ x, 1e-300)
        return -float(np.log(mixture).mean()), -(likelihoods.T @ (1 / mixture)) / len(mixture)

    m = likelihoods.shape[1]
    sums = {"type": "eq", "fun": lambda x: x.sum() - 1, "jac": lambda x: np.ones(m)}
    start = np.full(m, 1 / m)
    return minimize(both, start, jac=True, bounds=[(0, 1)] * m, constraints=[sums], tol=1e-10).x


def time_simplex(rows: int) -> None:
    print(f"\n### Simplex weights, {rows:,} rows by 20 members\n")
    print("| solver | seconds | loss above the best | certified gap |\n|---|---|---|---|")
    P, y = members(rows, 20)
    likelihoods = np.take_along_axis(P, y[:, None, None], axis=2)[:, :, 0]
    found = {}
    for name, solve in (
        ("ours", lambda: SimplexBlend().fit(P, y)),
        ("SLSQP with gradient", lambda: slsqp(likelihoods)),
        ("greedy, 100 picks", lambda: GreedySelection().fit(P, y).weights_),
    ):
        times = []
        for _ in range(1 if name.startswith("greedy") else 3):
            start = time.perf_counter()
            result = solve()
            times.append(time.perf_counter() - start)
        found[name] = (min(times), result)
    exact = found["ours"][1]
    best = -np.log(likelihoods @ exact.weights_).mean()
    for name, (seconds, result) in found.items():
        weights = result.weights_ if name == "ours" else result
        gap = f"{exact.gap_:.0e}" if name == "ours" else ""
        print(f"| {name} | {seconds:.3f} | {-np.log(likelihoods @ weights).mean() - best:.1e} | {gap} |")


def peers(problem: Problem) -> dict[str, np.ndarray]:
    """Nested predictions by what one would reach for first."""
    probs: dict[str, np.ndarray] = {}
    for fold in np.unique(problem.fold):
        train, test = problem.fold != fold, problem.fold == fold
        X, y = stack_features(problem.P), problem.labels
        likelihoods = np.take_along_axis(problem.P[train], y[train][:, None, None], axis=2)[:, :, 0]
        weights = slsqp(np.maximum(likelihoods, 1e-15))
        logit = LogisticRegressionCV(cv=5, scoring="neg_log_loss", max_iter=2000).fit(X[train], y[train])
        plain = lightgbm.LGBMClassifier(num_threads=1, verbosity=-1).fit(X[train], y[train])
        small = lightgbm.LGBMClassifier(
            num_threads=1, verbosity=-1, num_leaves=4, learning_rate=0.03, n_estimators=200, reg_lambda=10.0
        ).fit(X[train], y[train])
        found = {
            "peer: SLSQP blend": np.einsum("nmk,m->nk", problem.P[test], weights),
            "peer: LogisticRegressionCV on log-probabilities": logit.predict_proba(X[test]),
            "peer: LightGBM, defaults": plain.predict_proba(X[test], num_threads=1),
            "peer: LightGBM, small trees": small.predict_proba(X[test], num_threads=1),
        }
        for name, part in found.items():
            probs.setdefault(name, np.empty_like(problem.y))[test] = part
    return probs


def score(title: str, problem: Problem) -> None:
    start = time.perf_counter()
    ours = cross_fit(problem).probs
    seconds = time.perf_counter() - start
    losses = {name: log_loss(probs, problem.y) for name, probs in ours.items()}
    chosen = choice_included(losses, ours, problem.fold)
    print(f"\n### {title}: {len(problem):,} rows, {len(problem.names)} members\n")
    print(f"All our methods, nested, in {seconds:.0f} s.\n\n| method | nested log-loss |\n|---|---|")
    print(f"| ours, by default, choice cross-fitted | {log_loss(chosen, problem.y).mean():.4f} |")
    for name, loss in losses.items():
        if "+temperature" not in name:
            print(f"| {name} | {loss.mean():.4f} |")
    for name, probs in peers(problem).items():
        print(f"| {name} | {log_loss(probs, problem.y).mean():.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--lmsys", type=Path, metavar="DIR", help="teacher_m1, teacher_m2 and labels as CSV")
    parser.add_argument("--rows", type=int, default=55_000, help="of the simplex solver's timing")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    with threadpool_limits(limits=1, user_api="blas"):
        time_simplex(args.rows)
        for seed in (0, 1):
            score(f"Ten scikit-learn models, simulated table, seed {seed}", tabular(seed))
        if args.lmsys:
            files = [str(args.lmsys / f"teacher_m{m}_predictions.csv") for m in (1, 2)]
            score("Two real language models", load_problem(files, args.lmsys / "teacher_labels.csv"))


if __name__ == "__main__":
    main()
