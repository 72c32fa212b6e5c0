"""Operators keep what the dispatcher trusts them in: schemas, shapes for the compiler, fresh results."""

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from distill.kernels import gated, products, rotation
from distill.kernels.linear import QuantisedLinear, multiply_in, parts
from distill.kernels.operator import operator

SEEN = ("test_schema", "test_faketensor")
OUT, IN, TOKENS, RANK = 64, 128, 6, 4


def layer(kind):
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0))
    if kind == "dense":
        made = nn.Linear(IN, OUT, bias=False)
        made.weight = nn.Parameter(weight, requires_grad=False)
    elif kind.startswith("nf4"):
        made = bnb.nn.Linear4bit(IN, OUT, bias=False, quant_type="nf4")
        made.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4").to("cpu")
        if kind != "nf4":
            multiply_in(made, kind.removeprefix("nf4_"))
    else:
        made = QuantisedLinear(weight, kind)
    return parts(made)


@pytest.mark.parametrize("kind", ["dense", "nf4", "nf4_fp8", "nf4_int8", "fp8", "int8", "int8_int8"])
def test_products_are_what_they_are_registered_as(kind):
    named, shape, stored = layer(kind)
    assert named == kind
    x, dy = torch.randn(TOKENS, IN), torch.randn(TOKENS, OUT)
    a, b = torch.randn(RANK, IN), torch.randn(OUT, RANK)
    rounded, x_scale = products._rounded(kind, x)
    factors = stored[1].t() if kind in products.ROUNDED else None
    dy_rounded, dy_scale = products._rounded(kind, dy, factors)
    of_base = kind, list(stored), list(shape)
    ops, given = torch.ops.distillstack, x if rounded is None else rounded
    back = dy if dy_rounded is None else dy_rounded
    for op, args in (
        (ops.frozen_mm, (given, x_scale, *of_base, x.dtype)),
        (ops.frozen_mm_backward, (back, dy_scale, *of_base, x.dtype)),
        (ops.lora_mm, (x, rounded, x_scale, *of_base, a, b, 0.5)),
        (ops.lora_mm_backward, (dy, dy_rounded, dy_scale, x, x @ a.t(), *of_base, a, b, 0.5, True)),
        (ops.lora_mm_backward, (dy, None, None, x, x @ a.t(), *of_base, a, b, 0.5, False)),
    ):
        # A CPU cannot multiply FP8, as the look at schemas does.
        torch.library.opcheck(op.default, args, test_utils=SEEN[1:] if "fp8" in kind else SEEN)


def test_roundings_are_what_they_are_registered_as():
    gate, up = torch.randn(2, TOKENS, IN)
    torch.library.opcheck(gated.gated_fp8, (gate, up, "silu"), test_utils=SEEN)
    torch.library.opcheck(rotation.quantise_rotated, (gate,), test_utils=SEEN)


def test_a_result_that_is_an_input_is_found():
    """What is no longer looked for at every call, this file would see."""

    @operator("an_input_of_a_test")
    def returned(x: torch.Tensor) -> torch.Tensor:
        return x

    with pytest.raises(Exception, match=r"(?i)alias"):
        torch.library.opcheck(returned, (torch.randn(3),), test_utils=SEEN)
