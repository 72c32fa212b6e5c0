r"""Weights by slice: a log-opinion pool whose weights may differ where the rows do.

A judge that is weak on long answers should count for less there. Rows are cut by what can be seen at
prediction: the class that the members favour, how sure they are, how far they disagree, and, where the
row table is known, length and turns. Every slice's weights and biases are the common ones plus departures
of its own; a penalty draws both to their centres, so that a slice of few rows keeps the common weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from data.softmax import softmax
from ensemble.methods.base import Blender, Training
from ensemble.methods.pool import LogPool
from ensemble.methods.registry import register
from ensemble.reading.features import NAMES
from ensemble.solvers.designs import SharedDesign
from ensemble.solvers.newton import SoftmaxProblem, choose_strength, minimise
from ensemble.solvers.numbers import cross_entropy, log_probs, with_error

STRENGTHS = (300.0, 30.0)
"""Penalties tried, in units of rows, strong to weak."""
MOST_CLASSES = 20
CHOOSING_ROWS = 10_000
"""Rows that choose the cut and its penalty where there are more."""
MOST_ENTRIES = 20_000_000
"""Numbers in the regression's design beyond which slices are not tried: 160 MB."""
_THIRDS = (1 / 3, 2 / 3)


@dataclass
class SlicedPool(Blender):
    """A log-opinion pool with departures by slice, where these win inside the training rows.

    A cut that does not beat the plain pool by more than the paired standard error is not made.

    Parameters
    ----------
    n_folds, seed : int
        Of the inner cross-validation, which chooses cut and penalty.

    Attributes
    ----------
    cut_ : str
        What the rows are cut by, or ``none``.
    edges_ : ndarray
        Where the quantity is cut.
    slice_weights_ : ndarray of shape (slices, members)
    slice_biases_ : ndarray of shape (slices, K)
    floor_ : float
    oof_ : ndarray of shape (n, K)

    Notes
    -----
    Partial pooling as in Gelman and Hill, *Data analysis using regression and multilevel models* (2006).
    """

    n_folds: int = 3
    seed: int = 0
    fitted: ClassVar[tuple[str, ...]] = ("cut_", "edges_", "slice_weights_", "slice_biases_", "floor_")

    def fit_on(self, data: Training) -> Self:
        """Fit a pool, then its departures; see :meth:`Blender.fit`."""
        return self.fit_from(data, LogPool(None, seed=self.seed).fit_on(data))

    def fit_from(self, data: Training, start: LogPool) -> Self:
        """Fit departures from a pool already fitted on the same rows and seed.

        Rows are cut by features of their own where ``data`` has these, as
        :func:`ensemble.reading.features.row_features` gives them.
        """
        P, targets, weights, X = data.P, data.targets, data.weights, data.X
        n, n_members, n_classes = P.shape
        self.floor_, self.cut_, self.edges_, self.oof_ = start.floor_, "none", np.zeros(0), start.oof_
        self.slice_weights_, self.slice_biases_ = start.weights_[None], start.bias_[None]
        folds = data.folds(self.n_folds, self.seed)
        some = np.arange(n)
        if n > CHOOSING_ROWS:
            some = np.sort(np.random.default_rng(self.seed).permutation(n)[:CHOOSING_ROWS])
        share = weights[some] / weights[some].sum()
        best = None
        for cut in cuts(X):
            edges = _edges(cut, P, X, self.floor_)
            slices = _slices(cut, P, X, self.floor_, edges)
            count = n_classes if cut == "class" else len(edges) + 1
            entries = n * n_classes * (n_members + n_classes) * (count + 1)
            if entries > MOST_ENTRIES or len(np.unique(slices[some])) < 2:
                continue
            problem = _problem(P[some], targets[some], share, self.floor_, slices[some], count)
            path = choose_strength(problem, folds[some], STRENGTHS)
            if best is None or path.loss < best[0].loss:
                best = path, cut, edges, problem, slices, count
        if best is None:
            return self
        path, cut, edges, problem, slices, count = best
        gain = cross_entropy(start.oof_[some], targets[some]) - cross_entropy(path.oof, targets[some])
        mean, error = with_error(gain, share)
        if mean <= error:
            return self
        if len(some) < n:
            problem = _problem(P, targets, weights, self.floor_, slices, count)
            path = choose_strength(problem, folds, (path.strength,))
        self.cut_, self.edges_, self.oof_ = cut, edges, path.oof
        theta = minimise(problem.penalised(path.strength)).reshape(-1, n_members + n_classes)
        own = theta[0] + theta[1:]
        self.slice_weights_, self.slice_biases_ = own[:, :n_members], own[:, n_members:]
        return self

    @property
    def needs_rows(self) -> bool:
        """Whether rows are cut by features of their own."""
        return self.cut_ in _ROW_CUTS

    def predict_on(self, P: np.ndarray, X: np.ndarray | None = None) -> np.ndarray:
        """Return probabilities (n, K)."""
        slices = np.zeros(len(P), dtype=np.int64)
        if self.cut_ != "none":
            slices = _slices(self.cut_, P, X, self.floor_, np.asarray(self.edges_))
        logs = log_probs(P, self.floor_)
        return softmax(
            np.einsum("nmk,nm->nk", logs, self.slice_weights_[slices]) + self.slice_biases_[slices]
        )


register(
    "pool by slice",
    70,
    lambda f: SlicedPool(seed=f.seed).fit_from(f.data, f.get("log-pool", LogPool)),
    affordable=lambda members, classes: classes <= MOST_CLASSES,
)


_ROW_CUTS = {
    "length": tuple(NAMES.index(f"log characters of {text}") for text in ("response_a", "response_b")),
    "turns": (NAMES.index("turns"),),
}


def cuts(X: np.ndarray | None) -> tuple[str, ...]:
    """What rows can be cut by, with and without features of their own."""
    return ("class", "confidence", "disagreement", *(_ROW_CUTS if X is not None else ()))


def _quantity(cut: str, P: np.ndarray, X: np.ndarray | None, floor: float) -> np.ndarray:
    """The number a row is cut by (n,)."""
    if cut in _ROW_CUTS:
        assert X is not None
        return X[:, _ROW_CUTS[cut]].mean(axis=1)
    logs = log_probs(P, floor)
    together = softmax(logs.mean(axis=1))
    if cut == "class":
        return together.argmax(axis=1).astype(np.float64)
    if cut == "confidence":
        return together.max(axis=1)
    return (P * (logs - np.log(together)[:, None])).sum(axis=2).mean(axis=1)


def _edges(cut: str, P: np.ndarray, X: np.ndarray | None, floor: float) -> np.ndarray:
    if cut == "class":
        return np.arange(1, P.shape[2]) - 0.5
    if cut == "turns":
        return np.array([1.5])
    return np.unique(np.quantile(_quantity(cut, P, X, floor), _THIRDS))


def _slices(cut: str, P: np.ndarray, X: np.ndarray | None, floor: float, edges: np.ndarray) -> np.ndarray:
    return np.searchsorted(edges, _quantity(cut, P, X, floor), side="right")


def _problem(
    P: np.ndarray, targets: np.ndarray, weights: np.ndarray, floor: float, slices: np.ndarray, count: int
) -> SoftmaxProblem:
    """The pool's regression with a copy of its features for each slice, zero outside it."""
    n, n_members, n_classes = P.shape
    width = n_members + n_classes
    features = np.zeros((n, n_classes, count + 1, width))
    features[:, :, 0, :n_members] = log_probs(P, floor).transpose(0, 2, 1)
    features[:, :, 0, n_members:] = np.eye(n_classes)
    features[np.arange(n), :, 1 + slices] = features[:, :, 0]
    centre = np.zeros((count + 1, width))
    centre[0, :n_members] = 1 / n_members
    design = SharedDesign(features.reshape(n, n_classes, -1))
    return SoftmaxProblem(design, targets, weights, np.ones(centre.size), centre.ravel())
