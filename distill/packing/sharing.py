"""What the sequences of a row begin with alike, laid into a pack once.

A row is read several times: a pair in both orders, a row with candidates once for each. The tokens that all
of its sequences begin with are a prefix, whose hidden states no later token changes, so they need computing
only once. In a pack the sequences' own tokens lie first, a document each, at the positions that they have
behind their prefix; the prefixes lie behind them as documents of their own. A token sees its own document up
to itself and all of the prefix that its document continues: that is the sequence as it is alone, and so are
outputs, losses and gradients. With dropout in the adapters a prefix draws one mask for all its sequences.

Keys and values of a prefix are read by several documents. Attention over documents with bounds of their own
for queries and keys takes them repeated (``Pack.key_tokens``): cheap, as layers spend little on keys and
values. Flex attention takes them as they lie, by its mask (``Pack.parents``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.encoding.encode import Encoded
from distill.packing.cutting import SIZE_MULTIPLE, Static, static_shape

log = logging.getLogger(__name__)

LEAST = 16
"""Tokens that a prefix must have: a document costs attention a tile, however short it is."""
PAYS = 0.1
"""Share of the tokens that sharing must save for ``auto`` to share."""


@dataclass(frozen=True)
class Layout:
    """The documents of a pack: first the sequences' own tokens, then the prefixes.

    Attributes
    ----------
    lengths : ndarray of shape (documents,)
        Tokens of each.
    parents : ndarray of shape (documents,)
        The document that each continues; itself where it continues none.
    """

    lengths: np.ndarray
    parents: np.ndarray

    @classmethod
    def apart(cls, lengths: np.ndarray) -> Layout:
        """Documents of which none continues another."""
        return cls(lengths, np.arange(len(lengths)))

    def filled(self, lengths: list[int]) -> Layout:
        """The same with documents of padding behind."""
        behind = len(self.parents) + np.arange(len(lengths))
        both = np.concatenate([self.lengths, np.array(lengths, dtype=np.int64)])
        return Layout(both, np.concatenate([self.parents, behind]))

    @property
    def before(self) -> np.ndarray:
        """Tokens of the prefix before each document, shape (documents,): its first position."""
        alone = self.parents == np.arange(len(self.parents))
        return np.where(alone, 0, self.lengths[self.parents])

    @property
    def key_lengths(self) -> np.ndarray:
        """Keys that the documents' tokens see, shape (documents,)."""
        return self.before + self.lengths


def row_prefix(encoded: Encoded, sequences: np.ndarray) -> int:
    """Tokens that all of some sequences begin with, each keeping one of its own at least; 0 if too few."""
    pieces = [encoded[int(s)] for s in sequences]
    most = min(map(len, pieces)) - 1 if len(pieces) > 1 else 0
    for other in pieces[1:]:
        differ = pieces[0][:most] != other[:most]
        most = int(differ.argmax()) if differ.any() else most
    return most if most >= LEAST else 0


def prefixes(encoded: Encoded, rows: np.ndarray) -> np.ndarray:
    """Tokens that all sequences of a row begin with, for these rows; 0 for all others, shape (all rows,)."""
    n = len(encoded.offsets) - 1
    found = np.zeros(n // encoded.orders if encoded.sizes is None else len(encoded.sizes), dtype=np.int64)
    for row in np.unique(rows):
        found[row] = row_prefix(encoded, encoded.of_rows(np.array([row])))
    return found


def saved_share(encoded: Encoded, rows: np.ndarray, found: np.ndarray) -> float:
    """Share of the tokens of these rows, in all their orders, that packs need not lay out."""
    rows = np.unique(rows)
    times = encoded.orders if encoded.sizes is None else encoded.sizes[rows]
    total = int(encoded.lengths[encoded.of_rows(rows)].sum())
    return float(((times - 1) * found[rows]).sum() / total) if total else 0.0


def prefixes_to_share(encoded: Encoded, rows: np.ndarray, wanted: str, able: bool) -> np.ndarray | None:
    """What packs of these rows, read in all their orders, are to share: as :func:`prefixes`, or None.

    Parameters
    ----------
    wanted : {"auto", "true", "false"}
        In any case. ``auto`` shares where that saves :data:`PAYS` of the tokens.
    able : bool
        Whether the model's attention can (:attr:`distill.model.classifier.Classifier.shares`).
    """
    read_once = encoded.sizes is None and encoded.orders == 1
    if not able or read_once or wanted.lower() == "false":
        return None
    found = prefixes(encoded, rows)
    share = saved_share(encoded, rows, found)
    if share == 0 or (wanted.lower() == "auto" and share < PAYS):
        return None
    log.info("%.0f %% of the tokens are prefixes that a row's sequences share", 100 * share)
    return found


def laid_lengths(encoded: Encoded, sequences: np.ndarray, found: np.ndarray | None) -> np.ndarray:
    """Tokens that each sequence adds to a pack: the first of a row's neighbours brings their prefix."""
    lengths = encoded.lengths[sequences]
    if found is not None and len(sequences):
        rows = encoded.rows_of(sequences)
        again = np.concatenate([[False], rows[1:] == rows[:-1]])
        lengths[again] -= found[rows[again]]
    return lengths


def layout(encoded: Encoded, sequences: np.ndarray, found: np.ndarray | None) -> Layout:
    """Lay out sequences, those of a row that are neighbours around its prefix; each alone for None.

    Parameters
    ----------
    found : ndarray of shape (all rows,) or None
        As :func:`prefixes` returns it.
    """
    if found is None:
        return Layout.apart(encoded.lengths[sequences])
    rows = encoded.rows_of(sequences)
    opens = np.concatenate([[True], rows[1:] != rows[:-1]])
    group = np.cumsum(opens) - 1
    shared = np.where(np.bincount(group)[group] > 1, found[rows], 0)
    leads = opens & (shared > 0)
    documents = np.arange(len(sequences) + int(leads.sum()))
    behind = len(sequences) - 1 + np.cumsum(leads)
    parents = np.concatenate(
        [np.where(shared > 0, behind, documents[: len(sequences)]), documents[len(sequences) :]]
    )
    return Layout(np.concatenate([encoded.lengths[sequences] - shared, shared[leads]]), parents)


def shape_of(layouts: Sequence[Layout], longest: int, budget: int = 0) -> Static:
    """The smallest round shape that holds every pack: :func:`distill.packing.cutting.static_shape`.

    Where documents share prefixes it has room for their keys, those of the fillers among them.
    """
    static = static_shape((one.lengths for one in layouts), longest, budget)
    more = max(int(one.before.sum()) for one in layouts)
    return (
        replace(static, keys=-(-(static.tokens + more) // SIZE_MULTIPLE) * SIZE_MULTIPLE) if more else static
    )


class Whole:
    """Sequences by what must stay together: those of a row that are neighbours, else each by itself.

    Parameters
    ----------
    sequences : ndarray of int
    found : ndarray of shape (all rows,) or None
        As :func:`prefixes` returns it; for None each sequence is by itself.

    Attributes
    ----------
    lengths : ndarray of int
        Tokens that each of them takes in a pack.
    """

    def __init__(self, encoded: Encoded, sequences: np.ndarray, found: np.ndarray | None) -> None:
        opens = np.arange(len(sequences))
        if found is not None and len(sequences):
            rows = encoded.rows_of(sequences)
            opens = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
        self._opens, self._sizes = opens, np.diff(np.append(opens, len(sequences)))
        ends = np.concatenate([[0], np.cumsum(laid_lengths(encoded, sequences, found))])
        self.lengths = np.diff(ends[np.append(opens, len(sequences))])

    def members(self, chosen: np.ndarray) -> np.ndarray:
        """Places of the sequences of some of them."""
        sizes = self._sizes[chosen]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.repeat(self._opens[chosen], sizes) + within

    def at_most(self, sequences: int) -> int:
        """How many of them surely are no more than so many sequences; one at least, and 0 for any number."""
        return sequences and max(1, sequences // int(self._sizes.max()))
