"""Run a stock decoder over a pack and read it at each document's last token.

The library's own layers do the work, one by one, so that each can be compiled once for all, and what is
not needed can be left out: gradients below the first trained layer, activations that memory has no room
for, and in the last layer everything but the last tokens, which alone are read.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distill.kernels.attention import block_masks, flex_tiles, last_token_attention, varlen_heads
from distill.packing.pack import Pack

log = logging.getLogger(__name__)

PRUNABLE = {"LlamaDecoderLayer": "pre", "MistralDecoderLayer": "pre", "Gemma2DecoderLayer": "sandwich"}
"""Layers whose forward :func:`_last_layer` knows, by where their norms stand."""
PACKED = (
    "llama", "mistral", "mixtral", "gemma", "gemma2", "qwen2", "qwen3", "qwen3_moe", "phi3", "olmo", "olmo2",
    "starcoder2", "smollm3", "glm", "exaone4",
)  # fmt: skip
"""Architectures whose layers run in packs: the others' own attention would see across documents."""
SPARE = 3 * 2**30
"""Bytes that ``auto`` checkpointing leaves free: the last layer, gradients, the allocator's crumbs."""


@dataclass
class Plan:
    """How the decoder is run.

    Attributes
    ----------
    attention : str
        See :func:`distill.kernels.attention.attention_for`.
    compiled : bool
        Compile the layers.
    checkpoint : {"auto", "all", "none"}
        Layers that compute their activations again in the backward pass. ``auto`` measures one layer
        and keeps as many as fit.
    prune : bool
        Compute the last layer only where it is read.
    kept : int or None
        Layers that keep their activations, once ``auto`` has measured.
    graphs : bool
        Record and replay the passes over packs of one shape (:mod:`distill.model.graphs`).
    """

    attention: str
    compiled: bool = False
    checkpoint: str = "none"
    prune: bool = True
    kept: int | None = field(default=None)
    graphs: bool = False

    @property
    def static(self) -> bool:
        """Whether packs must all have one size; flex attention is compiled even where the layers are not."""
        return self.compiled or self.graphs or self.attention == "flex"


def _run_layer(layer: nn.Module, hidden: Tensor, options: dict[str, Any]) -> Tensor:
    return layer(hidden, attention_mask=None, past_key_values=None, use_cache=False, **options)


_compiled: dict[str, Any] = {}


def _layer_function(compiled: bool) -> Any:
    """Return the function that runs a layer, compiled once for all layers of a kind."""
    if not compiled:
        return _run_layer
    if not _compiled:
        # One entry a kind of layer, with and without gradients, and again after an out-of-memory error.
        torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
        _compiled["run"] = torch.compile(_run_layer, dynamic=False)
    return _compiled["run"]


def first_trained(layers: nn.ModuleList) -> int:
    """Index of the first layer with a trained parameter; the number of layers if there is none."""
    for index, layer in enumerate(layers):
        if any(p.requires_grad for p in layer.parameters()):
            return index
    return len(layers)


def window_of(layer: Any) -> int | None:
    """A layer's sliding window: its attention's own, or, as with Mistral, only the configuration's."""
    attention = layer.self_attn
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window
    return getattr(attention.config, "sliding_window", None)


def wide_residuals(decoder: Any, dtype: torch.dtype) -> bool:
    """Whether residuals are kept in float32: Gemma's leave float16's range (transformers #36822).

    Its layers norm what they add, and the norms may scale it beyond that range; products stay in float16.
    """
    return dtype == torch.float16 and PRUNABLE.get(type(decoder.layers[0]).__name__) == "sandwich"


def pooled_hidden(decoder: Any, pack: Pack, plan: Plan) -> Tensor:
    """Return the normed hidden state of each row's last token, shape (rows, hidden)."""
    layers = decoder.layers
    hidden = decoder.embed_tokens(pack.input_ids)
    positions = decoder.rotary_emb(hidden, position_ids=pack.position_ids)
    options: dict[str, Any] = {"position_ids": pack.position_ids, "position_embeddings": positions}
    masks = (None, None)
    if plan.attention == "flex":
        window = getattr(decoder.config, "sliding_window", None)
        masks = block_masks(pack.position_ids[0], pack.documents, window, pack.max_length)
        options["kernel_options"] = flex_tiles(layers[0].self_attn.head_dim, hidden.dtype)
    else:
        options |= {
            "cu_seq_lens_q": pack.cu_seqlens,
            "cu_seq_lens_k": pack.cu_seqlens,
            "max_length_q": pack.max_length,
            "max_length_k": pack.max_length,
        }
    if wide_residuals(decoder, hidden.dtype):
        hidden = hidden.float()
    run = _layer_function(plan.compiled)
    shards = getattr(decoder, "shards", None)
    if shards is not None:
        run = shards.around(run)
    training = torch.is_grad_enabled()
    first = first_trained(layers) if training and not hidden.requires_grad else 0
    prune = plan.prune and type(layers[-1]).__name__ in PRUNABLE and len(layers) > 1
    whole = layers[:-1] if prune else layers
    for index, layer in enumerate(whole):
        learning = training and index >= first
        if plan.attention == "flex":
            # Chosen here, so that layers of both kinds share compiled code where the masks are the same.
            windowed = window_of(layer) is not None
            options = {**options, "block_mask": masks[windowed]}
        if learning and plan.compiled and not hidden.requires_grad:
            # The first trained layer then runs the same compiled code as the others.
            hidden = hidden.detach().requires_grad_()
        with torch.set_grad_enabled(learning):
            if learning and (shards is not None or index >= first + _kept(plan, layers, first)):
                hidden = checkpoint(run, layer, hidden, options, use_reentrant=False)
            elif learning and plan.checkpoint == "auto" and plan.kept is None and index > first:
                hidden = _measured(plan, run, layer, hidden, options, len(whole) - first)
            else:
                hidden = run(layer, hidden, options)
    if prune:
        if shards is not None:
            shards.bring(layers[-1])
        pooled = _last_layer(layers[-1], hidden, pack, positions, plan)
    else:
        pooled = hidden[0, pack.last]
    return decoder.norm(pooled[: pack.rows])


def _kept(plan: Plan, layers: nn.ModuleList, first: int) -> int:
    """Layers from the first trained one on that keep their activations."""
    if plan.checkpoint == "all":
        return 0
    return len(layers) if plan.kept is None else plan.kept


def _measured(
    plan: Plan, run: Any, layer: nn.Module, hidden: Tensor, options: dict[str, Any], layers: int
) -> Tensor:
    """Run the second trained layer, see what it keeps, and set how many layers may do likewise.

    The second, because the first also pays for compilation and workspaces.
    """
    if not hidden.is_cuda:
        plan.kept = layers
        return run(layer, hidden, options)
    before = torch.cuda.memory_allocated()
    out = run(layer, hidden, options)
    each = max(1, torch.cuda.memory_allocated() - before)
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    plan.kept = 2 + max(0, min(layers, int((free - SPARE) // each)))
    log.info("%d of %d layers keep their activations (%.0f MiB each)", plan.kept, layers, each / 2**20)
    return out


def _last_layer(
    layer: Any, hidden: Tensor, pack: Pack, positions: tuple[Tensor, Tensor], plan: Plan
) -> Tensor:
    """The last layer at the last tokens only: (used documents, hidden).

    Keys and values are computed for all tokens; query, output and MLP, some nine tenths of the work, for
    one token a document.
    """
    attention = layer.self_attn
    d = attention.head_dim
    residual = hidden[0, pack.last]
    normed = layer.input_layernorm(hidden)[0]
    query = attention.q_proj(normed[pack.last]).view(len(pack.last), -1, d)
    key = attention.k_proj(normed).view(len(normed), -1, d)
    value = attention.v_proj(normed).view(len(normed), -1, d)
    cos, sin = (x[0][:, None] for x in positions)
    query = _rotated(query, cos[pack.last], sin[pack.last])
    key = _rotated(key, cos, sin)
    softcap = getattr(attention, "attn_logit_softcapping", None)
    window = window_of(layer)
    window = None if window is None or pack.max_length <= window else window
    if plan.attention == "varlen":
        n = len(pack.last)
        one_each = torch.arange(n + 1, dtype=torch.int32, device=hidden.device)
        bounds = pack.cu_seqlens[: n + 1]
        left = -1 if window is None else window - 1
        mixed = varlen_heads(
            query, key, value, one_each, bounds, 1, pack.max_length, attention.scaling, (left, -1)
        )
    else:
        mixed = last_token_attention(
            query, key, value, pack.documents, pack.last, attention.scaling, softcap, window
        )
    out = attention.o_proj(mixed.reshape(len(mixed), -1))
    if PRUNABLE[type(layer).__name__] == "sandwich":
        residual = residual + layer.post_attention_layernorm(out)
        out = layer.mlp(layer.pre_feedforward_layernorm(residual))
        return residual + layer.post_feedforward_layernorm(out)
    residual = residual + out
    return residual + layer.mlp(layer.post_attention_layernorm(residual))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (tokens, heads, d), as the library's layers compute it."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin
