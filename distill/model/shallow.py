"""A shallower copy of a checkpoint: its first n layers, as a plain Hugging Face directory.

What a deep teacher's first layers have learnt is the usual start of a student (Sanh et al., arXiv
1910.01108; Gromov et al., arXiv 2403.17887: the deepest layers matter least). Embeddings, final norm and
tokenizer stay as they are. Weights are copied shard by shard, so that never more than one is in memory.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import locked, read_json, sha256_text, write_json
from distill.model.backbone import weight_hash
from distill.model.files import INDEX, SINGLE, weight_files

LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
"""The number of a layer in a weight's name: ``model.layers.3.mlp…``, ``encoder.layer.3.…``."""
DEPTH = "num_hidden_layers"
CUT_FROM = "cut_from.json"
"""In a copy: the checkpoint that it was made from."""
NOT_COPIED = (".safetensors", ".bin", ".gguf", ".pth", ".pt", ".h5", ".msgpack", ".onnx", INDEX)


def shallow_copy(source: str, layers: int, cache: Path, revision: str | None = None) -> Path:
    """Return the directory of a checkpoint's first layers, making it on first use.

    Parameters
    ----------
    source : str
        Local directory, or hub name, of a checkpoint in safetensors.
    layers : int
        How many of its layers to keep.
    cache : Path
        Directory that holds made checkpoints; the copy is named by the source's weights and configuration.
    revision : str, optional
        Of a hub's checkpoint.

    Raises
    ------
    UserError
        The checkpoint is not in safetensors, has no layers by number, or fewer than ``layers``.
    """
    home = _directory(source, revision)
    config, origin, out = _planned(source, home, layers, cache, revision)
    if (out / CUT_FROM).exists():
        return out
    with locked(cache, wait=True):  # runs beside each other may want the same one
        if not (out / CUT_FROM).exists():
            temporary = out.with_name(f".{out.name}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(out, ignore_errors=True)
            temporary.mkdir(parents=True)
            for file in sorted(home.iterdir()):
                if file.is_file() and not file.name.startswith(".") and not file.name.endswith(NOT_COPIED):
                    shutil.copyfile(file, temporary / file.name)
            write_json(temporary / "config.json", shallow_config(config, layers))
            _copy_weights(home, layers, config[DEPTH], temporary)
            write_json(temporary / CUT_FROM, origin)
            os.replace(temporary, out)
    return out


def copy_of(source: str, layers: int, cache: Path) -> tuple[dict[str, Any], Path]:
    """What :func:`shallow_copy` of a local directory records of its origin, and where; makes nothing."""
    return _planned(source, Path(source), layers, cache)[1:]


def _planned(
    source: str, home: Path, layers: int, cache: Path, revision: str | None = None
) -> tuple[dict[str, Any], dict[str, Any], Path]:
    config = read_json(home / "config.json", "configuration")
    depth = config.get(DEPTH, 0)
    if not 1 <= layers <= depth:
        raise UserError(
            f"{source}: has {depth or 'no number of'} layers, so backbone.first_layers cannot be {layers}"
        )
    hashed = weight_hash(source, revision)
    key = sha256_text(hashed, json.dumps(config, sort_keys=True), str(layers))
    origin = {"path": source, "weight_hash": hashed, "layers": depth, "first_layers": layers}
    return config, origin, cache / f"first-{layers}-{key[:12]}"


def shallow_config(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """Return a ``config.json`` of the first layers, each of which keeps its own kind of attention."""
    changed = {**config, DEPTH: layers}
    if config.get("layer_types"):
        changed["layer_types"] = config["layer_types"][:layers]
    return changed


def _copy_weights(home: Path, layers: int, depth: int, out: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    shards = weight_files(home)
    kept: dict[str, list[str]] = {}
    found: set[int] = set()
    for shard in shards:
        if not (home / shard).exists():
            raise UserError(f"{home}: lacks {shard}; first_layers needs all weights in safetensors")
        with safe_open(home / shard, framework="pt") as opened:
            numbers = {name: _layer(name) for name in opened.keys()}  # noqa: SIM118  (not a mapping)
        found |= {number for number in numbers.values() if number is not None}
        names = [name for name, number in numbers.items() if number is None or number < layers]
        if names:
            kept[shard] = names
    if found != set(range(depth)):
        raise UserError(f"{home}: its weights are not named by layers 0 to {depth - 1}; it cannot be cut")
    placed: dict[str, str] = {}
    size = 0
    for number, (shard, names) in enumerate(kept.items(), start=1):
        file = SINGLE if len(kept) == 1 else f"model-{number:05d}-of-{len(kept):05d}.safetensors"
        with safe_open(home / shard, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in names}
        save_file(tensors, out / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(names, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if len(kept) > 1:
        write_json(out / INDEX, {"metadata": {"total_size": size}, "weight_map": placed})


def _layer(name: str) -> int | None:
    found = LAYER.search(name)
    return None if found is None else int(found.group(1))


def _directory(source: str, revision: str | None) -> Path:
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: cannot be fetched to cut its first layers: {reason}") from error
