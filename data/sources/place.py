"""Where a reader is in its source, what every format's rows have, and the checks they share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data.classes import Classes
from data.errors import UserError, brief, listing
from data.sources.clean import Cleaning, clean_text, clean_turns, is_utf8
from data.sources.open import Columns, Table

TEXTS = ("prompt", "response_a", "response_b")
MODELS = {"model_a": "model_a", "model_b": "model_b"}


@dataclass
class Place:
    """Where a reader is in its source, for its messages, and what it must know of earlier batches.

    Attributes
    ----------
    where : str
        The source as the user named it.
    name : str
        The source as its rows name it.
    cleaning : Cleaning
    start : int
        Rows of the source before this batch.
    indices : set of int
        Labels read as the index of a class so far.
    classes : Classes or None
        What they are indices of.
    perhaps_soft : bool
        The column ``label_probs`` was made here, and may turn out to be empty.
    id_kind : tuple or None
        Type of the ids so far, and the first of them.
    """

    where: str
    name: str
    cleaning: Cleaning
    start: int = 0
    indices: set[int] = field(default_factory=set)
    classes: Classes | None = None
    perhaps_soft: bool = False
    id_kind: tuple[str, object] | None = field(default=None, repr=False)

    def ids(self, values: list) -> list[str]:
        """Return ids as text; refuse a missing one, and ids that would differ only by their type."""
        out = []
        for i, value in enumerate(values):
            if value is None or (isinstance(value, str) and not value.strip()):
                raise UserError(f"{self.where}: row {self.start + i} (counted from 0) has no row_id")
            if isinstance(value, bool) or not isinstance(value, (str, int)):
                raise UserError(
                    f"{self.where}: row {self.start + i} (counted from 0) has the id {brief(value)!r} of "
                    f"type {type(value).__name__}; an id is text or a whole number"
                )
            kind = "text" if isinstance(value, str) else "number"
            if self.id_kind is None:
                self.id_kind = (kind, value)
            elif self.id_kind[0] != kind:
                raise UserError(
                    f"{self.where}: ids mix numbers and text ({brief(repr(self.id_kind[1]))} and "
                    f"{brief(repr(value))}), so that two may differ only by type; write them all as text"
                )
            text = str(value)
            if "\x00" in text or len(text) > 1000 or not is_utf8(text):
                raise UserError(
                    f"{self.where}: row {self.start + i} (counted from 0) has an id of {len(text):,} "
                    "characters, or with a NUL or a lone surrogate in it; give short ids of plain text"
                )
            out.append(text)
        return out

    def turns(self, columns: Columns, ids: list[str], name: str) -> list[list[str]]:
        """Clean the texts of one column."""
        return [
            clean_turns(cell, self.cleaning, f"{self.where}: row {key}, column {name}")
            for key, cell in zip(ids, columns[name], strict=True)
        ]

    def begin(self, ids: list[str]) -> Columns:
        """Return the columns that every source's rows have."""
        return {"row_id": ids, "source": [self.name] * len(ids)}

    def copy_models(self, columns: Columns, out: Columns, names: Mapping[str, str] = MODELS) -> None:
        """Copy the models' names, where the source has them; ``names`` says in which of its columns."""
        for ours, theirs in names.items():
            if theirs in columns:
                cells = zip(out["row_id"], columns[theirs], strict=True)
                out[ours] = [self.model_name(value, key, theirs) for key, value in cells]

    def model_name(self, value: object, row_id: str, column: str) -> str | None:
        """Return a model's name as text; refuse what is neither text nor a number."""
        where = f"{self.where}: row {row_id}, column {column}"
        if value is None:
            return None
        if not isinstance(value, (str, int, float)):
            raise UserError(f"{where} holds {brief(value, 40)} where a model's name was expected")
        return clean_text(str(value), self.cleaning, where)


def json_list(cell: object) -> object:
    """The list that a text is in JSON; other cells as they are."""
    if not isinstance(cell, str) or not cell.lstrip().startswith("["):
        return cell
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return found if isinstance(found, list) else cell


def is_turned(key: str) -> bool:
    """Whether the better response of row ``key`` stands second: a lot drawn by a hash, ever the same."""
    return bool(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[0] & 1)


def source_name(where: str) -> str:
    """The source's name as rows keep it: without the folder, so that it is the same on every machine."""
    path = Path(where)
    return path.resolve().name if path.exists() else where


def require(columns: Columns | list[str], names: list[str], where: str) -> None:
    """Refuse columns that lack one of ``names``."""
    missing = [name for name in names if name not in columns]
    if missing:
        raise UserError(f"{where}: no column {listing(missing)}; it has {listing(columns, 12)}")


def are_unique(table: Table, column: str) -> bool:
    """Whether a column can be ids: a text or a whole number in every row, none twice."""
    seen: set[str] = set()
    for batch in table.batches():
        cells = batch[column]
        seen.update(map(str, cells))
        if len(seen) < len(cells) or any(
            isinstance(cell, (bool, float)) or cell in (None, "") for cell in cells
        ):
            return False
    return len(seen) == sum(len(batch[column]) for batch in table.batches())
