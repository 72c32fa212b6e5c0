"""Boosted trees over members' predictions: small, strongly regularised, and bagged.

They start from the log-opinion pool, from nothing, or from both, as held-out loss says.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from ensemble.base import Blender, Swap, as_targets, as_weights, cross_entropy, log_probs, softmax
from ensemble.blend import LogOpinionPool
from ensemble.splits import group_folds
from ensemble.stackers import stack_features, with_swapped

FEATURES = "log+prob"
MANY_ROWS = 15_000
TRACKS = ("plain", "symmetric", "scratch")


class Start(Protocol):
    """What trees begin from."""

    def predict_proba(self, P: np.ndarray) -> np.ndarray:
        """Probabilities (n, K)."""


@dataclass(frozen=True)
class _Constant:
    probs: np.ndarray

    def predict_proba(self, P: np.ndarray) -> np.ndarray:
        return np.tile(self.probs, (len(P), 1))


def _prior(targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    counts = weights @ targets * len(targets) + 1.0  # one row a class keeps an absent one finite
    return counts / counts.sum()


def _choose(
    logits: dict[str, np.ndarray], targets: np.ndarray, weights: np.ndarray
) -> tuple[tuple[str, ...], np.ndarray]:
    """The tracks to average, and their held-out mean (n, K)."""
    probs = {
        names: softmax(np.mean([logits[name] for name in names], axis=0))
        for size in range(1, len(logits) + 1)
        for names in combinations(logits, size)
    }
    losses = {names: cross_entropy(p, targets) for names, p in probs.items()}
    best = min(losses, key=lambda names: float(weights @ losses[names]))
    gain = losses[("plain",)] - losses[best]
    mean = float(weights @ gain)
    error = float(np.sqrt(np.sum((weights * (gain - mean)) ** 2)))
    names = best if mean > error else ("plain",)
    return names, probs[names]


@dataclass
class LightGBMStacker(Blender):
    """Small boosted trees on log-probabilities, correcting a log-opinion pool, bagged.

    Every inner fold grows trees on the rows outside it, from a pool fitted on those rows
    (``init_score``); all folds grow in step until their pooled held-out loss stops falling, and are cut
    there, at zero trees where none helps. What predicts is grown as long, and a tenth
    longer for its more rows, on all rows by several seeds, whose mean is added to the pool.
    The same is done from nothing but the class frequencies, which errs in other places, and with a ``swap``
    on both orders of each pair. The held-out loss chooses among the plain trees, the others and the means
    of these; what is not plain must win by more than its paired standard error, for choosing costs too.

    Parameters
    ----------
    swap : tuple of int, optional
        The permutation of classes when a pair is swapped.
    num_leaves : int
    learning_rate : float
        Up to three times as much on more than :data:`MANY_ROWS`.
    max_rounds, step, patience : int
        Trees a class at most; looked at every ``step``; given up after ``patience`` looks without gain.
    bag : int
        Models of different seeds that predict.
    n_folds, seed : int
        Of the inner cross-validation; three folds do from :data:`MANY_ROWS` on.
    num_threads : int

    Attributes
    ----------
    start_ : LogOpinionPool
    plain_, symmetric_, scratch_ : list of str
        Models in LightGBM's text format; an empty list adds nothing to its start.
    shares_ : ndarray of shape (3,)
        What each of the three counts for, in this order, on the scale of log-probabilities.
    prior_ : ndarray of shape (K,)
        Where the trees from nothing start.
    oof_ : ndarray of shape (n, K)
    rounds_ : dict of str to int

    Notes
    -----
    Ke et al., *LightGBM* (NIPS 2017). Default boosting is a trap on so few, so informative features
    (.550 where this kind of setting gives .334, on one set of ten members and 2,000 rows).
    """

    swap: Swap = None
    num_leaves: int = 16
    learning_rate: float = 0.03
    max_rounds: int = 600
    step: int = 25
    patience: int = 3
    bag: int = 3
    n_folds: int = 5
    seed: int = 0
    num_threads: int = 1
    fitted: ClassVar[tuple[str, ...]] = (
        "start_",
        "plain_",
        "symmetric_",
        "scratch_",
        "shares_",
        "prior_",
    )

    def fit(
        self,
        P: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        groups: np.ndarray | None = None,
        *,
        start: LogOpinionPool | None = None,
    ) -> Self:
        """Fit; see :meth:`Blender.fit`.

        Parameters
        ----------
        P, y, sample_weight, groups
            As there.
        start : LogOpinionPool, optional
            Already fitted on the same rows with the same folds and seed; fitted here by default.
        """
        targets, weights = as_targets(y, P.shape[2]), as_weights(sample_weight, len(P))
        if start is None:
            start = LogOpinionPool(None, self.n_folds, self.seed).fit(P, y, sample_weight, groups)
        self.start_ = start
        folds = group_folds(targets, groups, self.n_folds if len(P) < MANY_ROWS else 3, self.seed)
        # Starting from cross-fitted logits instead would leak each fold's labels to the others' start.
        pools: dict[int, Start] = {}
        priors: dict[int, Start] = {}
        for fold in np.unique(folds):
            train = folds != fold
            pools[int(fold)] = start.refit(P[train], targets[train], weights[train])
            priors[int(fold)] = _Constant(_prior(targets[train], weights[train]))
        self.prior_ = _prior(targets, weights)
        grown = {"plain": self._grow(P, targets, weights, folds, pools, False)}
        if self.swap is not None and grown["plain"][1]:  # else there is nothing to make symmetric
            grown["symmetric"] = self._grow(P, targets, weights, folds, pools, True)
        grown["scratch"] = self._grow(P, targets, weights, folds, priors, False)
        chosen, self.oof_ = _choose({name: track[0] for name, track in grown.items()}, targets, weights)
        self.shares_ = np.array([(track in chosen) / len(chosen) for track in TRACKS])
        begins: dict[str, Start] = {"plain": start, "symmetric": start, "scratch": _Constant(self.prior_)}
        self.plain_, self.symmetric_, self.scratch_ = (
            self._bag(P, targets, weights, begins[track], track == "symmetric", grown[track][1])
            if track in chosen
            else []
            for track in TRACKS
        )
        self.rounds_ = {name: track[1] for name, track in grown.items()}
        self.__dict__.pop("_boosters", None)
        return self

    def predict_proba(self, P: np.ndarray) -> np.ndarray:
        """Return probabilities (n, K)."""
        plain, symmetric, scratch = self._boosters
        from_pool, from_prior = self.shares_[:2].sum(), self.shares_[2]
        logits = from_prior * np.log(self.prior_) + from_pool * log_probs(self.start_.predict_proba(P))
        features = stack_features(P, FEATURES)
        for share, models in ((self.shares_[0], plain), (self.shares_[2], scratch)):
            if models:
                logits += share * _raw(models, features, P.shape[2])
        if symmetric:
            logits += self.shares_[1] * _raw_both_orders(symmetric, P, self.swap)
        return softmax(logits)

    @cached_property
    def _boosters(self) -> tuple[list[Any], list[Any], list[Any]]:
        import lightgbm

        def load(texts: list[str]) -> list[Any]:
            return [lightgbm.Booster(model_str=text) for text in texts]

        return load(self.plain_), load(self.symmetric_), load(self.scratch_)

    def _grow(
        self,
        P: np.ndarray,
        targets: np.ndarray,
        weights: np.ndarray,
        folds: np.ndarray,
        starts: dict[int, Start],
        symmetric: bool,
    ) -> tuple[np.ndarray, int]:
        """Grow a model a fold in step; return the held-out logits (n, K) and the rounds."""
        n_classes = P.shape[2]
        boosters, held_out = [], []
        base = np.empty_like(targets)
        features = stack_features(P, FEATURES)
        for fold, begin in starts.items():
            train = np.flatnonzero(folds != fold)
            init = log_probs(begin.predict_proba(P[train]))
            boosters.append(self._booster(P[train], targets[train], weights[train], init, symmetric))
            held_out.append(np.flatnonzero(folds == fold))
            base[held_out[-1]] = log_probs(begin.predict_proba(P[held_out[-1]]))
        raw = np.zeros_like(base)
        best, best_loss, best_rounds, waited = raw.copy(), np.inf, 0, 0
        for rounds in range(0, self.max_rounds + 1, self.step):
            if rounds:
                for booster, test in zip(boosters, held_out, strict=True):
                    for _ in range(self.step):
                        booster.update()
                    window = {"start_iteration": rounds - self.step, "num_iteration": self.step}
                    if symmetric:
                        raw[test] += _raw_both_orders([booster], P[test], self.swap, **window)
                    else:
                        raw[test] += _raw([booster], features[test], n_classes, **window)
            loss = float(weights @ cross_entropy(softmax(base + raw), targets))
            if loss < best_loss:
                best, best_loss, best_rounds, waited = raw.copy(), loss, rounds, 0
            else:
                waited += 1
                if waited >= self.patience:
                    break
        return base + best, best_rounds

    def _bag(
        self,
        P: np.ndarray,
        targets: np.ndarray,
        weights: np.ndarray,
        start: Start,
        symmetric: bool,
        rounds: int,
    ) -> list[str]:
        """Models grown on all rows, as text."""
        models = []
        base = log_probs(start.predict_proba(P))
        for number in range(self.bag if rounds else 0):
            booster = self._booster(P, targets, weights, base, symmetric, number + 1)
            for _ in range(rounds + rounds // 10):
                booster.update()
            models.append(booster.model_to_string())
        return models

    def _booster(
        self,
        P: np.ndarray,
        targets: np.ndarray,
        weights: np.ndarray,
        base: np.ndarray,
        symmetric: bool,
        number: int = 0,
    ) -> Any:
        import lightgbm

        if symmetric:
            base = np.concatenate([base, base[:, list(self.swap or ())]])
            P, targets, weights = with_swapped(P, targets, weights, self.swap)
        row, label = np.nonzero(targets)  # a soft target counts as a row for each class it gives weight to
        row_weights = weights[row] * targets[row, label]
        params = {
            "objective": "multiclass",
            "num_class": P.shape[2],
            "num_leaves": self.num_leaves,
            # Many rows need fewer, larger steps for the same loss.
            "learning_rate": self.learning_rate * float(np.clip(len(targets) / MANY_ROWS, 1, 3)),
            "min_data_in_leaf": int(np.clip(len(row) // 180, 10, 100)),
            "lambda_l2": 10.0,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "feature_fraction": 0.5,
            "extra_trees": True,  # random thresholds: the best single guard against noise on such features
            "max_bin": 127,
            "seed": self.seed + 1000 * number,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": self.num_threads,
            "verbosity": -1,
        }
        data = lightgbm.Dataset(
            stack_features(P, FEATURES)[row],
            label=label,
            weight=row_weights / row_weights.mean(),
            init_score=base[row].ravel(order="F"),
            params=params,
        )
        return lightgbm.Booster(params, data)


def _raw(boosters: list[Any], features: np.ndarray, n_classes: int, **window: int) -> np.ndarray:
    """Mean of the boosters' raw scores (n, K), without their initial score.

    One thread must be said here too: a prediction with the default number leaves LightGBM's global
    setting at it, and training thereafter spins on a busy machine.
    """
    total = np.zeros((len(features), n_classes))
    for booster in boosters:
        total += booster.predict(features, raw_score=True, num_threads=1, **window)
    return total / len(boosters)


def _raw_both_orders(boosters: list[Any], P: np.ndarray, swap: Swap, **window: int) -> np.ndarray:
    """Mean of the raw scores over both orders of each pair, in the row's own class order."""
    order = list(swap or ())
    given = _raw(boosters, stack_features(P, FEATURES), P.shape[2], **window)
    swapped = _raw(boosters, stack_features(P[:, :, order], FEATURES), P.shape[2], **window)
    return (given + swapped[:, order]) / 2
