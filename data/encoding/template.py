"""A row as segments of text: a template's fixed text around the turns of prompt and responses.

A template is a small Jinja file, run in a sandbox. It never sees a row's text: it is rendered once for
each shape (how many turns the prompt and each response have) with marks in place of the turns, and what
stands between the marks is its fixed text. So a row's text cannot change the layout, each turn is
tokenized on its own (:mod:`data.encoding.encode`), and swapping the responses exchanges marks, nothing else.
A filter on a turn would do nothing to its text, and is refused: the marks are made so that filters change
them.

In a template ``turns`` is the conversation (each with ``prompt``, ``response_a`` and ``response_b``, or
nothing where that part has no such turn), ``prompts``, ``responses_a`` and ``responses_b`` are the same by
part, and ``chat(text)`` wraps a user's message in the tokenizer's chat template.

Rows with candidates of their own are laid out once for each, which is ``candidate`` there: by the template of
that name in place of the default.

Plain texts, which have no responses, are laid out by a template of the user's own like any row: the text's
turns are the prompt's. The shipped templates speak of two answers; the default leaves a plain text as it is,
the others are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from data.errors import UserError, brief, listing
from data.files import require_file

Part = Literal["tag", "prompt", "response_a", "response_b"]
PARTS: tuple[Part, ...] = ("prompt", "response_a", "response_b")
Shape = tuple[int, int, int]
"""Turns of the prompt, of response A and of response B."""

HOME = Path(__file__).parent / "templates"
DEFAULT = "pair"
CANDIDATE = "candidate"

_OPEN, _CLOSE = "\ue000", "\ue001"
_MARK = re.compile(f"{_OPEN}([012]):([0-9]+){_CLOSE}")
_BAIT = "Aa <&>\n" * 2000
"""In every mark, between spaces, so that trimming, cutting, escaping or changing case breaks the mark."""
_BAITED = re.compile(f" {_OPEN}([012]:[0-9]+){_BAIT}{_CLOSE} ")
STEPS = 1_000_000
"""How far the ranges of a template may count for one shape, all together."""


@dataclass(frozen=True)
class Segment:
    """A stretch of text, what it is, and of which turn; only tags are never truncated."""

    part: Part
    text: str
    turn: int = 0


@dataclass(frozen=True)
class Template:
    """The fixed text around a row's parts.

    Attributes
    ----------
    name : str
        One of :func:`template_names`, or what a user's own file is called.
    text : str
        The Jinja source; by default that of the shipped template of this name.
    chat_template : str or None
        The tokenizer's chat template that ``chat`` uses; see :meth:`bound_to`.
    """

    name: str = DEFAULT
    text: str = ""
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if not self.text:
            if self.name not in (*template_names(), CANDIDATE):
                raise UserError(
                    f"no template {brief(self.name)}; there are {listing(template_names(), 9)}, or give "
                    "your own .jinja file"
                )
            object.__setattr__(self, "text", _shipped_text(self.name))
        _compiled(self.name, self.text)

    @property
    def uses_chat(self) -> bool:
        """Whether the template calls ``chat``."""
        from jinja2 import meta

        environment, _ = _compiled(self.name, self.text)
        return "chat" in meta.find_undeclared_variables(environment.parse(self.text))

    @property
    def _is_shipped(self) -> bool:
        """Whether it is one of the package's, by name and text."""
        return self.text == _shipped_text(self.name)

    def bound_to(self, tokenizer: Any) -> Template:
        """Return the template with the tokenizer's chat template in it, if it uses one.

        So a manifest pins it, and a model is always read as it was trained.

        Raises
        ------
        UserError
            The tokenizer has no chat template.
        """
        if not self.uses_chat or self.chat_template is not None:
            return self
        found = getattr(tokenizer, "chat_template", None)
        if isinstance(found, dict):
            found = found.get("default")
        if not found:
            raise UserError(
                f"template {self.name} needs a chat template and the tokenizer has none; use the tokenizer "
                "of an instruct model, or one of the templates "
                f"{listing(n for n in template_names() if n != self.name)}"
            )
        return replace(self, chat_template=found)

    def layout(
        self, shape: Shape, pair: bool = True, chat: Callable[[str], str] | None = None
    ) -> list[str | tuple[int, int]]:
        """Lay out rows of one shape.

        Parameters
        ----------
        shape : tuple of three int
            Turns of prompt, response A and response B.
        pair : bool
            False for a plain text row: the prompt is the whole text, and has a line break between its turns
            unless the template is the user's own. With one turn of response A that is a candidate.
        chat : callable, optional
            Wraps a user's message in a chat template; see :class:`data.encoding.encode.Encoder`.

        Returns
        -------
        list of str or (part, turn)
            Fixed text, and in between the turns, by index into ``PARTS`` and turn.

        Raises
        ------
        UserError
            The template cannot be rendered, changes or repeats a turn, or leaves one out.
        """
        candidate = not pair and shape[1:] == (1, 0)
        if candidate and self._is_shipped:
            if self.name == DEFAULT:
                return Template(CANDIDATE).layout(shape, False, chat)
            if self.name != CANDIDATE:
                raise UserError(
                    f"template {self.name} lays out pairs, and these rows have candidates of their own; "
                    f"leave the template out, name {CANDIDATE}, or give a .jinja file of your own, which has "
                    "prompts and candidate"
                )
        elif not pair and self._is_shipped:
            if self.name != DEFAULT:
                raise UserError(
                    f"template {self.name} lays out pairs, and these rows are plain texts; leave the "
                    "template out, or give a .jinja file of your own, in which prompts are the text"
                )
            pieces: list[str | tuple[int, int]] = []
            for turn in range(shape[0]):
                pieces += ["\n", (0, turn)] if turn else [(0, turn)]
            return pieces
        return _split(self.name, self._render(shape, chat, candidate), shape, candidate)

    def segments(
        self,
        prompt: Sequence[str],
        response_a: Sequence[str],
        response_b: Sequence[str],
        *,
        pair: bool = True,
        swap: bool = False,
    ) -> list[Segment]:
        """Lay out one row with its text in place.

        Parameters
        ----------
        prompt, response_a, response_b : sequence of str
            One entry a turn; a null turn counts as empty.
        pair : bool
            False for a plain text row: the prompt is the whole text.
        swap : bool
            Put response B into slot A and response A into slot B.
        """
        first, second = (response_b, response_a) if swap else (response_a, response_b)
        parts = (prompt, first, second)
        return [
            Segment("tag", piece)
            if isinstance(piece, str)
            else Segment(PARTS[piece[0]], parts[piece[0]][piece[1]] or "", piece[1])
            for piece in self.layout((len(prompt), len(first), len(second)), pair)
        ]

    def _render(self, shape: Shape, chat: Callable[[str], str] | None, candidate: bool) -> str:
        from jinja2 import TemplateError

        def need_tokenizer(text: str) -> str:
            raise UserError(f"template {self.name} needs a tokenizer with a chat template")

        def plain_marks(text: str) -> str:
            return _BAITED.sub(f"{_OPEN}\\1{_CLOSE}", text)

        def wrap(text: str) -> str:
            # A chat template that trims a message may do so: it trims the message, not the turn in it.
            return (chat or need_tokenizer)(plain_marks(str(text)))

        marks = [
            [f" {_OPEN}{part}:{turn}{_BAIT}{_CLOSE} " for turn in range(n)] for part, n in enumerate(shape)
        ]
        own = marks[1].pop() if candidate else None
        turns = [
            {name: part[turn] if turn < len(part) else None for name, part in zip(PARTS, marks, strict=True)}
            for turn in range(max(shape))
        ]
        _, compiled = _compiled(self.name, self.text)
        try:
            rendered = compiled.render(
                turns=turns, prompts=marks[0], responses_a=marks[1], responses_b=marks[2], chat=wrap,
                candidate=own, range=_counted_range(self.name),
            )  # fmt: skip
            rendered.encode()  # a lone surrogate is no text
        except UserError:
            raise
        except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
            what = brief(error) or type(error).__name__
            raise UserError(f"template {self.name}: cannot be rendered ({what})") from error
        return plain_marks(rendered)


def _counted_range(name: str) -> Callable[..., range]:
    """Return the sandbox's ``range`` for one rendering, all of whose loops together end after ``STEPS``."""
    from jinja2.sandbox import safe_range

    left = STEPS

    def counted(*args: int) -> range:
        nonlocal left
        steps = safe_range(*args)
        left -= len(steps)
        if left < 0:
            raise UserError(
                f"template {name}: counts more than {STEPS:,} steps to lay out one row; does it loop?"
            )
        return steps

    return counted


def _split(name: str, rendered: str, shape: Shape, candidate: bool) -> list[str | tuple[int, int]]:
    """Split rendered text at its marks, and see that every turn is there exactly once."""
    pieces: list[str | tuple[int, int]] = []
    at = 0
    for mark in _MARK.finditer(rendered):
        if mark.start() > at:
            pieces.append(rendered[at : mark.start()])
        pieces.append((int(mark[1]), int(mark[2])))
        at = mark.end()
    if at < len(rendered):
        pieces.append(rendered[at:])
    if any(isinstance(piece, str) and (_OPEN in piece or _CLOSE in piece) for piece in pieces):
        raise UserError(
            f"template {name}: changes the text of a turn; put turns in as they are, without filters"
        )
    found = [piece for piece in pieces if not isinstance(piece, str)]
    wanted = [(part, turn) for part, n in enumerate(shape) for turn in range(n)]
    twice = {piece for piece in found if found.count(piece) > 1}
    absent = [piece for piece in wanted if piece not in found]
    for wrong, what in ((sorted(twice), "more than once"), (absent, "nowhere")):
        if wrong:
            part, turn = wrong[0]
            own = candidate and part == 1
            named = CANDIDATE if own else f"turn {turn + 1} of {PARTS[part]}"
            every = f"prompts and {CANDIDATE}" if candidate else "prompt, response_a and response_b"
            raise UserError(
                f"template {name}: puts {named} {what}; every turn of {every} stands in it exactly once"
            )
    return pieces


def template_names() -> list[str]:
    """The templates of pairs that come with the package."""
    return sorted(path.stem for path in HOME.glob("*.jinja") if path.stem != CANDIDATE)


@lru_cache(maxsize=32)
def _shipped_text(name: str) -> str | None:
    """The source of a template of the package; None where there is none of that name."""
    known = name in (*template_names(), CANDIDATE)
    return (HOME / f"{name}.jinja").read_text(encoding="utf-8") if known else None


def recorded_template(recorded: object, where: object) -> Template:
    """The template that a record holds, field by field; a mistake says where the record stands."""
    if not isinstance(recorded, dict) or not recorded.keys() <= Template.__dataclass_fields__.keys():
        raise UserError(f"{where}: the template is {brief(recorded, 60)}, not one; restore the file")
    if not all(value is None or isinstance(value, str) for value in recorded.values()):
        raise UserError(f"{where}: the template is {brief(recorded, 60)}, whose parts are not texts")
    return Template(**recorded)


def read_template(name: str) -> Template:
    """Return a shipped template by its name, or a user's own from a ``.jinja`` file.

    Raises
    ------
    UserError
        No such template, or a file that is not one.
    """
    if not name.endswith((".jinja", ".j2")):
        return Template(name)
    path = require_file(Path(name), "template")
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a mark first that no one sees
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a template ({error})") from error
    if not text.strip():
        raise UserError(f"{path}: is empty; a template holds at least the turns")
    return Template(path.stem, text)


@lru_cache(maxsize=32)
def _compiled(name: str, text: str) -> tuple[Any, Any]:
    """Compile a template in a sandbox that reaches no file, changes no object and rolls no dice."""
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if _OPEN in text or _CLOSE in text:
        raise UserError(f"template {name}: holds the reserved characters U+E000 or U+E001; leave them out")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: "" if value is None else value,
    )
    del environment.filters["random"], environment.globals["lipsum"]
    # The one operation that may never end; a layout needs no powers.
    environment.intercepted_binops = frozenset({"**"})
    environment.binop_table["**"] = _no_powers
    try:
        return environment, environment.from_string(text)
    except (TemplateError, RecursionError) as error:
        raise UserError(f"template {name}: not a Jinja template ({brief(error)})") from error


def _no_powers(base: Any, exponent: Any) -> Any:
    raise ValueError("a template has no use for powers")
