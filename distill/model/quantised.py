"""Build a quantised base one weight at a time, never holding more full precision than one weight.

``from_pretrained`` may materialise a whole checkpoint before it quantises (transformers #43032). Here the
model is made without weights, and each is read, quantised and put in its place before the next is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from data.console.remote_code import remote_code_allowed
from data.errors import UserError
from distill.config import QUANTISED
from distill.kernels.linear import QuantisedLinear
from distill.model.files import INDEX, SINGLE, shards_of
from distill.model.sharding import CutLayers
from distill.processes import process


class Weights(Protocol):
    """Where weights come from."""

    def __contains__(self, name: str) -> bool:
        """Whether there is a weight of that name."""

    def get(self, name: str, shape: torch.Size, device: torch.device) -> Tensor:
        """Return a weight of the checked shape on a device."""


class Checkpoint:
    """The safetensors files of a checkpoint, read weight by weight.

    Parameters
    ----------
    path : str
        Local directory, or hub name of a checkpoint.
    options : keyword arguments
        ``revision`` and the like, for the hub.

    Raises
    ------
    FileNotFoundError
        The checkpoint has no safetensors.
    """

    def __init__(self, path: str, **options: Any) -> None:
        from safetensors import safe_open

        self.path = path
        index = _file(path, INDEX, options)
        if index is not None:
            shards = shards_of(index)
        else:
            shards = [SINGLE]
        self._shards: dict[str, Path] = {}
        for shard in shards:
            file = _file(path, shard, options)
            if file is None:
                raise FileNotFoundError(f"{path}: holds no {shard}")
            with safe_open(file, framework="pt") as opened:
                self._shards |= dict.fromkeys(opened.keys(), file)

    def __contains__(self, name: str) -> bool:
        return self._stored(name) is not None

    def _stored(self, name: str) -> str | None:
        """The name in the files: a bare decoder's lacks the prefix, a nested one's has more of it."""
        bare = name.removeprefix("model.")
        known = (name, bare, f"language_model.model.{bare}", f"model.language_model.{bare}")
        return next((n for n in known if n in self._shards), None)

    def outputs(self) -> int:
        """How many outputs the checkpoint's own classification head has; 0 where it has none."""
        from safetensors import safe_open

        if "score.weight" not in self._shards:
            return 0
        with safe_open(self._shards["score.weight"], framework="pt") as opened:
            return opened.get_slice("score.weight").get_shape()[0]

    def get(self, name: str, shape: torch.Size, device: torch.device) -> Tensor:
        """Return a weight of the checked shape on a device."""
        from safetensors import safe_open

        stored = self._stored(name)
        if stored is None:
            raise UserError(f"{self.path}: has no weight {name}")
        with safe_open(self._shards[stored], framework="pt", device=str(device)) as opened:
            tensor = opened.get_tensor(stored)
        if tensor.shape != shape:
            raise UserError(f"{self.path}: {name} is {tuple(tensor.shape)}, not {tuple(shape)}")
        return tensor


def _file(path: str, name: str, options: dict[str, Any]) -> Path | None:
    from transformers.utils import cached_file

    found = cached_file(
        path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **options,
    )
    return None if found is None else Path(found)


def build(
    config: Any,
    weights: Weights,
    precision: str,
    dtype: torch.dtype,
    attention: str,
    device: torch.device,
    double_quant: bool = False,
    shard: bool = False,
    task: str = "AutoModelForSequenceClassification",
) -> Any:
    """Return a model of a task's class whose decoder's linear layers are held in ``precision``.

    Parameters
    ----------
    config : PreTrainedConfig
    weights : Weights
        Those of a head are not read: the classifier's is made anew, and zero.
    precision : {"nf4", "int8", "int8_int8", "fp8", "bf16", "fp16", "fp32"}
        ``int8_int8`` is held for int8 products (:mod:`distill.kernels.products`).
    dtype : torch.dtype
        Of everything that is not quantised.
    attention : str
        The library's name of the implementation.
    shard : bool
        Cut the layers over the processes, where there are several (:mod:`distill.model.sharding`).
    task : str
        The library's class that knows the architecture's class for the task.
    """
    import transformers
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = getattr(transformers, task).from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=remote_code_allowed()
        )
    for name, buffer in list(model.named_buffers()):
        parent, leaf = _place(model, name)
        parent._buffers[leaf] = buffer.to(device)
    layers = model.get_decoder().layers
    linear = {
        id(m): number
        for number, layer in enumerate(layers)
        for m in layer.modules()
        if isinstance(m, nn.Linear)
    }
    cut = CutLayers() if shard and process()[1] > 1 else None
    for name, module in list(model.named_modules()):
        if id(module) in linear and precision in (*QUANTISED, "int8_int8"):
            weight = weights.get(f"{name}.weight", module.weight.shape, device).to(dtype)
            bias = None
            if module.bias is not None:
                bias = weights.get(f"{name}.bias", module.bias.shape, device).to(dtype)
            parent, leaf = _place(model, name)
            made = _quantised(weight, bias, precision, dtype, double_quant)
            setattr(parent, leaf, made)
            if cut is not None:
                cut.take(linear[id(module)], made)
            continue
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            full = f"{name}.{leaf}"
            if full.startswith("lm_head.") and full not in weights:
                continue  # tied to the embedding
            if full.startswith("score."):
                value = torch.zeros(parameter.shape, dtype=dtype, device=device)
            else:
                value = weights.get(full, parameter.shape, device).to(dtype)
            module._parameters[leaf] = nn.Parameter(value)
        if cut is not None and id(module) in linear:
            cut.take(linear[id(module)], module)
    model.tie_weights()
    if cut is not None:
        cut.furnish(layers)
        model.get_decoder().cut_layers = cut
    if precision == "nf4":
        _mark_4bit(model, dtype, double_quant)
    return model


def _quantised(
    weight: Tensor, bias: Tensor | None, precision: str, dtype: torch.dtype, double_quant: bool
) -> nn.Linear:
    if precision != "nf4":
        return QuantisedLinear(weight, precision, bias)
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(
        weight.shape[1],
        weight.shape[0],
        bias=False,
        compute_dtype=dtype,
        compress_statistics=double_quant,
        quant_type="nf4",
        device="meta",
    )
    stored: Any = bnb.nn.Params4bit(
        weight, requires_grad=False, quant_type="nf4", compress_statistics=double_quant
    )
    layer.weight = stored.to(weight.device)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def _mark_4bit(model: Any, dtype: torch.dtype, double_quant: bool) -> None:
    """Leave the marks that ``from_pretrained`` leaves; PEFT chooses its layers by them."""
    from transformers import BitsAndBytesConfig

    model.is_loaded_in_4bit = True
    model.config.quantization_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=double_quant,
    )


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds the attribute ``name``, and the attribute's own name."""
    parent, _, leaf = name.rpartition(".")
    return model.get_submodule(parent), leaf
