"""The formats that sources come in. Each registers itself by name, where its reader is defined.

A format is one file beside this one: a reader under :func:`source_format`. :mod:`data.sources.read` imports
the files, and that import is all that stands elsewhere of a format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from data.errors import UserError, listing
from data.schema import Rows
from data.sources.open import Columns, Table
from data.sources.place import Place

Reader = Callable[[Columns, Place], Rows]
"""Turns one batch of a source's columns into rows."""
ReaderType = TypeVar("ReaderType", bound=Callable)

AUTO = "auto"
EARLIER_NAMES = {"arena": "lmarena"}
"""Still understood; ``arena`` alone is the simulated one, which is a source and no format."""


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source.

    Parameters
    ----------
    format : str
        A name in ``FORMATS``, or ``auto``, which decides by the columns.
    columns : mapping of str to str
        For the plain table: which source column holds a field of the row table, e.g.
        ``{"prompt": "question"}``. ``label_probs`` takes one column of lists, or K comma-separated ones.
        Fields that are not named are taken from a column of their own name, ``row_id`` also from ``id``.
    classes : tuple of str, optional
        Class names of the plain table, in order.
    swap : tuple of int, optional
        Class permutation under a swap of the responses, where it is not the usual one.
    ids : str
        ``auto``: of a plain table, a column of ids where there is one, else the rows are numbered;
        ``column`` insists on one, ``row-number`` numbers in any case.
    split : str
        Split of a data set.
    limit : int, optional
        Keep the first rows only.
    streaming : bool
        Stream a data set from the hub instead of downloading it whole.
    margin : float
        For UltraFeedback: ratings that differ by no more are a tie.
    name : str, optional
        What the rows' ``source`` says; by default the file's or data set's name.
    sets : mapping of str to sequence of str
        For MAP: candidates by question, instead of those that the source's own labels show.
    """

    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    swap: tuple[int, ...] | None = None
    ids: str = "auto"
    split: str = "train"
    limit: int | None = None
    streaming: bool = False
    margin: float = 0.0
    name: str | None = None
    sets: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes
    ----------
    name : str
    fits : callable
        Whether a source's columns are those of the format.
    reader : Reader, or a class of them
        A class is made anew for each source, from its :class:`Table`, its name and the options.
    takes : tuple of str
        The options in ``PARTICULAR`` that have a meaning for it.
    """

    name: str
    fits: Callable[[Table], bool]
    reader: Callable
    takes: tuple[str, ...] = ()

    def open(self, table: Table, where: str, options: SourceOptions) -> Reader:
        """Return a reader of a source, or refuse options that have no meaning for it."""
        refuse_particular(options, where, self.name, self.takes)
        return self.reader(table, where, options) if isinstance(self.reader, type) else self.reader


FORMATS: dict[str, Format] = {}
"""All formats by name; the first whose columns fit a source reads it, the plain table where none does."""

PARTICULAR = ("columns", "classes", "swap", "ids", "margin")
"""Options that only some formats have a meaning for."""


def source_format(
    name: str, fits: Callable[[Table], bool], takes: tuple[str, ...] = ()
) -> Callable[[ReaderType], ReaderType]:
    """Register a reader as a format; the parameters are the attributes of :class:`Format`."""

    def register(reader: ReaderType) -> ReaderType:
        FORMATS[name] = Format(name, fits, reader, takes)
        return reader

    return register


def current_name(name: str) -> str:
    """Return what a format is called now; refuse one that there is none of, with the list of those known."""
    name = EARLIER_NAMES.get(name, name)
    if name != AUTO and name not in FORMATS:
        raise UserError(f"format {name} is unknown; choose one of {listing([AUTO, *sorted(FORMATS)], 12)}")
    return name


def refuse_particular(options: SourceOptions, where: str, name: str, takes: tuple[str, ...] = ()) -> None:
    """Refuse options of ``PARTICULAR`` that are given and not in ``takes``."""
    usual = SourceOptions()
    for option in PARTICULAR:
        if option in takes or getattr(options, option) == getattr(usual, option):
            continue
        if option == "ids" and options.ids == "column":
            continue  # which the others insist on in any case
        if option == "margin":
            raise UserError(f"{where}: --margin makes ties of UltraFeedback's ratings; leave it out here")
        raise UserError(
            f"{where}: is read as {name}, where --{option} has no meaning; leave it out, "
            "or prepare the source as a plain table (data.prepare --format table)"
        )
