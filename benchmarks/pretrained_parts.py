"""What a chain needs and leaves, in parts small enough for any road between two machines.

A home travels without the teachers' weights: out-of-fold predictions are all that the student and the stack
need of them. A model travels as the GGUF that it was made from, a third of its size in bfloat16.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.schema import Rows

PART_BYTES = 15 << 20
"""Of a part of a home: some roads take files of 16 MiB only."""
LEFT_BEHIND = ("adapter", "backbones", "exported", "predicting")


def collect(home: Path, out: Path) -> list[Path]:
    """Put what a home holds, but for the teachers' weights, into parts of :data:`PART_BYTES`."""
    whole = out / "home.tar.xz"
    with tarfile.open(whole, "w:xz", preset=1) as archive:
        for path in sorted(home.rglob("*")):
            parts = path.relative_to(home).parts
            final = "student" in parts and "final" in parts
            dropped = {*LEFT_BEHIND} - ({"adapter"} if final else set())
            if path.is_file() and not dropped & {*parts} and not any("checkpoint-" in part for part in parts):
                archive.add(path, arcname=str(path.relative_to(home)))
    return split(whole, out, PART_BYTES)


def split(whole: Path, out: Path, size: int) -> list[Path]:
    """Cut a file into numbered parts, and delete it."""
    made: list[Path] = []
    with whole.open("rb") as file:
        while block := file.read(size):
            made.append(out / f"{whole.name}.{len(made):02d}")
            made[-1].write_bytes(block)
    whole.unlink()
    return made


def join(parts: Sequence[Path], whole: Path) -> Path:
    """Put numbered parts together."""
    with whole.open("wb") as file:
        for part in sorted(parts, key=lambda path: path.name):
            file.write(part.read_bytes())
    return whole


def restore(parts: Sequence[Path], home: Path) -> None:
    """Unpack what :func:`collect` left into a home that is not there yet."""
    home.mkdir(parents=True, exist_ok=True)
    whole = join(parts, home / "home.tar.xz")
    with tarfile.open(whole) as archive:
        archive.extractall(home, filter="data")
    whole.unlink()


def used_tokens(path: Path, rows: Rows, tokens: int) -> np.ndarray:
    """Ids of the tokens that the rows become, and of the special ones."""
    from data.encoding.encode import Encoder, Truncation
    from data.encoding.template import Template
    from data.encoding.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(path))
    encoded = Encoder(tokenizer, Template(), Truncation(tokens)).encode(rows)
    return np.unique([*encoded.ids.tolist(), *tokenizer.all_special_ids])


def pack(gguf: Path, model: Path, rows: Rows | None, tokens: int, out: Path, size: int) -> list[Path]:
    """Put a model's GGUF and its converted tokenizer into parts that travel; return them.

    With ``rows`` the embeddings of tokens that these never become are zeros, which compress away: half of a
    small model with a large vocabulary. Predictions of these rows are the same to the bit; it is good for
    nothing else. A head of the language model's own, which no classifier reads, goes with them.
    """
    from gguf import GGUFReader

    staged = out / f"{model.name}.gguf"
    staged.write_bytes(gguf.read_bytes())
    if rows is not None:
        known = used_tokens(model, rows, tokens)
        reader = GGUFReader(staged, "r+")
        for tensor in reader.tensors:
            if tensor.name == "output.weight":
                tensor.data[:] = 0
            elif tensor.name == "token_embd.weight":
                dropped = np.ones(len(tensor.data), dtype=bool)
                dropped[known] = False
                tensor.data[dropped] = 0
        reader.data.flush()
        del reader
    whole = out / f"{model.name}.tar.gz"
    with tarfile.open(whole, "w:gz", compresslevel=1) as archive:
        archive.add(staged, arcname="model.gguf")
        for path in sorted(model.glob("*")):
            if path.suffix != ".safetensors":
                archive.add(path, arcname=path.name)
    staged.unlink()
    return split(whole, out, size)


def unpack(parts: Sequence[Path], out: Path) -> None:
    """Make a model's directory from its parts."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    out.mkdir(parents=True)
    with tarfile.open(join(parts, out / "parts.tar.gz")) as archive:
        archive.extractall(out, filter="data")
    dequantise = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        out, gguf_file="model.gguf", dtype=torch.bfloat16, quantization_config=dequantise
    )
    config = (out / "config.json").read_bytes()
    model.save_pretrained(out)
    (out / "config.json").write_bytes(config)
    for name in ("model.gguf", "parts.tar.gz"):
        (out / name).unlink()
