"""Tiny models of the true architectures, made locally: what the demo and the tests run on.

Same classes, same files, same ``from_pretrained`` path as ``meta-llama/Llama-3.1-8B-Instruct`` and
``google/gemma-2-9b-it``: Llama-3.1's rope scaling and grouped-query attention; Gemma-2's soft-capping,
alternating sliding window and four norms a layer. Frozen random weights limit what adapters can learn,
so a short next-token training on the rows' text (never their labels) stands in for pretraining.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.console.progress import progress
from data.encoding.encode import candidate_rows
from data.encoding.template import Template
from data.files import locked, sha256_text, write_text
from data.schema import Rows
from distill.architectures import architecture
from distill.config import TinyConfig
from distill.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

FORMAT = 1
MADE = "made.txt"
PRETRAIN_LENGTH = 160
PRETRAIN_BATCH = 16
MASKED = 0.15
"""Share of tokens that an encoder's pretraining hides (Devlin et al., arXiv 1810.04805)."""


def tiny_backbone(tiny: TinyConfig, rows: Rows, template: Template, seed: int, cache: Path) -> Path:
    """Return the directory of the tiny checkpoint for these rows, making it on first use.

    Parameters
    ----------
    tiny : TinyConfig
    rows : Rows
        Their text trains the tokenizer and, for ``pretrain_steps``, the model.
    template : Template
        The layout of the pretraining text.
    seed : int
    cache : Path
        Directory that holds made checkpoints.
    """
    path = place_of(tiny, rows, template, seed, cache)
    done = path / MADE
    if done.exists():
        return path
    with locked(cache, wait=True):  # runs beside each other may want the same one
        if not done.exists():
            shutil.rmtree(path, ignore_errors=True)
            texts = _texts(rows, template)
            tokenizer = train_tokenizer(tiny.family, texts, tiny.vocab_size)
            _make_model(tiny, tokenizer, texts, seed, path)
            tokenizer.save_pretrained(path)
            write_text(done, path.name + "\n")
    return path


def place_of(tiny: TinyConfig, rows: Rows, template: Template, seed: int, cache: Path) -> Path:
    """Where :func:`tiny_backbone` has or would have the checkpoint: it is finished when ``MADE`` stands."""
    key = sha256_text(
        str(FORMAT), str(sorted(asdict(tiny).items())), str(asdict(template)), str(seed), rows.content_hash
    )
    return cache / f"tiny-{tiny.family}-{key[:12]}"


def _texts(rows: Rows, template: Template) -> list[str]:
    pair = rows.classes.swap is not None
    rows = candidate_rows(rows) if rows.classes.candidates else rows
    columns = [rows.table.column(name).to_pylist() for name in ("prompt", "response_a", "response_b")]
    return [
        "".join(segment.text for segment in template.segments(p or [], a or [], b or [], pair=pair))
        for p, a, b in zip(*columns, strict=True)
    ]


def train_tokenizer(family: str, texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with the family's special tokens and its habit of adding BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special, start = architecture(family).tokens, architecture(family).starts
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    end = special.get("sep_token", "")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}".strip(),
        pair=" ".join(f"{start} $A {end or start} $B {end}".split()),
        special_tokens=[(token, backend.token_to_id(token)) for token in (start, end) if token],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def tiny_model_config(tiny: TinyConfig, tokenizer: Any) -> PretrainedConfig:
    """Return the ``transformers`` configuration of a tiny model of any family in the table."""
    from transformers import AutoConfig

    family = architecture(tiny.family)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": tiny.hidden_size,
        "intermediate_size": tiny.intermediate_size,
        "num_hidden_layers": tiny.layers,
        "num_attention_heads": tiny.heads,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if not family.encoder:
        shape |= {
            "num_key_value_heads": tiny.kv_heads,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "tie_word_embeddings": True,
            **dict.fromkeys(family.head_keys, tiny.hidden_size // tiny.heads),
        }
    return AutoConfig.for_model(tiny.family, **shape, **family.tiny)


def _make_model(tiny: TinyConfig, tokenizer: Any, texts: list[str], seed: int, path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    torch.manual_seed(seed)
    kind = AutoModelForMaskedLM if architecture(tiny.family).encoder else AutoModelForCausalLM
    model = kind.from_config(
        tiny_model_config(tiny, tokenizer), attn_implementation="eager", trust_remote_code=False
    )
    model = model.to(torch.float32)
    if tiny.pretrain_steps:
        _pretrain(model, tokenizer, texts, tiny, seed)
    with quiet_transformers():
        model.save_pretrained(path)


def _pretrain(model: Any, tokenizer: Any, texts: list[str], tiny: TinyConfig, seed: int) -> None:
    """Train next-token or masked-token prediction on windows of the rows' text, in float32."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    windows = []
    for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts):
        ids = encoding.ids
        windows += [ids[i : i + PRETRAIN_LENGTH] for i in range(0, len(ids), PRETRAIN_LENGTH)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=tiny.pretrain_lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=tiny.pretrain_lr, total_steps=tiny.pretrain_steps, pct_start=0.1
    )
    generator = np.random.default_rng(seed)
    options = {} if architecture(tiny.family).encoder else {"use_cache": False}
    model.train()
    for _ in progress(range(tiny.pretrain_steps), f"pretraining tiny {tiny.family}", unit="step"):
        chosen = [windows[i] for i in generator.integers(len(windows), size=PRETRAIN_BATCH)]
        longest = max(len(ids) for ids in chosen)
        batch = torch.full((len(chosen), longest), tokenizer.pad_token_id)
        labels = torch.full((len(chosen), longest), -100)
        for i, ids in enumerate(chosen):
            batch[i, : len(ids)] = torch.tensor(ids)
            labels[i, : len(ids)] = torch.tensor(ids)
        mask = (labels != -100).long()
        if tokenizer.mask_token_id is not None:
            hidden = torch.from_numpy(generator.random(batch.shape) < MASKED) & mask.bool()
            batch, labels = (
                batch.masked_fill(hidden, tokenizer.mask_token_id),
                labels.masked_fill(~hidden, -100),
            )
        batch, mask, labels = (x.to(device) for x in (batch, mask, labels))
        loss = model(input_ids=batch, attention_mask=mask, labels=labels, **options).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval().cpu()
