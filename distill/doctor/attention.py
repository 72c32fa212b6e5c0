"""Checks of attention and numerics: soft-capping, windows, rope, overflow, quantisation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from data.errors import brief
from distill.doctor.finding import Finding, check, failed, passed, warned
from distill.doctor.small import TEXT, TOLERANCE, plain_model, some_ids
from distill.doctor.subject import Subject
from distill.kernels.agreement import Heads, gaps_to_formula
from distill.model import backbone as loading
from distill.model.padded import head_of

FP16_MAX = 65504.0
KERNEL_TOLERANCE = 0.1
"""Rounding in bf16 is up to .06 where attention is so sharp; a lost cap is .17."""
KEEP_IN_FLOAT = ("score", "classifier", "lm_head")


def attention_in_use(subject: Subject) -> str | None:
    """The attention implementation that would run; None is the library's default."""
    if subject.plain or (subject.is_encoder and not subject.family.refused):
        return None
    return loading.attention_name(subject.model.backbone, subject.config)


@check("attention", "config")
def attention_backend(subject: Subject) -> Finding | None:
    """The attention in use computes what eager attention does, soft-capping and window included.

    Source: transformers 5.17 gives Gemma-2 sdpa by default, which drops soft-capping without a word
    (logits off by 2.9 on a tiny model); 5.23 refuses sdpa. ``--plain`` judges the library's default.
    """
    wanted = attention_in_use(subject)
    model = plain_model(subject, "eager")
    _sharpen(model)
    ids = torch.from_numpy(np.concatenate(some_ids(subject, model)))[None]
    with torch.no_grad():
        exact = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    name = wanted or "the library's default"
    if (wanted or "").startswith(("flex", "flash", "fa4", "varlen")):
        if not torch.cuda.is_available():
            return passed(f"{wanted}: runs on CUDA only, not compared here")
        return kernel_in_packs(subject, str(wanted))
    try:
        other = plain_model(subject, wanted)
        _sharpen(other)
        with torch.no_grad():
            got = other(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    except (ValueError, ImportError) as error:
        return failed(
            f"{name} cannot be used: {str(error).splitlines()[0][:120]}",
            "it cannot run at all",
            "use attention: auto, eager or flex_attention",
        )
    gap = float((got - exact).abs().max() / exact.abs().max())
    used = other.config._attn_implementation
    if gap < TOLERANCE:
        return passed(f"{used} equals eager to {gap:.0e}")
    capped = getattr(subject.config, "attn_logit_softcapping", None)
    why = f", it drops soft-capping at {capped:g}" if capped else ""
    return failed(
        f"{used} differs from eager by {gap:.2f} of the logits{why}",
        "a different model; grows with attention logits",
        "use eager, flex_attention, or FlashAttention with soft-capping"
        if capped
        else "use attention: eager",
    )


def kernel_in_packs(subject: Subject, attention: str) -> Finding:
    """Judge a kernel for packs by the formula, with the model's heads, cap and window felt."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        gaps = gaps_to_formula(attention, device, torch.bfloat16, Heads.of(subject.config), sharpness=30)
    except Exception as error:  # a kernel raises what its author liked
        return failed(
            f"{attention} cannot be used: {brief(error, 120)}",
            "it cannot run at all",
            "use attention: auto, or eager",
        )
    seen = f"{attention} in packs equals the formula to {gaps[0]:.0e}, its gradients to {max(gaps[1:]):.0e}"
    if max(gaps) < KERNEL_TOLERANCE:
        return passed(seen)
    return failed(seen, "a different model", "use attention: eager, and report torch's and CUDA's versions")


def _sharpen(model: Any) -> None:
    """Enlarge attention logits so that a soft cap matters, and narrow the window so that it is felt."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith("q_proj"):
                module.weight.mul_(20 / module.weight.norm(dim=1).mean())
            if getattr(module, "sliding_window", None):
                module.sliding_window = 8
    if getattr(model.config, "sliding_window", None):
        model.config.sliding_window = 8


@check("attention", "decoder")
def softcap_configured(subject: Subject) -> Finding | None:
    """A Gemma-2 configuration still asks for its soft-capping.

    Source: google/gemma-2-9b config.json: 50 on attention logits, 30 on final logits.
    """
    config = subject.config
    wanted = subject.family.caps
    if not wanted:
        return None
    values = {key: getattr(config, key, None) for key in wanted}
    lost = [key for key, value in values.items() if value is None]
    if lost:
        return failed(
            f"{' and '.join(lost)} missing", "a different model", f"restore {wanted} in config.json"
        )
    return passed(
        f"attention {values['attn_logit_softcapping']:g}, final {values['final_logit_softcapping']:g}"
    )


@check("attention", "decoder")
def sliding_window(subject: Subject) -> Finding | None:
    """The sliding window is irrelevant at the declared length, the published one, or known to cut.

    Source: Gemma-2 alternates a window of 4,096 with full attention: a no-op up to 4,096 tokens. Gemma-3 has
    one of 512 or 1,024 in five layers of six, with which it was trained.
    """
    config, family = subject.config, subject.family
    window = getattr(config, "sliding_window", None)
    if not window or not getattr(config, "use_sliding_window", True):
        return None
    longest = subject.model.encode.max_length
    kinds = getattr(config, "layer_types", None) or []
    period = getattr(config, "_sliding_window_pattern", None) or 2
    if family.mixed and len(set(kinds)) == 1 and len(kinds) >= period:
        return failed(f"every layer is {kinds[0]}", "a different model", "restore alternating layer_types")
    if longest <= window:
        return passed(f"window {window}, rows up to {longest} tokens: it never cuts")
    windowed = kinds.count("sliding_attention") if kinds else config.num_hidden_layers
    shown = f"window {window}, rows up to {longest} tokens"
    if family.mixed and window >= family.least_window:
        whole = len(kinds) - windowed
        return passed(
            f"{shown}: in {windowed} of {len(kinds)} layers, as published; {whole} see all of a row"
        )
    report = failed if window < family.least_window else warned
    return report(
        f"{shown}: {windowed} of {config.num_hidden_layers} layers see only the last {window}",
        "the prompt is out of sight at the verdict cue in those layers",
        "restore the window of the published config.json"
        if report is failed
        else f"encode.max_length: {window}, if the prompt must be in sight",
    )


@check("attention", "decoder")
def rope_scaling(subject: Subject) -> Finding | None:
    """The rotary frequencies are those that the configuration, and for Llama-3.1 the model card, ask for.

    Source: meta-llama/Llama-3.1-8B config.json (rope_type llama3, factor 8); dropping it is silent.
    """
    config = subject.config
    rope = dict(getattr(config, "rope_parameters", None) or {})
    if not rope or any(isinstance(value, dict) for value in rope.values()):
        return None
    kind = rope.get("rope_type", "default")
    unscaled = subject.family.unscaled
    published = subject.family.tiny.get("rope_parameters", {}).get("rope_theta")
    long = unscaled and config.max_position_embeddings > unscaled
    if long and kind == "default" and rope.get("rope_theta") == published:  # other bases are other models
        return failed(
            f"{config.max_position_embeddings} positions and no rope scaling",
            "long rows are read at frequencies the model never saw",
            "restore rope_scaling (llama3, factor 8, 1, 4, original 8192) in config.json",
        )
    if kind not in {"default", "llama3"}:
        return passed(f"{kind}: not recomputed here")
    model = plain_model(subject)
    found = model.get_decoder().rotary_emb.inv_freq.double()
    own = rotary_frequencies(2 * len(found), rope)
    gap = max(abs(float(f) / o - 1) for f, o in zip(found, own, strict=True))
    if gap < 1e-3:
        return passed(f"{kind}, theta {rope.get('rope_theta'):g}")
    return failed(
        f"frequencies are off by up to {gap:.0%} of what config.json asks",
        "positions are misread",
        "upgrade transformers, or do not cast the model's buffers",
    )


def rotary_frequencies(dim: int, rope: dict[str, Any]) -> list[float]:
    """Rotary frequencies by the published formulas: plain, or Llama-3.1's piecewise scaling."""
    base = float(rope.get("rope_theta", 10000.0))
    plain = [base ** (-2 * i / dim) for i in range(dim // 2)]
    if rope.get("rope_type", "default") == "default":
        return plain
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    scaled = []
    for f in plain:
        turns = original * f / (2 * math.pi)
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        scaled.append((1 - smooth) * f / factor + smooth * f)
    return scaled


@check("attention", "config")
def activations_fit_dtype(subject: Subject) -> Finding | None:
    """No activation on real text exceeds the range of the dtype the model is to run in.

    Source: Gemma overflows in fp16 (transformers #36822, accelerate #1333).
    """
    backbone = subject.model.backbone
    half = "fp16" in {backbone.precision, backbone.compute if backbone.precision == "nf4" else ""}
    stored = str(subject.raw_config.get("dtype") or subject.raw_config.get("torch_dtype") or "")
    half = half or (subject.plain and stored == "float16")
    if half and subject.family.overflows:
        if not subject.plain and backbone.packed and subject.family.wide_residuals:
            return passed(f"{subject.family.name} in fp16, its residuals in float32")
        return failed(
            f"{subject.config.model_type} in fp16",
            "overflow to inf and NaN (transformers #36822)",
            "precision or compute bf16; on cards without it fp32"
            + (", or packed: true" if subject.family.wide_residuals else ""),
        )
    model = plain_model(subject)
    peaks: list[float] = []
    for module in model.modules():
        module.register_forward_hook(lambda _m, _i, out: peaks.append(_peak(out)))
    ids = torch.from_numpy(np.concatenate(some_ids(subject, model)))[None]
    if subject.tokenizer is not None and subject.has_weights:
        ids = torch.tensor([subject.tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    peak = max(peaks)
    layers = model.config.num_hidden_layers
    shown = f"largest activation {peak:.3g} over {layers} layers, fp16 holds {FP16_MAX:.0f}"
    if not math.isfinite(peak):
        return failed(shown, "NaN logits", "the weights themselves are damaged: download them again")
    if half and peak > FP16_MAX / 4:
        return failed(shown, "overflow to inf and NaN", "use bf16, or fp32 where the card lacks it")
    if peak > FP16_MAX:
        return warned(shown, "none in bf16 and fp32; NaN in fp16", "do not run it in fp16")
    return passed(shown)


def _peak(out: Any) -> float:
    tensor = out[0] if isinstance(out, tuple) else getattr(out, "last_hidden_state", out)
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        return 0.0
    return float(torch.nan_to_num(tensor, nan=math.inf).abs().max())


@check("attention", "config")
def four_bit_settings(subject: Subject) -> Finding | None:
    """A 4-bit checkpoint is nf4 computing in bf16 or fp16, with the head left out of quantisation.

    Source: ``BitsAndBytesConfig`` defaults to fp4 with float32 compute; a custom
    ``llm_int8_skip_modules`` replaces the default list, and the head becomes 4-bit.
    """
    found = subject.raw_config.get("quantization_config") or {}
    if not found.get("load_in_4bit"):
        return None
    kind = found.get("bnb_4bit_quant_type", "fp4")
    compute = str(found.get("bnb_4bit_compute_dtype", "float32"))
    skipped = found.get("llm_int8_skip_modules")
    if skipped is not None and not set(KEEP_IN_FLOAT[:2]) & set(skipped):
        return failed(
            f"llm_int8_skip_modules {skipped} leaves the head to be quantised",
            "forward fails, or the head never learns",
            'pass ["score", "lm_head"], or nothing',
        )
    if kind != "nf4":
        return failed(f"quant type {kind}", "coarser weights than nf4", 'bnb_4bit_quant_type="nf4"')
    if compute == "float32":
        return failed(
            "computes in float32",
            "several times slower on a GPU, no better weights",
            "bnb_4bit_compute_dtype=bfloat16 (float16 on cards without it)",
        )
    return passed(f"{kind}, computes in {compute}")


@check("attention", "decoder")
def head_stays_float32(subject: Subject) -> Finding | None:
    """Loaded as declared, the head is float32 and plain, and the decoder's layers alone are quantised.

    Source: bitsandbytes skips the head only while ``llm_int8_skip_modules`` is left alone.
    """
    if subject.model.backbone.precision == "nf4" and subject.config.hidden_size % 64:
        return None
    config = replace(subject.model.backbone, path=subject.small, tiny=None, revision=None, head="score")
    model = loading.load_base(config, subject.small, 3)
    head = head_of(model)[1]
    linear = [m for m in model.get_decoder().modules() if isinstance(m, nn.Linear)]
    quantised = sum(type(m).__name__ != "Linear" for m in linear)
    if type(head) is not nn.Linear or head.weight.dtype != torch.float32:
        return failed(
            f"the head is {type(head).__name__} in {head.weight.dtype}",
            "it learns in coarse steps, or not at all",
            "keep it out of quantisation and cast it to float32",
        )
    return passed(f"float32; {quantised} of {len(linear)} decoder layers quantised ({config.precision})")
