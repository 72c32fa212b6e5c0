"""A checkpoint of true shape and random weights on disk: ``python -m benchmarks.gpu_checkpoint llama DIR``.

For what will only load one from there. The weights are really random and really written: a card multiplies
zeros a tenth faster.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_model import CUDA, RandomWeights, config_of

SHARD_BYTES = 2 * 2**30
SYLLABLES = ["".join(pair) for pair in product("bdfgklmnprst", "aeiou")][::4]
INDEX = "model.safetensors.index.json"
WORDS = ["".join(pair) for pair in product(SYLLABLES, SYLLABLES)]
"""What texts are made of: each is one token of the checkpoint's tokenizer, with the space before it."""


def random_checkpoint(family: str, directory: Path) -> Path:
    """Write a sequence classifier of three classes and a tokenizer of :data:`WORDS`, unless they are there.

    Parameters
    ----------
    family : str
        One of :data:`benchmarks.gpu_model.SHAPES`; the weights are in bf16, on a CPU tiny and in float32.
    """
    from safetensors.torch import save_file
    from transformers import AutoModelForSequenceClassification

    if (directory / INDEX).exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    config, dtype = config_of(family), torch.bfloat16 if CUDA else torch.float32
    config.dtype = dtype
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    config.architectures = [type(model).__name__]
    shards: list[list[tuple[str, torch.Size]]] = [[]]
    held = 0
    for name, parameter in model.named_parameters():
        size = parameter.numel() * dtype.itemsize
        if held and held + size > SHARD_BYTES:
            shards.append([])
            held = 0
        held += size
        shards[-1].append((name, parameter.shape))
    weights = RandomWeights(family)
    place: dict[str, str] = {}
    with ThreadPoolExecutor(4) as pool:
        waiting: list[Any] = []
        for number, names in enumerate(shards, start=1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            place |= dict.fromkeys((name for name, _ in names), file)
            made = {name: weights.get(name, shape, weights.generator.device).cpu() for name, shape in names}
            waiting.append(pool.submit(save_file, made, directory / file, {"format": "pt"}))
            if len(waiting) >= 4:
                waiting.pop(0).result()
        for one in waiting:
            one.result()
    tokenizer(config).save_pretrained(directory)
    config.save_pretrained(directory)
    total = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": place}))
    return directory


def tokenizer(config: Any) -> Any:
    """A tokenizer that knows :data:`WORDS` and every byte, with the configuration's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    start, end, padding = "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"
    special = {config.bos_token_id: start, config.eos_token_id: end, config.pad_token_id: padding}
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [" ".join(["", *WORDS])] * 2,
        trainers.BpeTrainer(
            vocab_size=min(4096, config.vocab_size),
            min_frequency=1,
            special_tokens=[special[i] for i in sorted(special)],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A",
        pair=f"{start} $A {start} $B",
        special_tokens=[(start, backend.token_to_id(start))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=start,
        eos_token=end,
        pad_token=padding,
        padding_side="right",
        model_max_length=config.max_position_embeddings,
    )


if __name__ == "__main__":
    random_checkpoint(sys.argv[1], Path(sys.argv[2]))
