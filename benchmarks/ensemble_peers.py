"""What one would reach for instead of the stack, fitted fold by fold, each with sensible settings.

XGBoost, netcal and probmetrics come with ``pip install .[bench]``; what is not installed is left out, and the
table says so. AutoGluon pins other versions of nearly everything and runs by its own Python.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import lightgbm
import numpy as np
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegressionCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.greedy import greedy_weights
from ensemble.methods.logit import stack_features
from ensemble.reading.problem import Problem

Fit = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]
"""From members' predictions (n, members, K) and labels (n,) to what predicts (n, K) from further ones."""

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
predictor = TabularPredictor("label", eval_metric="log_loss", path=sys.argv[3], verbosity=0)
limits = dict(time_limit=float(sys.argv[4]), num_cpus=2, dynamic_stacking=False)
predictor.fit(train, presets="best_quality", **limits)
fresh = pd.DataFrame(data["fresh"]).add_prefix("f")
np.savez(sys.argv[2], probs=predictor.predict_proba(fresh).to_numpy())
"""
BEST_SECONDS = 60
"""What AutoGluon is given a fold; the whole of ours takes about as long for all folds together."""


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


def autogluon_best(python: Path, P: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """AutoGluon's ``best_quality`` on log-probabilities, in its own environment."""

    def predict(fresh: np.ndarray) -> np.ndarray:
        arrays = {"X": stack_features(P), "y": y, "fresh": stack_features(fresh)}
        return in_autogluon(python, _BEST, str(BEST_SECONDS), **arrays)["probs"]

    return predict


def slsqp(likelihoods: np.ndarray, tolerance: float = 1e-10) -> np.ndarray:
    """Mixture weights by SciPy's SLSQP with the gradient given."""

    def both(x: np.ndarray) -> tuple[float, np.ndarray]:
        mixture = np.maximum(likelihoods @ x, 1e-300)
        return -float(np.log(mixture).mean()), -(likelihoods.T @ (1 / mixture)) / len(mixture)

    m = likelihoods.shape[1]
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


def _of_features(model: object) -> Fit:
    """A scikit-learn classifier of log-probabilities."""

    def fit(P: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        model.fit(stack_features(P), y)  # type: ignore[attr-defined]
        return lambda fresh: model.predict_proba(stack_features(fresh))  # type: ignore[attr-defined]

    return fit


def _networks(P: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Ten small networks of different seeds, strongly regularised, averaged."""
    bag = [
        make_pipeline(StandardScaler(), MLPClassifier((16,), alpha=3.0, max_iter=100, random_state=seed)).fit(
            stack_features(P), y
        )
        for seed in range(10)
    ]
    return lambda fresh: np.mean([m.predict_proba(stack_features(fresh)) for m in bag], axis=0)


def _netcal(P: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from netcal.scaling import TemperatureScaling

    scaling = TemperatureScaling()
    scaling.fit(P.mean(axis=1), y)

    def predict(fresh: np.ndarray) -> np.ndarray:
        probs = np.asarray(scaling.transform(fresh.mean(axis=1))).reshape(len(fresh), -1)
        return probs if probs.shape[1] > 1 else np.c_[1 - probs, probs]

    return predict


def _probmetrics(P: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from probmetrics.calibrators import get_calibrator

    scaling = get_calibrator("sms")
    scaling.fit(P.mean(axis=1), y)
    return lambda fresh: scaling.predict_proba(fresh.mean(axis=1))


def fits(autogluon: Path | None = None) -> dict[str, Fit]:
    """Every peer by name; those that are not installed fail on import."""

    def boosted(P: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        import xgboost

        model = xgboost.XGBClassifier(
            n_estimators=200, learning_rate=0.03, max_depth=2, reg_lambda=10.0, subsample=0.7, n_jobs=1,
            colsample_bytree=0.5, min_child_weight=10,
        )  # fmt: skip
        return _of_features(model)(P, y)

    small = lightgbm.LGBMClassifier(
        num_threads=1, verbosity=-1, num_leaves=4, learning_rate=0.03, n_estimators=200, reg_lambda=10.0
    )
    logit = LogisticRegressionCV(cv=5, scoring="neg_log_loss", max_iter=2000)

    def blended(P: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        kinds = [fit(P, y) for fit in (_of_features(logit), _of_features(small), _networks)]
        return lambda fresh: np.mean([predict(fresh) for predict in kinds], axis=0)

    found: dict[str, Fit] = {
        "equal mean": lambda P, y: _mix(np.full(P.shape[1], 1 / P.shape[1])),
        "SLSQP blend": lambda P, y: _mix(slsqp(likelihoods_of(P, y))),
        "greedy selection, 100 picks": lambda P, y: _mix(greedy_weights(P, y)),
        "LogisticRegressionCV on log-probabilities": _of_features(logit),
        "LightGBM, defaults": _of_features(lightgbm.LGBMClassifier(num_threads=1, verbosity=-1)),
        "LightGBM, small trees": _of_features(small),
        "XGBoost, small trees": boosted,
        "ten scikit-learn MLPs": _networks,
        "equal blend of LogisticRegressionCV, small LightGBM and MLPs": blended,
        "netcal temperature on the mean": _netcal,
        "probmetrics structured matrix on the mean": _probmetrics,
    }
    if autogluon:
        found["AutoGluon's greedy selection"] = lambda P, y: _mix(autogluon_greedy(autogluon, P, y)[0])
        name = f"AutoGluon best_quality, {BEST_SECONDS} s a fold on 2 cores"
        found[name] = lambda P, y: autogluon_best(autogluon, P, y)
    return found


def nested(problem: Problem, autogluon: Path | None = None) -> tuple[dict[str, np.ndarray], list[str]]:
    """Nested predictions (n, K) by each peer, and what was left out, with the reason."""
    probs: dict[str, np.ndarray] = {}
    missing = []
    for name, fit in fits(autogluon).items():
        held_out = np.empty_like(problem.y)
        try:
            for fold in np.unique(problem.fold):
                train, test = problem.fold != fold, problem.fold == fold
                held_out[test] = fit(problem.P[train], problem.labels[train])(problem.P[test])
        except ImportError as error:
            missing.append(f"{name}: {error}")
            continue
        probs[name] = held_out
    return probs, missing
