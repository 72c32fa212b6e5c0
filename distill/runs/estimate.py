"""What units will cost before anything is spent: time, GPU memory and GPU hours, and what that rests on.

Tokens are counted on a sample of the rows, by the backbone's own tokenizer where it is on this machine. The
rate is, in this order: the one measured in a finished unit of the same store; the recipe's
``resources.tokens_per_second``; the project's own measurement on one H200 (``benchmarks/gpu_training.md``),
scaled by the size of the model and the speed of the card at hand; on a CPU, what the model's products take by
a short one done here. The source is named in every line, and the device below them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.console.progress import in_words
from data.console.remote_code import remote_code_allowed
from data.dataset import load_prepared
from data.encoding.encode import Encoder, Truncation, candidate_rows
from data.encoding.template import read_template
from data.errors import UserError
from data.folds import Folds
from data.schema import Rows
from data.storage import local_path
from distill.architectures import ARCHITECTURES, LLAMA, Measured, architecture, by_hub_name
from distill.config import BackboneConfig, ModelConfig
from distill.kernels.choice import LIBRARY
from distill.packing.sharing import laid_lengths, prefixes_to_share
from distill.runs.devices import Device, cpu_here
from distill.runs.run_directory import PRETRAIN, RunDirectory
from distill.runs.units import Unit

HEADER = (
    "unit",
    "trained on",
    "predicted",
    "tokens/s",
    "time",
    "GPUs",
    "GPU hours",
    "memory",
    "rate from",
)
SAMPLE = 256
CHARS_PER_TOKEN = 4.3
"""Of English chat under a vocabulary of 128,000 or more; for rows whose tokenizer is not here."""
CHARS_PER_TINY_TOKEN = 3.0
GPU_SOURCE = "benchmarks/gpu_training.md, one H200"


MEASURED = {
    (name, precision): rates
    for name, family in ARCHITECTURES.items()
    for precision, rates in family.measured.items()
}
"""Rates by family and precision."""
BYTES = {"nf4": 0.56, "int8": 1.0, "fp8": 1.0, "bf16": 2.0, "fp16": 2.0, "fp32": 4.0}
"""Bytes a parameter; NF4 with its scales."""
CHECKPOINTED_GIB = 6.0
"""Measured beside the weights, for 7e9 linear parameters with all layers checkpointed."""
OUTSIDE = 1.15
"""All parameters for those in linear layers: embeddings and head."""
CPU_SHARE = 0.3
"""What training makes of the speed of a CPU's products: measured on two cores, fp32 and nf4 (.25 to .35)."""
CPU_MOST = (2e4, 6e4)
"""Tokens a second of tiny models, whose layers take no time beside the calls: training, prediction."""
CPU_OVERHEAD_S = 10.0
"""Loading libraries and weights, a unit."""


@dataclass(frozen=True)
class Estimate:
    """One unit's cost.

    Attributes
    ----------
    train_tokens, predict_tokens : float
        Real tokens, both orders and all epochs counted.
    rate : float
        Tokens a second in training.
    seconds : float
    gpus : float
    gib : tuple of float and float, or None
        GPU memory with all layers checkpointed and with none; None on a CPU.
    source : str
        What the rate rests on.
    """

    unit: str
    train_tokens: float
    predict_tokens: float
    rate: float
    seconds: float
    gpus: float
    gib: tuple[float, float] | None
    source: str


def estimates(
    units: Sequence[Unit],
    rows: Rows,
    folds: Folds,
    device: Device,
    learnt: Mapping[str, Callable[[int], np.ndarray]] | None = None,
) -> list[Estimate]:
    """Estimate what is left of each unit on a device; finished ones cost nothing.

    Parameters
    ----------
    learnt : mapping of str to callable, optional
        By model: from the number of a part to a mask, shape (n,), of the rows that it learns, held-out ones
        not yet taken off; the labelled rows of models that are not named.
    """
    lengths: dict[str, tuple[float, float]] = {}
    found = []
    for unit in units:
        model = unit.model.model
        if unit.part == PRETRAIN:
            found.append(_estimate_stage(unit, device))
            continue
        if unit.model.name not in lengths:
            lengths[unit.model.name] = mean_tokens(model, rows)
        number = RunDirectory(unit.model.out).part(unit.part).number(folds.n_folds)
        own = (learnt or {}).get(unit.model.name)
        mask = rows.labelled if own is None else own(number)
        found.append(_estimate(unit, lengths[unit.model.name], rows, folds, device, mask))
    return found


def _estimate_stage(unit: Unit, device: Device) -> Estimate:
    """Estimate the stage before a model's trainings, on all of its rows: some may be left out."""
    model = unit.model.model
    rows, folds = load_prepared(local_path(str(model.pretrain.data)))
    train = replace(model.train, epochs=model.pretrain.epochs or model.train.epochs)
    model = replace(model, train=train, template=model.pretrain.template or model.template)
    stage = replace(unit, model=replace(unit.model, model=model))
    return _estimate(stage, mean_tokens(model, rows), rows, folds, device, rows.labelled)


def _estimate(
    unit: Unit,
    per_row: tuple[float, float],
    rows: Rows,
    folds: Folds,
    device: Device,
    learnt: np.ndarray,
) -> Estimate:
    if unit.finished():
        return Estimate(unit.name, 0, 0, 0, 0, 0, None, "finished")
    model = unit.model.model
    held_out = RunDirectory(unit.model.out).part(unit.part).held_out(folds)
    trained = per_row[0] * int((learnt & ~held_out).sum()) * model.train.epochs
    predicted = per_row[1] * (len(rows) if unit.everywhere else int(held_out.sum()))
    rate, predict_rate, source = _rates(unit, trained, device)
    gpus = model.resources.gpus
    on_gpu = _on_gpu(model, device)
    seconds = trained / rate + predicted / predict_rate + (0 if on_gpu else CPU_OVERHEAD_S)
    return Estimate(
        unit.name,
        trained,
        predicted,
        rate,
        seconds,
        (1.0 if gpus is None else gpus) if on_gpu else 0.0,
        _memory(model) if on_gpu else None,
        source,
    )


def _on_gpu(model: ModelConfig, device: Device) -> bool:
    """Whether a unit is reckoned on the GPU: there is one, and it says so or is no tiny model."""
    asked = model.resources.gpus
    return device.on_gpu and (bool(asked) if asked is not None else model.backbone.tiny is None)


def _rates(unit: Unit, trained: float, device: Device) -> tuple[float, float, str]:
    """Tokens a second in training and in prediction, and where they come from."""
    model = unit.model.model
    linear, family = linear_parameters(model.backbone)
    reference, own = _reference(model.backbone, family)
    scale = reference.linear / linear * device.over_h200
    train, predict = reference.train * scale, reference.predict * scale
    source = GPU_SOURCE
    if linear != reference.linear or not own:
        source += f", scaled from {reference.linear / 1e9:.1f}e9 to {linear / 1e9:.1f}e9 parameters"
    if device.over_h200 != 1:
        source += f", times {device.over_h200:.2g} for this card by {device.how}"
    if model.train.gradient_checkpointing.lower() == "true":
        train *= reference.train_checkpointed / reference.train
    if not _on_gpu(model, device):
        train, predict, source = _cpu_rates(model, linear, device)
    if model.resources.tokens_per_second is not None:
        predict *= model.resources.tokens_per_second / train
        train, source = model.resources.tokens_per_second, "the recipe"
    measured = _measured_here(unit.model.out)
    if measured is not None:
        part, seconds = measured
        predict *= trained / seconds / train
        train, source = trained / seconds, f"{part} of this store"
    return train, predict, source


def _reference(config: BackboneConfig, family: str) -> tuple[Measured, bool]:
    """Return the nearest measured model, and whether it is of this family and arithmetic."""
    eight_bits = config.compute in ("fp8", "int8")
    kind = f"{config.precision}+{config.compute}" if eight_bits else config.precision
    nearest = [(family, kind), ("llama", kind), (family, config.precision), ("llama", "nf4")]
    key = next(key for key in nearest if key in MEASURED)
    return MEASURED[key], key == nearest[0]


def _cpu_rates(model: ModelConfig, linear: float, device: Device) -> tuple[float, float, str]:
    """Rates on a CPU: a frozen base multiplies twice a token and weight forward, and twice backward."""
    cpu = cpu_here() if device.on_gpu else device
    useful = cpu.speed * CPU_SHARE / linear
    train = useful / (4 if model.lora.enabled else 6)
    source = f"{cpu.how}, {cpu.speed / 1e9:,.0f} GFLOP/s"
    return min(train, CPU_MOST[0]), min(useful / 2, CPU_MOST[1]), source


def _measured_here(store: Path) -> tuple[str, float] | None:
    """Name and seconds of a training of this store; of one that was interrupted, what came after."""
    for path in sorted(store.glob("fold-*/metrics.jsonl")):
        try:
            last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
            if last["train_runtime"] > 1:
                return path.parent.name, float(last["train_runtime"])
        except (OSError, IndexError, KeyError, ValueError):
            continue
    return None


def _memory(model: ModelConfig) -> tuple[float, float]:
    linear, family = linear_parameters(model.backbone)
    reference, _ = _reference(model.backbone, family)
    weights = linear * OUTSIDE * BYTES[model.backbone.precision] / 2**30
    least = weights + CHECKPOINTED_GIB * linear / 6.98e9
    return least, max(least, reference.gib * linear / reference.linear)


def linear_parameters(config: BackboneConfig) -> tuple[float, str]:
    """Return the parameters in a backbone's linear layers, and its family; nothing is downloaded.

    Only the ``first_layers`` count that are asked for, where the checkpoint is on this machine: a name says
    how large a model is, not how deep.

    Raises
    ------
    UserError
        The checkpoint is not on this machine and its name does not say how large it is.
    """
    if config.tiny is not None:
        t = config.tiny
        head = t.hidden_size // t.heads
        return _linear(t.layers, t.hidden_size, t.intermediate_size, t.heads, t.kv_heads, head), t.family
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(
            config.path,
            revision=config.revision,
            local_files_only=True,
            trust_remote_code=remote_code_allowed(),
        )
        c: Any = found.get_text_config()
    except (OSError, ValueError) as error:
        size = re.search(r"(\d+(?:\.\d+)?)[bB]\b", config.path)
        if size is None:
            raise UserError(
                f"{config.path}: is not on this machine and its name does not say its size; "
                "download it, or give its directory, for an estimate"
            ) from error
        family = by_hub_name(config.path) or LLAMA
        return float(size.group(1)) * 1e9 / OUTSIDE, family.name
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    kv = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
    layers = min(config.first_layers or c.num_hidden_layers, c.num_hidden_layers)
    shape = (layers, c.hidden_size, c.intermediate_size, c.num_attention_heads, kv, head)
    return _linear(*shape), c.model_type


def _linear(layers: int, hidden: int, inner: int, heads: int, kv: int, head: int) -> float:
    return float(layers * (2 * hidden * heads * head + 2 * hidden * kv * head + 3 * hidden * inner))


def mean_tokens(model: ModelConfig, rows: Rows) -> tuple[float, float]:
    """Mean tokens of a row in an epoch and in prediction, on a sample, by the tokenizer if it is here.

    A pair is predicted in both orders and trained in both or in one, a row with candidates read once for
    each; where packs share prefixes, those of the sequences that are read together count once a row.
    """
    epoch = 0.5 if len(rows.classes.orders) == 2 and not model.train.both_orders else 1.0
    chosen = np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(np.int64)
    sample = rows.take(chosen)
    if model.backbone.tiny is None:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                model.backbone.path,
                revision=model.backbone.revision,
                local_files_only=True,
                trust_remote_code=remote_code_allowed(),
            )
        except (OSError, ValueError):
            pass
        else:
            encoder = Encoder(tokenizer, read_template(model.template), Truncation(**asdict(model.encode)))
            encoded, everything = encoder.encode(sample), np.arange(len(sample))
            able = model.backbone.packed and architecture(linear_parameters(model.backbone)[1]).packed
            able = able and model.backbone.attention not in LIBRARY
            shared = prefixes_to_share(encoded, everything, model.train.shared_prefix, able)
            sequences = encoded.of_rows(everything)
            alone, together = (laid_lengths(encoded, sequences, one).mean() for one in (None, shared))
            read = len(sequences) / len(sample)
            return float(read * (together if epoch == 1 else epoch * alone)), float(read * together)
    per_token = CHARS_PER_TOKEN if model.backbone.tiny is None else CHARS_PER_TINY_TOKEN
    texts = candidate_rows(sample) if sample.classes.candidates else sample
    chars = np.zeros(len(texts))
    for name in ("prompt", "response_a", "response_b"):
        chars += [sum(map(len, turns or ())) for turns in texts.table.column(name).to_pylist()]
    tokens = np.minimum(chars / per_token + 10, model.encode.max_length)
    read = float(tokens.sum()) / len(sample) * len(sample.classes.orders)
    return epoch * read, read


def table_of(found: Sequence[Estimate], device: Device) -> tuple[list[list[str]], list[str]]:
    """Return the table's lines, and the sums below it."""
    body = [
        [
            e.unit,
            f"{e.train_tokens:,.0f}",
            f"{e.predict_tokens:,.0f}",
            f"{e.rate:,.0f}",
            in_words(e.seconds),
            f"{e.gpus:g}",
            f"{e.gpus * e.seconds / 3600:.2f}",
            "–" if e.gib is None else f"{e.gib[0]:.0f} to {e.gib[1]:.0f} GiB",
            e.source,
        ]
        for e in found
    ]
    hours = sum(e.gpus * e.seconds for e in found) / 3600
    longest = max((e.seconds for e in found), default=0)
    notes = [
        f"time is that of {device.name}; resources.tokens_per_second in the recipe states a rate of your own",
        "trained on, predicted: tokens, every epoch and both orders counted",
        f"{len(found)} units, {in_words(sum(e.seconds for e in found))} one after another, "
        f"{in_words(longest)} with a place for each, {hours:.1f} GPU hours",
        "GPU memory: with every layer's activations recomputed, and with none; "
        "train.gradient_checkpointing auto takes what the card has",
    ]
    return body, notes if hours else notes[:3]
