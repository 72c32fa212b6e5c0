"""Load a pretrained backbone as a classifier: quantisation, attention, adapters and the head.

One path for real and tiny checkpoints: ``AutoModelForSequenceClassification.from_pretrained``, then
PEFT. The head (``score``) stays in float32, outside quantisation, and is saved with the adapter
through ``modules_to_save``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.errors import UserError, listing
from data.files import sha256_files, sha256_text
from distill.config import BackboneConfig, LoraConfig
from distill.head import Classifier
from distill.quiet import quiet_transformers

ALL_LINEAR = "all-linear"
SOFTCAPPED = {"gemma2"}

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def compute_dtype(config: BackboneConfig) -> torch.dtype:
    """Return the dtype of matrix products: the base's own, or under nf4 what the hardware does well."""
    wanted = config.compute if config.precision == "nf4" else config.precision
    if wanted in DTYPES:
        return DTYPES[wanted]
    if wanted != "auto":
        raise UserError(f"recipe: compute is {wanted!r}; it is auto or one of {listing(DTYPES)}")
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def attention_for(model_type: str, wanted: str) -> str:
    """Return the attention implementation; soft-capped models never get one that drops the cap.

    transformers 5.17 gives Gemma-2 ``sdpa``, which ignores ``attn_logit_softcapping`` without a word.
    """
    if wanted == "auto":
        return "eager" if model_type in SOFTCAPPED else "sdpa"
    if wanted == "sdpa" and model_type in SOFTCAPPED:
        raise UserError(
            f"recipe: attention sdpa drops the soft-capping of {model_type}; use eager, flex_attention or "
            "flash_attention_2"
        )
    return wanted


def load_tokenizer(config: BackboneConfig, path: str) -> Any:
    """Load the backbone's fast tokenizer."""
    from transformers import AutoTokenizer

    with _named_failures(path):
        return AutoTokenizer.from_pretrained(
            path, revision=config.revision, trust_remote_code=config.trust_remote_code, use_fast=True
        )


def load_base(config: BackboneConfig, path: str, n_classes: int) -> Any:
    """Load the frozen base with a fresh float32 head of ``n_classes`` outputs.

    Returns a ``*ForSequenceClassification`` model in evaluation mode, its head all zeros: a fresh
    classifier predicts the uniform distribution, whatever the scale of the backbone's hidden states.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, BitsAndBytesConfig

    dtype = compute_dtype(config)
    with _named_failures(path):
        options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
        model_config = AutoConfig.from_pretrained(path, num_labels=n_classes, **options)
        options["attn_implementation"] = attention_for(model_config.model_type, config.attention)
        if config.precision == "nf4":
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=dtype,
                bnb_4bit_use_double_quant=config.double_quant,
            )
        if torch.cuda.is_available():
            options["device_map"] = {"": torch.cuda.current_device()}
        with quiet_transformers():
            model = AutoModelForSequenceClassification.from_pretrained(
                path, config=model_config, dtype=dtype, **options
            )
    model.config.use_cache = False
    model.score.to(torch.float32)
    nn.init.zeros_(model.score.weight)
    return model.eval()


def lora_targets(model: Any, lora: LoraConfig) -> tuple[list[str], list[int]]:
    """Resolve ``targets`` and ``first_layer`` into linear-layer names and layer indices.

    Raises
    ------
    UserError
        A target that no decoder layer has.
    """
    layers = model.get_decoder().layers
    found = sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in layers[0].named_modules()
            if isinstance(module, nn.Linear)
        }
    )
    wanted = found if lora.targets == [ALL_LINEAR] else list(lora.targets)
    unknown = sorted(set(wanted) - set(found))
    if unknown:
        raise UserError(
            f"recipe: lora.targets names {listing(unknown)}; the backbone has {listing(found, 12)}"
        )
    return wanted, list(range(round(lora.first_layer * len(layers)), len(layers)))


def add_adapters(model: Any, lora: LoraConfig, seed: int, gradient_checkpointing: bool = False) -> Classifier:
    """Freeze the base, add LoRA adapters (float32) and a trainable head, and wrap as a classifier."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import TaskType, get_peft_model

    torch.manual_seed(seed)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if not lora.enabled:
        return Classifier(model.requires_grad_(True))
    targets, layers = lora_targets(model, lora)
    peft_config = PeftLoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=targets,
        layers_to_transform=layers,
        layers_pattern="layers",
        modules_to_save=["score"],
    )
    return Classifier(get_peft_model(model, peft_config))


def load_trained(
    config: BackboneConfig, path: str, trained: Path, lora_enabled: bool, n_classes: int
) -> Classifier:
    """Load a trained classifier for prediction from the directory that :meth:`Classifier.save` wrote."""
    if not lora_enabled:
        return Classifier(load_full(config, str(trained), n_classes))
    classifier = Classifier(load_base(config, path, n_classes))
    classifier.load(trained)
    return classifier


def load_full(config: BackboneConfig, path: str, n_classes: int) -> Any:
    """Load a fully fine-tuned classifier, its trained head included."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    model_config = AutoConfig.from_pretrained(path)
    if model_config.num_labels != n_classes:
        raise UserError(f"{path}: has {model_config.num_labels} classes, not {n_classes}")
    attention = attention_for(model_config.model_type, config.attention)
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=compute_dtype(config), attn_implementation=attention
        )
    model.config.use_cache = False
    model.score.to(torch.float32)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def weight_hash(path: str, revision: str | None = None) -> str:
    """Hash a checkpoint's weights: file contents of a local one, commit and names of a hub's snapshot."""
    directory = Path(path)
    if directory.is_dir():
        files = sorted([*directory.glob("*.safetensors"), *directory.glob("*.bin")])
        if not files:
            raise UserError(f"{path}: holds no weights (*.safetensors)")
        return sha256_files(files)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path, "config.json", revision=revision)
    if not isinstance(cached, str):
        raise UserError(f"{path}: not in the local cache; download it or give a directory")
    return sha256_text(path, Path(cached).parent.name)


@contextmanager
def _named_failures(path: str) -> Iterator[None]:
    """Turn what a missing or damaged checkpoint raises into a message that names it."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: cannot be loaded as a backbone: {reason}") from error
