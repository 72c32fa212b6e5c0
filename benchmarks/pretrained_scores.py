"""Scores of predictions on the arguments: log-loss, accuracy, calibration, paired differences by debate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.folds import Folds
from data.schema import Rows
from ensemble.scoring.bootstrap import bootstrap
from ensemble.solvers.numbers import log_loss

BINS = 15


@dataclass(frozen=True)
class Judge:
    """Rows, the debates that they are of, and the cleaned subset.

    Attributes
    ----------
    rows : Rows
    groups : ndarray of shape (n,)
        The debate of each row.
    strict : ndarray of bool, shape (n,)
    """

    rows: Rows
    groups: np.ndarray
    strict: np.ndarray

    @classmethod
    def of(cls, rows: Rows, folds: Folds, strict: np.ndarray) -> Judge:
        """Judge rows by the groups of their folds."""
        return cls(rows, np.array(folds.group_ids), strict)

    def score(self, probs: np.ndarray, against: np.ndarray | None = None) -> dict[str, Any]:
        """Score predictions (n, K); ``against`` are those of a baseline, for paired differences.

        Returns
        -------
        dict
            ``log_loss`` and ``accuracy`` of all rows, ``strict`` accuracy between the two sides on the
            cleaned subset, ``ece`` (expected calibration error of the likeliest class, bins of equal
            counts); each of the first three with a 95 % interval that resamples debates.
        """
        labels = self.rows.labels
        resample = bootstrap(self.groups)
        losses = log_loss(probs, self.rows.targets)
        hits = (probs.argmax(axis=1) == labels).astype(np.float64)
        sides = (probs[:, :2].argmax(axis=1) == labels).astype(np.float64)
        kept = bootstrap(self.groups[self.strict])
        found = {
            "log_loss": float(losses.mean()),
            "log_loss_ci": resample.interval(losses).as_list(),
            "accuracy": float(hits.mean()),
            "accuracy_ci": resample.interval(hits).as_list(),
            "strict": float(sides[self.strict].mean()),
            "strict_ci": kept.interval(sides[self.strict]).as_list(),
            "ece": calibration_error(probs, labels),
        }
        return found if against is None else found | self.gap(probs, against)

    def gap(self, probs: np.ndarray, against: np.ndarray) -> dict[str, Any]:
        """Log-loss above that of other predictions of the same rows, and in how many debates it is below."""
        gap = log_loss(probs, self.rows.targets) - log_loss(against, self.rows.targets)
        return {
            "gap": float(gap.mean()),
            "gap_ci": bootstrap(self.groups).interval(gap).as_list(),
            "gap_debates": int((np.bincount(self.codes, weights=gap) < 0).sum()),
        }

    @property
    def codes(self) -> np.ndarray:
        """Debates as numbers from 0."""
        return np.unique(self.groups, return_inverse=True)[1]


def calibration_error(probs: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error of the likeliest class, in :data:`BINS` bins of equal counts."""
    sure = probs.max(axis=1)
    right = probs.argmax(axis=1) == labels
    bins = np.array_split(np.argsort(sure, kind="stable"), min(BINS, len(sure)))
    gaps = [abs(sure[part].mean() - right[part].mean()) * len(part) for part in bins]
    return float(sum(gaps) / len(labels))


HEADER = ["model", "log-loss", "95 %", "accuracy", "strict", "95 %", "ECE", "against {}", "95 %", "debates"]


def header(baseline: str) -> list[str]:
    """Column names of :func:`line`."""
    return [cell.format(baseline) for cell in HEADER]


def line(name: str, score: dict[str, Any]) -> list[str]:
    """A score as cells of a table."""
    low, high = score["log_loss_ci"]
    cells = [name, f"{score['log_loss']:.4f}", f"{low:.4f} to {high:.4f}", f"{score['accuracy']:.3f}"]
    low, high = score["strict_ci"]
    cells += [f"{score['strict']:.3f}", f"{low:.3f} to {high:.3f}", f"{score['ece']:.3f}"]
    return cells + (gap_cells(score) if "gap" in score else ["", "", ""])


def gap_cells(score: dict[str, Any]) -> list[str]:
    """A difference, its interval, and the number of debates in which it is below zero."""
    low, high = score["gap_ci"]
    return [f"{score['gap']:+.4f}", f"{low:+.4f} to {high:+.4f}", str(score["gap_debates"])]
