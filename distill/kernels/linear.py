"""Linear layers of a frozen base and PEFT's adapters around them, by :mod:`distill.kernels.products`.

PEFT's modules stay what they are, with their parameters, names and files; only how they multiply is
exchanged. What the fused product does not know (merged adapters, several at once, DoRA) is left to PEFT.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from distill.kernels.gated import ACTIVATIONS, WIDEST, gated_fp8
from distill.kernels.products import FrozenProduct, LoraProduct, dense
from distill.kernels.rotation import rotated
from distill.kernels.scaled import FP8, quantise_rows
from distill.kernels.unpack import row_scales

LAST = ("o_proj", "down_proj")
"""The linear layers that end a decoder layer's two halves."""
GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")
"""What a gated unit is made of."""
Parts = tuple[str, tuple[int, int], tuple[Tensor, ...]]


class QuantisedLinear(nn.Linear):
    """A frozen linear layer in int8 or row-wise FP8, one scale an output.

    Parameters
    ----------
    weight : Tensor of shape (out, in)
        The full-precision weight.
    kind : {"int8", "int8_int8", "fp8"}
        Of :mod:`distill.kernels.products`.
    bias : Tensor, optional
    """

    scale: Tensor
    turned: Tensor | None

    def __init__(self, weight: Tensor, kind: str, bias: Tensor | None = None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.kind = kind
        if kind == "int8_int8":
            weight = rotated(weight.float())
        stored, scale = quantise_rows(weight, FP8 if kind == "fp8" else torch.int8)
        # Held as bytes: PEFT gives adapters the dtype of a floating-point weight, and FP8 is one.
        self.weight = nn.Parameter(stored.view(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale, persistent=False)
        # The input gradient wants the weight's other layout, and hardware reads only one.
        turned = stored.t().contiguous() if kind == "fp8" and weight.is_cuda else None
        self.register_buffer("turned", turned, persistent=False)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return frozen_product(self, x)


def parts(layer: Any) -> Parts:
    """Return how a linear layer's weight is stored: kind, shape (out, in), tensors."""
    weight: Any = layer.weight
    if isinstance(layer, QuantisedLinear):
        stored = weight.view(FP8) if layer.kind == "fp8" else weight
        turned = () if layer.turned is None else (layer.turned,)
        return layer.kind, (layer.out_features, layer.in_features), (stored, layer.scale, *turned)
    state = getattr(weight, "quant_state", None)
    if state is None:
        return "dense", (weight.shape[0], weight.shape[1]), (weight,)
    tensors = [weight.detach().as_subclass(torch.Tensor), state.absmax]
    if state.nested:
        tensors += [state.state2.code, state.state2.absmax, state.offset]
    shape = (state.shape[0], state.shape[1])
    scale = getattr(layer, "row_scale", None)
    if scale is None:
        return "nf4", shape, tuple(tensors)
    return f"nf4_{layer.multiplied}", shape, (tensors[0], scale, *tensors[1:])


def multiply_in(model: nn.Module, name: str) -> None:
    """Have every NF4 layer's products done in 8 bits (:mod:`distill.kernels.unpack`); before :func:`fuse`.

    Parameters
    ----------
    name : {"fp8", "int8"}
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and hasattr(module.weight, "quant_state"):
            _, shape, (packed, absmax, *nested) = parts(module)
            scale = row_scales(packed, absmax, nested, list(shape), FP8 if name == "fp8" else torch.int8)
            object.__setattr__(module, "row_scale", scale)
            object.__setattr__(module, "multiplied", name)


def is_frozen_linear(module: nn.Module) -> bool:
    """Whether ``module`` is a frozen linear layer whose products we know."""
    if not isinstance(module, nn.Linear) or module.weight.requires_grad:
        return False
    state = getattr(module.weight, "quant_state", None)
    known = state is None or (state.quant_type == "nf4" and state.blocksize == 64)
    return known and (state is not None or module.weight.is_floating_point() or hasattr(module, "kind"))


def frozen_product(layer: Any, x: Tensor) -> Tensor:
    """``layer(x)`` for a frozen linear layer."""
    kind, shape, stored = layer.stored if hasattr(layer, "stored") else parts(layer)
    x = _computed(layer, x)
    y = FrozenProduct.apply(x.reshape(-1, x.shape[-1]), kind, shape, *stored)
    y = y if layer.bias is None else y + layer.bias.to(y.dtype)
    return _delivered(layer, y.view(*x.shape[:-1], shape[0]))


def _computed(layer: Any, x: Tensor) -> Tensor:
    """Input in the dtype of products, which residuals kept in float32 do not have."""
    compute = getattr(layer, "compute", None)
    return x if compute is None else x.to(compute)


def _delivered(layer: Any, y: Tensor) -> Tensor:
    """Output in float32 where it goes, through a norm, into residuals kept so."""
    return y.float() if getattr(layer, "compute", None) is not None and layer.into_residuals else y


class _FusedLora:
    """Mixed into PEFT's LoRA layers: one fused product where a single plain adapter is active."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Multiply by the base and the adapter."""
        active = self.active_adapters
        if self.merged or self.disable_adapters or len(active) != 1 or args or kwargs:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        name = active[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias[name]:
            return super().forward(x)  # type: ignore[misc]
        base = self.base_layer
        x = _computed(base, x)
        a, b = self.lora_A[name].weight.to(x.dtype), self.lora_B[name].weight.to(x.dtype)
        scaling = self.scaling[name]
        dropout = self.lora_dropout[name]
        if self.training and not isinstance(dropout, nn.Identity):
            return frozen_product(base, x) + (dropout(x) @ a.t()) @ b.t() * scaling
        kind, shape, stored = base.stored
        y = LoraProduct.apply(x.reshape(-1, x.shape[-1]), a, b, scaling, kind, shape, *stored)
        y = y if base.bias is None else y + base.bias.to(y.dtype)
        return _delivered(base, y.view(*x.shape[:-1], shape[0]))


class _FusedFrozen:
    """Mixed into quantised layers without an adapter: the fused product."""

    def forward(self: Any, x: Tensor) -> Tensor:
        """Multiply."""
        return frozen_product(self, x)


def _is_gated(module: Any) -> bool:
    """Whether a module is a gated unit with an activation that we know."""
    return all(hasattr(module, name) for name in GATED) and type(module.act_fn).__name__ in ACTIVATIONS


class _FusedGate:
    """Mixed into gated units: in prediction with FP8 weights the output is rounded as it is made."""

    def forward(self: Any, x: Tensor) -> Tensor:
        """Run the unit."""
        down = self.down_proj
        if torch.is_grad_enabled() or not isinstance(down, QuantisedLinear) or down.kind != "fp8":
            return super().forward(x)  # type: ignore[misc]
        kind, shape, stored = parts(down)
        if down.bias is not None or shape[1] > WIDEST:
            return super().forward(x)  # type: ignore[misc]
        gate, up = (layer(x).view(-1, shape[1]) for layer in (self.gate_proj, self.up_proj))
        rounded, scale = gated_fp8(gate, up, ACTIVATIONS[type(self.act_fn).__name__])
        y = torch.ops.distillstack.frozen_mm(rounded, scale, kind, list(stored), list(shape), gate.dtype)
        return _delivered(down, y.view(*x.shape[:-1], shape[0]))


def fused_factors(model: nn.Module) -> list[nn.Parameter]:
    """The adapters' trained factors that fused products cast to the activations' dtype."""
    found: list[nn.Parameter] = []
    for module in model.modules():
        if isinstance(module, _FusedLora):
            lora: Any = module
            found += [layer.weight for pair in (lora.lora_A, lora.lora_B) for layer in pair.values()]
    return [p for p in found if p.requires_grad]


@cache
def _mixed(mixin: Any, cls: Any) -> Any:
    return type(cls.__name__, (mixin, cls), {"__module__": cls.__module__})


def fuse(model: nn.Module, compute: torch.dtype | None = None) -> None:
    """Exchange how the frozen linear layers under ``model`` and the LoRA layers around them multiply.

    Parameters
    ----------
    compute : torch.dtype, optional
        What inputs are cast to first; None leaves them as they come.
    """
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if not hasattr(module, "stored") and is_frozen_linear(module):
            # Plain tensors beside the parameter: a compiled layer need not look into a quantised class.
            object.__setattr__(module, "stored", parts(module))
        if hasattr(module, "stored"):
            object.__setattr__(module, "compute", compute)
            object.__setattr__(module, "into_residuals", any(last in name for last in LAST))
    modules: list[Any] = list(model.modules())
    for module in modules:
        if isinstance(module, LoraLayer) and not isinstance(module, _FusedLora):
            base = module.base_layer
            if isinstance(base, nn.Linear) and hasattr(base, "stored"):
                module.__class__ = _mixed(_FusedLora, module.__class__)
        elif hasattr(module, "stored") and not isinstance(module, (_FusedFrozen, QuantisedLinear)):
            if module.stored[0] == "dense" and module.weight.numel() and compute is None:
                continue
            module.__class__ = _mixed(_FusedFrozen, module.__class__)
        elif _is_gated(module) and not isinstance(module, _FusedGate):
            module.__class__ = _mixed(_FusedGate, module.__class__)


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Add every LoRA layer's active adapter to its base weight for good, in the base's own precision.

    Rounding to NF4 again would make another model, so NF4 bases are refused.
    """
    from peft.tuners.lora import LoraLayer

    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if not isinstance(module, LoraLayer) or not isinstance(module.base_layer, nn.Linear):
                continue
            kind, shape, stored = parts(module.base_layer)
            if kind.startswith("nf4"):
                raise ValueError("adapters cannot be merged into an NF4 base without changing the model")
            if kind == "fp8":
                weight = stored[0].float() * stored[1]
            else:
                weight = dense(kind, list(stored), list(shape), torch.float32)
            lora: Any = module
            for adapter in lora.active_adapters:
                a, b = lora.lora_A[adapter].weight.float(), lora.lora_B[adapter].weight.float()
                weight += lora.scaling[adapter] * (b @ a)
            bias = module.base_layer.bias
            if kind == "dense":
                merged = module.base_layer
                merged.weight.copy_(weight.to(merged.weight.dtype))
            else:
                merged = QuantisedLinear(weight, kind, bias)
                object.__setattr__(merged, "stored", parts(merged))
            setattr(parent, name, merged)


@torch.no_grad()
def quantise_linears(model: nn.Module, kind: str) -> None:
    """Hold the plain linear layers of ``model`` in int8 or FP8 from here on, one after the other."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Linear) and parts(module)[0] == "dense":
                made = QuantisedLinear(module.weight, kind, module.bias)
                for noted, value in (("stored", parts(made)), *_noted(module)):
                    object.__setattr__(made, noted, value)
                setattr(parent, name, made)


def _noted(module: nn.Module) -> list[tuple[str, Any]]:
    """What :func:`fuse` noted on a layer, beside how it is stored."""
    return [(name, getattr(module, name)) for name in ("compute", "into_residuals") if hasattr(module, name)]
