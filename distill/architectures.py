"""The one table of families: what this toolkit knows of an architecture, a row each.

Training, prediction, estimates, doctor and tests read it. A family whose layers are ordinary is one row here
and one line in ``tests/distill/test_architectures.py``; what is not in the table runs in padded batches,
through the library's own forward pass, and nothing is assumed of it. Plain data: nothing heavy is imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

HEADS = ("score", "classifier")
"""What the library calls the last linear layer, or the module around it, of decoders and of encoders."""
NESTED = re.compile(r"^(?:model\.language_model|language_model\.model)\.")
"""How the weights of a text model begin in a checkpoint that holds other models beside it."""
RECOMPUTED = 12150 / 17879
"""Rate with all layers checkpointed over that with none: measured for Llama in NF4, taken for the others."""


@dataclass(frozen=True)
class Measured:
    """Tokens a second, and peak GiB, of a model of ``linear`` parameters in its linear layers on one H200.

    ``predict`` is the measured rate of the same model's prediction, of merged bf16 weights where the
    precision's own was not measured. The figures are those of ``benchmarks/gpu_training.md``.
    """

    linear: float
    train: float
    train_checkpointed: float
    gib: float
    predict: float


@dataclass(frozen=True)
class Architecture:
    """What is known of a family.

    Attributes
    ----------
    name : str
        The library's ``model_type``.
    encoder : bool
        Read by its own bidirectional classifier, in padded batches.
    packed : bool
        Its layers run in packs: a token sees its own document alone, by every attention of
        :mod:`distill.kernels` (those that cannot soft-cap excepted, where ``caps`` says so).
    refused : str
        Why it cannot be trained at all; empty if it can.
    window : {"", "layer", "config"}
        Who knows the sliding window: no layer has one, each attention its own, or the configuration alone.
    ropes : {1, 2}
        Bases of rotary embedding; two: one a kind of layer.
    norms : {"", "pre", "post", "sandwich"}
        Where a layer's norms stand: before each half, after, or both. Known, the last layer is computed at
        the last tokens only (:mod:`distill.model.decoder`); empty, it is computed whole.
    query_key_norm : {"", "head", "all"}
        Norm of queries and keys: none, over each head, or over all heads together.
    fused : bool
        Query, key and value are one linear layer.
    wide_residuals : bool
        In float16 its residuals are kept in float32: what a layer adds is normed, the sum leaves the range.
    overflows : bool
        Known to overflow in float16 (transformers #36822) unless ``wide_residuals`` saves it.
    eager_only : bool
        Padded batches take no attention but eager.
    poolers : tuple of str
        Modules between an encoder's hidden states and its head, trained and saved with the head.
    text : str
        Of a checkpoint that nests its configuration: the family of its text model, which alone is loaded.
    caps : mapping of str to float
        Soft caps of the published configuration; a model without them is another model.
    mixed : bool
        Its published layers are of two kinds, windowed and not.
    least_window : int
        A window smaller than this is not the published one.
    unscaled : int
        Positions beyond which the published configuration scales its rotary embedding; 0 for never.
    hub : str
        A regular expression: what in a hub's name tells the family while the checkpoint is not at hand.
    tokens : mapping of str to str
        Its special tokens, as tiny models have them. Texts start with BOS where there is one, else with CLS;
        a family without either starts with the text.
    tiny : mapping of str to Any
        What a tiny model's configuration needs beside its shape.
    head_keys : tuple of str
        Keys of the configuration that repeat the width of a head.
    measured : mapping of str to Measured
        Rates by precision; ``nf4+fp8`` is NF4 with ``compute: fp8``, and so on.
    """

    name: str
    encoder: bool = False
    packed: bool = True
    refused: str = ""
    window: str = ""
    ropes: int = 1
    norms: str = ""
    query_key_norm: str = ""
    fused: bool = False
    wide_residuals: bool = False
    overflows: bool = False
    eager_only: bool = False
    poolers: tuple[str, ...] = ()
    text: str = ""
    caps: Mapping[str, float] = field(default_factory=dict)
    mixed: bool = False
    least_window: int = 0
    unscaled: int = 0
    hub: str = ""
    tokens: Mapping[str, str] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    head_keys: tuple[str, ...] = ("head_dim",)
    measured: Mapping[str, Measured] = field(default_factory=dict)

    @property
    def capped(self) -> bool:
        """Whether its attention logits are soft-capped."""
        return "attn_logit_softcapping" in self.caps

    @property
    def starts(self) -> str:
        """What its texts start with: BOS, CLS, or nothing."""
        return self.tokens.get("bos_token") or self.tokens.get("cls_token", "")


LLAMA_TOKENS = {
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|end_of_text|>",
    "pad_token": "<|finetune_right_pad_id|>",
}
GEMMA_TOKENS = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
MISTRAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
QWEN_TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
"""Qwen has no BOS: a text starts with itself."""

LLAMA = Architecture(
    "llama",
    norms="pre",
    unscaled=8192,
    hub="llama",
    tokens=LLAMA_TOKENS,
    tiny={
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    measured={
        "nf4": Measured(6.98e9, 17879, 12150, 68.3, 42352),
        "nf4+fp8": Measured(6.98e9, 25839, 18085, 70.0, 42352),
        "bf16": Measured(6.98e9, 17809, 17809 * RECOMPUTED, 77.9, 42352),
        "fp8": Measured(6.98e9, 26443, 26443 * RECOMPUTED, 77.9, 67663),
        "int8+int8": Measured(6.98e9, 24244, 24244 * RECOMPUTED, 72.6, 60369),
    },
)
GEMMA2 = Architecture(
    "gemma2",
    window="layer",
    norms="sandwich",
    wide_residuals=True,
    overflows=True,
    eager_only=True,
    caps={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    mixed=True,
    least_window=1024,
    hub=r"gemma-?2(?!b)",
    tokens=GEMMA_TOKENS,
    tiny={
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    head_keys=("head_dim", "query_pre_attn_scalar"),
    measured={
        "nf4": Measured(8.32e9, 13364, 9214, 95.4, 33024),
        "nf4+fp8": Measured(8.32e9, 18861, 13032, 95.5, 33024),
        "bf16": Measured(8.32e9, 13636, 13636 * RECOMPUTED, 105.5, 33024),
        "fp8": Measured(8.32e9, 18835, 18835 * RECOMPUTED, 105.5, 52344),
    },
)
GEMMA3 = Architecture(
    "gemma3_text",
    window="layer",
    ropes=2,
    norms="sandwich",
    query_key_norm="head",
    wide_residuals=True,
    overflows=True,
    mixed=True,
    least_window=512,
    hub=r"gemma-?3(?!b)",
    tokens=GEMMA_TOKENS,
    tiny={"sliding_window": 512},
    head_keys=("head_dim", "query_pre_attn_scalar"),
)
DECODERS = (
    LLAMA,
    Architecture("mistral", window="config", norms="pre", hub="mistral", tokens=MISTRAL_TOKENS),
    Architecture("mixtral", window="config", hub="mixtral", tokens=MISTRAL_TOKENS),
    Architecture("gemma", norms="pre", overflows=True, hub="gemma", tokens=GEMMA_TOKENS),
    GEMMA2,
    GEMMA3,
    replace(GEMMA3, name="gemma3", text=GEMMA3.name),
    Architecture("qwen2", window="layer", norms="pre", hub=r"qwen-?2(?!b)", tokens=QWEN_TOKENS),
    Architecture(
        "qwen3", window="layer", norms="pre", query_key_norm="head", hub=r"qwen-?3(?!b)", tokens=QWEN_TOKENS
    ),
    Architecture("qwen3_moe", window="layer", tokens=QWEN_TOKENS),
    Architecture("phi3", window="config", norms="pre", fused=True, hub=r"phi-?[34]", tokens=MISTRAL_TOKENS),
    Architecture("olmo", tokens=QWEN_TOKENS),
    Architecture("olmo2", norms="post", query_key_norm="all", hub=r"olmo-?2", tokens=QWEN_TOKENS),
    Architecture("starcoder2", window="config", tokens=QWEN_TOKENS),
    Architecture("smollm3", window="layer", norms="pre", hub="smollm3", tokens=LLAMA_TOKENS),
    Architecture("glm", tokens=QWEN_TOKENS),
    Architecture("exaone4", window="layer", tokens=MISTRAL_TOKENS),
)
_ENCODER = Architecture("", encoder=True, packed=False, tokens=BERT_TOKENS)
BERT = replace(_ENCODER, name="bert", poolers=("pooler",))
ENCODERS = (
    BERT,
    replace(_ENCODER, name="roberta"),
    replace(_ENCODER, name="xlm-roberta"),
    replace(_ENCODER, name="electra"),
    replace(_ENCODER, name="deberta", poolers=("pooler",), eager_only=True),
    replace(_ENCODER, name="deberta-v2", poolers=("pooler",), eager_only=True),
    replace(_ENCODER, name="modernbert", poolers=("head",)),
    replace(_ENCODER, name="distilbert", poolers=("pre_classifier",)),
    replace(_ENCODER, name="albert", refused="all its layers are one, which an adapter of a layer cannot be"),
)
ARCHITECTURES = {row.name: row for row in (*DECODERS, *ENCODERS)}
TINY = tuple(row.name for row in (*DECODERS, BERT) if not row.text)
"""Those of which tiny models are made."""
PACKED = tuple(row.name for row in DECODERS if row.packed)
POOLERS = tuple(sorted({name for row in ENCODERS for name in row.poolers}))


def architecture(model_type: str) -> Architecture:
    """Return a family's row; of one that is not in the table, a row that knows nothing but its name."""
    return ARCHITECTURES.get(model_type) or Architecture(model_type, packed=False)


def by_hub_name(path: str) -> Architecture | None:
    """Tell a family by its checkpoint's name; the longest part of it that fits decides."""
    found = [(re.search(row.hub, path.lower()), row) for row in DECODERS if row.hub]
    fitting = [(len(match.group()), row) for match, row in found if match]
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else None
