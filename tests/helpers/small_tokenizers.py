"""Small tokenizers of every kind that real backbones use, made here in a blink, alike in every process."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

TEXTS = [
    "What is the capital of France?",
    "Paris is the capital, of course; I am glad you asked!",
    "I do not know, sorry. Ask me 12345 other things:\n\n- one\n- two\n",
    "def f(x):\n    return x ** 2  # the square",
    "naïve café, Straße, 東京は日本の首都です。🙂",
] * 12

KINDS = ("byte_bpe", "sentencepiece_bpe", "sentencepiece_unigram", "wordpiece")


@cache
def small_tokenizer(kind: str) -> Any:
    """Return a fast tokenizer of one of ``KINDS``."""
    from transformers import PreTrainedTokenizerFast

    if kind == "byte_bpe":
        from distill.model.tiny import train_tokenizer

        return train_tokenizer("llama", TEXTS, 420)
    backend, special = {
        "sentencepiece_bpe": _sentencepiece_bpe,
        "sentencepiece_unigram": _sentencepiece_unigram,
        "wordpiece": _wordpiece,
    }[kind]()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def _sentencepiece_bpe() -> tuple[Any, dict[str, str]]:
    """Like Gemma's: spaces as a visible character, no pre-tokenizer, bytes for what it does not know."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers

    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    names = [*special.values(), "<start_of_turn>", "<end_of_turn>", *(f"<0x{i:02X}>" for i in range(256))]
    trained.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=600, special_tokens=names, show_progress=False)
    )
    import json

    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    backend = Tokenizer(
        models.BPE(model["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names[:6]])
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", backend.token_to_id("<bos>"))]
    )
    return backend, special


def _words(space: str) -> list[str]:
    """The words of the texts, each behind the visible space, the most frequent first, then by spelling."""
    counts = Counter(f"{space}{word}" for text in TEXTS for word in text.split())
    return sorted(counts, key=lambda word: (-counts[word], word))


def _sentencepiece_unigram() -> tuple[Any, dict[str, str]]:
    """Like XLM-R's or T5's: a unigram model, whose vocabulary holds the special tokens as pieces.

    Its pieces are given and not trained: the library's trainer gives other ones in every process.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    letters = sorted({"▁", *"".join(TEXTS).replace(" ", "")})
    pieces = [(name, 0.0) for name in special.values()]
    pieces += [(word, -3.0 - rank / 20) for rank, word in enumerate(_words("▁")) if len(word) > 2]
    pieces += [(letter, -6.0 - rank / 100) for rank, letter in enumerate(letters)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=list(special).index("unk_token")))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend, special


def _wordpiece() -> tuple[Any, dict[str, str]]:
    """Like BERT's: no BOS, a CLS in its place. Its pieces are given, as the unigram model's are."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    letters = sorted(set("".join(TEXTS).lower().replace(" ", "")))
    words = [word.lower() for word in _words("") if word.isalnum()]
    names = dict.fromkeys([*special.values(), *letters, *(f"##{letter}" for letter in letters), *words])
    vocabulary = {name: number for number, name in enumerate(names)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend, special
