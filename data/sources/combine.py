"""Several sources as one row table: repeated pairs found, contradicting labels kept as soft labels.

The same prompt with the same two responses, in either order, is the same pair. Copies of a pair whose
labels contradict keep their rows and get the mean of the labels as ``label_probs``: two people who
disagree are what a soft label is. A pair that a later source repeats is left out of it, or kept on
request; either way its label counts, and the report says how often and where it happened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from data.candidates import CANDIDATES
from data.classes import PREFERENCE, Classes, label_type
from data.errors import UserError, brief, listing
from data.ids import refuse_repeated
from data.schema import Rows, with_usual_types

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_ROWS = 4096
TEXTS = ["prompt", "response_a", "response_b"]


@dataclass(frozen=True)
class Repeats:
    """What was found repeated.

    Attributes
    ----------
    within : list of str
        Rows that repeat an earlier row of their own source.
    between : dict of str to list of str
        Rows of a source that repeat a pair of an earlier one, by the source's name.
    contradicting : list of list of str
        Rows of each pair whose labels contradict each other.
    labelling : list of str
        Rows that repeat an unlabelled pair of an earlier source and have a label: kept, for the label.
    kept : bool
        Whether rows repeated between sources were kept.
    """

    within: list[str] = field(default_factory=list)
    between: dict[str, list[str]] = field(default_factory=dict)
    contradicting: list[list[str]] = field(default_factory=list)
    labelling: list[str] = field(default_factory=list)
    kept: bool = False

    def lines(self) -> list[str]:
        """The report, a line a finding."""
        out = []
        if self.within:
            out.append(f"{len(self.within):,} rows repeat a pair of their own source: {listing(self.within)}")
        for name, ids in self.between.items():
            fate = "kept" if self.kept else "left out"
            out.append(
                f"{len(ids):,} rows of {name} repeat a pair of an earlier source, {fate}: {listing(ids)}"
            )
        if self.labelling:
            out.append(
                f"{len(self.labelling):,} rows repeat an unlabelled pair of an earlier source, kept for "
                f"their label: {listing(self.labelling)}"
            )
        if self.contradicting:
            shown = listing(("=".join(ids[:4]) for ids in self.contradicting), 3)
            out.append(
                f"{len(self.contradicting):,} pairs have contradicting labels, kept as soft labels: {shown}"
            )
        return out or ["no pair is repeated"]

    def counts(self) -> dict[str, object]:
        """The findings as numbers, for a manifest."""
        return {
            "within_source": len(self.within),
            "between_sources": {name: len(ids) for name, ids in self.between.items()},
            "contradicting": len(self.contradicting),
            **({"labelling": len(self.labelling)} if self.labelling else {}),
            "kept": self.kept,
        }


def combine(
    parts: Sequence[tuple[str, Rows]], keep_repeats: bool = False, prefix_ids: bool = False
) -> tuple[Rows, Repeats]:
    """Join sources, in the order given.

    Parameters
    ----------
    parts : sequence of (name, Rows)
        The name is what the rows' ``source`` says.
    keep_repeats : bool
        Keep pairs that a later source repeats.
    prefix_ids : bool
        Put ``name:`` before each row's id, for sources whose ids collide.

    Returns
    -------
    rows : Rows
    repeats : Repeats

    Raises
    ------
    UserError
        Two sources of one name, classes that do not go together, an id in two sources.
    """
    import pyarrow as pa

    names = [name for name, _ in parts]
    if len(set(names)) < len(names):
        raise UserError(
            f"sources {listing(names)}: two have the same name; name them apart in a sources file"
        )
    if len(parts) > 1:
        parts = [(name, with_usual_types(part)) for name, part in parts]
    classes = common_classes(parts)
    tables = [_with_source(part.table, name, prefix_ids) for name, part in parts]
    if len(tables) > 1 or classes != parts[0][1].classes:
        tables = [
            _fit_classes(table, part.classes, classes) for table, (_, part) in zip(tables, parts, strict=True)
        ]
    try:
        table = tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise UserError(
            f"sources {listing(names)}: a column has another type in each ({brief(error)}); rename or drop it"
        ) from error
    rows = Rows(table, classes)
    part_of_row = np.repeat(np.arange(len(parts)), [len(part) for _, part in parts])
    rows, repeats = _settle(rows, part_of_row, names, keep_repeats)
    remedy = "; put the sources' names before them with --prefix-ids" if len(parts) > 1 else ""
    refuse_repeated(rows.row_ids, ", ".join(names), remedy=remedy)
    return rows, repeats


def common_classes(parts: Sequence[tuple[str, Rows]]) -> Classes:
    """The classes all sources share; two-class preference goes into the three classes of preference.

    Raises
    ------
    UserError
        Other classes cannot be joined.
    """
    found = list(dict.fromkeys(part.classes for _, part in parts))
    if len(found) == 1:
        return found[0]
    if all(classes.candidates for classes in found):
        return max(found, key=lambda classes: classes.n)
    if all(classes.swap is not None and set(classes.names) <= set(PREFERENCE.names) for classes in found):
        return PREFERENCE
    first = parts[0]
    other = next(part for part in parts if part[1].classes != first[1].classes)
    raise UserError(
        f"{first[0]} has the classes {listing(first[1].classes.names)} and {other[0]} "
        f"{listing(other[1].classes.names)}; sources of one table share their classes, name them with "
        "--classes"
    )


def _with_source(table: pa.Table, name: str, prefix_ids: bool) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    if "source" not in table.column_names:
        table = table.append_column("source", pa.array([name] * table.num_rows, pa.string()))
    if prefix_ids:
        ids = pc.binary_join_element_wise(pa.scalar(name), table.column("row_id"), ":")
        table = table.set_column(table.column_names.index("row_id"), "row_id", ids)
    return table


def _fit_classes(table: pa.Table, own: Classes, classes: Classes) -> pa.Table:
    """Rewrite labels of ``own`` classes as labels of ``classes``, which hold them all by name."""
    import pyarrow as pa

    if own == classes or own.candidates:
        return table
    place = np.array([classes.names.index(name) for name in own.names])
    rows = Rows(table, own)
    labels = np.where(rows.labels >= 0, place[rows.labels], -1)
    column = pa.array(labels, label_type(classes), mask=labels < 0)
    table = table.set_column(table.column_names.index("label"), "label", column)
    if "label_probs" in table.column_names:
        wide = [
            None if probs is None else np.bincount(place, weights=probs, minlength=classes.n).tolist()
            for probs in table.column("label_probs").to_pylist()
        ]
        at = table.column_names.index("label_probs")
        table = table.set_column(at, "label_probs", pa.array(wide, pa.list_(pa.float32())))
    return table


def _settle(
    rows: Rows, part_of_row: np.ndarray, names: list[str], keep_repeats: bool
) -> tuple[Rows, Repeats]:
    """Find copies of pairs, give contradicting ones their mean label, and leave repeats out."""
    keys, turned = pair_keys(rows)
    _, first, pair = np.unique(keys, return_index=True, return_inverse=True)
    sizes = np.bincount(pair)
    copies = np.flatnonzero(sizes[pair] > 1)
    if copies.size == 0:
        return rows, Repeats(kept=keep_repeats)
    ids = rows.row_ids
    order = copies[np.lexsort((copies, pair[copies]))]
    starts = np.flatnonzero(np.diff(pair[order], prepend=-1))
    swap = np.array(rows.classes.permutation)
    targets = rows.take(copies).targets  # of thousands of classes, those of all rows fill the memory
    of_copy = np.full(len(rows), -1)
    of_copy[copies] = np.arange(len(copies))
    soft = dict[int, np.ndarray]()
    sizes = np.full(len(rows), rows.classes.n) if rows.sizes is None else rows.sizes
    contradicting = []
    for members in np.split(order, starts[1:]):
        own = targets[of_copy[members]]
        canonical = np.where(turned[members, None], own[:, swap], own)
        known = np.isfinite(canonical).all(axis=1)
        if known.sum() < 2 or np.abs(canonical[known] - canonical[known][0]).max() < 1e-6:
            continue
        mean = canonical[known].mean(axis=0)
        contradicting.append([ids[i] for i in members[known]])
        for i in members[known]:
            soft[int(i)] = (mean[swap] if turned[i] else mean)[: sizes[i]]
    labelled = rows.labelled
    earliest = part_of_row[first[pair]]
    first_labelled = np.full(len(first), len(rows))
    np.minimum.at(first_labelled, pair[labelled], np.flatnonzero(labelled))
    first = np.where(first_labelled < len(rows), first_labelled, first)  # where one has a label
    home = part_of_row[first[pair]]
    labelling = [ids[i] for i in np.flatnonzero((part_of_row == home) & (home > earliest))]
    between = np.flatnonzero(part_of_row > home)
    within = copies[(copies != first[pair[copies]]) & (part_of_row[copies] == home[copies])]
    repeated = {
        names[part]: [ids[i] for i in between[part_of_row[between] == part]]
        for part in np.unique(part_of_row[between])
    }
    if soft:
        rows = _with_soft_labels(rows, soft)
    if between.size and not keep_repeats:
        kept = np.ones(len(rows), dtype=bool)
        kept[between] = False
        rows = Rows(rows.table.filter(kept), rows.classes)
    return rows, Repeats([ids[i] for i in within], repeated, contradicting, labelling, keep_repeats)


def pair_keys(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return a key a row, equal for the same pair in either order, and whether the row's is turned round.

    Returns
    -------
    keys : ndarray of shape (n,), 16 bytes each
    turned : ndarray of shape (n,), bool
        Whether response A sorts behind response B.
    """
    keys = np.empty(len(rows), dtype="S32")
    turned = np.zeros(len(rows), dtype=bool)
    at = 0
    own = [CANDIDATES] if rows.classes.candidates else []
    for batch in rows.table.select([*TEXTS, *own]).to_batches(CHUNK_ROWS):
        for prompt, first, second, *others in zip(*(c.to_pylist() for c in batch.columns), strict=True):
            turned[at] = first > second
            digest = hashlib.blake2b(digest_size=16)
            for turns in (prompt, *sorted((first, second)), *others):
                digest.update(f"{len(turns)}:".encode())
                for turn in turns:
                    text = turn.encode("utf-8", "surrogatepass")
                    digest.update(f"{len(text)}:".encode() + text)
            keys[at] = digest.hexdigest().encode()
            at += 1
    return keys, turned


def _with_soft_labels(rows: Rows, soft: dict[int, np.ndarray]) -> Rows:
    import pyarrow as pa

    table = rows.table
    found: list = [None] * len(rows)
    if "label_probs" in table.column_names:
        found = table.column("label_probs").to_pylist()
        table = table.drop_columns(["label_probs"])
    for i, probs in soft.items():
        found[i] = probs.astype(np.float32).tolist()
    column = pa.array(found, pa.list_(pa.float32()))
    return Rows(table.add_column(table.column_names.index("label") + 1, "label_probs", column), rows.classes)
