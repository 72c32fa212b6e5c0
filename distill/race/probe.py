"""Which backbone is likely to be better, in minutes and without training: a probe of its frozen states.

Each text is read once by the frozen model (:mod:`distill.race.frozen`). What is kept is the mean and the last
of its hidden states after the last layer's norm; a pair's features are the difference of its two responses'
states, and their lengths. A multinomial logistic regression, its penalty chosen inside the training folds,
predicts each fold from the others, in both orders, as a teacher would. All backbones see the same rows and
folds, so that their losses are compared row by row, with intervals by prompt group.

Alain and Bengio, *Understanding intermediate layers using linear classifier probes*, arXiv 1610.01644. What
a probe finds is what training need not teach; whether its order of backbones is that of the trained ones is
a question of measurement, not of theory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.folds import Folds
from data.schema import Rows

PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Inverse strengths of the penalty that are tried, on standardised features."""
ITERATIONS = 200


@dataclass(frozen=True)
class Texts:
    """The distinct texts of some rows, and which of them each row's sides are.

    Attributes
    ----------
    texts : list of (str, str)
        What stands before, and the text itself.
    sides : ndarray of shape (n, S), int64
        Indices into ``texts``; S is 2 for pairs and 1 for single texts.
    """

    texts: list[tuple[str, str]]
    sides: np.ndarray


def texts_of(rows: Rows) -> Texts:
    """Find the distinct texts of rows: of pairs each response behind its prompt, else the prompt alone."""
    prompts = ["\n".join(turns) for turns in rows.table.column("prompt").to_pylist()]
    if rows.classes.swap is None:
        sides = [[("", prompt) for prompt in prompts]]
    else:
        sides = [
            [
                (f"{prompt}\n\n", "\n".join(turns))
                for prompt, turns in zip(prompts, rows.table.column(name).to_pylist(), strict=True)
            ]
            for name in ("response_a", "response_b")
        ]
    place: dict[tuple[str, str], int] = {}
    index = [[place.setdefault(text, len(place)) for text in side] for side in sides]
    return Texts(list(place), np.array(index, dtype=np.int64).T)


def length_features(rows: Rows) -> np.ndarray:
    """Features of lengths alone, (orders, n, F): differences change sign with the order, the rest do not."""
    names = ["response_a", "response_b"] if rows.classes.swap is not None else ["prompt"]
    sizes = np.array(
        [[len("\n".join(turns)) for turns in rows.table.column(name).to_pylist()] for name in names],
        dtype=np.float64,
    )
    logs = np.log1p(sizes)
    if len(names) == 1:
        return logs.T[None]
    gap, linear = logs[0] - logs[1], (sizes[0] - sizes[1]) / 100
    same = np.stack([np.abs(gap), np.abs(linear), logs.sum(axis=0)], axis=1)
    signed = np.stack([gap, linear, np.sign(linear)], axis=1)
    return np.stack([np.hstack([signed, same]), np.hstack([-signed, same])])


def state_features(states: np.ndarray, texts: Texts, rows: Rows) -> np.ndarray:
    """Features of frozen states and lengths, (orders, n, F)."""
    sides = states[texts.sides]
    lengths = length_features(rows)
    if sides.shape[1] == 1:
        return np.concatenate([sides[:, 0][None], lengths], axis=2).astype(np.float32)
    gap = sides[:, 0] - sides[:, 1]
    return np.concatenate([np.stack([gap, -gap]), lengths], axis=2).astype(np.float32)


def probe(features: np.ndarray, rows: Rows, folds: Folds) -> np.ndarray:
    """Predict each fold by a regression fitted on the others.

    Parameters
    ----------
    features : ndarray of shape (orders, n, F)
        Of every row in the order given and, for pairs, swapped.
    rows, folds : Rows, Folds
        In the same order.

    Returns
    -------
    ndarray of shape (n, K)
        Probabilities, the log-odds of both orders averaged; NaN for rows pinned to every training.
    """
    found = np.full((len(rows), rows.classes.n), np.nan)
    for fold in range(folds.n_folds):
        inside, held = np.flatnonzero(folds.fold != fold), np.flatnonzero(folds.fold == fold)
        inner = folds.fold == (fold + 1) % folds.n_folds if folds.n_folds > 2 else _half(folds)
        tried = np.intersect1d(inside, np.flatnonzero(inner))
        rest = np.setdiff1d(inside, tried)
        losses = []
        for penalty in PENALTIES:
            logs = _fitted(features, rows, rest, penalty)(tried)
            losses.append(-(rows.targets[tried] * logs).sum(axis=1).mean())
            if losses[-1] > min(losses):
                break  # the path is convex enough: weaker penalties only fit more noise
        chosen = PENALTIES[int(np.argmin(losses))]
        found[held] = np.exp(_fitted(features, rows, inside, chosen)(held))
    return found


def _half(folds: Folds) -> np.ndarray:
    """A quarter of the groups, for choosing the penalty where there is no third fold."""
    codes = np.unique(folds.group_ids, return_inverse=True)[1]
    return np.random.default_rng(0).permutation(codes.max() + 1)[codes] % 4 == 0


def _fitted(features: np.ndarray, rows: Rows, index: np.ndarray, penalty: float) -> Any:
    """Fit on some rows, both orders; return a function from rows to normalised log-probabilities."""
    from scipy.special import log_softmax
    from sklearn.linear_model import LogisticRegression

    permutation = rows.classes.permutation
    known = index[np.isfinite(rows.targets[index]).all(axis=1)]
    X = np.concatenate([part[known] for part in features])
    centre = X.mean(axis=0)
    scale = np.maximum(X.std(axis=0), 1e-6)
    orders = [rows.targets[known], rows.targets[known][:, permutation]][: len(features)]
    targets = np.concatenate(orders)
    # A soft label is a row of each class, weighted; of hard labels that leaves one.
    row, label = np.nonzero(targets)
    model = LogisticRegression(C=penalty, max_iter=ITERATIONS)
    model.fit(((X - centre) / scale)[row], label, sample_weight=targets[row, label])

    def predict(at: np.ndarray) -> np.ndarray:
        logits = np.full((len(features), len(at), rows.classes.n), -30.0)
        for order, part in enumerate(features):
            scores = model.decision_function((part[at] - centre) / scale)
            if scores.ndim == 1:
                scores = np.stack([-scores / 2, scores / 2], axis=1)
            logits[order][:, model.classes_] = scores
            if order:
                logits[order] = logits[order][:, permutation]
        return log_softmax(logits.mean(axis=0), axis=1)

    return predict
