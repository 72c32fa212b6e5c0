"""Boosted trees over members' predictions: small, strongly regularised, and bagged.

They start from the log-opinion pool, from the logit or from nothing; held-out loss says which of these count.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self

import numpy as np

from data.softmax import softmax
from ensemble.methods.base import Blender, Known, Swap, Training
from ensemble.methods.boosters import Grower, Settings, raw_both_orders, raw_scores, tree_features
from ensemble.methods.logit import MultinomialLogit
from ensemble.methods.pool import LogPool
from ensemble.methods.registry import register
from ensemble.solvers.folds import MANY_ROWS
from ensemble.solvers.numbers import cross_entropy, log_probs, with_error


@dataclass(frozen=True)
class Track:
    """A kind of trees.

    Attributes
    ----------
    start : {"pool", "prior", "logit"}
        Whose prediction they correct: the log-opinion pool's, the class frequencies', the logit's.
    symmetric : bool
        Whether they are grown on both orders of each pair; not where trees on one order are cut to nothing.
    with_rows : bool
        Whether they also see the rows' own features.
    """

    start: str
    symmetric: bool = False
    with_rows: bool = False


MOST_CLASSES = 20
"""Each round grows a tree a class."""
TRACKS = {
    "plain": Track("pool"),
    "symmetric": Track("pool", symmetric=True),
    "scratch": Track("prior"),
    "refined": Track("logit"),
    "rows": Track("pool", with_rows=True),
}

Starts = list[tuple[np.ndarray, np.ndarray]]
"""For each inner fold, the logits that its trees start from: on the rows outside it, and on its own."""


def _prior(targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    counts = weights @ targets * len(targets) + 1.0  # one row a class keeps an absent one finite
    return counts / counts.sum()


def _choose(
    logits: dict[str, np.ndarray], targets: np.ndarray, weights: np.ndarray
) -> tuple[tuple[str, ...], np.ndarray]:
    """The tracks to average, and their held-out mean (n, K).

    Best first, as many as the rows cannot tell from the best number: their mean varies less than any one,
    and the least of many held-out losses is partly luck.
    """
    order = sorted(logits, key=lambda name: float(weights @ cross_entropy(softmax(logits[name]), targets)))
    ranked = np.stack([logits[name] for name in order])
    means = [softmax(ranked[:size].mean(axis=0)) for size in range(1, len(order) + 1)]
    losses = [cross_entropy(probs, targets) for probs in means]
    least = losses[int(np.argmin([weights @ loss for loss in losses]))]
    kept = 0
    for place, loss in enumerate(losses):
        mean, error = with_error(loss - least, weights)
        if mean <= error:
            kept = place
    return tuple(order[: kept + 1]), means[kept]


@dataclass
class LightGBMStacker(Blender):
    """Small boosted trees on log-probabilities, correcting a log-opinion pool, bagged.

    Every inner fold grows trees on the rows outside it, from a pool fitted on those rows
    (``init_score``); all folds grow in step until their pooled held-out loss stops falling, and are cut
    there, at zero trees where none helps. What predicts is grown as long, and a tenth
    longer for its more rows, on all rows by several seeds, whose mean is added to the pool.
    The same is done from the multinomial logit's cross-fitted predictions and, where the pool leaves trees
    anything to correct, from nothing but the class frequencies and with a ``swap`` on both orders of each
    pair, which err in other places. The best
    by held-out loss are averaged, as many as are within a paired standard error of the best number.

    Parameters
    ----------
    swap : tuple of int, optional
        The permutation of classes when a pair is swapped.
    num_leaves : int
    learning_rate : float
        Up to three times as much on more than :data:`ensemble.solvers.folds.MANY_ROWS`; twice as much after
        :data:`ensemble.methods.boosters.SLOW_ROUNDS`.
    max_rounds, step, patience : int
        Trees a class at most; looked at every ``step``; given up after ``patience`` looks without gain, from
        :data:`ensemble.solvers.folds.MANY_ROWS` on after two.
    bag : int
        Models of different seeds that predict; one does from :data:`ensemble.solvers.folds.MANY_ROWS` on.
    n_folds, seed : int
        Of the inner cross-validation.
    num_threads : int

    Attributes
    ----------
    start_ : LogPool
    logit_ : MultinomialLogit
    trees_ : dict of str to list of str
        Models in LightGBM's text format of each of :data:`TRACKS` that counts; an empty list adds nothing to
        its start.
    shares_ : dict of str to float
        What each of these counts for, on the scale of log-probabilities.
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
    max_rounds: int = 400
    step: int = 20
    patience: int = 3
    bag: int = 3
    n_folds: int = 5
    seed: int = 0
    num_threads: int = 1
    fitted: ClassVar[tuple[str, ...]] = (
        "start_",
        "logit_",
        "trees_",
        "shares_",
        "prior_",
    )

    def fit_on(self, data: Training) -> Self:
        """Fit a pool and a logit, then the trees; see :meth:`Blender.fit`.

        With the rows' own features trees are grown with and without them.
        """
        start = LogPool(None, self.n_folds, self.seed).fit_on(data)
        logit = MultinomialLogit(self.swap, self.n_folds, self.seed).fit_on(data)
        return self.fit_from(data, start, logit)

    def fit_from(self, data: Training, start: LogPool, logit: MultinomialLogit) -> Self:
        """Fit trees from a pool and a logit already fitted on the same rows with the same folds and seed."""
        P, targets, weights, many = data.P, data.targets, data.weights, len(data.P) >= MANY_ROWS
        self.start_, self.logit_ = start, logit
        # Many rows need fewer, larger steps for the same loss.
        rate = self.learning_rate * float(np.clip(len(P) / MANY_ROWS, 1, 3))
        settings = Settings(P.shape[2], self.num_leaves, rate, self.num_threads, self.seed)
        folds = data.folds(self.n_folds, self.seed)
        starts = self._starts(data, folds)
        self.prior_ = _prior(targets, weights)
        begins = {
            "pool": log_probs(start.predict_on(P)),
            "prior": np.tile(np.log(self.prior_), (len(P), 1)),
            "logit": log_probs(logit.oof_),
        }
        limits = (self.max_rounds, self.step, min(self.patience, 2) if many else self.patience)
        growers: dict[str, Grower] = {}
        grown: dict[str, tuple[np.ndarray, int]] = {}
        usual = Grower(P, targets, weights, folds, settings)
        # Those that see the rows as they are come first: they say whether others are worth growing.
        for name, track in sorted(TRACKS.items(), key=lambda entry: entry[1].symmetric or entry[1].with_rows):
            grower = usual
            if track.start == "prior" and not grown["plain"][1]:
                continue  # where nothing is left to correct, nothing is found from the beginning either
            if track.symmetric:
                if self.swap is None or not grown["plain"][1]:
                    continue  # there is nothing to make symmetric
                grower = Grower(P, targets, weights, folds, settings, self.swap)
            elif track.with_rows:
                if data.X is None:
                    continue
                grower = Grower(P, targets, weights, folds, settings, X=data.X)
            growers[name], grown[name] = grower, grower.grow(starts[track.start], *limits)
        chosen, self.oof_ = _choose({name: raw for name, (raw, _) in grown.items()}, targets, weights)
        size = 1 if many else self.bag
        self._grown = {
            name: (softmax(raw), growers[name].bag(begins[TRACKS[name].start], rounds, size))
            for name, (raw, rounds) in grown.items()
        }
        self.shares_ = {name: 1 / len(chosen) for name in TRACKS if name in chosen}
        self.trees_ = {name: self._grown[name][1] for name in self.shares_}
        self.rounds_ = {name: rounds for name, (_, rounds) in grown.items()}
        return self

    def _starts(self, data: Training, folds: np.ndarray) -> dict[str, Starts]:
        """Where trees start in each fold, by whose prediction it is."""
        P, targets, weights = data.P, data.targets, data.weights
        found: dict[str, Starts] = {"pool": [], "prior": [], "logit": []}
        thirds = data.folds(3, self.seed + 1)
        for fold in np.unique(folds):
            train, test = folds != fold, folds == fold
            pool = log_probs(self.start_.refit(P[train], targets[train], weights[train]).predict_on(P))
            found["pool"].append((pool[train], pool[test]))
            prior = np.tile(np.log(_prior(targets[train], weights[train])), (len(P), 1))
            found["prior"].append((prior[train], prior[test]))
            # A logit fits too closely to start from its own training rows: these are cross-fitted again.
            outside = np.empty_like(targets[train])
            rows, third = np.flatnonzero(train), thirds[train]
            for part in np.unique(third):
                rest = rows[third != part]
                other = self.logit_.refit(P[rest], targets[rest], weights[rest])
                outside[third == part] = log_probs(other.predict_on(P[rows[third == part]]))
            whole = self.logit_.refit(P[train], targets[train], weights[train])
            found["logit"].append((outside, log_probs(whole.predict_on(P[test]))))
        return found

    @property
    def needs_rows(self) -> bool:
        """Whether trees that use the rows' own features count."""
        return any(models and TRACKS[name].with_rows for name, models in self.trees_.items())

    def _predict(self, P: np.ndarray, X: np.ndarray | None, known: Known) -> np.ndarray:
        shares = dict.fromkeys(("prior", "pool", "logit"), 0.0)
        for name, share in self.shares_.items():
            shares[TRACKS[name].start] += share
        logits = np.tile(shares["prior"] * np.log(self.prior_), (len(P), 1))
        for start, method in (("pool", self.start_), ("logit", self.logit_)):
            if shares[start] > 0:
                logits += shares[start] * log_probs(method.predict_known(P, X, known))
        for name, track in TRACKS.items():
            models = tuple(self.trees_.get(name, ()))  # parted trees, or the same read again, are equal
            if models:
                if models not in known:
                    known[models] = self._raw(track, models, P, X)
                logits += self.shares_[name] * known[models]
        return softmax(logits)

    def _raw(self, track: Track, models: tuple[str, ...], P: np.ndarray, X: np.ndarray | None) -> np.ndarray:
        boosters = _boosters(models)
        if track.symmetric:
            return raw_both_orders(boosters, P, self.swap)
        return raw_scores(boosters, tree_features(P, X if track.with_rows else None), P.shape[2])

    def parts(self) -> list[Blender]:
        """Each kind of trees alone, where it has any trees; see :meth:`Blender.parts`."""
        found: list[Blender] = []
        for name, (held_out, models) in self._grown.items():
            if models:
                part = copy(self)
                part.trees_, part.shares_, part.oof_ = {name: models}, {name: 1.0}, held_out
                part.rounds_ = {name: self.rounds_[name]}
                found.append(part)
        return found


register(
    "lightgbm",
    90,
    lambda f: LightGBMStacker(f.swap, seed=f.seed).fit_from(
        f.data, f.get("log-pool", LogPool), f.get("logit", MultinomialLogit)
    ),
    affordable=lambda members, classes: classes <= MOST_CLASSES,
    needs=("logit",),
)


@lru_cache(maxsize=16)
def _boosters(models: tuple[str, ...]) -> list[Any]:
    import lightgbm

    return [lightgbm.Booster(model_str=text) for text in models]
