"""What one would reach for instead of the stack, each with sensible settings.

CatBoost, XGBoost, netcal and probmetrics come with ``pip install .[bench]``; what is not installed is left
out, and the table says so. AutoGluon pins other versions of nearly everything and runs by its own Python.
Where labels are shares, a row stands once for each class that has one, with that weight.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from benchmarks.greedy import greedy_weights
from ensemble.methods.logit import stack_features

Fit = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]
"""From members' predictions (n, members, K) and targets (n, K) to what predicts (n, K) from further ones."""

VOTES = 10
"""Copies of a row, by its shares, for what takes neither soft labels nor weights."""

_GREEDY = """
import sys, time
import numpy as np
from autogluon.core.metrics import log_loss
from autogluon.core.models.greedy_ensemble.ensemble_selection import EnsembleSelection
data = np.load(sys.argv[1])
P, y = data["P"], data["y"]
kind = "multiclass" if P.shape[2] > 2 else "binary"
parts = [p if P.shape[2] > 2 else p[:, 1] for p in np.moveaxis(P, 1, 0)]
greedy = EnsembleSelection(ensemble_size=100, problem_type=kind, metric=log_loss)
start = time.process_time()
greedy.fit(predictions=parts, labels=y)
np.savez(sys.argv[2], weights=np.asarray(greedy.weights_), seconds=time.process_time() - start)
"""

_BEST = """
import sys
import numpy as np, pandas as pd
from autogluon.tabular import TabularPredictor
data = np.load(sys.argv[1])
train = pd.DataFrame(data["X"]).add_prefix("f").assign(label=data["y"])
soft = len(np.unique(data["row"])) < len(train)
extra = dict(sample_weight="weight", groups="fold") if soft else {}
if soft:  # copies of a row stay in one of its eight folds
    train = train.assign(weight=data["weight"], fold=data["row"] % 8)
predictor = TabularPredictor("label", eval_metric="log_loss", path=sys.argv[3], verbosity=0, **extra)
limits = dict(time_limit=float(sys.argv[4]), num_cpus=2, dynamic_stacking=False)
predictor.fit(train, presets="best_quality", **limits)
fresh = pd.DataFrame(data["fresh"]).add_prefix("f")
np.savez(sys.argv[2], probs=predictor.predict_proba(fresh).to_numpy())
"""


def in_autogluon(python: Path, code: str, *words: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    """Run code in AutoGluon's environment: from arrays to arrays, both as files, with a folder for models."""
    with tempfile.TemporaryDirectory() as folder:
        given, found, models = (str(Path(folder) / name) for name in ("given.npz", "found.npz", "models"))
        np.savez(given, **arrays)
        command = [str(python), "-c", code, given, found, models, *words]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ImportError(f"AutoGluon failed: {done.stderr.strip().splitlines()[-1]}")
        return dict(np.load(found))


def autogluon_best(python: Path, seconds: float) -> Fit:
    """AutoGluon's ``best_quality`` on log-probabilities, in its own environment, in so many seconds."""

    def fit(P: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        rows, labels, weight = spread(y)
        arrays = {"X": stack_features(P)[rows], "y": labels, "weight": weight, "row": rows}

        def predict(fresh: np.ndarray) -> np.ndarray:
            arrays["fresh"] = stack_features(fresh)
            return in_autogluon(python, _BEST, str(seconds), **arrays)["probs"]

        return predict

    return fit


def spread(y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, labels and weights (each of shape (m,)): a row once for each class that its target (n, K) has."""
    rows, labels = np.nonzero(y)
    return rows, labels, y[rows, labels]


def repeated(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and labels: each row once, or where some are soft, copied by its shares."""
    rows, labels, weight = spread(y)
    if len(rows) == len(y):
        return rows, labels
    copies = np.rint(VOTES * weight).astype(int)
    return np.repeat(rows, copies), np.repeat(labels, copies)


def slsqp(likelihoods: np.ndarray, tolerance: float = 1e-10, weight: np.ndarray | None = None) -> np.ndarray:
    """Mixture weights by SciPy's SLSQP with the gradient given."""
    n, m = likelihoods.shape
    share = np.full(n, 1 / n) if weight is None else weight / weight.sum()

    def both(x: np.ndarray) -> tuple[float, np.ndarray]:
        mixture = np.maximum(likelihoods @ x, 1e-300)
        return -float(share @ np.log(mixture)), -(likelihoods.T @ (share / mixture))

    sums = {"type": "eq", "fun": lambda x: x.sum() - 1, "jac": lambda x: np.ones(m)}
    found = minimize(
        both,
        np.full(m, 1 / m),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * m,
        constraints=[sums],
        tol=tolerance,
        options={"maxiter": 1000},
    ).x
    return found / found.sum()


def autogluon_greedy(python: Path, P: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights of AutoGluon's greedy ensemble selection, 100 picks, and the seconds of its fit."""
    result = in_autogluon(python, _GREEDY, P=P, y=y)
    return result["weights"], float(result["seconds"])


def likelihoods_of(P: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What each member gives to what happened (n, members)."""
    return np.maximum(P[np.arange(len(y)), :, y], 1e-15)


def _mix(weights: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda P: np.einsum("nmk,m->nk", P, weights)


def _of_features(make: Callable[[], Any]) -> Fit:
    """A classifier of log-probabilities that takes weights."""

    def fit(P: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        rows, labels, weight = spread(y)
        model = make().fit(stack_features(P)[rows], labels, sample_weight=weight)
        return lambda fresh: model.predict_proba(stack_features(fresh))

    return fit


def _logit(P: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Logistic regression, its penalty by five folds in which copies of a row stay together."""
    rows, labels, weight = spread(y)
    X = StandardScaler().fit(stack_features(P))
    features = X.transform(stack_features(P))[rows]
    folds = list(StratifiedGroupKFold(5).split(features, labels, rows))
    model = LogisticRegressionCV(cv=folds, scoring="neg_log_loss", max_iter=2000)
    model.fit(features, labels, sample_weight=weight)
    return lambda fresh: model.predict_proba(X.transform(stack_features(fresh)))


def _networks(P: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Ten small networks of different seeds, strongly regularised, averaged."""
    rows, labels, weight = spread(y)
    X = StandardScaler().fit(stack_features(P))
    features = X.transform(stack_features(P))[rows]
    bag = [
        MLPClassifier((16,), alpha=3.0, max_iter=100, random_state=seed).fit(features, labels, weight)
        for seed in range(10)
    ]
    return lambda fresh: np.mean([m.predict_proba(X.transform(stack_features(fresh))) for m in bag], axis=0)


def _netcal(P: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from netcal.scaling import TemperatureScaling

    scaling, (rows, labels) = TemperatureScaling(), repeated(y)
    scaling.fit(P.mean(axis=1)[rows], labels)

    def predict(fresh: np.ndarray) -> np.ndarray:
        probs = np.asarray(scaling.transform(fresh.mean(axis=1))).reshape(len(fresh), -1)
        return probs if probs.shape[1] > 1 else np.c_[1 - probs, probs]

    return predict


def _probmetrics(P: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from probmetrics.calibrators import get_calibrator

    scaling, (rows, labels) = get_calibrator("sms"), repeated(y)
    scaling.fit(P.mean(axis=1)[rows], labels)
    return lambda fresh: scaling.predict_proba(fresh.mean(axis=1))


def _xgboost() -> Any:
    import xgboost

    return xgboost.XGBClassifier(
        n_estimators=200, learning_rate=0.03, max_depth=2, reg_lambda=10.0, subsample=0.7, n_jobs=1,
        colsample_bytree=0.5, min_child_weight=10,
    )  # fmt: skip


def _catboost() -> Any:
    import catboost

    return catboost.CatBoostClassifier(
        iterations=300, learning_rate=0.03, depth=3, l2_leaf_reg=10.0, loss_function="MultiClass",
        thread_count=1, verbose=0, allow_writing_files=False,
    )  # fmt: skip


def _lightgbm() -> Any:
    return lightgbm.LGBMClassifier(
        num_threads=1, verbosity=-1, num_leaves=4, learning_rate=0.03, n_estimators=200, reg_lambda=10.0
    )


def fits(autogluon: Path | None = None, seconds: float = 60.0) -> dict[str, Fit]:
    """Every peer by name; those that are not installed fail on import.

    ``seconds`` is what AutoGluon may take for each fit.
    """

    def blended(P: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        kinds = [fit(P, y) for fit in (_logit, _of_features(_lightgbm), _networks)]
        return lambda fresh: np.mean([predict(fresh) for predict in kinds], axis=0)

    def by_slsqp(P: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        rows, labels, weight = spread(y)
        return _mix(slsqp(likelihoods_of(P[rows], labels), weight=weight))

    found: dict[str, Fit] = {
        "equal mean": lambda P, y: _mix(np.full(P.shape[1], 1 / P.shape[1])),
        "SLSQP blend": by_slsqp,
        "greedy selection, 100 picks": lambda P, y: _mix(greedy_weights(P, y)),
        "LogisticRegressionCV on log-probabilities": _logit,
        "LightGBM, defaults": _of_features(lambda: lightgbm.LGBMClassifier(num_threads=1, verbosity=-1)),
        "LightGBM, small trees": _of_features(_lightgbm),
        "XGBoost, small trees": _of_features(_xgboost),
        "CatBoost, small trees": _of_features(_catboost),
        "ten scikit-learn MLPs": _networks,
        "equal blend of LogisticRegressionCV, small LightGBM and MLPs": blended,
        "netcal temperature on the mean": _netcal,
        "probmetrics structured matrix on the mean": _probmetrics,
    }
    if autogluon:
        name = f"AutoGluon best_quality, {seconds:.0f} s a fit on 2 cores"
        found[name] = autogluon_best(autogluon, seconds)
    return found
