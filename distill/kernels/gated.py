"""A gated unit whose output goes straight into an FP8 product: activation, product and rounding in one pass.

A row's scale follows from its largest value, so what the compiler makes of it reads gate and up twice, once
for the scale and once to write: 9 bytes a value. Held in registers between, a row of up to 32,768 values is
read once: 5 bytes. Only prediction is served, where nothing else wants the unit's output; in training the
adapter does.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.kernels.operator import operator
from distill.kernels.scaled import quantise_rows

ACTIVATIONS = {"SiLUActivation": "silu", "SiLU": "silu", "GELUTanh": "gelu"}
"""The library's classes of activations that the kernel knows."""
WIDEST = 32768


@operator("gated_fp8")
def gated_fp8(gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """``activation(gate) * up``, each row rounded to FP8 under a scale of its own.

    Parameters
    ----------
    gate, up : Tensor of shape (m, k)
    activation : {"silu", "gelu"}
        The latter in its tanh form.

    Returns
    -------
    tuple of Tensor
        (m, k) FP8 and (m, 1) float32.
    """
    if gate.is_cuda:
        from distill.kernels.gated_triton import launch

        return launch(gate.contiguous(), up.contiguous(), activation)
    wide = gate.float()
    acted = F.silu(wide) if activation == "silu" else F.gelu(wide, approximate="tanh")
    return quantise_rows(acted * up.float())


@torch.library.register_fake(gated_fp8)
def _(gate, up, activation):  # type: ignore[no-untyped-def]
    return gate.new_empty(gate.shape, dtype=torch.float8_e4m3fn), gate.new_empty(
        (gate.shape[0], 1), dtype=torch.float32
    )
