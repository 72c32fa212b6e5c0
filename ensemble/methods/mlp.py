"""A bag of small neural networks over members' predictions, in NumPy: weights go to JSON as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from data.softmax import softmax
from ensemble.methods.base import Blender, Training
from ensemble.methods.logit import stack_features
from ensemble.methods.pool import LogPool
from ensemble.methods.registry import register
from ensemble.solvers.numbers import cross_entropy, log_probs

MOST_INPUTS = 500
"""Probabilities a row, members times classes, up to which networks are trained."""
_MOMENTUM, _MEMORY, _EPSILON = 0.9, 0.999, 1e-8
Layers = list[np.ndarray]


@dataclass
class MLPStacker(Blender):
    """Networks of one hidden layer that correct the log-opinion pool, several a fold, averaged.

    Each inner fold trains ``per_fold`` networks at once on the rows outside it, on standardised
    log-probabilities, their logits added to those of a pool fitted on the same rows. All folds train in
    step until their pooled held-out loss stops falling, and go back to where it was least: to the pool
    alone where nothing is gained. Prediction averages all networks' probabilities.

    Parameters
    ----------
    hidden, per_fold : int
    learning_rate, decay : float
        Of AdamW.
    max_epochs, patience : int
    n_folds, seed : int

    Attributes
    ----------
    start_ : LogPool
    mean_, scale_ : ndarray of shape (members * K,)
    w1_, b1_, w2_, b2_ : ndarray of shape (networks, d, hidden), (networks, 1, hidden), ...
    epochs_ : int
    oof_ : ndarray of shape (n, K)

    Notes
    -----
    Loshchilov and Hutter, *Decoupled weight decay regularization* (ICLR 2019). The output layer starts
    near zero, so that training starts from the pool.
    """

    hidden: int = 32
    per_fold: int = 3
    learning_rate: float = 3e-3
    decay: float = 0.1
    max_epochs: int = 100
    patience: int = 6
    n_folds: int = 5
    seed: int = 0
    fitted: ClassVar[tuple[str, ...]] = ("start_", "mean_", "scale_", "w1_", "b1_", "w2_", "b2_", "epochs_")

    def fit_on(self, data: Training) -> Self:
        """Fit a pool, then the networks; see :meth:`Blender.fit`."""
        return self.fit_from(data, LogPool(None, self.n_folds, self.seed).fit_on(data))

    def fit_from(self, data: Training, start: LogPool) -> Self:
        """Fit networks from a pool already fitted on the same rows and seed."""
        P, targets, weights = data.P, data.targets, data.weights
        self.start_ = start
        raw = stack_features(P, floor=start.floor_)
        self.mean_, scale = raw.mean(axis=0), raw.std(axis=0)
        self.scale_ = np.where(scale > 1e-9, scale, 1.0)
        features = ((raw - self.mean_) / self.scale_).astype(np.float32)
        folds = data.folds(self.n_folds, self.seed)
        runs = []
        for fold in np.unique(folds):
            train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            pool = start.refit(P[train], targets[train], weights[train])
            rows = _Rows(
                features[train], targets[train], weights[train], log_probs(pool.predict_on(P[train]))
            )
            net = _Networks(rows, self, np.random.default_rng([self.seed, int(fold)]))
            runs.append((test, log_probs(pool.predict_on(P[test])), net))
        probs = np.empty_like(targets)
        best_loss, waited = np.inf, 0
        for epoch in range(self.max_epochs + 1):
            for test, base, net in runs:
                if epoch:
                    net.train_epoch()
                probs[test] = softmax(_forward(net.layers, features[test])[1] + base).mean(axis=0)
            loss = float(weights @ cross_entropy(probs, targets))
            if loss < best_loss:
                best_loss, waited = loss, 0
                self.epochs_, self.oof_ = epoch, probs.copy()
                kept = [[layer.copy() for layer in net.layers] for _, _, net in runs]
            else:
                waited += 1
                if waited >= self.patience:
                    break
        self.w1_, self.b1_, self.w2_, self.b2_ = (
            np.concatenate(parts).astype(np.float64) for parts in zip(*kept, strict=True)
        )
        return self

    def predict_on(self, P: np.ndarray) -> np.ndarray:
        """Return probabilities (n, K)."""
        features = (stack_features(P, floor=self.start_.floor_) - self.mean_) / self.scale_
        base = log_probs(self.start_.predict_on(P))
        total = np.zeros_like(base)
        for layers in zip(self.w1_, self.b1_, self.w2_, self.b2_, strict=True):
            total += softmax(_forward(list(layers), features)[1] + base)
        return total / len(self.w1_)


register(
    "mlp",
    100,
    lambda f: MLPStacker(seed=f.seed).fit_from(f.data, f.get("log-pool", LogPool)),
    affordable=lambda members, classes: members * classes <= MOST_INPUTS,
)


def _forward(layers: Layers, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hidden layer and the logits of all networks."""
    hidden = np.tanh(features @ layers[0] + layers[1])
    return hidden, hidden @ layers[2] + layers[3]


class _Rows:
    """Training rows in single precision; row weights have mean 1."""

    def __init__(self, features: np.ndarray, targets: np.ndarray, weights: np.ndarray, base: np.ndarray):
        self.features = features
        self.targets = targets.astype(np.float32)
        self.weights = (weights / weights.mean()).astype(np.float32)
        self.base = base.astype(np.float32)


class _Networks:
    """Networks trained together on the same rows, and the state of their AdamW."""

    def __init__(self, rows: _Rows, params: MLPStacker, rng: np.random.Generator):
        size, d, k = params.per_fold, rows.features.shape[1], rows.targets.shape[1]
        shapes = [(size, d, params.hidden), (size, 1, params.hidden), (size, params.hidden, k), (size, 1, k)]
        spreads = [1 / np.sqrt(d), 0.0, 0.01, 0.0]
        self.layers: Layers = [
            (spread * rng.normal(size=shape)).astype(np.float32)
            for shape, spread in zip(shapes, spreads, strict=True)
        ]
        self.first = [np.zeros_like(layer) for layer in self.layers]
        self.second = [np.zeros_like(layer) for layer in self.layers]
        self.rows, self.params, self.rng, self.steps = rows, params, rng, 0

    def train_epoch(self) -> None:
        """One pass over the rows in a fresh order; at most 64 steps, however many the rows."""
        n = len(self.rows.features)
        batch = min(n, max(128, n // 64))
        order = self.rng.permutation(n)
        for begin in range(0, max(n - batch // 2, 1), batch):
            self._step(order[begin : begin + batch])

    def _step(self, rows: np.ndarray) -> None:
        features = self.rows.features[rows]
        hidden, logits = _forward(self.layers, features)
        residual = softmax(logits + self.rows.base[rows], np.float32) - self.rows.targets[rows]
        residual *= (self.rows.weights[rows] / len(rows))[:, None]
        back = (residual @ self.layers[2].transpose(0, 2, 1)) * (1 - hidden * hidden)
        gradients = [
            features.T @ back,
            back.sum(axis=1, keepdims=True),
            hidden.transpose(0, 2, 1) @ residual,
            residual.sum(axis=1, keepdims=True),
        ]
        self.steps += 1
        rate = self.params.learning_rate
        scaled = rate * np.sqrt(1 - _MEMORY**self.steps) / (1 - _MOMENTUM**self.steps)
        for i, gradient in enumerate(gradients):
            self.first[i] += (1 - _MOMENTUM) * (gradient - self.first[i])
            self.second[i] += (1 - _MEMORY) * (gradient**2 - self.second[i])
            if gradient.shape[1] > 1:  # biases do not decay
                self.layers[i] *= np.float32(1 - rate * self.params.decay)
            self.layers[i] -= (
                np.float32(scaled) * self.first[i] / (np.sqrt(self.second[i]) + np.float32(_EPSILON))
            )
