"""A gated unit rounded as it is made is the unit, then rounded."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP
from transformers.models.llama.modeling_llama import LlamaMLP

from distill.kernels.linear import QuantisedLinear, _FusedGate, fuse
from distill.kernels.scaled import quantise_rows


@pytest.mark.parametrize(("kind", "family"), [(LlamaMLP, "llama"), (Gemma2MLP, "gemma2")])
def test_it_is_the_unit_then_rounded_in_prediction_alone(kind, family):
    config = AutoConfig.for_model(family, hidden_size=32, intermediate_size=64)
    unit = kind(config)
    torch.manual_seed(0)
    for name in ("gate_proj", "up_proj", "down_proj"):
        setattr(unit, name, QuantisedLinear(torch.randn(getattr(unit, name).weight.shape), "fp8"))
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        plain = unit(x)
        gate, up = unit.gate_proj(x), unit.up_proj(x)
        acted = F.silu(gate) if family == "llama" else F.gelu(gate, approximate="tanh")
        fuse(unit)
        assert isinstance(unit, _FusedGate)
        found = unit(x)
        values, scale = quantise_rows((acted * up).view(10, 64))
        weight = unit.down_proj.weight.view(torch.float8_e4m3fn).float() * unit.down_proj.scale
        wanted = (values.float() * scale) @ weight.T
    torch.testing.assert_close(found, wanted.view(2, 5, 32), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)
    x.requires_grad_()
    unit(x).sum().backward()
    assert x.grad.abs().sum() > 0
