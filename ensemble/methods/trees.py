"""Boosted trees over members' predictions: small, strongly regularised, and bagged.

They start from the log-opinion pool, from the logit or from nothing; held-out loss says which of these count.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, Self

import numpy as np

from data.softmax import softmax
from ensemble.methods.base import Blender, Known, Swap
from ensemble.methods.blend import LogOpinionPool
from ensemble.methods.boosters import Grower, Settings, raw_both_orders, raw_scores, tree_features
from ensemble.methods.logit import MultinomialLogit
from ensemble.solvers.folds import MANY_ROWS, inner_folds
from ensemble.solvers.numbers import as_targets, as_weights, cross_entropy, log_probs, with_error

TRACKS = ("plain", "symmetric", "scratch", "refined", "rows")


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
    The same is done from the multinomial logit's cross-fitted predictions and from nothing but the class
    frequencies, which err in other places, and with a ``swap`` on both orders of each pair. The best
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
    start_ : LogOpinionPool
    logit_ : MultinomialLogit
    plain_, symmetric_, scratch_, refined_, rows_ : list of str
        Models in LightGBM's text format, started from the pool (twice), from nothing, from the logit, and
        from the pool again with the rows' own features; an empty list adds nothing to its start.
    shares_ : ndarray of shape (5,)
        What each of these counts for, in this order, on the scale of log-probabilities.
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
        "plain_",
        "symmetric_",
        "scratch_",
        "refined_",
        "rows_",
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
        logit: MultinomialLogit | None = None,
        X: np.ndarray | None = None,
    ) -> Self:
        """Fit; see :meth:`Blender.fit`.

        Parameters
        ----------
        P, y, sample_weight, groups
            As there.
        start : LogOpinionPool, optional
            Already fitted on the same rows with the same folds and seed; fitted here by default.
        logit : MultinomialLogit, optional
            Likewise.
        X : ndarray of shape (n, d), optional
            Features of the rows themselves; trees are then grown with and without them.
        """
        targets, weights = as_targets(y, P.shape[2]), as_weights(sample_weight, len(P))
        if start is None:
            start = LogOpinionPool(None, self.n_folds, self.seed).fit(P, y, sample_weight, groups)
        if logit is None:
            logit = MultinomialLogit(self.swap, self.n_folds, self.seed).fit(P, y, sample_weight, groups)
        self.start_, self.logit_ = start, logit
        # Many rows need fewer, larger steps for the same loss.
        rate = self.learning_rate * float(np.clip(len(P) / MANY_ROWS, 1, 3))
        settings = Settings(P.shape[2], self.num_leaves, rate, self.num_threads, self.seed)
        folds = inner_folds(targets, groups, self.n_folds, self.seed)
        from_pool: Starts = []
        from_prior: Starts = []
        from_logit: Starts = []
        refined = log_probs(logit.oof_)
        thirds = inner_folds(targets, groups, 3, self.seed + 1)
        for fold in np.unique(folds):
            train, test = folds != fold, folds == fold
            pool = log_probs(start.refit(P[train], targets[train], weights[train]).predict_proba(P))
            from_pool.append((pool[train], pool[test]))
            prior = np.tile(np.log(_prior(targets[train], weights[train])), (len(P), 1))
            from_prior.append((prior[train], prior[test]))
            # A logit fits too closely to start from its own training rows: these are cross-fitted again.
            outside = np.empty_like(targets[train])
            rows, third = np.flatnonzero(train), thirds[train]
            for part in np.unique(third):
                rest = rows[third != part]
                other = logit.refit(P[rest], targets[rest], weights[rest])
                outside[third == part] = log_probs(other.predict_proba(P[rows[third == part]]))
            whole = logit.refit(P[train], targets[train], weights[train])
            from_logit.append((outside, log_probs(whole.predict_proba(P[test]))))
        self.prior_ = _prior(targets, weights)
        begins = {
            "plain": log_probs(start.predict_proba(P)),
            "scratch": np.tile(np.log(self.prior_), (len(P), 1)),
            "refined": refined,
        }
        begins["symmetric"] = begins["rows"] = begins["plain"]
        plain = Grower(P, targets, weights, folds, settings)
        growers = dict.fromkeys(("plain", "scratch", "refined"), plain)
        starts = {"plain": from_pool, "scratch": from_prior, "refined": from_logit}
        many = len(P) >= MANY_ROWS
        limits = (self.max_rounds, self.step, min(self.patience, 2) if many else self.patience)
        grown = {track: plain.grow(starts[track], *limits) for track in starts}
        if self.swap is not None and grown["plain"][1]:  # else there is nothing to make symmetric
            growers["symmetric"] = Grower(P, targets, weights, folds, settings, self.swap)
        if X is not None:
            growers["rows"] = Grower(P, targets, weights, folds, settings, X=X)
        for track in ("symmetric", "rows"):
            if track in growers:
                grown[track] = growers[track].grow(from_pool, *limits)
        chosen, self.oof_ = _choose({name: track[0] for name, track in grown.items()}, targets, weights)
        self.shares_ = np.array([(track in chosen) / len(chosen) for track in TRACKS])
        size = 1 if many else self.bag
        self._grown = {
            track: (softmax(raw), growers[track].bag(begins[track], rounds, size))
            for track, (raw, rounds) in grown.items()
        }
        for track in TRACKS:
            setattr(self, f"{track}_", self._grown[track][1] if track in chosen else [])
        self.rounds_ = {name: track[1] for name, track in grown.items()}
        return self

    @property
    def needs_rows(self) -> bool:
        """Whether trees that use the rows' own features count."""
        return bool(getattr(self, "rows_", None))

    def predict_proba(self, P: np.ndarray, X: np.ndarray | None = None) -> np.ndarray:
        """Return probabilities (n, K)."""
        return self._predict(P, X, {})

    def _predict(self, P: np.ndarray, X: np.ndarray | None, known: Known) -> np.ndarray:
        shares = dict(zip(TRACKS, self.shares_, strict=True))
        logits = np.tile(shares["scratch"] * np.log(self.prior_), (len(P), 1))
        from_pool = shares["plain"] + shares["symmetric"] + shares["rows"]
        if from_pool > 0:
            logits += from_pool * log_probs(self.start_.predict(P, X, known))
        if shares["refined"] > 0:
            logits += shares["refined"] * log_probs(self.logit_.predict(P, X, known))
        for track in TRACKS:
            models = tuple(getattr(self, f"{track}_"))  # parted trees, or the same read again, are equal
            if models:
                if models not in known:
                    known[models] = self._raw(track, models, P, X)
                logits += shares[track] * known[models]
        return softmax(logits)

    def _raw(self, track: str, models: tuple[str, ...], P: np.ndarray, X: np.ndarray | None) -> np.ndarray:
        boosters = _boosters(models)
        if track == "symmetric":
            return raw_both_orders(boosters, P, self.swap)
        return raw_scores(boosters, tree_features(P, X if track == "rows" else None), P.shape[2])

    def parted(self) -> list[LightGBMStacker]:
        """Each kind of trees alone, with its own ``oof_``, where it has any trees; after :meth:`fit`."""
        parts = []
        for track, (held_out, models) in self._grown.items():
            if models:
                part = LightGBMStacker(**{f.name: getattr(self, f.name) for f in fields(self)})
                part.start_, part.logit_, part.prior_ = self.start_, self.logit_, self.prior_
                part.shares_ = np.array([float(name == track) for name in TRACKS])
                for name in TRACKS:
                    setattr(part, f"{name}_", models if name == track else [])
                part.oof_, part.rounds_ = held_out, {track: self.rounds_[track]}
                parts.append(part)
        return parts


@lru_cache(maxsize=16)
def _boosters(models: tuple[str, ...]) -> list[Any]:
    import lightgbm

    return [lightgbm.Booster(model_str=text) for text in models]
