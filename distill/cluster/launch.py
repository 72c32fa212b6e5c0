"""Between a training command and its units: what they will cost, and having a cluster run them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data import storage
from data.console.command import format_table
from data.folds import Folds
from data.schema import Rows
from data.softlabels import MANIFEST
from distill.cluster.board import Board
from distill.config import CONFIG, StudentConfig
from distill.runs.devices import H200, device_here
from distill.runs.estimate import HEADER, estimates, table_of
from distill.runs.run_directory import BACKBONES, PRETRAIN
from distill.runs.units import WEIGHTS, ModelSpec, Unit
from distill.teaching.teachers import NotYet


def estimated(
    models: Sequence[ModelSpec], units: Sequence[Unit], rows: Rows, folds: Folds, launcher: str
) -> str:
    """Return the table that ``--dry-run`` prints; nothing is trained for it.

    Of what lies on other storage the mirror gets what says how far it is, and no weights. The device is the
    one here; a cluster's cards are not known, and an H200 stands for them. Teachers that are still to be
    trained are no hindrance, and named below the table.

    Raises
    ------
    UserError
        A model would be refused: as :meth:`distill.runs.units.ModelSpec.foresee`.
    """
    learnt, first = {}, []
    for model in models:
        model.fetch_records()
        try:
            learnt[model.name] = model.foresee((rows, folds))
        except NotYet as error:
            first.append(f"before that: {error}")
            if isinstance(model.model, StudentConfig) and model.model.distill.pseudo_labels is not None:
                learnt[model.name] = lambda _: np.ones(len(rows), dtype=bool)
                first.append("until then every unlabelled row counts as one that pseudo_labels lets in")
    device = device_here() if launcher == "local" else H200
    body, notes = table_of(estimates(units, rows, folds, device, learnt), device)
    return "\n".join([format_table(HEADER, body), *notes, *first])


def on_cluster(
    models: Sequence[ModelSpec], units: Sequence[Unit], home: Path, command: str, loaded: tuple[Rows, Folds]
) -> Board:
    """Claim the stores, make what the units share, and run the units on a Ray cluster.

    Raises
    ------
    UserError
        As :func:`distill.cluster.units.run_units` and :meth:`distill.runs.run.Run.claim`.
    """
    from distill.cluster.connect import connect
    from distill.cluster.units import run_units

    connect()  # before anything is spent on planning
    for model in models:
        model.fetch()
        storage.fetch(model.out, skip=WEIGHTS)
        model.plan(loaded).claim()
        storage.publish(model.out / MANIFEST)
        storage.publish(model.out / CONFIG)
        if (model.out.parent / BACKBONES).exists():
            storage.publish(model.out.parent / BACKBONES)
    first = [unit for unit in units if unit.part == PRETRAIN]
    if first and (board := run_units(first, home, command)).failures():
        return board
    return run_units([unit for unit in units if unit not in first], home, command)


def verdict(board: Board) -> str:
    """Return the last word on a command's units: how they ended, and of those that failed, why and where."""
    lines = [f"units: {board.counts()}; {board.summary.with_suffix('.txt')}"]
    for line in board.failures():
        lines.append(f"failed: {line.unit}: {line.message}; log: {line.log}")
    if board.failures():
        lines.append("the same command runs only what is not finished")
    return "\n".join(lines)
