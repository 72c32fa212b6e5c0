"""The simulated arena's text: small requests, and answers of a given quality to them.

A request comes from one of eight kinds of task whose right answer the code knows. An answer shows its
flaws at three grades of difficulty: at the surface (refusals, hedges, stray or broken-off sentences,
tone), against the request (too few items, no reason though asked for one, not in the form asked for),
and in substance (a sum, an order, a weekday or a fact that is wrong). Nothing is quoted from anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

NAMES = (
    "Ada", "Ben", "Cora", "Dan", "Ella", "Finn", "Gita", "Hugo", "Ines", "Jon", "Kira", "Leo", "Mia",
    "Nils", "Ola", "Pia", "Quin", "Rosa", "Sam", "Tess",
)  # fmt: skip
OPENERS = (
    "I am {name} and I have a small question.",
    "Hello, {name} here.",
    "My friend {name} would like to know this.",
    "This is for {name} & family.",
    "A quick one from {name}:",
    "{name} wrote this on the board.",
)
CATEGORIES = {
    "fruits": ["apple", "pear", "plum", "cherry", "lemon", "mango", "peach", "grape", "melon", "fig"],
    "animals": ["horse", "goat", "rabbit", "mouse", "tiger", "otter", "camel", "whale", "sheep", "fox"],
    "colors": ["red", "blue", "green", "yellow", "purple", "brown", "white", "black", "orange", "pink"],
    "tools": ["hammer", "saw", "drill", "wrench", "ladder", "shovel", "rake", "brush", "chisel", "pliers"],
    "drinks": ["water", "tea", "coffee", "milk", "juice", "cocoa", "lemonade", "soda", "broth", "cider"],
    "plants": ["oak", "fern", "moss", "rose", "tulip", "ivy", "cactus", "daisy", "pine", "willow"],
}
WORDS = (
    "lamp", "stone", "river", "table", "cloud", "paper", "bread", "smile", "train", "music", "garden",
    "window",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NUMBERS = ("zero", "one", "two", "three", "four")
FACTS = {
    "How many legs does a {} have?": {
        "spider": "eight", "dog": "four", "hen": "two", "ant": "six", "cow": "four", "crow": "two",
    },
    "What color is {}?": {
        "snow": "white", "a ripe banana": "yellow", "grass": "green", "coal": "black", "a clear sky": "blue",
        "a ripe tomato": "red",
    },
    "What is the opposite of {}?": {
        "hot": "cold", "big": "small", "old": "young", "fast": "slow", "dark": "light", "wet": "dry",
    },
    "Where does a {} live?": {
        "fish": "in water", "bird": "in a nest", "bee": "in a hive", "king": "in a castle",
        "monk": "in an abbey", "camel": "in the desert",
    },
}  # fmt: skip

POLITE = ("Good question!", "Happy to help!", "Thank you for asking.", "Of course, gladly.")
RUDE = ("What a dull question.", "You should know this.", "Not this again.", "Why ask me that?")
HEDGES = (
    "I am not sure, but maybe this is right.",
    "I am only guessing here.",
    "Perhaps, I really do not know.",
)
REFUSALS = (
    "Sorry, I cannot help with that.",
    "I am sorry, but I am unable to answer.",
    "Sorry, as a program I must decline.",
)
STRAYS = (
    "By the way, my bicycle needs new tires.",
    "Anyway, the weather was strange yesterday.",
    "Speaking of which, trains are often late.",
    "On another note, buy one & get one free.",
)
BREAKS = (
    "And the next thing is that the",
    "Then, as for the",
    "Also, if you take the",
    "But when it comes to",
)
FILLERS = (
    "I hope this is clear.",
    "Let me know if you need more.",
    "That is all there is to it.",
    "You can check it yourself in a moment.",
    "Many people ask about this.",
    "It is a matter of simple steps.",
    "Take your time with it.",
    "This comes up in school now & then.",
)
LEADS = ("The answer is {}.", "It is {}.", "You get {}.", "I would say {}.")
REASON_ASKED = ("Give a short reason.", "Please explain why.", "Say how you know.")
FORM_ASKED = {
    "bullets": "Use a list with one item per line.",
    "quotes": 'Put the answer in "quotes".',
    "tags": "Wrap the answer in <b> and </b>.",
}


class Dice:
    """Random choices from one generator, drawn in blocks: a scalar draw from numpy is slow.

    Parameters
    ----------
    rng : numpy.random.Generator
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._block: list[float] = []

    def uniform(self) -> float:
        """A number in [0, 1)."""
        if not self._block:
            self._block = self._rng.random(8192).tolist()
        return self._block.pop()

    def below(self, n: int) -> int:
        """A whole number from 0 to ``n - 1``."""
        return int(self.uniform() * n)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform() < probability

    def pick(self, items: Sequence[Item]) -> Item:
        """One of ``items``."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[Item], n: int) -> list[Item]:
        """``n`` distinct ``items``, in random order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(n)]


@dataclass(frozen=True)
class Request:
    """A prompt and what a good answer to it holds.

    Attributes
    ----------
    prompt : str
    right : tuple of str
        The items of the right answer; more than one where a list or an order is asked for.
    wrong : tuple of str
        As long as ``right``, and wrong, though it looks like it.
    form : str
        A key of ``FORM_ASKED``, or empty where no form is asked for.
    reason : str
        The reason a complete answer gives.
    reason_asked : bool
    """

    prompt: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    form: str
    reason: str
    reason_asked: bool

    @property
    def can_fall_short(self) -> bool:
        """Whether an answer can be incomplete: several items, or a reason, were asked for."""
        return len(self.right) > 1 or self.reason_asked


@dataclass(frozen=True)
class Quality:
    """What is good and bad about one answer; every field can be read off its text and the request.

    Attributes
    ----------
    correct, complete, well_formed : bool
        In substance; nothing asked for is missing; in the form asked for (or none was asked for).
    refused, hedged, strayed, broken_off, rude, polite : bool
        At the surface. An answer that refuses is neither correct nor complete nor well formed.
    fillers : int
        Neutral sentences that only add length.
    """

    correct: bool
    complete: bool
    well_formed: bool
    refused: bool
    hedged: bool
    strayed: bool
    broken_off: bool
    rude: bool
    polite: bool
    fillers: int


Task = tuple[str, tuple[str, ...], tuple[str, ...], str]


def _sum(dice: Dice) -> Task:
    a, b = 2 + dice.below(18), 2 + dice.below(18)
    slip = dice.pick((-2, -1, 1, 2, 10))
    return f"What is {a} + {b}?", (str(a + b),), (str(a + b + slip),), "I added both numbers."


def _larger(dice: Dice) -> Task:
    a, b = dice.sample(range(10, 100), 2)
    large, small = max(a, b), min(a, b)
    return f"Which is larger, {a} or {b}?", (str(large),), (str(small),), "I looked at the tens first."


def _weekday(dice: Dice) -> Task:
    day, ahead = dice.below(7), 1 + dice.below(3)
    right, wrong = DAYS[(day + ahead) % 7], DAYS[(day + ahead + dice.pick((1, 2, 5, 6))) % 7]
    days = "day" if ahead == 1 else "days"
    return (
        f"Which weekday comes {NUMBERS[ahead]} {days} after {DAYS[day]}?",
        (right,),
        (wrong,),
        "I counted along the week.",
    )


def _fact(dice: Dice) -> Task:
    question = dice.pick(tuple(FACTS))
    table = FACTS[question]
    subject = dice.pick(tuple(table))
    wrong = dice.pick([value for value in table.values() if value != table[subject]])
    return question.format(subject), (table[subject],), (wrong,), "It is well known."


def _backwards(dice: Dice) -> Task:
    word = dice.pick(WORDS)
    letters = list(word[::-1])
    i = dice.below(len(letters) - 1)
    letters[i], letters[i + 1] = letters[i + 1], letters[i]
    wrong = "-".join(letters)
    return (
        f"Spell the word {word} backwards, with hyphens.",
        ("-".join(word[::-1]),),
        (wrong if wrong != "-".join(word[::-1]) else "-".join(word),),
        "I read it from the end.",
    )


def _name(dice: Dice) -> Task:
    kind = dice.pick(tuple(CATEGORIES))
    n = 2 + dice.below(3)
    right = dice.sample(CATEGORIES[kind], n)
    wrong = list(right)
    other = dice.pick([key for key in CATEGORIES if key != kind])
    wrong[dice.below(n)] = dice.pick([item for item in CATEGORIES[other] if item not in CATEGORIES[kind]])
    return f"Name {NUMBERS[n]} {kind}.", tuple(right), tuple(wrong), f"They are all {kind}."


def _sort_words(dice: Dice) -> Task:
    words = dice.sample(WORDS, 3)
    right = sorted(words)
    wrong = list(right)
    i = dice.below(2)
    wrong[i], wrong[i + 1] = wrong[i + 1], wrong[i]
    return f"Sort by alphabet: {', '.join(words)}.", tuple(right), tuple(wrong), "I compared the letters."


def _sort_numbers(dice: Dice) -> Task:
    numbers = dice.sample(range(10, 60), 3)
    right = sorted(numbers)
    wrong = list(right)
    i = dice.below(2)
    wrong[i], wrong[i + 1] = wrong[i + 1], wrong[i]
    return (
        f"Sort from small to large: {', '.join(map(str, numbers))}.",
        tuple(map(str, right)),
        tuple(map(str, wrong)),
        "I put the least first.",
    )


TASKS: tuple[Callable[[Dice], Task], ...] = (
    _sum, _larger, _weekday, _fact, _backwards, _name, _sort_words, _sort_numbers,
)  # fmt: skip


def write_request(dice: Dice) -> Request:
    """Make up a request."""
    question, right, wrong, reason = dice.pick(TASKS)(dice)
    forms = ("bullets", "tags") if len(right) > 1 else ("quotes", "tags")
    form = dice.pick(forms) if dice.chance(0.5) else ""
    reason_asked = dice.chance(0.5)
    parts = [dice.pick(OPENERS).format(name=dice.pick(NAMES)), question]
    if form:
        parts.append(FORM_ASKED[form])
    if reason_asked:
        parts.append(dice.pick(REASON_ASKED))
    return Request(" ".join(parts), right, wrong, form, reason, reason_asked)


def write_response(dice: Dice, request: Request, quality: Quality) -> str:
    """Write an answer to ``request`` that has exactly the given quality."""
    parts = []
    if quality.polite:
        parts.append(dice.pick(POLITE))
    if quality.rude:
        parts.append(dice.pick(RUDE))
    if quality.refused:
        parts.append(dice.pick(REFUSALS))
    else:
        if quality.hedged:
            parts.append(dice.pick(HEDGES))
        parts += _substance(dice, request, quality)
    if quality.strayed:
        parts.insert(dice.below(len(parts) + 1), dice.pick(STRAYS))
    parts += dice.sample(FILLERS, quality.fillers)
    if quality.broken_off:
        parts.append(dice.pick(BREAKS))
    return " ".join(parts).replace(" \n", "\n").replace("\n ", "\n").strip()


def _substance(dice: Dice, request: Request, quality: Quality) -> list[str]:
    items = list(request.right if quality.correct else request.wrong)
    several = len(items) > 1
    if several and not quality.complete:
        # What makes a wrong answer wrong stays in it.
        items.pop(
            dice.pick([i for i in range(len(items)) if quality.correct or items[i] == request.right[i]])
        )
    # Without a wish any form does, so that a form alone says nothing.
    form = request.form if quality.well_formed else ""
    if not request.form and dice.chance(0.3):
        form = "bullets" if several else "quotes"
    if form == "bullets":
        answer = "\n" + "\n".join(f"- {item}" for item in items) + "\n"
    else:
        answer = ", ".join(items)
        answer = {"quotes": f'"{answer}"', "tags": f"<b>{answer}</b>"}.get(form, answer)
        answer = dice.pick(LEADS).format(answer)
    # A list is complete by its items; a single answer by the reason, where one was asked for.
    give_reason = quality.complete if request.reason_asked else dice.chance(0.25)
    return [answer, request.reason] if give_reason else [answer]
