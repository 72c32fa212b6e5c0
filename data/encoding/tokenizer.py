"""Tokenizers of every origin as fast ones, so that there is one path from text to ids.

A directory or file in the fast format is read as it is; the Llama 3 tokenizer as Meta ships it
(``tokenizer.model`` in tiktoken form) is converted, with the special tokens of Llama 3.1 at the ids
that its checkpoints know.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.console.remote_code import in_words, refused, remote_code_allowed
from data.encoding.fast_bpe import BYTE_LETTERS, merges_of, remember
from data.errors import UserError, brief

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LLAMA3_RANKS = 128_000
LLAMA3_NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
LLAMA3_SPECIAL = 256


def load_tokenizer(source: str, **options: Any) -> Any:
    """Load a fast tokenizer.

    Parameters
    ----------
    source : str
        A directory with ``tokenizer.json`` or ``tokenizer.model``, one of these files, or a name on the
        Hugging Face hub.
    **options
        For ``AutoTokenizer.from_pretrained``, such as ``revision``.

    Raises
    ------
    UserError
        Nothing there, a damaged file, or a tokenizer that has no fast form.
    """
    path = Path(source)
    if path.is_dir() and not (path / "tokenizer.json").exists() and _is_tiktoken(path / "tokenizer.model"):
        path = path / "tokenizer.model"
    if path.is_file():
        return _whole(_from_tiktoken(path) if _is_tiktoken(path) else _from_file(path))
    if not path.exists() and path.suffix in {".json", ".model"}:
        raise UserError(f"{source}: no such tokenizer file")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, use_fast=True, trust_remote_code=remote_code_allowed(), **options
        )
    except Exception as error:  # the hub, the parser and each tokenizer class raise their own kinds
        if refused(error):
            raise UserError(in_words(source)) from error
        raise UserError(
            f"{source}: no tokenizer could be loaded ({brief(str(error).strip() or type(error).__name__)}); "
            "give a directory with tokenizer.json or tokenizer.model, or check the name and the network"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{source}: this tokenizer has no fast form (tokenizer.json); convert it first")
    return _whole(tokenizer)


def uncut(backend: Any) -> Any:
    """Drop the padding and truncation that a ``tokenizers.Tokenizer`` holds: lengths are settled elsewhere.

    Sentence encoders are saved with both, and would cut every text at 128 tokens without a word; a call of
    the transformers tokenizer around it sets them, too, and sets them anew at the next call.
    """
    backend.no_padding()
    backend.no_truncation()
    return backend


def _whole(tokenizer: Any) -> Any:
    uncut(tokenizer.backend_tokenizer)
    return tokenizer


def _from_file(path: Path) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path}: not a tokenizer.json or tiktoken file ({brief(error)})") from error
    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    named = {
        role: next((name for name in names if name in known), None)
        for role, names in {
            "bos_token": ("<|begin_of_text|>", "<bos>", "<s>"),
            "eos_token": ("<|end_of_text|>", "<eos>", "</s>"),
            "pad_token": ("<|finetune_right_pad_id|>", "<pad>", "[PAD]"),
            "unk_token": ("<unk>", "[UNK]"),
            "cls_token": ("[CLS]",),
            "sep_token": ("[SEP]",),
        }.items()
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{role: name for role, name in named.items() if name is not None}
    )


def _is_tiktoken(path: Path) -> bool:
    """Whether a file is lines of base64 and rank; a SentencePiece model of the same name is not."""
    try:
        with open(path, "rb") as handle:
            line = handle.readline(4096).split()
        return len(line) == 2 and line[1] == b"0" and bool(base64.b64decode(line[0], validate=True))
    except (OSError, binascii.Error):
        return False


def _from_tiktoken(path: Path) -> PreTrainedTokenizerFast:
    from tokenizers.processors import Sequence, TemplateProcessing
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    ranks = _read_ranks(path)
    if len(ranks) != LLAMA3_RANKS:
        raise UserError(
            f"{path}: holds {len(ranks)} ranks where a Llama 3 tokenizer has {LLAMA3_RANKS}; is the file cut "
            "off? Others are read from their tokenizer.json"
        )
    reserved = iter(range(LLAMA3_SPECIAL))
    names = [
        LLAMA3_NAMED.get(i) or f"<|reserved_special_token_{next(reserved)}|>" for i in range(LLAMA3_SPECIAL)
    ]

    class Converter(TikTokenConverter):
        """Its own reader keeps a copy in the temporary directory and never looks at the file again."""

        def extract_vocab_merges_from_model(self, tiktoken_url: str) -> Any:
            return _vocabulary_and_merges(ranks)

    converter = Converter(extra_special_tokens=names)
    backend = converter.converted()
    # A plain call puts BOS first, as that of the tokenizer.json on the hub does.
    first = TemplateProcessing(
        f"{names[0]} $A", f"{names[0]} $A {names[0]}:1 $B:1", [(names[0], LLAMA3_RANKS)]
    )
    backend.post_processor = Sequence([backend.post_processor, first])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=names[0],
        eos_token=names[1],
        pad_token=names[4],
        clean_up_tokenization_spaces=False,
    )
    remember(uncut(tokenizer.backend_tokenizer).to_str(), converter.pattern, ranks)
    return tokenizer


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Read lines of base64 and rank, which must count up from 0."""
    ranks: dict[bytes, int] = {}
    try:
        for number, line in enumerate(path.read_bytes().splitlines()):
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
            if int(rank) != number or len(ranks) != number + 1:
                raise ValueError(f"line {number + 1} has rank {int(rank)} or a token that was there before")
    except (OSError, ValueError) as error:  # binascii.Error is a ValueError
        raise UserError(f"{path}: not a readable tiktoken file ({brief(error)}); is it cut off?") from error
    return ranks


def _vocabulary_and_merges(ranks: dict[bytes, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    vocabulary = {"".join(BYTE_LETTERS[byte] for byte in token): rank for token, rank in ranks.items()}
    return vocabulary, merges_of(vocabulary)
