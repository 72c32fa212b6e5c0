"""Small tables of preferences as files, and a tokenizer for them."""

from __future__ import annotations

import hashlib
from pathlib import Path

TABLE = "id,prompt,response_a,response_b,label\n"


STORY = "Write a short story about a lighthouse keeper who finds a message in a bottle"


def write_table(path: Path, prompts: list[str], labels: list[int] | None = None, prefix: str = "r") -> str:
    labels = labels or [i % 3 for i in range(len(prompts))]
    lines = [f"{prefix}{i},{p},yes {i},no {i},{labels[i]}\n" for i, p in enumerate(prompts)]
    path.write_text(TABLE + "".join(lines))
    return str(path)


def distinct(n: int, word: str = "question") -> list[str]:
    return [
        f"{word} {hash_word(i)} about {hash_word(i * 31 + 7)} and {hash_word(i * 17 + 3)}" for i in range(n)
    ]


def hash_word(i: int) -> str:

    return hashlib.sha256(str(i).encode()).hexdigest()[:9]


def tokenizer_file(folder: Path) -> str:
    from small_tokenizers import small_tokenizer

    path = folder / "tokenizer.json"
    small_tokenizer("byte_bpe").backend_tokenizer.save(str(path))
    return str(path)
