"""A cascade against the clock: the cheap model on every row, then dear ones, best rows first, until it stops.

The file is whole from the moment when the cheap model has seen all rows, and better after every chunk of rows
that the dear models see: whoever ends the command, a limit of the machine included, is left with a complete
prediction set. A killed command goes on from what is finished; its time counts from the start of each, and
what earlier ones recorded is taken off.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from data.errors import UserError
from data.files import atomic_write, sha256_text
from data.schema import Rows
from data.softmax import softmax
from distill.prediction.cascade_run import known_rows, tokens_of
from distill.processes import on_first
from distill.runs.loaded import Loaded, predict_rows
from distill.runs.saved import SavedModel, identity
from ensemble.routing.cascade import Cascade, fit_cascade

MARGIN = 0.15
"""A chunk is begun if it fits even when the dear models are this much slower than in the last one."""
CHUNK_SECONDS = 60.0
FEWEST = 16
"""Rows of the first chunk, by which the pace is measured, and of the least that is worth beginning."""


class Clock:
    """The time that a command may still take.

    Parameters
    ----------
    seconds : float
        The budget.
    begun : float
        When the command began, by ``now``.
    now : callable
        A clock that never goes back.
    """

    def __init__(
        self, seconds: float, begun: float | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds, self.now, self.before = seconds, now, 0.0
        self.begun = now() if begun is None else begun

    def spent(self) -> float:
        """Seconds since the command began, and what its earlier starts recorded."""
        return self.before + self.now() - self.begun

    def left(self) -> float:
        """Seconds left; below 0 when the budget is overdrawn."""
        return self.seconds - self.spent()


def in_time(cost: np.ndarray, left: Callable[[], float], work: Callable[[slice], None]) -> int:
    """Do items in their order, chunk by chunk, as long as the next chunk fits into the time left.

    The pace is that of the last chunk. All processes do the same chunks, by the first one's clock.

    Parameters
    ----------
    cost : ndarray of shape (n,)
        Of each item, in any unit that time is proportional to.
    left : callable
        Seconds left.
    work : callable
        Does the items of a slice.

    Returns
    -------
    int
        How many items were done.
    """
    done, pace = 0, 0.0
    while done < len(cost):
        size = on_first(lambda: fitting(cost[done:], left(), pace))  # noqa: B023 - called at once
        if not size:
            break
        chunk = slice(done, done + size)
        begun = left()
        work(chunk)
        pace = (begun - left()) / float(cost[chunk].sum())
        done += size
    return done


def fitting(cost: np.ndarray, left: float, pace: float) -> int:
    """How many of the next items to do in one chunk; 0 where no chunk worth beginning fits.

    Parameters
    ----------
    pace : float
        Measured seconds for a unit of cost; 0 before anything was measured.
    """
    fewest = min(FEWEST, len(cost))
    if left <= 0 or not pace:
        return fewest if left > 0 else 0
    seconds = np.cumsum(cost) * pace * (1 + MARGIN)
    if seconds[fewest - 1] > left:
        return 0
    return max(fewest, int(np.searchsorted(seconds, min(left, CHUNK_SECONDS), side="right")))


class Ledger:
    """What the dear models have said so far, on disk beside the predictions.

    Parameters
    ----------
    path : Path
    key : str
        What the predictions depend on; a ledger of another key counts for nothing.
    shape : tuple of int
        Rows, dear models, classes.
    """

    def __init__(self, path: Path, key: str, shape: tuple[int, int, int]) -> None:
        self.path, self.key = path, key
        self.seen, self.dear, self.seconds = np.zeros(shape[0], dtype=bool), np.zeros(shape), 0.0
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file["key"]) == key and file["dear"].shape == shape:
                    self.seen, self.dear = file["seen"], file["dear"]
                    self.seconds = float(file["seconds"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
            pass  # none yet, or damaged: the rows are predicted again

    def write(self, seconds: float) -> None:
        """Record what is there, and the time that it took."""
        with atomic_write(self.path) as temporary, open(temporary, "wb") as file:
            np.savez(file, key=self.key, seen=self.seen, dear=self.dear, seconds=seconds)


@dataclass(frozen=True)
class InTime:
    """How a cascade against the clock ended.

    Attributes
    ----------
    routed : int
        Rows whose prediction the dear models are part of.
    refused : int
        Rows that they gave no finite number for; the cheap model's prediction stands.
    unpromising : int
        Rows on which nothing was expected of them.
    seconds : float
        Time taken, over all starts of the command.
    """

    routed: int
    refused: int
    unpromising: int
    seconds: float


def run_in_time(
    models: Sequence[SavedModel],
    rows: Rows,
    clock: Clock,
    waiting: Path,
    write: Callable[[np.ndarray], None],
) -> InTime:
    """Predict ``rows`` within the time, handing out a whole prediction set after every step forward.

    Parameters
    ----------
    models : sequence of SavedModel
        The cheap one first.
    waiting : Path
        Directory in which what is predicted is kept until the caller deletes it.
    write : callable
        Takes probabilities (n, K), all rows' each time, and writes them in the place of the last.

    Raises
    ------
    UserError
        As :func:`distill.runs.loaded.predict_rows`; the runs' data are gone; or the cheap model gives no
        finite numbers, before anything is written.
    """
    P, y, _ = known_rows(models)
    cascade = fit_cascade(P, y)
    key = sha256_text(*(identity(model) for model in models), rows.content_hash)
    shape = (len(rows), len(models) - 1, rows.classes.n)
    ledger = on_first(lambda: Ledger(waiting / "dear.npz", key, shape))
    clock.before = ledger.seconds
    cheap = softmax(predict_rows(models[0], rows, waiting).mean(axis=1))
    bad = np.flatnonzero(~np.isfinite(cheap).all(axis=1))
    if bad.size:
        raise UserError(
            f"{models[0].path}: the model's prediction of row {rows.row_ids[bad[0]]} is not finite; give "
            "another cheap model, or its own precision"
        )

    def keep() -> None:
        write(blended(cascade, cheap, ledger))
        ledger.write(clock.spent())

    on_first(keep)
    gain, cost = cascade.expected_gain(cheap), tokens_of(models[1:], rows)
    order = np.argsort(-gain / cost, kind="stable")
    order = order[(gain[order] > 0) & ~ledger.seen[order]]
    if on_first(lambda: order.size and clock.left() > 0):
        dear = [Loaded(model).ready() for model in models[1:]]

        def work(chunk: slice) -> None:
            chosen = np.sort(order[chunk])
            for m, loaded in enumerate(dear):
                logits = loaded.predict(rows.take(chosen), loaded.saved.name).mean(axis=1)
                ledger.dear[chosen, m] = softmax(logits)
            ledger.seen[chosen] = True
            on_first(keep)

        in_time(cost[order], clock.left, work)
    finite = np.isfinite(ledger.dear).all(axis=(1, 2))
    return InTime(
        int((ledger.seen & finite).sum()),
        int((ledger.seen & ~finite).sum()),
        int((~ledger.seen & (gain <= 0)).sum()),
        clock.spent(),
    )


def blended(cascade: Cascade, cheap: np.ndarray, ledger: Ledger) -> np.ndarray:
    """Probabilities (n, K): all models' blend where the dear ones were asked, else the cheap one's."""
    probs = cascade.cheap(cheap)
    asked = ledger.seen & np.isfinite(ledger.dear).all(axis=(1, 2))
    if asked.any():
        P = np.concatenate([cheap[asked][:, None], ledger.dear[asked]], axis=1)
        probs[asked] = cascade.all_models(P)
    return probs
