"""A run's directory: where things lie in it, what is finished, whose it is.

It is its own record: ``manifest.json`` says what the run depends on and is compared before anything
continues; a part is finished when its ``oof.parquet`` stands, or for ``final`` its weights; the run, when
all folds are joined. Killed at any moment and started again, it goes on from there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError
from data.files import sweep, write_json
from data.folds import Folds
from data.softlabels import MANIFEST, MAY_CHANGE, OOF, read_manifest
from data.storage import address_of
from distill.config import CONFIG, ModelConfig
from distill.model.files import writing
from distill.processes import on_first
from distill.recipe import read_config, save_resolved
from distill.teaching.teachers import LABELS
from distill.teaching.trust import TRAINED_ON

FINAL = "final"
PRETRAIN = "pretrain"
"""Directory of the stage before a run's trainings: a run of its own, of one model, ``final``."""
ADAPTER = "adapter"
ELSEWHERE = "elsewhere.parquet"
"""In ``fold-<k>/``: what the model of fold k predicts for the rows of all other folds."""
BACKBONES = "backbones"
"""Directory beside the stores that holds backbones made locally."""
BESIDE = "backbone_beside"
"""Manifest field: the way from a run to a backbone that moves with it."""
TRACES = (f"*/{ADAPTER}", "*/checkpoint-*", "*/best", "**/*.parquet")
"""What a training leaves."""


@dataclass(frozen=True)
class Part:
    """One model of a run, and its directory there.

    Attributes
    ----------
    path : Path
        Its name says what the model was trained without: ``fold-2``, ``without-0-1`` or, all rows,
        ``final``.
    """

    path: Path

    @property
    def without(self) -> tuple[int, ...]:
        """The folds that the model is trained without."""
        return tuple(int(number) for number in self.path.name.split("-")[1:])

    def number(self, n_folds: int) -> int:
        """Number of the model, by which it is seeded: no two of a run share theirs."""
        if len(self.without) == 2:
            i, j = self.without
            return (i + 1) * n_folds + j + 1
        return self.without[0] if self.without else n_folds

    def held_out(self, folds: Folds) -> np.ndarray:
        """Which rows the model never sees, shape (n,), bool."""
        return np.isin(folds.fold, self.without)

    @property
    def words(self) -> str:
        """What messages call it."""
        if not self.without:
            return "all rows"
        if len(self.without) == 1:
            return f"fold {self.without[0]}"
        return f"without folds {self.without[0]} and {self.without[1]}"

    @property
    def adapter(self) -> Path:
        """Its trained weights."""
        return self.path / ADAPTER

    @property
    def predictions(self) -> Path:
        """What it predicts for the rows that it never saw."""
        return self.path / OOF

    @property
    def elsewhere(self) -> Path:
        """What it predicts for the rows of other folds."""
        return self.path / ELSEWHERE

    @property
    def labels(self) -> Path:
        """Soft labels for the student scored on this fold, by models that never saw it."""
        return self.path / LABELS

    @property
    def waiting(self) -> Path:
        """Predictions that are not finished."""
        return self.path / "predicting"

    @property
    def trained(self) -> bool:
        """Whether its weights are there, whole; all processes get the same answer.

        Sent to another storage file by file they are so when the record has come, which is sent after them.
        """
        return on_first(
            lambda: self.adapter.exists() and (not self._mirrored or (self.path / TRAINED_ON).exists())
        )

    @property
    def _mirrored(self) -> bool:
        return address_of(self.path) is not None

    def keep(self, save: Callable[[Path], None]) -> None:
        """Have weights saved, whole or not at all, and drop the checkpoints."""
        unfinished = self.path / f".{ADAPTER}.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            with writing(unfinished):
                save(unfinished)
            if self._mirrored:  # of what another machine sent in part
                shutil.rmtree(self.adapter, ignore_errors=True)
            os.replace(unfinished, self.adapter)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.tidy()

    def tidy(self) -> None:
        """Drop what led to what is finished; a command killed before that leaves it to the next."""
        if self.adapter.exists():
            for left in (*self.path.glob("checkpoint-*"), self.path / f".{ADAPTER}.tmp", self.waiting):
                shutil.rmtree(left, ignore_errors=True)


@dataclass(frozen=True)
class RunDirectory:
    """A run's directory.

    Attributes
    ----------
    path : Path
    """

    path: Path

    def part(self, name: str) -> Part:
        """Return the part of this name."""
        return Part(self.path / name)

    def fold(self, number: int) -> Part:
        """Return the part trained without one fold."""
        return self.part(f"fold-{number}")

    def pair(self, i: int, j: int) -> Part:
        """Return the part trained without two folds."""
        return self.part(f"without-{min(i, j)}-{max(i, j)}")

    @property
    def pretraining(self) -> RunDirectory:
        """The stage before this run's trainings."""
        return RunDirectory(self.path / PRETRAIN)

    @property
    def joined(self) -> bool:
        """Whether the folds' predictions are joined; all processes get the same answer."""
        return on_first((self.path / OOF).exists)

    def finished(self, name: str, everywhere: bool = False) -> bool:
        """Whether a part has nothing left to do; all processes get the same answer.

        Parameters
        ----------
        everywhere : bool
            Whether it is also to predict the rows of other folds.
        """
        if name == PRETRAIN:
            return self.pretraining.part(FINAL).trained
        part = self.part(name)
        if not part.without:
            return part.trained
        files = [part.elsewhere] if everywhere else []
        if len(part.without) == 2 or not self.joined:
            files.append(part.predictions)
        return on_first(lambda: all(file.exists() for file in files))

    def weights(self, average: bool = False) -> list[Path]:
        """Trained weights: of the final model where there is one, or if asked for, else of the folds."""
        final = self.part(FINAL).adapter
        return [final] if final.exists() and not average else sorted(self.path.glob(f"fold-*/{ADAPTER}"))

    def sweep(self) -> None:
        """Delete what killed commands left half-written, here and in the parts."""
        for directory in (self.path, *self.path.glob("*/")):
            sweep(directory)

    @property
    def begun(self) -> bool:
        """Whether a training has left something."""
        return (self.path / MANIFEST).exists() and any(any(self.path.glob(trace)) for trace in TRACES)

    def refuse_other(self, known: Mapping[str, Any], model: ModelConfig) -> None:
        """Refuse a directory that holds another run, by what is known before a backbone is made for it.

        Parameters
        ----------
        known : mapping
            Fields of the manifest.
        model : ModelConfig
            Which small model is made, if one is.

        Raises
        ------
        UserError
            As :meth:`claim`.
        """
        self._refuse_foreign()
        if not self.begun:
            return
        found = read_manifest(self.path)
        for field in known:
            self._refuse_other(field, found, known)
        if model.backbone.tiny is not None and (self.path / CONFIG).exists():
            made = {"tiny": asdict(read_config(self.path / CONFIG, type(model)).backbone)["tiny"]}
            self._refuse_other("tiny", made, {"tiny": asdict(model.backbone.tiny)})

    def _refuse_foreign(self) -> None:
        if (self.path / MANIFEST).exists() or not self.path.exists():
            return
        if any(p.name != CONFIG and not p.name.startswith(".") for p in self.path.iterdir()):
            raise UserError(f"{self.path}: is not empty and has no {MANIFEST}; choose another --out")

    def _refuse_other(self, field: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        if field not in MAY_CHANGE and found.get(field) != wanted.get(field):
            raise UserError(
                f"{self.path}: holds another run: its manifest differs in "
                f"{difference(field, found, wanted)}; choose another --out, or delete that "
                "directory to start over"
            )

    def refuse_another(self, manifest: Mapping[str, Any], unknown: Sequence[str] = ()) -> None:
        """Refuse a directory where a training has left something for another manifest.

        Parameters
        ----------
        unknown : sequence of str
            Fields that the manifest may lack though the run will have them.

        Raises
        ------
        UserError
            As :meth:`claim`.
        """
        if not self.begun:
            return
        found = read_manifest(self.path)
        for field in sorted(set(found) | set(manifest)):
            if field == "backbone" and "files" not in found.get(field, {}):
                raise UserError(
                    f"{self.path}: was begun by an earlier version; end it with that one, choose another "
                    "--out, or delete that directory to start over"
                )
            if field in manifest or field not in unknown:
                self._refuse_other(field, found, manifest)

    def claim(self, manifest: dict[str, Any], model: ModelConfig) -> None:
        """Write the manifest and configuration, or see that those there are the same run's.

        What a recipe's mistake that only the loaded backbone shows, or a loss that diverged, has left may be
        claimed anew: it costs no deletion.

        Raises
        ------
        UserError
            The directory holds another run; the message names the first field that differs.
        """
        self.sweep()
        place, config = self.path / MANIFEST, self.path / CONFIG
        if self.begun:
            self.refuse_another(manifest)
            if not config.exists():
                save_resolved(config, model)
            return
        self._refuse_foreign()
        save_resolved(config, model)
        write_json(place, manifest)


def difference(field: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Name the first field, nested ones dotted, in which two manifests differ, with both values."""
    mine, theirs = found.get(field), wanted.get(field)
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in sorted(set(mine) | set(theirs)):
            if mine.get(key) != theirs.get(key):
                return f"{field}.{difference(key, mine, theirs)}"
    return f"{field} ({mine} there, {theirs} asked for)"
