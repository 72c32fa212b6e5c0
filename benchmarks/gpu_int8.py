"""Products of an 8B's shapes in bf16, FP8 and int8: a part of :mod:`benchmarks.gpu_engine`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu_model import CUDA, DEVICE, config_of, repeat
from distill.kernels.products import dense
from distill.kernels.rotation import quantise_rotated, rotated, rotated_mm
from distill.kernels.scaled import LARGEST, by_torch, quantise_rows, scaled_mm, turned


def products(tell: Callable[..., None]) -> None:
    """Times in microseconds of each shape, forward and turned, and what int8 costs beside the product."""
    c = config_of("llama")
    m, total = (16384, 0.0) if CUDA else (32, 0.0)
    times = dict.fromkeys(("bf16", "fp8", "int8", "int8_torch", "int8_sums"), 0.0)
    qkv = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
    for n, k in (qkv, c.hidden_size), (c.intermediate_size, c.hidden_size):
        for out, into in ((n, k), (k, n)):
            x = torch.randn(m, into, device=DEVICE, dtype=torch.bfloat16)
            w = torch.randn(out, into, device=DEVICE, dtype=torch.bfloat16)
            fp8, int8 = ((*quantise_rows(x, d), *quantise_rows(w, d)) for d in LARGEST)
            one = {
                "bf16": repeat(lambda x=x, w=w: x @ w.t()),
                "fp8": repeat(lambda q=fp8: scaled_mm(*q, torch.bfloat16)),
                "int8": repeat(lambda q=int8: scaled_mm(*q, torch.bfloat16)),
                "int8_torch": repeat(lambda q=int8: by_torch(*q, torch.bfloat16)),
                "int8_sums": repeat(lambda q=int8: torch._int_mm(q[0], q[2].t())),
            }
            found, wanted = (how(*int8, torch.float32) for how in (scaled_mm, by_torch))
            tell(outputs=out, inputs=into, equal=bool(torch.equal(found, wanted)),
                 gap=float((found - wanted).norm() / wanted.norm()),
                 **{f"us_{name}": round(1e6 * seconds) for name, seconds in one.items()})  # fmt: skip
            total += 2.0 * m * out * into
            times = {name: seconds + one[name] for name, seconds in times.items()}
            tell(
                us_rounding=round(1e6 * repeat(lambda x=x: quantise_rotated(x))),
                us_rounding_plain=round(1e6 * repeat(lambda x=x: quantise_rows(x, torch.int8))),
                us_rotating=round(1e6 * repeat(lambda x=x: rotated(x))),
                us_rotated_product=round(1e6 * repeat(lambda q=int8: rotated_mm(*q, torch.bfloat16))),
                us_turning=round(1e6 * repeat(lambda q=int8: turned(q[2]))),
                us_written_out=round(
                    1e6 * repeat(lambda q=int8: dense("int8", [q[2], q[3]], [0, 0], torch.bfloat16))
                ),
            )
            values, scale = quantise_rotated(x)
            exact, exact_scale = quantise_rows(rotated(x.float()), torch.int8)
            tell(rounded_equal=float((values == exact).float().mean()),
                 rounded_worst=int((values.int() - exact.int()).abs().max()),
                 scale_gap=float((scale / exact_scale - 1).abs().max()))  # fmt: skip
    tell(**{f"{name}_tops": round(total / t / 1e12, 1 if CUDA else 6) for name, t in times.items()})
    if CUDA:
        from distill.kernels.scaled_triton import _quickest

        tell(tiles={str(key[:2]): str(tile) for key, tile in _quickest.cache.items()})
