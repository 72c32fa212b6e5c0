"""The race's engine: contestants trained look by look on the same rows, and stopped by shown difference.

Each contestant trains in a run's own directory, as ``distill.teacher_oof`` would train that fold; a pause is
a checkpoint. So a killed race goes on where it was, and the winner is finished from its last checkpoint.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from math import ceil, log
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, get_scheduler

from data.errors import UserError
from data.files import numbers_of, read_json, write_json, write_parquet
from data.folds import Folds
from data.schema import Rows
from data.softlabels import MAY_CHANGE
from data.softmax import softmax
from distill.config import ModelConfig
from distill.model.classifier import Classifier
from distill.race.intervals import Look, PairedLooks
from distill.race.meter import Meter, parameters
from distill.runs.crossfit import fit_part
from distill.runs.run import Run
from distill.runs.run_directory import difference
from distill.training.trainer import predict_logits, train
from ensemble.solvers.numbers import cross_entropy

RACE = "race.json"
"""What was asked for, in the directory of a race."""
BUDGET = re.compile(r"rows|tokens|seconds=(?=[\d.]*[1-9])(\d+\.?\d*|\.\d+)")


@dataclass(frozen=True)
class Rules:
    """What is declared before the race.

    Attributes
    ----------
    looks : int
        Evenly spaced evaluations; the last is the end of the budget.
    alpha : float
        Chance that any backbone no worse than the others is stopped.
    fold : int
        The fold that is validated on, and never trained on.
    validation_rows : int
        At most so many of its rows; 0 takes all.
    budget : str
        ``rows``: the same rows in the same order; ``tokens``: as many tokens as the most frugal tokenizer
        makes of those rows; ``seconds=S``: as many steps as a rehearsal says fit S seconds.
    tune : str
        Empty, or ``lr``.
    """

    looks: int = 10
    alpha: float = 0.05
    fold: int = 0
    validation_rows: int = 0
    budget: str = "rows"
    tune: str = ""

    def __post_init__(self) -> None:
        """Refuse a budget that is none."""
        if not BUDGET.fullmatch(self.budget):
            raise UserError(f"--budget {self.budget}: not rows, tokens or seconds=S")


@dataclass
class Contestant:
    """A backbone in the race.

    Attributes
    ----------
    run : Run
        Its planned run; trained in ``run.out / fold-<k>``.
    looks : list of dict
        A record a look: steps, seconds, tokens, peak memory, energy.
    losses : list of ndarray of shape (rows,)
        Validation log-loss of each row, a look.
    stopped : int or None
        The look after which it was stopped.
    """

    run: Run
    looks: list[dict[str, Any]] = field(default_factory=list)
    losses: list[np.ndarray] = field(default_factory=list)
    stopped: int | None = None
    classifier: Classifier | None = None

    @property
    def name(self) -> str:
        """The backbone's name in tables."""
        return self.run.name


class Pause(TrainerCallback):
    """Saves and stops once a share of the planned steps is done."""

    def __init__(self, share: float) -> None:
        self.share = share

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint and a stop."""
        if state.global_step >= round(self.share * state.max_steps):
            control.should_save = True
            control.should_training_stop = True


class Race:
    """Runs, and continues, a race.

    Parameters
    ----------
    contestants : list of Contestant
    rows, folds : Rows, Folds
    rules : Rules
    out : Path
        Holds ``race.json``, and a directory a contestant.

    Attributes
    ----------
    groups : int
        Groups of rows that are validated on; intervals are over them.
    rates : list of list of float
        Of each contestant at each look: its learning rate as a share of the full one.
    """

    def __init__(
        self, contestants: list[Contestant], rows: Rows, folds: Folds, rules: Rules, out: Path
    ) -> None:
        self.contestants, self.rules, self.out = contestants, rules, out
        self.rows, self.folds = rows, folds
        inside = np.flatnonzero((folds.fold == rules.fold) & rows.labelled)
        if rules.validation_rows and rules.validation_rows < len(inside):
            chosen = np.random.default_rng(0).choice(len(inside), rules.validation_rows, replace=False)
            inside = inside[np.sort(chosen)]
        if len(inside) < 2:
            raise UserError(
                f"fold {rules.fold} has {len(inside)} labelled rows to validate on; it needs more"
            )
        refuse_few_steps([contestant.run for contestant in contestants], rules)
        self.validation = inside
        groups = np.array([folds.group_ids[i] for i in inside])
        self.groups = len(np.unique(groups))
        self.rates = [rates_at_looks(c.run, rules) for c in contestants]
        pairs = list(combinations(range(len(contestants)), 2))
        self.pairs = {pair: PairedLooks(groups, rules.alpha / len(pairs)) for pair in pairs}

    @property
    def alive(self) -> list[int]:
        """Contestants that are still trained."""
        return [i for i, c in enumerate(self.contestants) if c.stopped is None]

    def go(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Train to each look in turn until one contestant is left or the budget is spent.

        Parameters
        ----------
        tell : callable
            Is given a line about every look.
        """
        for number in range(1, self.rules.looks + 1):
            racing = self.alive
            for i in racing:
                self._reach(self.contestants[i], number)
            self._judge(number)
            shown = [f"{c.name} {c.losses[-1].mean():.4f}" for c in map(self.contestants.__getitem__, racing)]
            gone = [self.contestants[i].name for i in racing if i not in self.alive]
            stopped = f"; stopped: {', '.join(gone)}" if gone else ""
            tell(f"{number / self.rules.looks:4.0%}  {'  '.join(shown)}{stopped}")
            if len(self.alive) == 1:
                break

    def finish(self) -> None:
        """Train the winner on to its end from its last checkpoint, and predict the fold."""
        winner = self.contestants[self.winner]
        for contestant in self.contestants:
            contestant.classifier = None
        fit_part(winner.run, f"fold-{self.rules.fold}")

    @property
    def winner(self) -> int:
        """The contestant with the least validation loss among those left."""
        return min(self.alive, key=lambda i: float(self.contestants[i].losses[-1].mean()))

    def _reach(self, contestant: Contestant, number: int) -> None:
        """Train to a look and score it, or read what an earlier start of the race has left of it."""
        name = f"look-{number}"
        record, scores = (self.out / contestant.name / f"{name}{s}" for s in (".json", ".parquet"))
        if not record.exists():
            losses, found = self._train_to(contestant, number / self.rules.looks)
            import pyarrow as pa

            ids = [self.rows.row_ids[i] for i in self.validation]
            write_parquet(scores, pa.table({"row_id": ids, "loss": losses}))
            write_json(record, found)
            if contestant.classifier is not None and contestant.classifier.device.type == "cpu":
                contestant.classifier = None  # bitsandbytes repacks 4-bit weights to predict on the CPU
        contestant.looks.append(read_json(record, "look"))
        contestant.losses.append(numbers_of(scores, "look", "loss", len(self.validation)))

    def _train_to(self, contestant: Contestant, share: float) -> tuple[np.ndarray, dict[str, Any]]:
        run, model = contestant.run, contestant.run.model
        seed = model.train.seed * 1000 + self.rules.fold  # as distill.runs.crossfit seeds this fold
        if contestant.classifier is None:
            contestant.classifier = run.untrained(seed)
        directory = run.out / f"fold-{self.rules.fold}"
        train_rows = training_rows(run, self.rules.fold)
        pause = Pause(share)
        with Meter() as meter:
            started = time.perf_counter()
            try:
                train(
                    contestant.classifier, run.examples, train_rows, replace(model.train, seed=seed),
                    run.loss, directory, f"{run.name}, {share:.0%}", callbacks=[pause],
                )  # fmt: skip
            except FloatingPointError as error:
                raise UserError(f"{run.name}: {error}; lower its train.lr, or race with --tune lr") from error
            seconds = time.perf_counter() - started
        logits = predict_logits(
            contestant.classifier, run.examples, self.validation, model.train.predict_rows, run.name
        )
        done = share - (contestant.looks[-1]["share"] if contestant.looks else 0.0)
        return row_losses(logits, self.rows.targets[self.validation]), {
            "share": share,
            "seconds": seconds,
            "tokens": done * budget_tokens(run, train_rows),
            "parameters": parameters(contestant.classifier),
            **meter.readings(),
        }

    def _judge(self, number: int) -> None:
        """Compare every pair that is left, and stop whatever is shown to be worse than one of the others."""
        share = number / self.rules.looks
        losers = set()
        for (i, j), looks in self.pairs.items():
            if i in self.alive and j in self.alive:
                rate = max(self.rates[i][number - 1], self.rates[j][number - 1])
                look = looks.add(self.contestants[i].losses[-1] - self.contestants[j].losses[-1], share, rate)
                if look.worse:
                    losers.add(i)
                elif look.better:
                    losers.add(j)
        for i in losers:
            self.contestants[i].stopped = number
            self.contestants[i].classifier = None

    def last_look(self, i: int, j: int) -> Look:
        """The last look at a pair, as how much worse ``i`` is than ``j``."""
        if (i, j) in self.pairs:
            return self.pairs[i, j].looks[-1]
        look = self.pairs[j, i].looks[-1]
        return Look(look.share, -look.difference, look.half, -look.forecast, look.forecast_half)


def row_losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Log-loss a row (n,) of logits (n, orders, K) averaged over orders."""
    return cross_entropy(softmax(logits.mean(axis=1)), targets)


def refuse_few_steps(runs: Sequence[Run], rules: Rules) -> None:
    """Refuse a budget of fewer steps than looks."""
    for run in runs:
        train_config = run.model.train
        steps = ceil(train_config.epochs * len(training_rows(run, rules.fold)) / train_config.rows_per_step)
        if steps < rules.looks:
            raise UserError(
                f"{run.name}: its budget is {steps} steps, too few for {rules.looks} looks; give fewer "
                "--looks, more rows or more epochs"
            )


def claim(out: Path, runs: Sequence[Run], rules: Rules) -> None:
    """Write down what race was asked for, or see that the directory holds this very one.

    Before rates are tuned or paces taken, which are kept there and would serve another race as well.

    Raises
    ------
    UserError
        It holds another; the message names what differs.
    """
    described = {
        "rules": asdict(rules),
        "contestants": {
            run.name: {key: value for key, value in run.manifest.items() if key not in MAY_CHANGE}
            for run in runs
        },
    }
    path = out / RACE
    if not path.exists():
        write_json(path, described)
        return
    found = read_json(path, "race")
    wanted = json.loads(json.dumps(described))
    for key in wanted:
        if found.get(key) != wanted[key]:
            raise UserError(
                f"{out}: holds another race: {difference(key, found, wanted)}; choose another --out"
            )


def uninformed_loss(rows: Rows) -> float:
    """The log-loss of knowing nothing: all classes, or all of a row's candidates, alike."""
    return log(rows.classes.n) if rows.sizes is None else float(np.log(rows.sizes).mean())


def training_rows(run: Run, fold: int) -> np.ndarray:
    """Positions of the labelled rows outside the fold that is validated on."""
    return np.flatnonzero((run.folds.fold != fold) & run.examples.labelled)


def rates_at_looks(run: Run, rules: Rules) -> list[float]:
    """Learning rate at each look, as a share of the run's full one, by its schedule."""
    from torch import nn, optim

    config = run.model.train
    n_rows = len(training_rows(run, rules.fold))
    steps = ceil(config.epochs * n_rows / config.rows_per_step)
    optimizer = optim.SGD([nn.Parameter()], lr=1.0)
    scheduler: Any = get_scheduler(config.schedule, optimizer, round(config.warmup * steps), steps)
    (share_of,) = scheduler.lr_lambdas
    return [float(share_of(round(steps * look / rules.looks))) for look in range(1, rules.looks + 1)]


def budget_tokens(run: Run, train_rows: np.ndarray) -> float:
    """Tokens that the whole budget trains on: rows, all of their candidates, x orders in a step x epochs."""
    encoded = run.examples.encoded
    every = encoded.lengths[encoded.of_rows(train_rows)].sum()
    return float(run.model.train.epochs * every / (1 if run.model.train.both_orders else encoded.orders))


def share_tokens(runs: list[Run], fold: int) -> list[float]:
    """Epochs by which every run trains on as many tokens as the most frugal of them."""
    totals = [budget_tokens(run, training_rows(run, fold)) for run in runs]
    return [run.model.train.epochs * min(totals) / total for run, total in zip(runs, totals, strict=True)]


def share_seconds(runs: list[Run], fold: int, seconds: float, scratch: Path, steps: int = 6) -> list[float]:
    """Epochs that fit into ``seconds``, by a rehearsal of a few steps each (written once, then read)."""
    epochs = []
    for run in runs:
        path = scratch / run.name / "pace.json"
        if not path.exists():
            rows = training_rows(run, fold)
            classifier = run.untrained(seed=0)
            few = rows[: steps * run.model.train.rows_per_step]
            config = replace(run.model.train, epochs=1, checkpoint_steps=0)
            started = time.perf_counter()
            train(classifier, run.examples, few, config, run.loss, scratch / run.name / "pace", "pace")
            each = (time.perf_counter() - started) / len(few)
            write_json(path, {"seconds_a_row": each, "epochs": seconds / each / len(rows)})
        epochs.append(float(read_json(path, "pace")["epochs"]))
    return epochs


def with_epochs(run: Run, epochs: float) -> Run:
    """The run with another number of epochs, in its manifest too."""
    model: ModelConfig = replace(run.model, train=replace(run.model.train, epochs=epochs))
    return replace(
        run, model=model, manifest=run.manifest | {"train": run.manifest["train"] | {"epochs": epochs}}
    )
