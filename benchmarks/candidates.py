"""A number a candidate against a head of all labels: ``python -m benchmarks.candidates --out DIR``.

The rows of a simulated classroom (:mod:`data.classroom`), in the same folds: once as rows with candidates of
their own, once as texts of some 50 classes. Both train one model at equal steps, and with ``--long`` the head
also for about as many tokens as the candidates take. The head is scored on all labels, and with what it gives
to labels outside the row's question left out. Folds are by prompt, as in the competition, whose test rows are
of known questions, or by whole questions. Printed: log-loss, accuracy, MAP@3 and MRR with intervals over
groups, the log-loss at the one temperature that suits an arm best, paired differences of the latter, and
seconds of processor. What is trained is kept, and not trained again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyarrow import csv

from data.classes import Classes
from data.classroom import simulate_classroom
from data.console.command import format_table
from data.dataset import prepare
from data.folds import Folds, make_folds, write_folds
from data.ids import align
from data.schema import Rows, make_rows, write_rows
from data.sources.misconceptions import QUESTION
from data.sources.read import read_source
from distill import cross_fit
from ensemble.methods.base import Training
from ensemble.methods.blend import EqualMean
from ensemble.scoring.bootstrap import bootstrap
from ensemble.scoring.ranking import METRICS, row_metrics
from ensemble.sets.pool import SetTemperature
from ensemble.solvers.numbers import log_loss

RECIPE = """
teachers:
  model:
    backbone: {backbone}
    lora: {lora}
    encode: {{max_length: 256}}
    train: {{epochs: {epochs}, lr: {lr}, rows_per_step: 16, warmup: 0.1, pack_tokens: 4096, seed: {seed}}}
"""
TINY = (
    "{precision: fp32, tiny: {family: llama, hidden_size: 128, intermediate_size: 256, layers: 4, heads: 4, "
    "kv_heads: 2, vocab_size: 1024, pretrain_steps: 600, pretrain_lr: 3.0e-3}}"
)
OWN = "candidates"


@dataclass(frozen=True)
class Found:
    """One arm's predictions over the sets (n, K), its targets, and what its training took."""

    probs: np.ndarray
    targets: np.ndarray
    seconds: float


def classroom(rows: int, questions: int, seed: int, folds: int, by: str, home: Path) -> tuple[Rows, Folds]:
    """The classroom's rows, and folds whose groups are prompts or whole questions."""
    home.mkdir(parents=True, exist_ok=True)
    csv.write_csv(simulate_classroom(rows, questions, seed), home / "train.csv")
    found, _ = read_source(str(home / "train.csv"))
    dealt = make_folds(found, folds, seed)
    if by == "question":
        names = found.table.column(QUESTION).to_pylist()
        place = {name: i % folds for i, name in enumerate(sorted(set(names)))}
        dealt = Folds(found.row_ids, names, np.array([place[name] for name in names]))
    return found, dealt


def as_texts(rows: Rows) -> Rows:
    """The same rows as texts of all labels."""
    names = sorted({name for own in rows.candidates for name in own})
    labels = [names.index(own[k]) for own, k in zip(rows.candidates, rows.labels, strict=True)]
    columns = {"row_id": rows.row_ids, "prompt": rows.table.column("prompt").to_pylist(), "label": labels}
    return make_rows(columns, Classes(tuple(names)), "classroom")


def run(rows: Rows, folds: Folds, home: Path, recipe: str) -> tuple[np.ndarray, float]:
    """Out-of-fold probabilities (n, K) in the order of ``rows``, and seconds of processor."""
    if not (home / "manifest.json").exists():
        home.mkdir(parents=True, exist_ok=True)
        write_rows(home / "rows.parquet", rows)
        write_folds(home, folds)
        prepare(rows, home, folds.n_folds)
    (home / "recipe.yaml").write_text(recipe)
    begun, clock = time.process_time(), home / "seconds.json"
    store = cross_fit(home, recipe=str(home / "recipe.yaml"))["model"]
    if not clock.exists():
        clock.write_text(json.dumps(time.process_time() - begun))
    return store.probs[align(rows.row_ids, store.row_ids, "store")], float(json.loads(clock.read_text()))


def arms(rows: Rows, folds: Folds, home: Path, recipes: Mapping[str, str]) -> dict[str, Found]:
    """Every arm on the same rows and folds: rows with candidates, and a head by each of the other recipes."""
    texts = as_texts(rows)
    names = {name: k for k, name in enumerate(texts.classes.names)}
    at = np.full((len(rows), rows.classes.n), -1)
    for line, own in zip(at, rows.candidates, strict=True):
        line[: len(own)] = [names[name] for name in own]
    own, seconds = run(rows, folds, home / OWN, recipes[OWN])
    found = {OWN: Found(own, rows.targets, seconds)}
    for name in [name for name in recipes if name != OWN]:
        wide, seconds = run(texts, folds, home / name.replace(" ", "-"), recipes[name])
        inside = np.where(at >= 0, np.take_along_axis(wide, np.maximum(at, 0), axis=1), 0.0)
        inside /= inside.sum(axis=1, keepdims=True)
        found[f"{name}, all labels"] = Found(wide, texts.targets, seconds)
        found[f"{name}, the question's"] = Found(inside, rows.targets, seconds)
    return found


def tempered(found: Found) -> np.ndarray:
    """Log-loss of each row (n,) at the temperature of least loss; one number, fitted to the same rows."""
    P = np.where(found.probs > 0, np.maximum(found.probs, 1e-12), 0.0)[:, None]
    scaling = SetTemperature(EqualMean()).fit_on(Training.of(P, found.targets))
    return log_loss(scaling.predict_on(P), found.targets)


def table(per_seed: list[Mapping[str, Found]], groups: np.ndarray) -> str:
    """Means over seeds, intervals over groups of the means, and differences to the candidates' arm."""
    draws = bootstrap(groups)
    columns = {
        name: np.mean(
            [
                np.column_stack([log_loss(f.probs, f.targets), tempered(f), row_metrics(f.probs, f.targets)])
                for f in (found[name] for found in per_seed)
            ],
            axis=0,
        )
        for name in per_seed[0]
    }
    lines = []
    for name, values in columns.items():
        ends = draws.intervals(values)
        cells = [
            f"{v:.3f} [{e.low:.3f}, {e.high:.3f}]" for v, e in zip(values.mean(axis=0), ends, strict=True)
        ]
        worse = values[:, 1] - columns[OWN][:, 1]
        gap = draws.interval(worse)
        shown = "" if name == OWN else f"{worse.mean():+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
        seconds = np.mean([found[name].seconds for found in per_seed])
        lines.append([name, *cells, shown, f"{seconds:,.0f}"])
    return format_table(["", "log-loss", "tempered", *METRICS, "tempered, more", "s"], lines)


def main() -> None:
    """Train all arms, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--out", type=Path, required=True)
    add("--model", help="directory of a checkpoint, with LoRA; a tiny Llama with all its weights by default")
    add("--layers", type=int, help="of it, the first so many")
    add("--by", choices=("prompt", "question"), default="prompt")
    add("--rows", type=int, default=1500)
    add("--questions", type=int, default=15)
    add("--folds", type=int, default=3)
    add("--seeds", type=int, default=3)
    add("--epochs", type=float, default=6)
    add("--lr", type=float, default=1e-3)
    add("--long", action="store_true", help="also a head that reads about as many tokens")
    args = parser.parse_args()
    cut = f", first_layers: {args.layers}" if args.layers else ""
    backbone = f"{{path: {args.model}, precision: fp32{cut}}}" if args.model else TINY
    lora = "{r: 16, alpha: 32}" if args.model else "{enabled: false}"
    rows, folds = classroom(args.rows, args.questions, 0, args.folds, args.by, args.out)
    print(
        f"{len(rows):,} rows, {args.questions} questions, sets of {rows.sizes.min()} to {rows.sizes.max()}, "
        f"{as_texts(rows).classes.n} labels; even guesses in a set {np.log(rows.sizes).mean():.3f}"
    )
    per_seed = []
    for seed in range(args.seeds):
        epochs = {OWN: args.epochs, "head": args.epochs}
        if args.long:
            epochs["long head"] = round(args.epochs * float(rows.sizes.mean()))
        given = {"backbone": backbone, "lora": lora, "lr": args.lr, "seed": seed}
        recipes = {name: RECIPE.format(**given, epochs=n) for name, n in epochs.items()}
        per_seed.append(arms(rows, folds, args.out / f"seed-{seed}", recipes))
        print(table(per_seed, np.unique(folds.group_ids, return_inverse=True)[1]), flush=True)


if __name__ == "__main__":
    main()
