"""What a fault costs here: short paired trainings with and without it, compared on the same held-out rows.

Same rows, same order, same seeds; only the fault differs. The backbones are tiny ones of the true
architectures, so a cost tells which fault can explain a gap and which cannot, not its size at 8B.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy.stats import t

from data.arena import ArenaConfig, simulate_arena
from data.dataset import load_prepared
from data.encoding.encode import Encoded, Encoder, Truncation, pad_token_id
from data.encoding.template import Template
from data.folds import Folds, make_folds
from data.schema import Rows
from data.softmax import softmax
from distill.config import TinyConfig
from distill.doctor.faults import FAULT_ARMS, Arm, Edit, Fault, Marks
from distill.losses import label_loss
from distill.model.backbone import add_adapters, load_base, load_tokenizer
from distill.model.tiny import tiny_backbone
from distill.packing.examples import Examples
from distill.training.predict import predict_logits
from distill.training.trainer import train
from ensemble.solvers.numbers import cross_entropy


@dataclass(frozen=True)
class Cost:
    """A fault's effect on held-out log-loss: positive is worse.

    Attributes
    ----------
    fault, check : str
    clean, faulty : float
        Log-loss without and with the fault.
    difference : float
    half : float
        Half the width of the 95 % interval, over rows (grouped by prompt) and seeds.
    seeds, rows : int
    """

    fault: str
    check: str
    clean: float
    faulty: float
    difference: float
    half: float
    seeds: int
    rows: int

    def in_words(self) -> str:
        """One sentence."""
        low, high = self.difference - self.half, self.difference + self.half
        verdict = "costs" if low > 0 else "helps" if high < 0 else "makes no difference that shows:"
        return (
            f"{self.fault} {verdict} {self.difference:+.4f} log-loss ({low:+.4f} to {high:+.4f}; "
            f"{self.clean:.4f} without it; {self.rows} rows, {self.seeds} seeds)"
        )


class Bench:
    """Rows, folds and tiny backbones that arms are trained on.

    Parameters
    ----------
    rows, folds : Rows, Folds
        Fold 0 is held out.
    cache : Path
        Keeps made backbones between arms.
    tiny : TinyConfig, optional
    """

    def __init__(self, rows: Rows, folds: Folds, cache: Path, tiny: TinyConfig | None = None) -> None:
        self.rows, self.folds, self.cache = rows, folds, cache
        self.tiny = tiny or TinyConfig(
            hidden_size=64, intermediate_size=128, layers=2, pretrain_steps=300, pretrain_lr=1e-2
        )

    @property
    def held_out(self) -> np.ndarray:
        """Indices of the rows that arms are compared on."""
        return np.flatnonzero((self.folds.fold == 0) & self.rows.labelled)

    def backbone(self, family: str) -> str:
        """Directory of the tiny backbone, made on first use."""
        tiny = replace(self.tiny, family=family)
        return str(tiny_backbone(tiny, self.rows, Template(), 0, self.cache))

    def losses(self, arm: Arm, seed: int) -> np.ndarray:
        """Train an arm and return the log-loss of each held-out row."""
        template = Template()
        path = self.backbone(arm.family)
        backbone = replace(arm.config.backbone, path=path)
        tokenizer = load_tokenizer(backbone, path)
        plain = Encoder(tokenizer, template, Truncation(**asdict(arm.config.encode))).encode(self.rows)

        def examples(edit: Edit | None) -> Examples:
            encoded = plain if edit is None else edited(plain, edit, tokenizer.bos_token_id)
            permutation = self.rows.classes.permutation
            return Examples(encoded, self.rows.targets, permutation, pad_token_id(tokenizer))

        base = load_base(backbone, path, self.rows.classes.n)
        arm.prepare(base)
        classifier = add_adapters(base, arm.config.lora, seed)
        arm.adapt(classifier)
        train_rows = np.flatnonzero((self.folds.fold != 0) & self.rows.labelled)
        with tempfile.TemporaryDirectory() as out:
            train(
                classifier,
                examples(arm.train_edit),
                train_rows,
                replace(arm.config.train, seed=seed),
                label_loss,
                Path(out),
                "arm",
            )
        arm.after(classifier)
        logits = predict_logits(classifier, examples(arm.predict_edit), self.held_out, 64, "arm")
        scores = (logits if arm.both_orders else logits[:, :1]).mean(axis=1)
        return cross_entropy(softmax(scores), self.rows.targets[self.held_out])

    def compare(self, fault: Fault, clean: np.ndarray, faulty: np.ndarray) -> Cost:
        """Compare an arm with its faultless twin: losses of shape (seeds, rows) each."""
        gap = faulty - clean
        seeds = len(gap)
        groups = np.array([self.folds.group_ids[i] for i in self.held_out])
        return Cost(
            fault.name,
            fault.check,
            float(clean.mean()),
            float(faulty.mean()),
            float(gap.mean()),
            half_over_groups_and_seeds(gap, groups),
            seeds,
            gap.shape[1],
        )


def measure(bench: Bench, faults: Sequence[Fault], seeds: int, workers: int = 1) -> Iterator[Cost]:
    """Train every fault and its faultless twin over seeds; yield the costs, fault by fault.

    Parameters
    ----------
    workers : int
        Arms trained at once, each in a process of its own.
    """
    families = list(dict.fromkeys(fault.arm.family for fault in faults))
    for family in families:
        bench.backbone(family)
    clean: dict[str, np.ndarray] = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:

        def start(arm: Arm) -> list[Future]:
            return [pool.submit(bench.losses, arm, seed) for seed in range(seeds)]

        twins = {family: start(Arm(family)) for family in families}
        arms = [start(fault.arm) for fault in faults]
        for fault, pending in zip(faults, arms, strict=True):
            family = fault.arm.family
            if family not in clean:
                clean[family] = np.stack([future.result() for future in twins[family]])
            yield bench.compare(fault, clean[family], np.stack([future.result() for future in pending]))


def half_over_groups_and_seeds(gaps: np.ndarray, groups: np.ndarray) -> float:
    """Half a 95 % interval of the mean of differences (seeds, rows), whose rows come in groups."""
    parts = [(grouped_variance(gaps.mean(axis=0), groups), len(np.unique(groups)) - 1)]
    seeds = len(gaps)
    if seeds > 1:
        parts.append((float(gaps.mean(axis=1).var(ddof=1)) / seeds, seeds - 1))
    return half_width(parts)


def half_width(parts: Sequence[tuple[float, int]]) -> float:
    """Half a 95 % interval from variances and their degrees of freedom, pooled by Satterthwaite (1946)."""
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0
    freedom = variance**2 / sum(part**2 / df for part, df in parts)
    return float(t.ppf(0.975, freedom) * np.sqrt(variance))


def grouped_variance(values: np.ndarray, groups: np.ndarray) -> float:
    """Variance of a mean whose rows come in groups that move together."""
    _, index = np.unique(groups, return_inverse=True)
    sums = np.bincount(index, weights=values - values.mean())
    n_groups = len(sums)
    return float((sums**2).sum() / len(values) ** 2 * n_groups / max(1, n_groups - 1))


def edited(encoded: Encoded, edit: Edit, bos: int) -> Encoded:
    """Apply an edit to every sequence."""
    n = len(encoded.lengths)
    pieces = [
        np.asarray(edit(encoded[s], Marks(bos, encoded[(s + 7) % n])), dtype=np.int32) for s in range(n)
    ]
    offsets = np.zeros(n + 1, dtype=np.int64)
    offsets[1:] = np.cumsum([len(p) for p in pieces])
    return Encoded(np.concatenate(pieces), offsets, encoded.orders, encoded.truncated)


def open_bench(data: Path | None, cache: Path, n_rows: int = 900) -> Bench:
    """Return a bench on prepared rows, or on the simulated arena."""
    if data is not None:
        rows, folds = load_prepared(data)
        return Bench(rows, folds, cache)
    rows = simulate_arena(ArenaConfig(n_rows=n_rows, seed=3))
    return Bench(rows, make_folds(rows, 3), cache)


def measure_check(check: str, data: Path | None, cache: Path, seeds: int = 4) -> str:
    """Measure the faults that a check finds, in words."""
    faults = [fault for fault in FAULT_ARMS if fault.check == check]
    costs = measure(open_bench(data, cache), faults, seeds)
    return "; ".join(cost.in_words() for cost in costs)
