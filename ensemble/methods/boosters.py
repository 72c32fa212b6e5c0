"""LightGBM on members' predictions: its settings, rows binned once for many boosters, and growing in step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.softmax import softmax
from ensemble.methods.base import Swap
from ensemble.methods.logit import stack_features, with_swapped
from ensemble.solvers.numbers import cross_entropy

FEATURES = "log+prob"
SLOW_ROUNDS = 160
BINNED_FROM = 20_000
"""Rows that decide where a feature is cut."""


@dataclass(frozen=True)
class Settings:
    """What is not the same for every booster of this project.

    Attributes
    ----------
    n_classes, num_leaves : int
    learning_rate : float
        Twice as much after :data:`SLOW_ROUNDS`.
    num_threads, seed : int
    """

    n_classes: int
    num_leaves: int
    learning_rate: float
    num_threads: int
    seed: int

    def params(self, n_rows: int, number: int = 0) -> dict[str, Any]:
        """LightGBM's parameters for the ``number``-th booster on so many rows."""
        return {
            "objective": "multiclass",
            "num_class": self.n_classes,
            "num_leaves": self.num_leaves,
            "learning_rate": self.learning_rate,
            "min_data_in_leaf": int(np.clip(n_rows // 180, 10, 100)),
            "lambda_l2": 10.0,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "feature_fraction": 0.5,
            "extra_trees": True,  # random thresholds: the best single guard against noise on such features
            "max_bin": 127,
            "bin_construct_sample_cnt": BINNED_FROM,
            "seed": self.seed + 1000 * number,
            "data_random_seed": self.seed + 1,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": self.num_threads,
            "verbosity": -1,
        }


@dataclass
class Grower:
    """Grows boosters on the same rows from one start or another: a booster a fold, then a bag on all rows.

    Parameters
    ----------
    P, targets, weights
        All rows: (n, members, K), (n, K) and (n,).
    folds : ndarray of shape (n,)
    settings : Settings
    swap : tuple of int, optional
        Train on and predict both orders of each pair.
    X : ndarray of shape (n, d), optional
        Features of the rows themselves; not with ``swap``.
    """

    P: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    folds: np.ndarray
    settings: Settings
    swap: Swap = None
    X: np.ndarray | None = None

    def __post_init__(self) -> None:
        numbers = np.unique(self.folds)
        self.held_out = [np.flatnonzero(self.folds == fold) for fold in numbers]
        self.parts = [BinnedRows(self, self.folds != fold) for fold in numbers]

    def grow(
        self, starts: list[tuple[np.ndarray, np.ndarray]], max_rounds: int, step: int, patience: int
    ) -> tuple[np.ndarray, int]:
        """Grow a booster a fold in step until their pooled held-out loss stops falling.

        Parameters
        ----------
        starts : list of pairs of ndarray
            For each fold, the logits to start from: of the rows outside it, and of its own.
        max_rounds, step, patience : int
            Trees a class at most; looked at every ``step``; given up after ``patience`` looks without gain.

        Returns
        -------
        logits : ndarray of shape (n, K)
            Of the held-out rows, where the loss was least.
        rounds : int
        """
        boosters = [part.booster(outside) for part, (outside, _) in zip(self.parts, starts, strict=True)]
        base = np.empty_like(self.targets)
        for test, (_, inside) in zip(self.held_out, starts, strict=True):
            base[test] = inside
        features = tree_features(self.P, self.X) if self.swap is None else None
        raw = np.zeros_like(base)
        best, best_loss, best_rounds, waited = raw.copy(), np.inf, 0, 0
        for rounds in range(0, max_rounds + 1, step):
            if rounds:
                for booster, test in zip(boosters, self.held_out, strict=True):
                    self._add(booster, rounds - step, step)
                    window = {"start_iteration": rounds - step, "num_iteration": step}
                    if features is None:
                        raw[test] += raw_both_orders([booster], self.P[test], self.swap, **window)
                    else:
                        raw[test] += raw_scores([booster], features[test], base.shape[1], **window)
            loss = float(self.weights @ cross_entropy(softmax(base + raw), self.targets))
            if loss < best_loss:
                best, best_loss, best_rounds, waited = raw.copy(), loss, rounds, 0
            else:
                waited += 1
                if waited >= patience:
                    break
        return base + best, best_rounds

    def bag(self, base: np.ndarray, rounds: int, size: int) -> list[str]:
        """Models of different seeds grown on all rows from the logits ``base`` (n, K), as text."""
        if not rounds:
            return []
        rows = BinnedRows(self, slice(None))
        models = []
        for number in range(size):
            booster = rows.booster(base, number + 1)
            self._add(booster, 0, rounds + rounds // 10)
            models.append(booster.model_to_string())
        return models

    def _add(self, booster: Any, done: int, rounds: int) -> None:
        for number in range(done, done + rounds):
            if number == SLOW_ROUNDS:  # where many trees are wanted, their number matters less
                booster.reset_parameter({"learning_rate": 2 * self.settings.learning_rate})
            booster.update()


class BinnedRows:
    """Some rows of a grower, their features binned once for every booster that grows on them."""

    def __init__(self, of: Grower, rows: np.ndarray | slice):
        import lightgbm

        self.settings, self.swap = of.settings, of.swap
        P, targets, weights = of.P[rows], of.targets[rows], of.weights[rows]
        if of.swap is not None:
            P, targets, weights = with_swapped(P, targets, weights, of.swap)
        features = tree_features(P, None if of.X is None else of.X[rows])
        self.row, label = np.nonzero(targets)  # a soft target counts as a row for each class it gives weight
        if not np.array_equal(self.row, np.arange(len(features))):
            features = features[self.row]
        row_weights = weights[self.row] * targets[self.row, label]
        self.data = lightgbm.Dataset(
            features,
            label=label,
            weight=row_weights / row_weights.mean(),
            params=self.settings.params(len(self.row)),
        )

    def booster(self, base: np.ndarray, number: int = 0) -> Any:
        """A booster that starts from the logits ``base`` (n, K) and has no trees yet."""
        import lightgbm

        if self.swap is not None:
            base = np.concatenate([base, base[:, list(self.swap)]])
        self.data.set_init_score(base[self.row].ravel(order="F"))  # a booster copies it when it is made
        return lightgbm.Booster(self.settings.params(len(self.row), number), self.data)


def tree_features(P: np.ndarray, X: np.ndarray | None = None) -> np.ndarray:
    """Features (n, d) of members' predictions, with the rows' own where they are given."""
    features = stack_features(P, FEATURES)
    return features if X is None else np.concatenate([features, X], axis=1)


def raw_scores(boosters: list[Any], features: np.ndarray, n_classes: int, **window: int) -> np.ndarray:
    """Mean of the boosters' raw scores (n, K), without their initial score.

    One thread must be said here too: a prediction with the default number leaves LightGBM's global
    setting at it, and training thereafter spins on a busy machine.
    """
    total = np.zeros((len(features), n_classes))
    for booster in boosters:
        total += booster.predict(features, raw_score=True, num_threads=1, **window)
    return total / len(boosters)


def raw_both_orders(boosters: list[Any], P: np.ndarray, swap: Swap, **window: int) -> np.ndarray:
    """Mean of the raw scores over both orders of each pair, in the row's own class order."""
    order = list(swap or ())
    given = raw_scores(boosters, tree_features(P), P.shape[2], **window)
    swapped = raw_scores(boosters, tree_features(P[:, :, order]), P.shape[2], **window)
    return (given + swapped[:, order]) / 2
