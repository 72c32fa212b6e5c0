"""What a cell of labels means: its text whatever its type, and the class that a text names."""

from __future__ import annotations

import math
import re

from data.errors import UserError, brief, listing
from data.schema import Classes


def cell_text(value: object) -> str | None:
    """A label's cell as text: null, NaN and blank become None, whole numbers lose their point."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column with gaps turns whole numbers into floats
    text = str(value).strip()
    return re.sub(r"^(\d+)\.0+$", r"\1", text) or None  # and written to a CSV such floats are "1.0"


def label_index(label: str | None, classes: Classes, row_id: str, where: str) -> int | None:
    """Return the class that a label names or numbers; none where it is empty."""
    if label is None:
        return None
    if label in classes.names:
        return classes.names.index(label)
    if label in map(str, range(classes.n)):
        return int(label)
    raise UserError(
        f"{where}: row {row_id} has label {brief(label)}; a label is a class name ({listing(classes.names)}) "
        f"or an index from 0 to {classes.n - 1}"
    )
