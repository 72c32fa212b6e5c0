"""What a fault costs here: short paired trainings with and without it, compared on the same held-out rows.

Same rows, same order, same seeds; only the fault differs. The backbones are tiny ones of the true
architectures, so a cost tells which fault can explain a gap and which cannot, not its size at 8B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.encoding.encode import Encoded, Encoder, Truncation, pad_token_id
from distill.config import BackboneConfig, EncodeConfig, LoraConfig, ModelConfig, TinyConfig, TrainConfig

if TYPE_CHECKING:
    from data.folds import Folds
    from data.schema import Rows
    from distill.model.classifier import Classifier
    from distill.packing.examples import Examples

Edit = Callable[[np.ndarray, "Marks"], np.ndarray]
"""Maps a sequence's ids to those that a faulty pipeline would feed."""


def _nothing(_: Any) -> None:
    return None


@dataclass(frozen=True)
class Marks:
    """Ids that edits need: the tokenizer's BOS, and the sequence that stands before in a pack."""

    bos: int
    before: np.ndarray


@dataclass(frozen=True)
class Arm:
    """One way to train: the recipe, and where a fault enters.

    Attributes
    ----------
    family : str
        Tiny backbone to train.
    train_edit, predict_edit : callable, optional
        Change the token ids of training and of prediction.
    prepare : callable
        Changes the loaded base.
    adapt : callable
        Changes the classifier before training.
    after : callable
        Changes the classifier between training and prediction.
    config : ModelConfig
    both_orders : bool
        Average both orders in prediction.
    """

    family: str = "llama"
    config: ModelConfig = field(default_factory=lambda: base_config())
    train_edit: Edit | None = None
    predict_edit: Edit | None = None
    prepare: Callable[[Any], None] = _nothing
    adapt: Callable[[Any], None] = _nothing
    after: Callable[[Any], None] = _nothing
    both_orders: bool = True


def base_config() -> ModelConfig:
    """The demo's recipe on an unquantised base."""
    return ModelConfig(
        backbone=BackboneConfig(precision="fp32"),
        lora=LoraConfig(r=16, alpha=32),
        encode=EncodeConfig(max_length=256),
        train=TrainConfig(epochs=3, lr=3e-3, rows_per_step=16, micro_rows=16, log_steps=1000),
    )


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

    @cached_property
    def _known(self) -> np.ndarray:
        return np.isfinite(self.rows.targets).all(axis=1)

    @property
    def held_out(self) -> np.ndarray:
        """Indices of the rows that arms are compared on."""
        return np.flatnonzero((self.folds.fold == 0) & self._known)

    def backbone(self, family: str) -> str:
        """Directory of the tiny backbone, made on first use."""
        from data.encoding.template import Template
        from distill.model.tiny import tiny_backbone

        tiny = replace(self.tiny, family=family)
        return str(tiny_backbone(tiny, self.rows, Template(), 0, self.cache))

    def losses(self, arm: Arm, seed: int) -> np.ndarray:
        """Train an arm and return the log-loss of each held-out row."""
        import tempfile

        from data.encoding.template import Template
        from distill.losses import label_loss
        from distill.model.backbone import add_adapters, load_base, load_tokenizer
        from distill.packing.examples import Examples
        from distill.training.trainer import predict_logits, train

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
        train_rows = np.flatnonzero((self.folds.fold != 0) & self._known)
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
        scores = (logits if arm.both_orders else logits[:, :1]).mean(axis=1).astype(np.float64)
        scores -= scores.max(axis=1, keepdims=True)
        log_probs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return -(self.rows.targets[self.held_out] * log_probs).sum(axis=1)

    def compare(self, fault: Fault, clean: np.ndarray, faulty: np.ndarray) -> Cost:
        """Compare an arm with its faultless twin: losses of shape (seeds, rows) each."""
        gap = faulty - clean
        seeds = len(gap)
        groups = np.array([self.folds.group_ids[i] for i in self.held_out])
        parts = [(grouped_variance(gap.mean(axis=0), groups), len(set(groups)) - 1)]
        if seeds > 1:
            parts.append((float(gap.mean(axis=1).var(ddof=1)) / seeds, seeds - 1))
        return Cost(
            fault.name,
            fault.check,
            float(clean.mean()),
            float(faulty.mean()),
            float(gap.mean()),
            half_width(parts),
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


def half_width(parts: Sequence[tuple[float, int]]) -> float:
    """Half a 95 % interval from variances and their degrees of freedom, pooled by Satterthwaite (1946)."""
    from scipy.stats import t

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


@dataclass(frozen=True)
class Fault:
    """A fault that can be trained with: its name, the check that finds it, the faulty arm."""

    name: str
    check: str
    arm: Arm


def _config(**changes: Any) -> ModelConfig:
    config = base_config()
    for key, value in changes.items():
        part, name = key.split("__")
        setattr(getattr(config, part), name, value)
    return config


def _no_bos(ids: np.ndarray, marks: Marks) -> np.ndarray:
    return ids[1:]


def _two_bos(ids: np.ndarray, marks: Marks) -> np.ndarray:
    return np.concatenate([[marks.bos], ids])


def _bos_inside(ids: np.ndarray, marks: Marks) -> np.ndarray:
    thirds = np.array_split(ids, 3)
    return np.concatenate([thirds[0], [marks.bos], thirds[1], [marks.bos], thirds[2]])


def _cut_right(ids: np.ndarray, marks: Marks) -> np.ndarray:
    return ids[:64]


def _pool_early(ids: np.ndarray, marks: Marks) -> np.ndarray:
    return ids[: max(2, len(ids) // 2)]


def _neighbour_in_sight(ids: np.ndarray, marks: Marks) -> np.ndarray:
    return np.concatenate([marks.before, ids])


def _uncap(base: Any) -> None:
    for layer in base.get_decoder().layers:
        layer.self_attn.attn_logit_softcapping = None


def _narrow_window(base: Any) -> None:
    base.config.sliding_window = 16
    for layer in base.get_decoder().layers:
        if getattr(layer.self_attn, "sliding_window", None):
            layer.self_attn.sliding_window = 16


def _plain_rope(base: Any) -> None:
    rotary = base.get_decoder().rotary_emb
    n = len(rotary.inv_freq)
    theta = base.config.rope_parameters["rope_theta"]
    rotary.inv_freq.copy_(rotary.inv_freq.new_tensor([theta ** (-i / n) for i in range(n)]))


def _random_head(classifier: Classifier) -> None:
    import torch

    for name, parameter in classifier.named_parameters():
        if "score" in name and "original" not in name:
            torch.nn.init.normal_(parameter.data, std=0.02)


def _large_head(classifier: Classifier) -> None:
    import torch

    for name, parameter in classifier.named_parameters():
        if "score" in name and parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=2.0)


def _frozen_head(classifier: Classifier) -> None:
    for name, parameter in classifier.named_parameters():
        if "score" in name:
            parameter.requires_grad_(False)
    _random_head(classifier)


def _head_only(classifier: Classifier) -> None:
    for name, parameter in classifier.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(False)


def _both(edit: Edit, family: str = "llama") -> Arm:
    """The same edit in training and prediction."""
    return Arm(family, train_edit=edit, predict_edit=edit)


FAULT_ARMS: list[Fault] = [
    Fault("no BOS", "one_start_token", _both(_no_bos)),
    Fault("no BOS (Gemma-2)", "one_start_token", _both(_no_bos, "gemma2")),
    Fault("two BOS", "chat_template_start", _both(_two_bos)),
    Fault("BOS in mid-text", "start_token_on_training_path", _both(_bos_inside)),
    Fault("no BOS, predicting", "training_and_prediction_alike", Arm(predict_edit=_no_bos)),
    Fault("cut on the right at 64 tokens", "verdict_cue_kept", _both(_cut_right)),
    Fault("pooled in mid-text, predicting", "pooled_at_last_token", Arm(predict_edit=_pool_early)),
    Fault("neighbour in sight, predicting", "packed_rows_are_apart", Arm(predict_edit=_neighbour_in_sight)),
    Fault("soft-capping dropped (Gemma-2)", "attention_backend", Arm("gemma2", prepare=_uncap)),
    Fault("window of 16 tokens (Gemma-2)", "sliding_window", Arm("gemma2", prepare=_narrow_window)),
    Fault("rope scaling dropped", "rope_scaling", Arm(prepare=_plain_rope)),
    Fault("head frozen at random", "everything_trains", Arm(adapt=_frozen_head)),
    Fault("adapters detached", "everything_trains", Arm(adapt=_head_only)),
    Fault("head starts large", "first_loss_is_uniform", Arm(adapt=_large_head)),
    Fault("optimizer's default rate", "learning_rates_as_asked", Arm(config=_config(train__lr=1e-3))),
    Fault("rate ten times too small", "effective_adapter_rate", Arm(config=_config(train__lr=3e-4))),
    Fault("half of the depth frozen", "depth_frozen", Arm(config=_config(lora__first_layer=0.5))),
    Fault("head random after reload", "head_is_saved", Arm(after=_random_head)),
    Fault("4-bit base", "head_stays_float32", Arm(config=_config(backbone__precision="nf4"))),
    Fault(
        "one order only",
        "order_symmetry",
        Arm(config=_config(train__both_orders=False), both_orders=False),
    ),
]  # fmt: skip
FAULTS = {fault.name: fault.check for fault in FAULT_ARMS}


def open_bench(data: Path | None, cache: Path, n_rows: int = 900) -> Bench:
    """Return a bench on prepared rows, or on the simulated arena."""
    from data.arena import ArenaConfig, simulate_arena
    from data.dataset import load_prepared
    from data.folds import make_folds

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
