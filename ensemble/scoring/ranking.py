"""How high the right candidate stands: accuracy, mean average precision and mean reciprocal rank.

One candidate is right, or of soft targets the one of most weight; so a row's average precision at k is the
inverse of its rank where that is k or better, else 0. Of candidates with equal probability the first in the
row's own order stands higher.
"""

from __future__ import annotations

import numpy as np

MAP_AT = 3
"""The k of MAP@k by default, as in Kaggle's MAP."""
METRICS = ("accuracy", f"MAP@{MAP_AT}", "MRR")


def ranks(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The place of the right candidate by its probability, from 1, shape (n,).

    Parameters
    ----------
    probs, targets : ndarray of shape (n, K)
        Zero where a row has no such candidate.
    """
    right = targets.argmax(axis=1)[:, None]
    own = np.take_along_axis(probs, right, axis=1)
    before = np.arange(probs.shape[1]) < right
    return 1 + ((probs > own) | ((probs == own) & before)).sum(axis=1)


def row_metrics(probs: np.ndarray, targets: np.ndarray, k: int = MAP_AT) -> np.ndarray:
    """Accuracy, average precision at ``k`` and reciprocal rank of each row, shape (n, 3)."""
    rank = ranks(probs, targets)
    return np.stack([rank == 1, np.where(rank <= k, 1 / rank, 0.0), 1 / rank], axis=1).astype(np.float64)
