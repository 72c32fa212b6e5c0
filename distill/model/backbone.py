"""Load a pretrained backbone as a classifier: quantisation, attention, adapters and the head.

One path for real and tiny checkpoints: ``AutoModelForSequenceClassification.from_pretrained``, then
PEFT. The head (``score``) stays in float32, outside quantisation, and is saved with the adapter
through ``modules_to_save``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.console.lacking import wanting
from data.console.remote_code import in_words, refused, remote_code_allowed
from data.errors import UserError, brief, listing
from data.files import sha256_files, sha256_text
from distill.architectures import HEADS, NESTED, PACKED, POOLERS, architecture
from distill.config import CHECKPOINTING, QUANTISED, BackboneConfig, LoraConfig
from distill.kernels.choice import attention_for, registered
from distill.kernels.linear import multiply_in
from distill.model.classifier import Classifier
from distill.model.files import weight_files
from distill.model.held import SINCE, check_card, compute_dtype, held_in
from distill.model.padded import blocks_of, head_of, poolers_of, wrap
from distill.model.quantised import Checkpoint, build
from distill.model.verdict import verdict_ids
from distill.quiet import quiet_transformers

ALL_LINEAR = "all-linear"
HUB_SECONDS = 10.0
"""How long the hub may take to say that it is there."""
CPU = torch.device("cpu")
TASKS = {"score": "AutoModelForSequenceClassification", "tokens": "AutoModelForCausalLM"}
"""The library's class for each head."""


def load_tokenizer(config: BackboneConfig, path: str) -> Any:
    """Load the backbone's fast tokenizer, by the same road as ``python -m data.prepare``."""
    from data.encoding import tokenizer

    return tokenizer.load_tokenizer(path, revision=config.revision)


def model_type(config: BackboneConfig, path: str) -> str:
    """Return the checkpoint's architecture by the library's name for it."""
    return read_configuration(path, config.revision).model_type


def read_configuration(path: str, revision: str | None = None, **changes: Any) -> Any:
    """Read a checkpoint's configuration.

    Parameters
    ----------
    changes : keyword arguments
        Fields to set in it, such as ``num_labels``.

    Raises
    ------
    UserError
        There is none, it is damaged, or the checkpoint is one that no precision can be trained from.
    """
    from transformers import AutoConfig

    with _named_failures(path):
        found = AutoConfig.from_pretrained(
            path, revision=revision, trust_remote_code=remote_code_allowed(), **changes
        )
    for part in (found, found.get_text_config()):
        quantised = getattr(part, "quantization_config", None)
        if quantised is not None:
            given = quantised if isinstance(quantised, dict) else quantised.to_dict()
            how = brief(given.get("quant_method", "unknown"), 40)
            raise UserError(
                f"{path}: its weights were saved quantised ({how}); "
                "give the original checkpoint in 16 or 32 bits, and the precision in the recipe"
            )
    pad = found.get_text_config().pad_token_id
    if pad is not None and type(pad) is not int:  # which some versions of the library pass on
        raise UserError(f"{path}: cannot be loaded as a model: its config.json has pad_token_id {brief(pad)}")
    if Path(path).is_dir():
        weight_files(Path(path))
    return found


def load_base(config: BackboneConfig, path: str, n_classes: int, multiplies: bool = True) -> Any:
    """Load the frozen base with a fresh float32 head of ``n_classes`` outputs.

    ``multiplies`` is whether it is to compute anything here, which the card must have the products for.

    Returns a ``*ForSequenceClassification`` model in evaluation mode, its head all zeros: a fresh
    classifier predicts the uniform distribution, whatever the scale of the backbone's hidden states. With
    ``head: tokens`` a ``*ForCausalLM`` model that carries its ``verdict_ids``.
    """
    import transformers

    if multiplies:
        check_card(config, "recipe")
    task = TASKS[config.head]
    dtype = compute_dtype(config)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else CPU
    with _named_failures(path), quiet_transformers():
        options: dict[str, Any] = {"revision": config.revision}
        found = read_configuration(path, config.revision, num_labels=n_classes)
        model_config = found.get_text_config()
        if model_config is not found:  # the text model alone, of a checkpoint that holds others beside it
            model_config.num_labels = n_classes
            options["key_mapping"] = {NESTED.pattern: "model."}
        attention = _attention(config, model_config)
        if config.precision in QUANTISED or config.shard:
            if architecture(model_config.model_type).encoder:
                raise UserError(
                    f"recipe: {config.precision} is for decoders; {model_config.model_type} takes bf16, fp32"
                )
            weights = Checkpoint(path, revision=config.revision)
            model = build(
                model_config,
                weights,
                held_in(config),
                dtype,
                attention,
                device,
                config.double_quant,
                config.shard,
                task,
            )
        else:
            model = _whole(
                getattr(transformers, task),
                path,
                fresh_head=True,
                config=model_config,
                dtype=dtype,
                attn_implementation=attention,
                device_map={"": device},
                **options,
            )
    if config.head == "tokens":
        model.verdict_ids = verdict_ids(load_tokenizer(config, path), config.verdicts, n_classes)
    return prepared(model, config)


@cache
def tell_replaced_head(path: str, revision: str | None, called: str, n_classes: int) -> None:
    """Say once that a checkpoint has a head, as reward models do, which is not the one that is trained.

    Parameters
    ----------
    path : str
        Where it is read from.
    called : str
        What the user knows it by: a copy that was cut from it has a name of ours.
    """
    outputs = Checkpoint(path, revision=revision).outputs()
    if outputs:
        logging.getLogger(__name__).warning(
            "%s: has a head of %d outputs; it is replaced by a fresh one of %d classes",
            called,
            outputs,
            n_classes,
        )


def _whole(kind: Any, path: str, fresh_head: bool, **options: Any) -> Any:
    """Load a checkpoint by its class, and see that the file had every weight: the library makes up others.

    Parameters
    ----------
    fresh_head : bool
        Whether the head, and what pools for it, may be missing or of another size: it is made anew.
    """
    model, found = kind.from_pretrained(
        path,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        trust_remote_code=remote_code_allowed(),
        **options,
    )
    made_up = [*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])]
    if "key_mapping" in options:
        model._weight_conversions = None  # what is saved is a text model, by a text model's names
    if fresh_head:
        made_up = [name for name in made_up if not {*HEADS, *POOLERS} & set(name.split("."))]
    if made_up:
        raise UserError(
            f"{path}: its weights lack, or have in another size, {listing(sorted(made_up))}; is config.json "
            "another model's, or a file damaged?"
        )
    return model


def check_vocabulary(config: BackboneConfig, path: str, highest: int) -> None:
    """Refuse token ids that the backbone has no embedding for."""
    size = read_configuration(path, config.revision).get_text_config().vocab_size
    if highest >= size:
        raise UserError(
            f"{path}: its tokenizer makes the token {highest}, and its config.json has a vocabulary of "
            f"{size}; tokenizer and weights are not of one model"
        )


def prepared(model: Any, config: BackboneConfig) -> Any:
    """Give a base its fresh head, and the settings that do not come with a checkpoint."""
    _configure(model, config)
    if config.head == "tokens":
        return model.eval()
    last = head_of(model)[1]
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)
    return model.eval()


def _configure(model: Any, config: BackboneConfig) -> None:
    """Note on a loaded model how it is to be run; a decoder's head computes in float32."""
    model.config.use_cache = False
    model.compile_layers = _compiles(config)
    if config.compute in SINCE:
        multiply_in(model, config.compute)
    model.padded = not packs(config, model.config.model_type)
    if not architecture(model.config.model_type).encoder and config.head == "score":
        model.score.to(torch.float32)


def packs(config: BackboneConfig, model_type: str) -> bool:
    """Whether a model of this architecture runs in packs."""
    return config.packed and not architecture(model_type).encoder


def attention_name(config: BackboneConfig, model_config: Any) -> str:
    """Attention implementation of a backbone: ours in packs, the library's own in padded batches."""
    model_type = model_config.model_type
    family = architecture(model_type)
    if family.refused:
        raise UserError(f"recipe: backbones of type {model_type} cannot be trained: {family.refused}")
    if packs(config, model_type):
        if not family.packed:
            raise UserError(
                f"recipe: backbones of type {model_type} do not run in packs, which are for "
                f"{listing(PACKED, len(PACKED))}; set backbone.packed to false"
            )
        wanted = config.attention
        if wanted == "auto" and compute_dtype(config) == torch.float32:
            # The kernels for packs want 16 bits; on any device float32 is for checking, not for speed.
            wanted = "eager" if family.capped else "sdpa"
        return attention_for(model_config, wanted)
    if config.attention == "auto":
        return "eager" if family.eager_only else "sdpa"
    if family.capped and config.attention == "sdpa":
        raise UserError(f"recipe: attention sdpa drops the soft-capping of {model_type}; use eager")
    return config.attention


def _attention(config: BackboneConfig, model_config: Any) -> str:
    name = attention_name(config, model_config)
    return registered(name) if packs(config, model_config.model_type) else name


def lora_targets(model: Any, lora: LoraConfig) -> tuple[list[str], list[int]]:
    """Resolve ``targets`` and ``first_layer`` into linear-layer names and layer indices.

    Raises
    ------
    UserError
        A target that no layer has; no layer is left to adapt.
    """
    layers = blocks_of(model)[0]
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
    adapted = list(range(round(lora.first_layer * len(layers)), len(layers)))
    if not adapted:  # PEFT would take an empty list for all layers
        raise UserError(
            f"recipe: lora.first_layer {lora.first_layer} leaves none of the backbone's {len(layers)} layers "
            "to adapt; lower it"
        )
    return list(dict.fromkeys(wanted)), adapted


def add_adapters(
    model: Any, lora: LoraConfig, seed: int, gradient_checkpointing: bool | str = False
) -> Classifier:
    """Freeze the base, add LoRA adapters (float32) and its trainable head, and wrap as a classifier."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import TaskType, get_peft_model

    torch.manual_seed(seed)
    if not lora.enabled:
        return _checkpointed(wrap(model.requires_grad_(True)), gradient_checkpointing)
    targets, layers = lora_targets(model, lora)
    own_head = not hasattr(model, "verdict_ids")
    peft_config = PeftLoraConfig(
        task_type=TaskType.SEQ_CLS if own_head else TaskType.CAUSAL_LM,
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=targets,
        layers_to_transform=layers,
        layers_pattern=blocks_of(model)[1],
        modules_to_save=[head_of(model)[0], *poolers_of(model)] if own_head else None,
    )
    with quiet_transformers():
        adapted = get_peft_model(model, peft_config)
    return _checkpointed(wrap(adapted), gradient_checkpointing)


def _checkpointed(classifier: Classifier, wanted: bool | str) -> Classifier:
    classifier.plan.checkpoint = CHECKPOINTING[str(wanted).lower()]
    return classifier


def _compiles(config: BackboneConfig) -> bool:
    """Whether the layers are compiled: ``auto`` does where a GPU and its kernels make it worth the wait."""
    if config.compile == "auto":
        return torch.cuda.is_available() and compute_dtype(config) != torch.float32
    return config.compile.lower() == "true"


def load_trained(
    config: BackboneConfig,
    path: str,
    trained: Path,
    lora_enabled: bool,
    n_classes: int,
    multiplies: bool = True,
) -> Classifier:
    """Load a trained classifier from where :meth:`Classifier.save` wrote it; see :func:`load_base`."""
    if not lora_enabled:
        return wrap(load_full(config, str(trained), n_classes))
    classifier = wrap(load_base(config, path, n_classes, multiplies))
    with _named_failures(str(trained)):
        classifier.load(trained)
    return classifier


def load_full(config: BackboneConfig, path: str, n_classes: int) -> Any:
    """Load a fully fine-tuned classifier, its trained head included."""
    from transformers import AutoModelForSequenceClassification

    with _named_failures(path), quiet_transformers():
        model_config = read_configuration(path)
        if model_config.num_labels != n_classes:
            raise UserError(f"{path}: has {model_config.num_labels} classes, not {n_classes}")
        model = _whole(
            AutoModelForSequenceClassification,
            path,
            fresh_head=False,
            dtype=compute_dtype(config),
            attn_implementation=_attention(config, model_config),
        )
    _configure(model, config)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def on_machine(path: str, revision: str | None = None) -> bool:
    """Whether a checkpoint is here: a directory, or a hub's in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    if Path(path).is_dir():
        return True
    try:
        return isinstance(try_to_load_from_cache(path, "config.json", revision=revision), str)
    except ValueError:  # a path, and no name on a hub
        return False


def refuse_unreachable(path: str, revision: str | None = None) -> None:
    """Refuse at once a hub's checkpoint that can neither be found here nor asked for; loaders try for long.

    Raises
    ------
    UserError
        There is no network, or it is switched off, or the name is none.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if on_machine(path, revision):
        return
    try:
        HfApi().model_info(path, revision=revision, timeout=HUB_SECONDS)
    except HFValidationError as error:
        raise UserError(f"{path}: no such directory, and no name on the hub") from error
    except HfHubHTTPError:
        return  # the hub answers; what it says, loading tells
    except Exception as error:  # no network, or switched off: each version has exceptions of its own
        raise UserError(
            f"{path}: no such directory, not in the local hub cache, and the hub is out of reach "
            f"({brief(error, 100)}); download it, or give its directory"
        ) from error


def weight_hash(path: str, revision: str | None = None) -> str:
    """Hash a checkpoint's weights: file contents of a local one, commit and names of a hub's snapshot."""
    directory = Path(path)
    if directory.is_dir():
        weight_files(directory)
        files = sorted([*directory.glob("*.safetensors"), *directory.glob("*.bin")])
        if not any(file.suffix == ".safetensors" for file in files):
            raise UserError(f"{path}: holds no weights in safetensors (*.safetensors); no other form is read")
        return sha256_files(files)
    from huggingface_hub import try_to_load_from_cache

    if not on_machine(path, revision):
        raise UserError(f"{path}: not in the local cache; download it or give a directory")
    cached = try_to_load_from_cache(path, "config.json", revision=revision)
    return sha256_text(path, Path(str(cached)).parent.name)


@contextmanager
def _named_failures(path: str) -> Iterator[None]:
    """Turn what a missing or damaged checkpoint raises into a message that names it."""
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError, SafetensorError) as error:
        if refused(error):
            raise UserError(in_words(path)) from error
        if wanting(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: cannot be loaded as a model: {reason}") from error
