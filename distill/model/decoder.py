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

from distill.architectures import Architecture, architecture
from distill.kernels.attention import last_token_attention, repeated, tokens_before, varlen_heads
from distill.kernels.flex import block_masks, flex_tiles
from distill.packing.pack import Pack

log = logging.getLogger(__name__)

SPARE = 3 * 2**30
"""Bytes that ``auto`` checkpointing leaves free: the last layer, gradients, the allocator's crumbs."""


@dataclass
class Plan:
    """How the decoder is run.

    Attributes
    ----------
    attention : str
        See :func:`distill.kernels.choice.attention_for`.
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


def family_of(decoder: Any) -> Architecture:
    """What is known of a decoder's family."""
    return architecture(decoder.config.model_type)


def window_of(layer: Any, family: Architecture) -> int | None:
    """A layer's sliding window: its attention's own, or, as with Mistral, only the configuration's."""
    attention = layer.self_attn
    if family.window == "config":
        return getattr(attention.config, "sliding_window", None)
    own = family.window == "layer" and getattr(attention, "is_sliding", True)
    return attention.sliding_window if own else None


def wide_residuals(decoder: Any, dtype: torch.dtype) -> bool:
    """Whether residuals are kept in float32: Gemma's leave float16's range (transformers #36822).

    Its layers norm what they add, and the norms may scale it beyond that range; products stay in float16.
    """
    return dtype == torch.float16 and family_of(decoder).wide_residuals


def pooled_hidden(decoder: Any, pack: Pack, plan: Plan) -> Tensor:
    """Return the normed hidden state of each row's last token, shape (rows, hidden)."""
    layers, family = decoder.layers, family_of(decoder)
    hidden = decoder.embed_tokens(pack.input_ids)
    positions = _positions(decoder, family, hidden, pack)
    options: dict[str, Any] = {"position_ids": pack.position_ids}
    masks = (None, None)
    if plan.attention == "flex":
        window = getattr(decoder.config, "sliding_window", None) if family.window else None
        masks = block_masks(
            pack.position_ids[0], pack.documents, window, pack.max_length, pack.cu_seqlens, pack.parents
        )
        options["kernel_options"] = flex_tiles(layers[0].self_attn.head_dim, hidden.dtype)
    else:
        options |= {
            "cu_seq_lens_q": pack.cu_seqlens,
            "cu_seq_lens_k": pack.cu_seqlens if pack.key_seqlens is None else pack.key_seqlens,
            "max_length_q": pack.max_length,
            "max_length_k": pack.max_length,
        }
        if pack.key_tokens is not None:
            options["key_tokens"] = pack.key_tokens
    if wide_residuals(decoder, hidden.dtype):
        hidden = hidden.float()
    run = _layer_function(plan.compiled)
    cut = getattr(decoder, "cut_layers", None)
    if cut is not None:
        run = cut.around(run)
    training = torch.is_grad_enabled()
    first = first_trained(layers) if training and not hidden.requires_grad else 0
    prune = plan.prune and bool(family.norms) and len(layers) > 1
    whole = layers[:-1] if prune else layers
    for index, layer in enumerate(whole):
        learning = training and index >= first
        options = {**options, "position_embeddings": positions[_rope(layer, family)]}
        if plan.attention == "flex":
            # Chosen here, so that layers of both kinds share compiled code where the masks are the same.
            windowed = window_of(layer, family) is not None
            options = {**options, "block_mask": masks[windowed]}
        again = learning and (cut is not None or index >= first + _kept(plan, layers, first))
        if learning and (plan.compiled or again) and not hidden.requires_grad:
            # The first trained layer then runs the same compiled code as the others, and what is recomputed
            # in a backward pass of its own is reached by one.
            hidden = hidden.detach().requires_grad_()
        with torch.set_grad_enabled(learning):
            if again:
                # Without reentrance every tensor that a layer keeps passes through Python twice, and a pack
                # of 8,000 tokens waits for the host.
                hidden = checkpoint(run, layer, hidden, options, use_reentrant=True)
            elif learning and plan.checkpoint == "auto" and plan.kept is None and index > first:
                hidden = _measured(plan, run, layer, hidden, options, len(whole) - first)
            else:
                hidden = run(layer, hidden, options)
    if prune:
        if cut is not None:
            cut.bring(layers[-1])
        rotary = positions[_rope(layers[-1], family)]
        pooled = _last_layer(layers[-1], family, hidden, pack, rotary, plan)
    else:
        pooled = hidden[0, pack.last]
    return decoder.norm(pooled[: pack.rows])


def _rope(layer: Any, family: Architecture) -> str:
    """Which of the decoder's rotary embeddings a layer takes."""
    return layer.self_attn.layer_type if family.ropes > 1 else ""


def _positions(
    decoder: Any, family: Architecture, hidden: Tensor, pack: Pack
) -> dict[str, tuple[Tensor, Tensor]]:
    """Cosines and sines of every rotary embedding of the decoder, by the layers' name for it."""
    kinds = {_rope(layer, family) for layer in decoder.layers}
    named: dict[str, dict[str, str]] = {kind: {"layer_type": kind} if kind else {} for kind in kinds}
    return {
        kind: decoder.rotary_emb(hidden, position_ids=pack.position_ids, **which)
        for kind, which in named.items()
    }


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
    layer: Any,
    family: Architecture,
    hidden: Tensor,
    pack: Pack,
    positions: tuple[Tensor, Tensor],
    plan: Plan,
) -> Tensor:
    """The last layer at the last tokens only: (used documents, hidden).

    Keys and values are computed for all tokens; query, output and MLP, some nine tenths of the work, for
    one token a document.
    """
    attention = layer.self_attn
    residual = hidden[0, pack.last]
    normed = hidden[0] if family.norms == "post" else layer.input_layernorm(hidden)[0]
    query, key, value = _projected(attention, family, normed, pack.last)
    if getattr(attention, "use_rope", True):  # SmolLM3 has layers that know no positions
        cos, sin = (x[0][:, None] for x in positions)
        query = _rotated(query, cos[pack.last], sin[pack.last])
        key = _rotated(key, cos, sin)
    softcap = attention.attn_logit_softcapping if family.capped else None
    window = window_of(layer, family)
    window = None if window is None or pack.max_length <= window else window
    n = len(pack.last)
    bounds, documents, last = pack.cu_seqlens[: n + 1], pack.documents, pack.last
    if pack.key_tokens is not None:
        assert pack.key_seqlens is not None
        assert pack.key_documents is not None
        key, value = repeated(key, pack.key_tokens, 0), repeated(value, pack.key_tokens, 0)
        bounds, documents = pack.key_seqlens[: n + 1], pack.key_documents
        last = bounds[1:] - 1
    if plan.attention in {"varlen", "fa4"} and softcap is None:
        one_each = torch.arange(n + 1, dtype=torch.int32, device=hidden.device)
        left = tokens_before(window, pack.max_length)
        mixed = varlen_heads(
            query, key, value, one_each, bounds, 1, pack.max_length, attention.scaling, (left, -1)
        )
    else:
        mixed = last_token_attention(query, key, value, documents, last, attention.scaling, softcap, window)
    out = attention.o_proj(mixed.reshape(len(mixed), -1))
    if family.norms == "sandwich":
        residual = residual + layer.post_attention_layernorm(out)
        out = layer.mlp(layer.pre_feedforward_layernorm(residual))
        return residual + layer.post_feedforward_layernorm(out)
    if family.norms == "post":
        residual = residual + layer.post_attention_layernorm(out)
        return residual + layer.post_feedforward_layernorm(layer.mlp(residual))
    residual = residual + out
    return residual + layer.mlp(layer.post_attention_layernorm(residual))


def _projected(
    attention: Any, family: Architecture, normed: Tensor, last: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the last tokens, keys and values of all, normed as the family norms them: (n, heads, d)."""
    d = attention.head_dim
    if family.fused:
        width = attention.config.num_attention_heads * d
        query, key, value = attention.qkv_proj(normed).tensor_split(
            (width, width + attention.num_key_value_heads * d), dim=-1
        )
        query = query[last]
    else:
        query, key, value = attention.q_proj(normed[last]), attention.k_proj(normed), attention.v_proj(normed)
    if family.query_key_norm == "all":
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key, value = (x.reshape(len(x), -1, d) for x in (query, key, value))
    if family.query_key_norm == "head":
        query, key = attention.q_norm(query), attention.k_norm(key)
    return query, key, value


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (tokens, heads, d), of its first dimensions where there are fewer angles."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    half = turned.shape[-1] // 2
    rotated = torch.cat((-turned[..., half:], turned[..., :half]), dim=-1)
    turned = turned * cos + rotated * sin
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned
