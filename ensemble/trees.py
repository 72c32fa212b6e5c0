"""Boosted trees over members' predictions: small, strongly regularised, and bagged.

They start from the log-opinion pool, from the logit or from nothing; held-out loss says which of these count.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from ensemble.base import Blender, Swap, as_targets, as_weights, cross_entropy, log_probs, softmax
from ensemble.blend import LogOpinionPool
from ensemble.splits import inner_folds
from ensemble.stackers import MultinomialLogit, stack_features, with_swapped

MANY_ROWS = 15_000
SLOW_ROUNDS = 160
FEATURES = "log+prob"
TRACKS = ("plain", "symmetric", "scratch", "refined", "rows")


Bases = dict[int, tuple[np.ndarray, np.ndarray]]
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
        gap = loss - least
        mean = float(weights @ gap)
        if mean <= float(np.sqrt(np.sum((weights * (gap - mean)) ** 2))):
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
        Up to three times as much on more than :data:`MANY_ROWS`; twice as much after :data:`SLOW_ROUNDS`, for
        where many trees are wanted, their number matters less.
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
        self._rate = self.learning_rate * float(np.clip(len(P) / MANY_ROWS, 1, 3))
        folds = inner_folds(targets, groups, self.n_folds if len(P) < MANY_ROWS else 3, self.seed)
        from_pool: Bases = {}
        from_prior: Bases = {}
        from_logit: Bases = {}
        refined = log_probs(logit.oof_)
        thirds = inner_folds(targets, groups, 3, self.seed + 1)
        for fold in np.unique(folds):
            train, test = folds != fold, folds == fold
            pool = log_probs(start.refit(P[train], targets[train], weights[train]).predict_proba(P))
            from_pool[int(fold)] = pool[train], pool[test]
            prior = np.tile(np.log(_prior(targets[train], weights[train])), (len(P), 1))
            from_prior[int(fold)] = prior[train], prior[test]
            # A logit fits too closely to start from its own training rows: these are cross-fitted again.
            outside = np.empty_like(targets[train])
            rows, third = np.flatnonzero(train), thirds[train]
            for part in np.unique(third):
                rest = rows[third != part]
                other = logit.refit(P[rest], targets[rest], weights[rest])
                outside[third == part] = log_probs(other.predict_proba(P[rows[third == part]]))
            whole = logit.refit(P[train], targets[train], weights[train])
            from_logit[int(fold)] = outside, log_probs(whole.predict_proba(P[test]))
        self.prior_ = _prior(targets, weights)
        begins = {
            "plain": log_probs(start.predict_proba(P)),
            "scratch": np.tile(np.log(self.prior_), (len(P), 1)),
            "refined": refined,
        }
        begins["symmetric"] = begins["rows"] = begins["plain"]
        grown = {"plain": self._grow(P, targets, weights, folds, from_pool, False)}
        if self.swap is not None and grown["plain"][1]:  # else there is nothing to make symmetric
            grown["symmetric"] = self._grow(P, targets, weights, folds, from_pool, True)
        grown["scratch"] = self._grow(P, targets, weights, folds, from_prior, False)
        grown["refined"] = self._grow(P, targets, weights, folds, from_logit, False)
        if X is not None:
            grown["rows"] = self._grow(P, targets, weights, folds, from_pool, False, X)
        chosen, self.oof_ = _choose({name: track[0] for name, track in grown.items()}, targets, weights)
        self.shares_ = np.array([(track in chosen) / len(chosen) for track in TRACKS])
        self._grown = {
            track: (
                softmax(raw),
                self._bag(
                    P,
                    targets,
                    weights,
                    begins[track],
                    track == "symmetric",
                    rounds,
                    X if track == "rows" else None,
                ),
            )
            for track, (raw, rounds) in grown.items()
        }
        for track in TRACKS:
            setattr(self, f"{track}_", self._grown[track][1] if track in chosen else [])
        self.rounds_ = {name: track[1] for name, track in grown.items()}
        self.__dict__.pop("_boosters", None)
        return self

    @property
    def needs_rows(self) -> bool:
        """Whether trees that use the rows' own features count."""
        return bool(getattr(self, "rows_", None))

    def predict_proba(self, P: np.ndarray, X: np.ndarray | None = None) -> np.ndarray:
        """Return probabilities (n, K)."""
        plain, symmetric, scratch, refined, rows = self._boosters
        shares = dict(zip(TRACKS, self.shares_, strict=True))
        logits = np.tile(shares["scratch"] * np.log(self.prior_), (len(P), 1))
        from_pool = shares["plain"] + shares["symmetric"] + shares["rows"]
        if from_pool > 0:
            logits += from_pool * log_probs(self.start_.predict_proba(P))
        if shares["refined"] > 0:
            logits += shares["refined"] * log_probs(self.logit_.predict_proba(P))
        features = stack_features(P, FEATURES)
        for track, models in (("plain", plain), ("scratch", scratch), ("refined", refined)):
            if models:
                logits += shares[track] * _raw(models, features, P.shape[2])
        if rows:
            logits += shares["rows"] * _raw(rows, np.concatenate([features, X], axis=1), P.shape[2])
        if symmetric:
            logits += shares["symmetric"] * _raw_both_orders(symmetric, P, self.swap)
        return softmax(logits)

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

    @cached_property
    def _boosters(self) -> tuple[list[Any], ...]:
        import lightgbm

        def load(texts: list[str]) -> list[Any]:
            return [lightgbm.Booster(model_str=text) for text in texts]

        return tuple(load(getattr(self, f"{track}_")) for track in TRACKS)

    def _grow(
        self,
        P: np.ndarray,
        targets: np.ndarray,
        weights: np.ndarray,
        folds: np.ndarray,
        bases: Bases,
        symmetric: bool,
        X: np.ndarray | None = None,
    ) -> tuple[np.ndarray, int]:
        """Grow a model a fold in step; return the held-out logits (n, K) and the rounds."""
        n_classes = P.shape[2]
        boosters, held_out = [], []
        base = np.empty_like(targets)
        features = stack_features(P, FEATURES)
        if X is not None:
            features = np.concatenate([features, X], axis=1)
        for fold, (outside, inside) in bases.items():
            train = np.flatnonzero(folds != fold)
            own = None if X is None else X[train]
            boosters.append(
                self._booster(P[train], targets[train], weights[train], outside, symmetric, 0, own)
            )
            held_out.append(np.flatnonzero(folds == fold))
            base[held_out[-1]] = inside
        raw = np.zeros_like(base)
        best, best_loss, best_rounds, waited = raw.copy(), np.inf, 0, 0
        for rounds in range(0, self.max_rounds + 1, self.step):
            if rounds:
                for booster, test in zip(boosters, held_out, strict=True):
                    self._add(booster, rounds - self.step, self.step)
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
        base: np.ndarray,
        symmetric: bool,
        rounds: int,
        X: np.ndarray | None = None,
    ) -> list[str]:
        """Models grown on all rows, as text."""
        models = []
        for number in range(self.bag if rounds else 0):
            booster = self._booster(P, targets, weights, base, symmetric, number + 1, X)
            self._add(booster, 0, rounds + rounds // 10)
            models.append(booster.model_to_string())
        return models

    def _add(self, booster: Any, done: int, rounds: int) -> None:
        for number in range(done, done + rounds):
            if number == SLOW_ROUNDS:
                booster.reset_parameter({"learning_rate": 2 * self._rate})
            booster.update()

    def _booster(
        self,
        P: np.ndarray,
        targets: np.ndarray,
        weights: np.ndarray,
        base: np.ndarray,
        symmetric: bool,
        number: int = 0,
        X: np.ndarray | None = None,
    ) -> Any:
        import lightgbm

        if symmetric:
            base = np.concatenate([base, base[:, list(self.swap or ())]])
            P, targets, weights = with_swapped(P, targets, weights, self.swap)
        features = stack_features(P, FEATURES)
        if X is not None:
            features = np.concatenate([features, X], axis=1)
        row, label = np.nonzero(targets)  # a soft target counts as a row for each class it gives weight to
        row_weights = weights[row] * targets[row, label]
        params = {
            "objective": "multiclass",
            "num_class": P.shape[2],
            "num_leaves": self.num_leaves,
            "learning_rate": self._rate,
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
            features[row],
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
