"""A trained run as one plain model: adapters merged, fold students averaged, nothing left to unpack.

Low-rank changes are averaged as the changes that they are, the mean of the products B·A, and never factor
by factor: mean(B)·mean(A) is another matrix. A quantised base is written out in the values that it computed
with, so that the plain model is the one that was trained and scored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.console.remote_code import remote_code_allowed
from data.errors import UserError
from distill.config import ModelConfig
from distill.kernels.linear import dense, parts
from distill.model.backbone import load_trained, read_configuration
from distill.model.held import compute_dtype
from distill.model.padded import head_of
from distill.model.verdict import VerdictClassifier
from distill.quiet import quiet_transformers
from distill.teaching.trust import check_weights


@torch.no_grad()
def plain_state(model: Any, compute: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Weights of a classifier, adapters merged, under the names of its plain class; float32, on the CPU.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        Not changed.
    compute : torch.dtype
        What NF4 weights were multiplied in, so that they are rounded here as they were there.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    state: dict[str, torch.Tensor] = {}

    def visit(module: nn.Module, prefix: str) -> None:
        if isinstance(module, ModulesToSaveWrapper):
            visit(module.modules_to_save[module.active_adapters[0]], prefix)
            return
        if isinstance(module, LoraLayer):
            base: Any = module.base_layer
            weight = _written_out(base, compute)
            for name in module.active_adapters:
                if name in module.lora_variant:
                    raise UserError("only plain LoRA adapters can be merged; this run has another kind")
                a: Any = module.lora_A[name].weight
                b: Any = module.lora_B[name].weight
                weight += module.scaling[name] * (b.float() @ a.float())
            state[f"{prefix}weight"] = weight.cpu()
            if base.bias is not None:
                state[f"{prefix}bias"] = base.bias.float().cpu()
            return
        if isinstance(module, nn.Linear):
            state[f"{prefix}weight"] = _written_out(module, compute).cpu()
            if module.bias is not None:
                state[f"{prefix}bias"] = module.bias.float().cpu()
            return
        for name, parameter in module.named_parameters(recurse=False):
            state[prefix + name] = parameter.float().cpu()
        for name, child in module.named_children():
            visit(child, f"{prefix}{name}.")

    visit(inner, "")
    return state


def _written_out(layer: nn.Module, compute: torch.dtype) -> torch.Tensor:
    """A linear layer's weight in float32, whatever it is stored in; a tensor of its own."""
    kind, shape, found = parts(layer)
    stored: Any = found
    if kind == "fp8":
        return stored[0].float() * stored[1]
    return dense(kind, list(stored), list(shape), compute if kind == "nf4" else torch.float32).float().clone()


def merged_model(
    config: ModelConfig,
    backbone: str,
    weights: list[Path],
    n_classes: int,
    dtype: torch.dtype,
    accepted: bool = False,
) -> Any:
    """Return one plain ``*ForSequenceClassification`` model: the mean of the trained ones.

    Parameters
    ----------
    backbone : str
        The checkpoint that they were trained from.
    weights : list of Path
        Trained weights, as :meth:`distill.model.classifier.Classifier.save` wrote them.
    dtype : torch.dtype
        Of the result; its head stays float32 only if this is float32.
    accepted : bool
        Whether weights are taken that are not as they were recorded.
    """
    from transformers import AutoModelForSequenceClassification

    total: dict[str, torch.Tensor] = {}
    for path in weights:
        check_weights(path, accepted)
        trained = load_trained(config.backbone, backbone, path, config.lora.enabled, n_classes, False)
        state = plain_state(trained.model, compute_dtype(config.backbone))
        if isinstance(trained, VerdictClassifier):
            state["score.weight"] = trained.as_score(state.pop("lm_head.weight"))
        for name, tensor in state.items():
            total[name] = tensor if name not in total else total[name].add_(tensor)
        del trained
    model_config = read_configuration(backbone, config.backbone.revision).get_text_config()
    model_config.num_labels = n_classes
    with quiet_transformers():
        plain = AutoModelForSequenceClassification.from_config(
            model_config, attn_implementation="eager", trust_remote_code=remote_code_allowed()
        ).to(dtype)
    state = {name: (tensor / len(weights)).to(dtype) for name, tensor in total.items()}
    missing, unexpected = plain.load_state_dict(state, strict=False)
    tied = set(getattr(plain, "all_tied_weights_keys", None) or ())
    if unexpected or set(missing) - tied - {name for name, _ in plain.named_buffers()}:
        raise UserError(f"{backbone}: its weights do not fit {type(plain).__name__}: {missing} {unexpected}")
    return plain.eval()


@torch.no_grad()
def fold_temperature(plain: Any, temperature: float) -> None:
    """Divide a plain classifier's logits by a temperature for good: in the weights and bias of its head."""
    last = head_of(plain)[1]
    last.weight.div_(temperature)
    if last.bias is not None:
        last.bias.div_(temperature)
