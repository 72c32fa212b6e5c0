"""A simulated classroom in the layout of Kaggle's MAP: questions, answers, explanations, misconceptions.

A student answers a question of fractions right or wrong, and writes why. A misconception is a verb and a noun
(``Adds_denominators``); explanations say either with other words, sometimes misspelt, and some say nothing of
it. A question meets only a few of all misconceptions, so that it has 8 to 12 of the some 60 labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

VERBS = {
    "Adds": ("added up", "put together", "summed"),
    "Ignores": ("left out", "forgot about", "did not look at"),
    "Inverts": ("flipped", "turned over", "put upside down"),
    "Doubles": ("took twice", "counted two times", "multiplied by two"),
    "Swaps": ("changed round", "traded", "mixed up"),
    "Subtracts": ("took away", "made smaller by", "minused"),
    "Copies": ("just wrote down", "kept", "used again"),
}
NOUNS = {
    "denominators": ("bottom numbers", "numbers under the line", "lower parts"),
    "numerators": ("top numbers", "numbers above the line", "upper parts"),
    "units": ("shaded pieces", "slices", "boxes"),
    "signs": ("plus and minus", "negatives", "symbols"),
}
RIGHT = ("made the pieces equal first", "used the same size of parts", "found a common part and simplified")
NOTHING = ("i guessed", "it looked right", "because i know it", "i did it in my head", "my friend told me")
OPENINGS = ("i think", "well", "so", "because", "first", "")
QUIET_SHARE, TYPO_SHARE = 0.12, 0.15
"""Shares of explanations that say nothing, and of words with two letters exchanged."""
WRONG = 0.55
"""Share of wrong answers."""
HIDDEN = 0.08
"""Share of right answers whose explanation shows a misconception all the same."""


@dataclass(frozen=True)
class _Question:
    number: str
    text: str
    right: str
    wrong: tuple[str, ...]
    misconceptions: tuple[str, ...]


def simulate_classroom(n_rows: int = 1500, n_questions: int = 12, seed: int = 0) -> pa.Table:
    """Simulate answers of students.

    Parameters
    ----------
    n_rows, n_questions, seed : int

    Returns
    -------
    pyarrow.Table
        With the columns of MAP's ``train.csv``; all of text, ``Misconception`` empty where it is NA.
    """
    import pyarrow as pa

    rng = np.random.default_rng(seed)
    questions = [_question(i, rng) for i in range(n_questions)]
    rows = [_row(i, questions[int(rng.integers(n_questions))], rng) for i in range(n_rows)]
    names = (
        *("row_id", "QuestionId", "QuestionText", "MC_Answer", "StudentExplanation"),
        *("Category", "Misconception"),
    )
    columns = zip(*rows, strict=True)
    return pa.table({name: pa.array(column) for name, column in zip(names, columns, strict=True)})


def _question(number: int, rng: np.random.Generator) -> _Question:
    a, b, c, d = rng.integers(2, 12, size=4).tolist()
    known = [f"{verb}_{noun}" for verb in VERBS for noun in NOUNS]
    some = rng.choice(known, size=int(rng.integers(3, 5)), replace=False).tolist()
    wrong = (f"{a + c}/{b + d}", f"{a * c}/{b + d}", f"{a + c}/{b * d}")
    text = f"A tin holds {a}/{b} of a litre and a jug {c}/{d}. How much do both hold together?"
    return _Question(str(31770 + number), text, f"{a * d + b * c}/{b * d}", wrong, tuple(some))


def _row(number: int, question: _Question, rng: np.random.Generator) -> tuple[str, ...]:
    is_wrong = rng.random() < WRONG
    answer = question.wrong[int(rng.integers(len(question.wrong)))] if is_wrong else question.right
    quiet = rng.random() < QUIET_SHARE
    shown = not quiet and (is_wrong or rng.random() < HIDDEN)
    why = question.misconceptions[int(rng.integers(len(question.misconceptions)))] if shown else ""
    if quiet:
        kind, told = "Neither", _one_of(NOTHING, rng)
    elif shown:
        verb, noun = why.split("_")
        kind = "Misconception"
        told = f"i {_one_of(VERBS[verb], rng)} the {_one_of(NOUNS[noun], rng)}"
    else:
        kind, told = "Correct", f"i {_one_of(RIGHT, rng)}"
    words = f"{_one_of(OPENINGS, rng)} {told} and got {answer}".split()
    explanation = " ".join(_misspelt(word, rng) for word in words)
    category = f"{'False' if is_wrong else 'True'}_{kind}"
    return str(number), question.number, question.text, answer, explanation, category, why


def _one_of(texts: tuple[str, ...], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]


def _misspelt(word: str, rng: np.random.Generator) -> str:
    if len(word) < 4 or not word.isalpha() or rng.random() > TYPO_SHARE:
        return word
    at = int(rng.integers(1, len(word) - 2))
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
