"""What a cell of labels means, in a source and in a label file alike: nothing, a class's name, or its index.

Names go before indices, and a number is an index only where nothing contradicts it: where the classes are
numbers themselves, a number is a name. Whether numbers count from 0 is seen by a 0 among them; without one
they are refused, for a column that counts from 1 would be read one class off.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection

from data.classes import Classes
from data.errors import UserError, brief, listing

MISSING = ("", "na", "nan", "none", "null")
"""How an unlabelled cell is written, in any letter case, where no class is called so."""
BOTH_BAD = ("tie (bothbad)", "both_bad", "bothbad")
WINNERS = {"model_a": 0, "model_b": 1, "tie": 2, **dict.fromkeys(BOTH_BAD, 2)}
"""What a ``winner`` column says of a pair."""


def cell_text(value: object) -> str | None:
    """A label's cell as text: null, NaN and blank become None, whole numbers lose their point."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column with gaps turns whole numbers into floats
    text = str(value).strip()
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text) or None  # and written to a CSV such floats are "1.0"


def is_missing(text: str | None, names: Collection[str] = ()) -> bool:
    """Whether a cell's text stands for no label, where ``names`` are those of the classes."""
    return text is None or (text not in names and text.lower() in MISSING)


class LabelReader:
    """Reads the labels of one file, cell by cell.

    Parameters
    ----------
    classes : Classes
    where : str
        The file, for messages.

    Attributes
    ----------
    indices : set of int
        The labels read as an index so far.
    """

    def __init__(self, classes: Classes, where: str) -> None:
        self.classes, self.where = classes, where
        self.indices: set[int] = set()
        self._named = {name: k for k, name in enumerate(classes.names)}
        # Grades from 1 to 5: there 1 is a name, whichever way it is written.
        self._numbers = {_whole(name): k for k, name in enumerate(classes.names)}

    def __call__(self, value: object, row_id: str) -> int | None:
        """Return the class that a cell names or numbers; none where it is empty.

        Raises
        ------
        UserError
            It is neither.
        """
        text = cell_text(value)
        k = None if text is None else self._named.get(text)
        if k is not None or is_missing(text):
            return k
        number = _whole(text)
        if None not in self._numbers:
            k = self._numbers.get(number)
        elif number is not None and 0 <= number < self.classes.n:
            k = number
            self.indices.add(k)
        if k is None:
            allowed = "" if None not in self._numbers else f" or an index from 0 to {self.classes.n - 1}"
            shown = brief(value) if isinstance(value, (str, int, float)) else repr(brief(value))
            counted = number == self.classes.n and None in self._numbers
            raise UserError(
                f"{self.where}: row {brief(row_id)} has label {shown}, none of the {self.classes.n} "
                f"classes; give a class name ({listing(self.classes.names)}){allowed}"
                f"{'; do the labels count from 1? write them as names' if counted else ''}"
            )
        return k

    def check_counting(self) -> None:
        """Refuse indices, once all are read, of which none is 0: they may count from 1."""
        refuse_counting(self.indices, self.classes, self.where)


def refuse_counting(indices: Collection[int], classes: Classes, where: str) -> None:
    """Refuse indices, two or more, of which none is 0: nothing shows what they count from."""
    if len(indices) > 1 and min(indices) > 0:
        names = ",".join(str(k + 1) for k in range(classes.n))
        raise UserError(
            f"{where}: the labels are the numbers {listing(sorted(indices))} and none is 0, so that nothing "
            f"shows whether they count the classes from 0 or from 1; write class names "
            f"({listing(classes.names)}) in their place, or where they are names themselves, name all of "
            f"them in order (data.prepare: --classes {names}, of a pair A wins, B wins, tie)"
        )


def winner_index(value: object, n_classes: int, row_id: str, where: str) -> int | None:
    """Return the class that a ``winner`` cell names, of two classes or three; none where it is empty."""
    text = cell_text(value)
    if is_missing(text):
        return None
    found = WINNERS.get(str(text), n_classes)
    if found >= n_classes:
        known = [name for name, k in WINNERS.items() if k < n_classes]
        raise UserError(
            f"{where}: row {brief(row_id)} has winner {brief(text)}; it must be one of {listing(known, 9)}"
        )
    return found


def _whole(text: str | None) -> int | None:
    match = re.fullmatch(r"([+-]?(?:0|[1-9]\d{0,17}))(\.0*)?", text or "")
    return int(match[1]) if match else None
