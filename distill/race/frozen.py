"""Frozen models read texts: the states that a probe looks at (:mod:`distill.race.probe`), and its verdicts.

A backbone's verdicts are kept beside the race with what they are of, so that a killed probe continues with
the next backbone, and another backbone can be added later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from data.console.progress import progress
from data.encoding.template import read_template
from data.files import numbers_of, read_json, sha256_text, write_json, write_parquet
from data.folds import Folds
from data.schema import Rows
from distill.config import BackboneConfig, ModelConfig
from distill.model.backbone import load_base, load_tokenizer, weight_hash
from distill.quiet import quiet_transformers
from distill.race.probe import Texts, length_features, probe, state_features, texts_of
from distill.runs.run import resolve_backbone
from ensemble.scoring.bootstrap import bootstrap
from ensemble.solvers.numbers import cross_entropy

MOST_TOKENS = 1024
BATCH_TOKENS = 4096
LENGTHS = "lengths alone"
PROBED = [
    "backbone",
    "log-loss",
    "accuracy",
    "against lengths",
    "95 %",
    "against the best",
    "95 %",
    "seconds",
]
"""What a line of :func:`probe_lines` holds."""


@dataclass(frozen=True)
class Probed:
    """What a probe found of one backbone.

    Attributes
    ----------
    name : str
    losses : ndarray of shape (n,)
        Log-loss of every row, out of fold.
    right : ndarray of shape (n,), bool
        Whether the likeliest class is the row's.
    seconds : float
        Reading and regression.
    """

    name: str
    losses: np.ndarray
    right: np.ndarray
    seconds: float


def frozen_states(model: Any, tokenizer: Any, texts: Sequence[tuple[str, str]], what: str) -> np.ndarray:
    """Read texts by a frozen model.

    Parameters
    ----------
    model : PreTrainedModel
        A bare model (``AutoModel``) in evaluation mode, whose output has ``last_hidden_state``.
    tokenizer : PreTrainedTokenizer
    texts : sequence of (str, str)
        What stands before a text, and the text. States are taken over the text alone. Of
        :data:`MOST_TOKENS` what stands before has a quarter, cut on the left, the text the rest, cut on
        the right.
    what : str
        Name of the model, for the progress bar.

    Returns
    -------
    ndarray of shape (len(texts), 2 H), float32
        The mean and the last hidden state.
    """
    before = tokenizer([text or "" for text, _ in texts], add_special_tokens=False)["input_ids"]
    inside = tokenizer([text or " " for _, text in texts], add_special_tokens=False)["input_ids"]
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if tokenizer.cls_token_id is not None:
        start = [tokenizer.cls_token_id]
    quarter = MOST_TOKENS // 4
    heads = [[*start, *ids[-quarter:]] for ids in before]
    tails = [ids[: MOST_TOKENS - quarter] or [0] for ids in inside]
    order = np.argsort([len(head) + len(tail) for head, tail in zip(heads, tails, strict=True)])[::-1]
    found = np.empty((len(texts), 2 * model.config.get_text_config().hidden_size), dtype=np.float32)
    with torch.inference_mode():
        for batch in progress(_batches(order, heads, tails), f"{what} reads", unit="batch"):
            width = max(len(heads[i]) + len(tails[i]) for i in batch)
            ids = torch.zeros((len(batch), width), dtype=torch.long)
            mask = torch.zeros((len(batch), width), dtype=torch.long)
            for row, i in enumerate(batch):
                length = len(heads[i]) + len(tails[i])
                ids[row, :length] = torch.tensor([*heads[i], *tails[i]])
                mask[row, :length] = 1
            device = model.device
            output = model(input_ids=ids.to(device), attention_mask=mask.to(device))
            states = output.last_hidden_state.float().cpu().numpy()
            for row, i in enumerate(batch):
                own = states[row, len(heads[i]) : len(heads[i]) + len(tails[i])]
                found[i] = np.concatenate([own.mean(axis=0), own[-1]])
    return found


def _batches(order: np.ndarray, heads: list[list[int]], tails: list[list[int]]) -> list[list[int]]:
    """Texts of like length together, the longest first, at most :data:`BATCH_TOKENS` with their padding."""
    batches: list[list[int]] = []
    width = 0
    for i in order.tolist():
        if batches and (len(batches[-1]) + 1) * width <= BATCH_TOKENS:
            batches[-1].append(i)
        else:
            batches.append([i])
            width = len(heads[i]) + len(tails[i])
    return batches


def some_rows(rows: Rows, folds: Folds, most: int, seed: int = 0) -> tuple[Rows, Folds]:
    """About ``most`` rows drawn at random, the same share of every fold; all of them for 0.

    Groups lose rows, and stay in their folds.
    """
    if not most or most >= len(rows):
        return rows, folds
    order = np.random.default_rng(seed).permutation(len(rows))
    kept = []
    for fold in np.unique(folds.fold):
        own = order[folds.fold[order] == fold]
        kept.append(own[: max(1, round(most * len(own) / len(rows)))])
    few = rows.take(np.sort(np.concatenate(kept)))
    return few, folds.aligned_to(few.row_ids)


def states_of(config: BackboneConfig, backbone: str, texts: Texts, what: str) -> np.ndarray:
    """Load a backbone as a recipe would, padded, and let it read; (texts, 2 H), float32."""
    with quiet_transformers():
        model = load_base(replace(config, packed=False, head="score"), backbone, 2)
        return frozen_states(model.base_model, load_tokenizer(config, backbone), texts.texts, what)


def probe_all(
    models: Mapping[str, ModelConfig],
    rows: Rows,
    folds: Folds,
    out: Path,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Probed]:
    """Probe every backbone on the same rows and folds; the first is lengths alone, which need no model.

    Parameters
    ----------
    models : mapping of str to ModelConfig
        By name. Of their recipes only the backbone is used.
    rows, folds : Rows, Folds
        In the same order.
    out : Path
        Directory of the verdicts.
    tell : callable
        Is given a line about every backbone as it is done.
    """
    texts = texts_of(rows)
    found = [_probed(LENGTHS, length_features(rows), rows, folds, perf_counter())]
    for name, model in models.items():
        backbone = resolve_backbone(model, rows, read_template(model.template), out)
        found.append(_read_or_probe(name, model.backbone, backbone, texts, rows, folds, out))
        tell(f"{name}: {found[-1].losses.mean():.4f} in {found[-1].seconds:.0f} s")
    return found


def _read_or_probe(
    name: str, config: BackboneConfig, backbone: str, texts: Texts, rows: Rows, folds: Folds, out: Path
) -> Probed:
    record, table = out / f"{name}.json", out / f"{name}.parquet"
    of = sha256_text(
        weight_hash(backbone, config.revision), config.precision, str(MOST_TOKENS),
        rows.content_hash, folds.content_hash,
    )  # fmt: skip
    if record.exists() and read_json(record, "probe")["of"] == of:
        losses, right = (numbers_of(table, "probe", column, len(rows)) for column in ("loss", "right"))
        return Probed(name, losses, right, read_json(record, "probe")["seconds"])
    started = perf_counter()
    states = states_of(config, backbone, texts, name)
    done = _probed(name, state_features(states, texts, rows), rows, folds, started)
    write_parquet(table, pa.table({"loss": done.losses, "right": done.right}))
    write_json(record, {"of": of, "backbone": backbone, "seconds": done.seconds})
    return done


def _probed(name: str, features: np.ndarray, rows: Rows, folds: Folds, started: float) -> Probed:
    probs = probe(features, rows, folds)
    losses = cross_entropy(probs, rows.targets)
    right = probs.argmax(axis=1) == rows.targets.argmax(axis=1)
    return Probed(name, losses, right, perf_counter() - started)


def probe_lines(found: Sequence[Probed], folds: Folds) -> list[list[str]]:
    """Cells under :data:`PROBED`, the best first; intervals by prompt group, of rows that were predicted."""
    scored = ~folds.pinned
    draws = bootstrap(np.array(folds.group_ids)[scored])
    lengths = found[0].losses[scored]
    ordered = sorted(found, key=lambda one: float(one.losses[scored].mean()))
    best = ordered[0].losses[scored]

    def against(losses: np.ndarray, other: np.ndarray) -> list[str]:
        if losses is other:
            return ["", ""]
        interval = draws.interval(losses - other)
        return [f"{(losses - other).mean():+.4f}", f"{interval.low:+.4f} to {interval.high:+.4f}"]

    return [
        [
            one.name, f"{losses.mean():.4f}", f"{one.right[scored].mean():.3f}",
            *against(losses, lengths if one is not found[0] else losses),
            *against(losses, best if one is not ordered[0] else losses),
            f"{one.seconds:.0f}",
        ]
        for one in ordered
        for losses in [one.losses[scored]]
    ]  # fmt: skip
