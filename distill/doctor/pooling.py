"""Checks of which token is read and what it can see: padding, pooling and packed rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.doctor.finding import Finding, check, failed, passed
from distill.doctor.small import TOLERANCE, pad_of, plain_model, some_ids
from distill.doctor.subject import Subject
from distill.packing.examples import padded


@check("pooling", "config")
def padding_makes_no_difference(subject: Subject) -> Finding:
    """Logits are equal without padding, padded on the right and (decoders) on the left.

    Source: pooling and position bugs behind transformers #35352; the classifier pools by explicit index.
    """
    model = plain_model(subject)
    rows = some_ids(subject, model)
    pad = pad_of(subject, model)
    sides = ("right",) if subject.is_encoder else ("right", "left")
    gaps = {}
    with torch.no_grad():
        alone = torch.cat([_pooled_logits(subject, model, padded([row], pad)) for row in rows])
        for side in sides:
            together = _pooled_logits(subject, model, padded(rows, pad, side))
            gaps[side] = float((together - alone).abs().max())
    shown = ", ".join(f"{side} {gap:.0e}" for side, gap in gaps.items())
    if max(gaps.values()) < TOLERANCE:
        return passed(f"largest logit difference: {shown}")
    return failed(
        f"logits change with padding: {shown}",
        "predictions depend on which rows share a batch",
        "pad on the right, pass attention_mask, pool at the last real token",
    )


def _pooled_logits(subject: Subject, model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Logits by explicit index for a decoder, by the model's own pooling for an encoder."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    if subject.is_encoder:
        return model(**inputs).logits
    hidden = model.get_decoder()(**inputs, use_cache=False).last_hidden_state
    return model.score(hidden[torch.arange(len(hidden)), batch["last"]])


@check("pooling", "decoder")
def pooled_at_last_token(subject: Subject) -> Finding | None:
    """The library's own pooling reads the last real token, also where the text ends in EOS.

    Source: transformers #35352 and PR #35911 (rightmost token that is not the pad id).
    """
    model = plain_model(subject)
    eos = model.config.eos_token_id
    eos = eos[0] if isinstance(eos, list) else eos
    if eos is None:
        return None
    pad = model.config.pad_token_id
    if pad is None:
        return passed("no pad id: the library refuses batches; this toolkit pools by explicit index")
    rows = [np.append(row[:-1], eos) for row in some_ids(subject, model)]
    fill = pad
    if subject.tokenizer is not None and subject.tokenizer.pad_token_id is not None:
        fill = subject.tokenizer.pad_token_id % model.config.vocab_size
    batch = padded(rows, fill)
    with torch.no_grad():
        wanted = _pooled_logits(subject, model, batch)
        del batch["last"]
        theirs = model(**batch, use_cache=False).logits
    gaps = (theirs - wanted).abs().amax(1)
    if float(gaps.max()) < TOLERANCE:
        return passed(f"pooled right with EOS last (pad {pad}, EOS {eos})")
    return failed(
        f"{int((gaps >= TOLERANCE).sum())} of {len(rows)} rows ending in EOS are pooled elsewhere "
        f"(logits off by {float(gaps.max()):.2f}; pad {pad}, EOS {eos})",
        "rows that end in EOS are read at another token, others not",
        "set pad_token_id to a reserved token, or pool by explicit index as distill.model.classifier does",
    )


@check("pooling", "decoder")
def packed_rows_are_apart(subject: Subject) -> Finding | None:
    """Rows packed behind one another do not see each other: evaluating, training, checkpointed.

    Source: transformers honours packed ``position_ids`` only without mask and cache, and ``use_cache``
    defaults to True: in evaluation rows silently attend to their neighbours. ``--plain`` judges that default.
    """
    model = plain_model(subject)
    rows = [torch.from_numpy(row) for row in some_ids(subject, model)]
    with torch.no_grad():
        alone = [
            model.get_decoder()(input_ids=r[None], use_cache=False).last_hidden_state[0, -1] for r in rows
        ]
    scale = float(torch.stack(alone).abs().max())
    wanted = torch.stack(alone) / scale
    gaps = {}
    modes: list[tuple[str, bool, bool | None]] = [
        ("evaluating", False, False),
        ("training", True, False),
        ("checkpointed", True, False),
    ]
    modes.append(("library's cache default", False, None))
    for name, training, cache in modes:
        if name == "checkpointed":
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        elif name.startswith("library"):
            model.gradient_checkpointing_disable()
        model.train(training)
        gaps[name] = float((_packed(model, rows, cache) / scale - wanted).abs().max())
    library = gaps["library's cache default"]
    ours = {name: gap for name, gap in gaps.items() if not name.startswith("library")}
    judged = gaps if subject.plain else ours
    worst = max(judged, key=lambda name: judged[name])
    note = f"; the library's cache default leaks {library:.1e}" if library >= TOLERANCE else ""
    if judged[worst] < TOLERANCE:
        return passed(f"largest relative difference {judged[worst]:.0e} without cache{note}")
    return failed(
        f"{worst}: a packed row's state is off by {judged[worst]:.2f} of its size",
        "every prediction depends on the rows before it",
        "pass use_cache=False, no attention mask, and position_ids that restart",
    )


def _packed(model: Any, rows: list[Tensor], cache: bool | None) -> Tensor:
    ids = torch.cat(rows)[None]
    positions = torch.cat([torch.arange(len(r)) for r in rows])[None]
    ends = torch.tensor([len(r) for r in rows]).cumsum(0) - 1
    options = {} if cache is None else {"use_cache": cache}
    out = model.get_decoder()(input_ids=ids, position_ids=positions, **options)
    return out.last_hidden_state[0, ends].detach()
