"""Which moment of a training to keep: the one of least log-loss after temperature scaling, on rows held back.

Loss before scaling mixes two things, what a model can tell apart and how boldly it says so; the second is
mended afterwards for free, so the first decides ("refine, then calibrate", arXiv 2501.19195). The rows held
back are whole prompt groups of the training folds, never of the fold that is scored.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from data.files import write_json
from data.softmax import softmax
from distill.model.classifier import Classifier
from distill.packing.examples import Examples
from distill.processes import gathered, on_first
from distill.training.predict import predict_logits
from ensemble.sets.pool import fit_temperature
from ensemble.solvers.numbers import log_loss

CHECKS = 10
"""How often a training is looked at by default."""
BEST, RECORD = "best", "selection.json"


def held_back(group_ids: Sequence[str], share: float, seed: int) -> np.ndarray:
    """Mark about ``share`` of the prompt groups, by lot; shape (n,), bool."""
    drawn = {g: hashlib.sha256(f"{seed} {g}".encode()).digest()[:8] for g in set(group_ids)}
    return np.array([int.from_bytes(drawn[g], "big") / 2**64 < share for g in group_ids])


def scaled_log_loss(logits: np.ndarray, targets: np.ndarray, sets: bool = False) -> float:
    """Log-loss of logits (n, orders, K), orders averaged, at the temperature that suits them best.

    Of ``sets``, rows with candidates of their own, over the places that each row has.
    """
    probs = softmax(logits.mean(axis=1))
    _, scaled = fit_temperature(probs, targets, sets)
    return float(log_loss(scaled(probs), targets).mean())


class KeepBest(TrainerCallback):
    """Looks at a training now and then, keeps its best weights, and stops it when it no longer improves.

    Parameters
    ----------
    classifier : Classifier
    examples : Examples
    rows : ndarray of int
        Rows held back.
    directory : Path
        Keeps ``best/`` and ``selection.json``, from which a killed run goes on.
    every : int
        Steps between looks; 0 for a tenth of the training.
    patience : int
        Looks without improvement after which the training stops; 0 never stops it.
    """

    def __init__(
        self,
        classifier: Classifier,
        examples: Examples,
        rows: np.ndarray,
        directory: Path,
        every: int = 0,
        patience: int = 0,
    ) -> None:
        self.classifier, self.examples, self.rows = classifier, examples, rows
        self.directory, self.every, self.patience = directory, every, patience
        self.looks: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up the looks of a killed run, as far as its checkpoint reaches."""
        record = self.directory / RECORD
        if record.exists() and state.global_step:
            looks = json.loads(record.read_text(encoding="utf-8"))["looks"]
            self.looks = [look for look in looks if look["step"] <= state.global_step]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look, and keep or stop."""
        every = self.every or max(1, state.max_steps // CHECKS)
        if state.global_step % every and state.global_step != state.max_steps:
            return
        logits = predict_logits(self.classifier, self.examples, self.rows, 0, "rows held back")
        sets = self.examples.encoded.sizes is not None
        loss = scaled_log_loss(logits, self.examples.targets[self.rows], sets)
        better = loss < min((look["loss"] for look in self.looks), default=np.inf)
        self.looks.append({"step": state.global_step, "loss": loss})
        on_first(lambda: self._record(better))
        best = int(np.argmin([look["loss"] for look in self.looks]))
        if self.patience and len(self.looks) - 1 - best >= self.patience:
            control.should_training_stop = True

    def _record(self, better: bool) -> None:
        if better:
            unfinished = self.directory / ".best.tmp"
            shutil.rmtree(unfinished, ignore_errors=True)
            self.classifier.save(unfinished)
            shutil.rmtree(self.directory / BEST, ignore_errors=True)
            unfinished.replace(self.directory / BEST)
        write_json(self.directory / RECORD, {"looks": self.looks})

    def restore(self) -> None:
        """Give the classifier its best weights back."""
        if on_first((self.directory / BEST).exists):
            self.classifier.load(self.directory / BEST)
            gathered(None)  # all have read them
            on_first(lambda: shutil.rmtree(self.directory / BEST))
