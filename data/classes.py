"""The classes that labels are drawn from: their names, what a swap of two responses does to them.

Class names, and the permutation of classes under the swap, travel in the metadata of a table's file. Rows
that bring their own candidates have classes, too: the places in such a set.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import UserError, brief, listing

if TYPE_CHECKING:
    import pyarrow as pa

CLASSES_KEY = b"distillstack.classes"
SWAP_KEY = b"distillstack.swap"
CANDIDATES_KEY = b"distillstack.candidates"
MAX_CLASSES = 100_000
"""More labels than that are texts of their own, not classes."""
RESERVED = (
    "fold",
    "group_id",
    "id",
    "label",
    "prompt",
    "response_a",
    "response_b",
    "row_id",
    "swap",
    "weight",
)
"""Columns that stand beside those of the classes in one file or another, in any letter case."""


@dataclass(frozen=True)
class Classes:
    """The class names in order, and what swapping the two responses does to them.

    Attributes
    ----------
    names : tuple of str
        Class names; a label is an index into them.
    swap : tuple of int or None
        ``swap[c]`` is the class that class ``c`` becomes when the responses change places; its own
        inverse. ``None`` where a row is a single text and nothing can be swapped.
    candidates : bool
        Whether they are the places of a row's own candidates, of which it may have fewer.
    """

    names: tuple[str, ...]
    swap: tuple[int, ...] | None = None
    candidates: bool = False

    def __post_init__(self) -> None:
        if len(self.names) < 2 or len(set(self.names)) != len(self.names):
            raise UserError(f"classes must be two or more distinct names, not {listing(self.names)}")
        if len(self.names) > MAX_CLASSES:
            raise UserError(f"{len(self.names)} classes are more than the {MAX_CLASSES} that labels can have")
        taken = [name for name in self.names if str(name).lower() in RESERVED]
        if taken:
            raise UserError(
                f"class name {taken[0]} is that of a column that stands beside the classes in predictions "
                f"and label files; call the class otherwise in the source, e.g. class_{taken[0]} (so too "
                f"{listing((name for name in RESERVED if name not in taken), 12)})"
            )
        bad = [name for name in self.names if not str(name).strip() or not str(name).isprintable()]
        if bad:
            raise UserError(f"class name {bad[0]!r} is empty or holds control characters; give another")
        if self.swap is not None:
            k = len(self.names)
            if sorted(self.swap) != list(range(k)) or any(self.swap[self.swap[c]] != c for c in range(k)):
                raise UserError(f"class swap {list(self.swap)} is not a permutation that undoes itself")

    @property
    def n(self) -> int:
        """Number of classes K."""
        return len(self.names)

    @property
    def outputs(self) -> int:
        """Numbers that a model's head gives for one text: one a class, or one for a candidate."""
        return 1 if self.candidates else self.n

    def suit(self, other: Classes) -> bool:
        """Whether a model of these predicts rows of ``other``; sets of candidates may be of any size."""
        return self.candidates == other.candidates if self.candidates else self == other

    @property
    def orders(self) -> tuple[bool, ...]:
        """The values of ``swap`` a row is predicted under: both orders of a pair, or the only one."""
        return (False,) if self.swap is None else (False, True)

    @property
    def permutation(self) -> list[int]:
        """The swap as an index array; the identity where there is none."""
        return list(range(self.n)) if self.swap is None else list(self.swap)


PREFERENCE = Classes(("winner_model_a", "winner_model_b", "winner_tie"), (1, 0, 2))
PREFERENCE_NO_TIE = Classes(("winner_model_a", "winner_model_b"), (1, 0))


def place_classes(most: int) -> Classes:
    """The classes of rows with candidates of their own: their places, up to the ``most`` that a row has."""
    return Classes(tuple(f"candidate_{place}" for place in range(max(most, 2))), None, True)


def refuse_candidates(classes: Classes, what: str, instead: str) -> None:
    """Refuse rows with candidates of their own where only classes that rows share are served.

    Parameters
    ----------
    classes : Classes
    what : str
        The file, run or directory.
    instead : str
        What serves such rows.
    """
    if classes.candidates:
        raise UserError(
            f"{what}: its rows have candidates of their own, which this does not serve; {instead}"
        )


def label_type(classes: Classes) -> pa.DataType:
    """Return the narrowest type of a class index; int8 up to 127 classes."""
    import pyarrow as pa

    return next(
        kind for kind, n in ((pa.int8(), 127), (pa.int16(), 32_767), (pa.int32(), 1 << 31)) if classes.n <= n
    )


def metadata_of(classes: Classes) -> dict[bytes, bytes]:
    """Return a table's metadata that names its classes, as :func:`classes_of` reads it."""
    return {
        CLASSES_KEY: json.dumps(classes.names).encode(),
        SWAP_KEY: json.dumps(classes.swap).encode(),
        **({CANDIDATES_KEY: b"true"} if classes.candidates else {}),
    }


def classes_of(schema: pa.Schema, where: Path, otherwise: Classes = PREFERENCE) -> Classes:
    """Return the classes that a table's metadata names, ``otherwise`` where it names none."""
    metadata = schema.metadata or {}
    if CLASSES_KEY not in metadata:
        return otherwise
    try:
        names = json.loads(metadata[CLASSES_KEY])
        swap = json.loads(metadata.get(SWAP_KEY, b"null"))
        return Classes(tuple(names), None if swap is None else tuple(swap), CANDIDATES_KEY in metadata)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: its class names are damaged ({brief(error)}); make it again") from error
