"""From what a judge says to class probabilities: shares by verdict, smooth rising curves of scores.

A map is fitted to labelled rows and goes to JSON. Nothing here looks at the rows that it is scored on; see
:meth:`ensemble.reading.problem.Problem.seen_from`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.softmax import softmax
from ensemble.reading.judges import Judge
from ensemble.solvers.designs import BlockDesign
from ensemble.solvers.evidence import averaged, weigh
from ensemble.solvers.folds import inner_folds
from ensemble.solvers.newton import SoftmaxProblem

PRIOR_ROWS = 1.0
"""Rows of the classes' shares that every verdict, and a whole curve, is drawn to (a Dirichlet prior)."""
MOST_LEVELS = 100
"""Levels that scores are gathered into."""
KNOTS = (0.05, 0.275, 0.5, 0.725, 0.95)
"""Where curves of scores may bend, by the share of scores below (Harrell, 2015, for five knots)."""
FAR = 10.0
"""Where curves end, in ranges of nine tenths of the scores: beyond, a score is an outlier."""
SLOPE_ROWS, BEND_ROWS = 0.1, (0.1, 1.0, 10.0, 100.0)
"""What a slope, and a bend, of log-odds is drawn to none by, in rows; of the last the rows choose."""
_FOLDS = 5


@dataclass(frozen=True)
class JudgeMap:
    """What a judge's word is worth.

    Attributes
    ----------
    kind : {"verdict", "score"}
    heard : ndarray of shape (levels, 2) or (levels,)
        Pairs of verdicts, -1 for none, or rising scores.
    probs : ndarray of shape (levels, K)
        Class probabilities at each; between two scores they run straight.
    prior : ndarray of shape (K,)
        Of a pair of verdicts that was never seen, and of a row without a score.
    swap : tuple of int or None
        How classes change places where the map treats both sides of a row alike.
    """

    kind: str
    heard: np.ndarray
    probs: np.ndarray
    prior: np.ndarray
    swap: tuple[int, ...] | None

    def __call__(self, signal: np.ndarray) -> np.ndarray:
        """Class probabilities (n, K) of what the judge said (n, 2)."""
        if self.kind == "verdict":
            level = {tuple(pair): k for k, pair in enumerate(self.heard.astype(int).tolist())}
            table = np.concatenate([self.probs, self.prior[None]])
            return table[[level.get(pair, -1) for pair in _pairs(signal)]]
        score = _score(signal)
        probs = self._curve(score)
        if self.swap is not None:
            probs = (probs + self._curve(-score)[:, list(self.swap)]) / 2
        return np.where(np.isnan(score)[:, None], self.prior, probs)

    def _curve(self, score: np.ndarray) -> np.ndarray:
        return np.stack([np.interp(score, self.heard, column) for column in self.probs.T], axis=1)

    def to_dict(self) -> dict[str, Any]:
        """The map as JSON values."""
        arrays = {name: getattr(self, name).tolist() for name in ("heard", "probs", "prior")}
        return {"kind": self.kind, **arrays, "swap": None if self.swap is None else list(self.swap)}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> JudgeMap:
        """Rebuild a map from what :meth:`to_dict` returned."""
        heard, probs, prior = (
            np.array(state[name], dtype=np.float64) for name in ("heard", "probs", "prior")
        )
        return cls(
            state["kind"], heard, probs, prior, None if state["swap"] is None else tuple(state["swap"])
        )


def fit_map(judge: Judge, y: np.ndarray, weight: np.ndarray | None) -> JudgeMap:
    """Fit what a judge's word is worth on labelled rows.

    Where it was asked in both orders of a pair, or scored both sides, exchanging the sides exchanges the
    classes and nothing else: every row counts half as it is and half exchanged.

    Parameters
    ----------
    judge : Judge
    y : ndarray of shape (n, K)
    weight : ndarray of shape (n,), optional
    """
    weight = np.ones(len(y)) if weight is None else weight
    signal, swap = judge.signal, judge.swap
    if swap is not None:
        signal = np.concatenate([signal, judge.exchanged(swap)])
        y, weight = np.concatenate([y, y[:, list(swap)]]), np.concatenate([weight, weight]) / 2
    counted = y * weight[:, None]
    prior = (counted.sum(axis=0) + 1) / (counted.sum() + y.shape[1])  # keeps an absent class possible
    if judge.kind == "verdict":
        heard, level = np.unique(np.array(_pairs(signal)), axis=0, return_inverse=True)
        counts = _sums(level.ravel(), counted, len(heard)) + PRIOR_ROWS * prior
        return JudgeMap("verdict", heard, counts / counts.sum(axis=1, keepdims=True), prior, swap)
    score = _score(signal)
    there = np.isfinite(score)
    silent = counted[~there].sum(axis=0) + PRIOR_ROWS * prior
    heard, probs = _rising(score[there], counted[there], prior, list(judge.order))
    return JudgeMap("score", heard, probs, silent / silent.sum(), swap)


def cross_fitted(judge: Judge, y: np.ndarray, weight: np.ndarray | None, fold: np.ndarray) -> np.ndarray:
    """Probabilities (n, K) of each fold by the map that the other folds teach."""
    found = np.empty_like(y)
    for number in np.unique(fold):
        rest, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        part = None if weight is None else weight[rest]
        found[held] = fit_map(judge.take(rest), y[rest], part)(judge.signal[held])
    return found


def mapped(
    judge: Judge, y: np.ndarray, weight: np.ndarray | None, groups: np.ndarray, rows: np.ndarray, seed: int
) -> np.ndarray:
    """Probabilities of all rows (n, K) that owe nothing to labels other than those of ``rows``.

    Among ``rows`` themselves those of each inner fold owe nothing to their own labels either.
    """
    own, heard = y[rows], judge.take(rows)
    part = None if weight is None else weight[rows]
    found = fit_map(heard, own, part)(judge.signal)
    found[rows] = cross_fitted(heard, own, part, inner_folds(own, groups[rows], _FOLDS, seed))
    return found


def _rising(
    score: np.ndarray, counted: np.ndarray, prior: np.ndarray, order: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Levels of the scores and the classes' chances there, the chance of each class or a later one rising.

    Log-odds of the classes are restricted cubic splines of the score, straight beyond the outer knots
    (Harrell, *Regression modeling strategies*, 2015), as bent as the evidence says; where they fall, isotonic
    regression (Robertson, Wright and Dykstra, *Order restricted statistical inference*, 1988) of the chance
    of each class or a later one levels them. As these events are nested, so are the fits.
    """
    from scipy.optimize import isotonic_regression

    heard = counted.sum(axis=1) > 0
    score, counted = score[heard], counted[heard]
    edges = np.unique(np.quantile(score, np.linspace(0, 1, MOST_LEVELS + 1)[1:-1])) if len(score) else score
    level = np.unique(np.searchsorted(edges, score, side="left"), return_inverse=True)[1]
    size = int(level.max()) + 1 if len(level) else 0
    if not size:
        return np.zeros(1), prior[None]
    total = counted.sum(axis=1)
    counts = _sums(level, counted, size)
    total_of = counts.sum(axis=1)
    middle = np.bincount(level, weights=score * total) / total_of
    # The outermost levels reach to the ends.
    places = np.concatenate([[score.min()], middle, [score.max()]])
    fitted = _smooth(middle, counts, prior, score, places)
    above = fitted[:, order][:, ::-1].cumsum(axis=1)[:, ::-1]
    mass = np.concatenate([[1e-3], total_of, [1e-3]])
    rising = [isotonic_regression(chance, weights=mass).x for chance in above[:, 1:].T]
    nested = np.stack([np.ones(len(places)), *rising, np.zeros(len(places))], axis=1)
    probs = np.empty_like(fitted)
    probs[:, order] = np.maximum(nested[:, :-1] - nested[:, 1:], 0)
    probs = (total.sum() * probs + PRIOR_ROWS * prior) / (total.sum() + PRIOR_ROWS)
    places, first = np.unique(places, return_index=True)
    return places, probs[first] / probs[first].sum(axis=1, keepdims=True)


def _smooth(
    middle: np.ndarray, counts: np.ndarray, prior: np.ndarray, score: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """Class chances (places, K) by splines fitted to the counts (levels, K)."""
    total = counts.sum(axis=1)
    knots = np.quantile(score, KNOTS)
    centre = knots[len(knots) // 2]
    scale = float(knots[-1] - knots[0]) or float(score.std()) or 1.0
    knots = np.unique((knots - centre) / scale)
    features = [_spline(np.clip((at - centre) / scale, -FAR, FAR), knots) for at in (middle, places)]
    d, k = features[0].shape[1], counts.shape[1]
    start = np.zeros((k, d))
    start[:, 0] = np.log(prior)
    problem = SoftmaxProblem(
        BlockDesign(features[0], k),
        counts / total[:, None],
        total / total.sum(),
        np.zeros(k * d),
        start.ravel(),
    )
    penalties = np.full((len(BEND_ROWS), k, d), SLOPE_ROWS)
    penalties[:, :, 0] = 1.0
    penalties[:, :, 2:] = np.array(BEND_ROWS)[:, None, None]
    found = weigh(problem, penalties.reshape(len(BEND_ROWS), -1), float(total.sum()))
    shares = averaged(found.evidence)[0]
    later = BlockDesign(features[1], k)
    return np.sum([s * softmax(later.logits(t)) for s, t in zip(shares, found.thetas, strict=True)], axis=0)


def _spline(at: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """One, the score, and restricted cubic terms: shape (n, 2 + bends)."""
    columns = [np.ones(len(at)), at]
    if len(knots) > 2:
        last, before = knots[-1], knots[-2]
        cubes = [np.maximum(at - knot, 0) ** 3 for knot in knots]
        for j, knot in enumerate(knots[:-2]):
            left, right = (last - knot) / (last - before), (before - knot) / (last - before)
            columns.append(4 * (cubes[j] - cubes[-2] * left + cubes[-1] * right))
    return np.stack(columns, axis=1)


def _sums(level: np.ndarray, counted: np.ndarray, size: int) -> np.ndarray:
    return np.stack([np.bincount(level, weights=column, minlength=size) for column in counted.T], axis=1)


def _pairs(signal: np.ndarray) -> list[tuple[int, ...]]:
    """Verdicts as pairs of class numbers, -1 for none."""
    return [tuple(pair) for pair in np.where(np.isnan(signal), -1, signal).astype(int).tolist()]


def _score(signal: np.ndarray) -> np.ndarray:
    """The mean of the scores there are (n,), NaN where there is none."""
    there = np.isfinite(signal)
    total = np.where(there, signal, 0).sum(axis=1)
    return np.where(there.any(axis=1), total / np.maximum(there.sum(axis=1), 1), np.nan)
