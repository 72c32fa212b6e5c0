"""Tiny encoders of the true architectures, with a WordPiece tokenizer, made locally."""

from __future__ import annotations

from pathlib import Path

ENCODERS = ("bert", "modernbert", "distilbert")
TEXTS = ["the quick brown fox jumps over the lazy dog", "what is two and two", "it is four of course"] * 4


def tiny_encoder(family: str, out: Path) -> Path:
    """Write a tiny encoder of a family with its tokenizer; return its directory."""
    import torch
    from tokenizers import BertWordPieceTokenizer, processors
    from transformers import (
        AutoModelForMaskedLM,
        BertConfig,
        DistilBertConfig,
        ModernBertConfig,
        PreTrainedTokenizerFast,
    )

    wordpiece = BertWordPieceTokenizer()
    wordpiece.train_from_iterator(TEXTS, vocab_size=200, show_progress=False)
    ends = [("[SEP]", wordpiece.token_to_id("[SEP]")), ("[CLS]", wordpiece.token_to_id("[CLS]"))]
    wordpiece._tokenizer.post_processor = processors.BertProcessing(*ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=wordpiece._tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
    )
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "pad_token_id": tokenizer.pad_token_id,
    }
    marks = {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    torch.manual_seed(0)
    if family == "bert":
        config = BertConfig(**shape, max_position_embeddings=128)
    elif family == "distilbert":
        config = DistilBertConfig(**shape, hidden_dim=64, max_position_embeddings=128)
    else:
        config = ModernBertConfig(
            **shape, **marks, bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.sep_token_id
        )
    AutoModelForMaskedLM.from_config(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out
