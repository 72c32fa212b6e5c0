"""The model card of an exported student, written from what its run recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from data.candidates import CANDIDATES
from data.classes import Classes
from data.encoding.encode import Encoder
from data.encoding.template import PARTS
from data.errors import listing
from data.folds import Folds
from data.ids import align
from data.schema import Rows
from data.softlabels import SoftLabels
from ensemble.scoring.bootstrap import bootstrap
from ensemble.scoring.ranking import METRICS, row_metrics
from ensemble.sets.pool import fit_temperature
from ensemble.solvers.numbers import log_loss


def scores(store: SoftLabels, rows: Rows, folds: Folds) -> dict[str, Any]:
    """Out-of-fold log-loss with its 95 % interval over prompt groups, accuracy, and a temperature.

    Returns
    -------
    dict
        ``rows``, ``log_loss``, ``log_loss_ci95``, ``accuracy``, ``temperature``, ``log_loss_tempered``
        (cross-fitted over the folds, while ``temperature`` is fitted on all rows); of rows with candidates
        also the other :data:`~ensemble.scoring.ranking.METRICS`, by their names.
    """
    known = rows.labelled & ~folds.pinned
    ids = [rows.row_ids[i] for i in np.flatnonzero(known)]
    probs = store.probs[align(ids, store.row_ids, str(store.path))]
    targets, fold = rows.targets[known], folds.fold[known]
    losses = log_loss(probs, targets)
    interval = bootstrap(np.array(folds.group_ids)[known]).interval(losses)
    tempered, sets = np.empty_like(probs), rows.classes.candidates
    for number in np.unique(fold):
        inside = fold == number
        _, scaled = fit_temperature(probs[~inside], targets[~inside], sets)
        tempered[inside] = scaled(probs[inside])
    ranked = dict(zip(METRICS[1:], row_metrics(probs, targets).mean(axis=0)[1:].tolist(), strict=True))
    return {
        "rows": int(known.sum()),
        "log_loss": float(losses.mean()),
        "log_loss_ci95": interval.as_list(),
        "accuracy": float((probs.argmax(axis=1) == targets.argmax(axis=1)).mean()),
        "temperature": fit_temperature(probs, targets, sets)[0],
        "log_loss_tempered": float(log_loss(tempered, targets).mean()),
        **(ranked if sets else {}),
    }


PAIR = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
path = "."  # this directory, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForSequenceClassification.from_pretrained(path).eval()
def logits(prompt, response_a, response_b):
    pieces = [{pieces}]
    ids = [i for piece in pieces for i in tokenizer(piece, add_special_tokens=False).input_ids]
    return model(input_ids=torch.tensor([{prefix} + ids{suffix}])).logits[0].float()
with torch.no_grad():
    both = logits("Hi", "Hello!", "No.") + logits("Hi", "No.", "Hello!")[{permutation}]
print(dict(zip(model.config.id2label.values(), (both / 2).softmax(-1).tolist())))
"""
"""A row in both orders, as :mod:`distill.predict` reads it; the swapped order's classes are put back."""
PLAIN = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
path = "."  # this directory, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForSequenceClassification.from_pretrained(path).eval()
def logits(prompt):
    pieces = [{pieces}]
    ids = [i for piece in pieces for i in tokenizer(piece, add_special_tokens=False).input_ids]
    return model(input_ids=torch.tensor([{prefix} + ids{suffix}])).logits[0].float()
with torch.no_grad():
    print(dict(zip(model.config.id2label.values(), logits("Hi").softmax(-1).tolist())))
"""


SETS = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
path = "."  # this directory, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForSequenceClassification.from_pretrained(path).eval()
def number(prompt, candidate):
    pieces = [{pieces}]
    ids = [i for piece in pieces for i in tokenizer(piece, add_special_tokens=False).input_ids]
    return model(input_ids=torch.tensor([{prefix} + ids{suffix}])).logits[0].float()
candidates = ["Hello!", "No."]
with torch.no_grad():
    numbers = torch.cat([number("Hi", candidate) for candidate in candidates])
print(dict(zip(candidates, numbers.softmax(-1).tolist())))
"""
"""A row's candidates, read one by one; the softmax is over the row's own set."""


def usage(encoder: Encoder, classes: Classes) -> str:
    """Return the lines that predict one row with plain ``transformers``."""
    pair = len(classes.orders) > 1
    lines, shape = (PAIR, (1, 1, 1)) if pair else (PLAIN, (1, 0, 0))
    if classes.candidates:
        lines, shape = SETS, (1, 1, 0)
    pieces: list[str] = []
    for piece in encoder.template.layout(shape, pair, encoder.chat):
        if not isinstance(piece, str):
            own = classes.candidates and piece[0]
            pieces.append("candidate" if own else PARTS[piece[0]])
            continue
        text = piece
        for name in (encoder.tokenizer.bos_token, encoder.tokenizer.cls_token):
            if not pieces and name and text.lstrip().startswith(name):  # the ids begin with it in any case
                text = text.lstrip().removeprefix(name)
        pieces.append(repr(text))
    return lines.format(
        pieces=", ".join(pieces),
        prefix=encoder.prefix,
        suffix=f" + {encoder.suffix}" if encoder.suffix else "",
        permutation=classes.permutation,
    )


def model_card(
    manifest: dict[str, Any], found: dict[str, Any], made_of: str, licence: str, lines_of_use: str
) -> str:
    """Return the card in Markdown, with the hub's metadata on top.

    Parameters
    ----------
    manifest : dict
        The run's.
    found : dict
        From :func:`scores`.
    made_of : str
        Which weights the model is: the final student, or the mean of fold students.
    licence : str
        An identifier that the hub knows, such as ``apache-2.0``.
    lines_of_use : str
        From :func:`usage`.
    """
    pair, sets = manifest.get("swap") is not None, CANDIDATES in manifest
    low, high = found["log_loss_ci95"]
    ranked = METRICS if sets else METRICS[:1]
    distill, teachers = manifest.get("distill"), manifest.get("teachers") or {}
    base = str(manifest.get("backbone_source", manifest["backbone_path"]))
    origin = ""
    if "cut_from" in manifest:
        cut = manifest["cut_from"]
        origin = f"; the first {cut['first_layers']} of {cut['layers']} layers of {Path(base).name}"
    on_hub = base.count("/") == 1 and not base.startswith(("/", "."))
    head = ModelCardData(
        license=licence,
        library_name="transformers",
        pipeline_tag="text-ranking" if sets else "text-classification",
        base_model=base if on_hub else None,
        tags=["distillation", *(["preference"] if pair else []), "distillstack"],
        model_name=manifest["name"],
        eval_results=evaluations(manifest, found),
    )
    lines = [
        "---",
        head.to_yaml(),
        "---",
        "",
        f"# {manifest['name']}",
        "",
        (
            "One number for each candidate of a row"
            if sets
            else f"A classifier of {listing(manifest['classes'], 99)}"
        )
        + f": {made_of}, merged into one plain model.",
        "",
        "## Scores",
        "",
        f"| rows | log-loss, out of fold | 95 % interval over prompts | {' | '.join(ranked)} "
        "| at its temperature |",
        "|---" * (4 + len(ranked)) + "|",
        f"| {found['rows']} | {found['log_loss']:.4f} | {low:.4f} – {high:.4f} | "
        + " | ".join(f"{found[name]:.3f}" for name in ranked)
        + f" | {found['log_loss_tempered']:.4f} (T = {found['temperature']:.3f}) |",
        "",
        "Scored are the fold models, each on the fold that it was not trained on"
        + (", both orders of a pair averaged" if pair else "")
        + ". The model here was trained on the same rows and is not scored itself. "
        + (
            f"The temperature {found['folded']:.3f} is folded into its head."
            if found["folded"] != 1
            else "The temperature does not lower the cross-fitted log-loss and is not applied."
        ),
        "",
        "## Training",
        "",
        f"- data: {manifest['n_rows']} rows, {manifest['n_folds']} folds grouped by prompt "
        f"(rows {manifest['rows_hash'][:12]}, folds {manifest['folds_hash'][:12]})",
        f"- backbone: weights {manifest['backbone']['weight_hash'][:12]}, "
        f"precision {manifest['backbone']['precision']}" + origin,
        f"- input: at most {manifest['truncation']['max_length']} tokens, "
        f"longer turns cut at the {manifest['truncation']['side']}",
    ]
    if distill:
        kind = manifest.get("teacher_label_kind")
        labels = f"{kind} soft labels, {manifest.get('leakage')} leakage" if kind else "no teacher"
        if manifest.get("hard_labels_only"):
            labels += f"; {manifest['hard_labels_only']} rows pinned to training by their hard labels only"
        if pseudo := manifest.get("pseudo_labelled"):
            labels += f"; {pseudo['rows']} of {pseudo['of']} unlabelled rows by soft labels alone"
        lines += [
            f"- distillation: loss {distill['loss']}, weight {distill['weight']}, "
            f"temperature {distill['temperature']}; {labels}",
            f"- teachers: {', '.join(teachers) or 'none'}",
        ]
    if before := manifest.get("pretrain"):
        lines.append(
            f"- before: trained on other rows ({before['rows_hash'][:12]}) of classes "
            f"{listing(before['classes'], 99)}, whose head is discarded"
        )
    if averaged := manifest.get("averaged"):
        names = ", ".join(str(one["name"]) for one in averaged)
        lines.append(f"- weights: the mean of {len(averaged)} runs ({names}), model by model")
    versions = ", ".join(f"{name} {v}" for name, v in manifest.get("versions", {}).items())
    lines += [
        f"- libraries: {versions}",
        "",
        "## Use",
        "",
        f"{'Candidates for a text' if sets else 'A pair' if pair else 'A text'} of one turn, with plain "
        "`transformers`:",
        "",
        "```python",
        lines_of_use.rstrip(),
        "```",
        "",
        "Conversations of several turns, and cutting what is too long, as in training: "
        "`python -m distill.predict --model` this directory. The layout and the truncation stand in "
        "`distillstack.json`.",
        "",
    ]
    return str(ModelCard("\n".join(lines)))


def evaluations(manifest: dict[str, Any], found: dict[str, Any]) -> list[EvalResult]:
    """The scores as the hub shows them; an interval stands in the name, as there is no field for it."""
    low, high = found["log_loss_ci95"]
    figures = {
        "log-loss": (found["log_loss"], f"log-loss, out of fold, 95 % interval {low:.4f} to {high:.4f}"),
        "accuracy": (found["accuracy"], "accuracy, out of fold"),
    }
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type="private",
            dataset_name=f"{found['rows']} rows in {manifest['n_folds']} folds grouped by prompt",
            dataset_revision=manifest["rows_hash"][:12],
            metric_type=metric,
            metric_value=round(value, 4),
            metric_name=name,
        )
        for metric, (value, name) in figures.items()
    ]
