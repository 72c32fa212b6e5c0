"""Prompt groups: rows whose prompts are equal, or nearly so, belong together and are never split.

Exact groups come from the normalised text. Near-duplicates are found by MinHash (signatures by the
rensa library) with banded locality-sensitive hashing; every candidate pair is then checked by its exact
Jaccard similarity, so that no chance collision unites two groups, and what passes is united
transitively. Time and memory grow linearly with the rows: signatures live only as long as their chunk.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.console.progress import progress
from data.errors import UserError, brief
from data.schema import Rows

SHINGLE = 5
N_PERMUTATIONS = 128
RECALL = 0.99
SIGNATURE_SEED = 20240729
CHUNK_ROWS = 4096
CROWD_PROMPTS, CROWD_SHARE = 10, 0.01
"""Distinct prompts, and the share of all, from which a united group is compared by what it does not share."""
LEAST_REST = 8
"""Pieces that a prompt must have beside the shared ones to be told apart by them: some twelve characters."""
MAX_COMPARED = 16
"""Within one bucket a prompt is compared with this many of the groups met last: keeps time linear."""

_SPACE = re.compile(r"\s+")
_UNSEEN = re.compile("[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff]")
"""Characters that show nothing: soft hyphens, zero-width spaces and joiners, directions, variants."""


@dataclass(frozen=True)
class Near:
    """When two prompts are near-duplicates.

    Attributes
    ----------
    threshold : float
        Jaccard similarity of their sets of five-character pieces, after normalisation, from which on
        they are one group; above 0.3, at most 1.
    """

    threshold: float = 0.8

    def __post_init__(self) -> None:
        if not 0.3 <= self.threshold <= 1:
            raise UserError(
                f"a near-duplicate threshold of {self.threshold} is outside 0.3 to 1; 0.8 unites rewordings, "
                "and a lower one unites ever more unlike prompts"
            )

    @property
    def bands(self) -> tuple[int, int]:
        """Bands and rows a band: the strictest banding that finds 99 % of pairs at the threshold."""
        for rows in range(N_PERMUTATIONS, 0, -1):
            count = N_PERMUTATIONS // rows
            if 1 - (1 - self.threshold**rows) ** count >= RECALL:
                return count, rows
        return N_PERMUTATIONS, 1


def normalise_prompt(turns: Sequence[str]) -> str:
    """Join a prompt's turns into the text by which prompts are compared.

    Unicode compatibility forms, letter case, runs of white space and characters that show nothing make no
    difference.
    """
    text = unicodedata.normalize("NFKC", _UNSEEN.sub("", "\n".join(turns))).casefold()
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text)).strip()


def group_prompts(prompts: Iterable[Sequence[str]]) -> list[str]:
    """Return a group id a prompt: 16 hex digits, equal where the normalised prompts are equal."""
    return [_group_id(normalise_prompt(turns)) for turns in prompts]


def _group_id(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def prompts_of(rows: Rows) -> Iterator[list[str]]:
    """Iterate over the rows' prompts, a batch at a time in memory."""
    for batch in rows.table.select(["prompt"]).to_batches(CHUNK_ROWS):
        yield from batch.column(0).to_pylist()


def group_rows(
    rows: Rows, near: Near | None = None, part: bool = False, notes: list[str] | None = None
) -> list[str]:
    """Return a group id a row.

    Parameters
    ----------
    rows : Rows
    near : Near, optional
        Unite near-duplicates too; the smallest id of the united groups becomes theirs.
    part : bool
        Part crowds that share a long text by the rest of theirs: :func:`part_by_rest`.
    notes : list of str, optional
        Gets what the user should know of that.
    """
    exact = group_prompts(progress(prompts_of(rows), "grouping prompts", len(rows), "row"))
    if near is None:
        return exact
    first: dict[str, int] = {}
    for i, group in enumerate(exact):
        first.setdefault(group, i)
    names = list(first)
    index = np.fromiter(first.values(), np.int64, len(first))
    roots = part_by_rest(rows, index, near, notes) if part else unite_near(rows, index, near)
    smallest: dict[int, str] = {}
    for name, root in zip(names, roots.tolist(), strict=True):
        smallest[root] = min(name, smallest.get(root, name))
    united = {name: smallest[root] for name, root in zip(names, roots.tolist(), strict=True)}
    return [united[group] for group in exact]


def shared_prompts(rows: Rows, others: Rows, near: Near | None = None) -> np.ndarray:
    """Which rows have a prompt that also stands among the ``others``, as :func:`group_rows` sees it.

    Parameters
    ----------
    rows, others : Rows
        Of any classes.
    near : Near, optional
        Count near-duplicates too, and what these are united with.

    Returns
    -------
    ndarray of shape (len(rows),), bool
    """
    import pyarrow as pa

    tables = [part.table.select(["prompt"]) for part in (rows, others)]
    both = Rows(pa.concat_tables(tables, promote_options="permissive"), rows.classes)
    groups = group_rows(both, near, True)
    return np.isin(groups[: len(rows)], groups[len(rows) :])


def part_by_rest(rows: Rows, index: np.ndarray, near: Near, notes: list[str] | None = None) -> np.ndarray:
    """Unite near-duplicates; of a crowd that shares a long text, by what it does not share.

    Short answers under one long question are such a crowd: a united group of :data:`CROWD_PROMPTS` or more
    distinct prompts, and a :data:`CROWD_SHARE` of all. Pieces that most of it share are left out, and what
    remains is compared again, until nothing parts. Prompts of which next to nothing remains stay together:
    they differ by a mark or a number.

    Returns
    -------
    ndarray of shape (len(index),)
        As :func:`unite_near`.
    """
    found = unite_near(rows, index, near)
    least = max(CROWD_PROMPTS, int(np.ceil(CROWD_SHARE * len(index))))
    waiting = [(group, np.array([], dtype=np.uint64)) for group in _crowds(found, least)]
    n_parted = 0
    while waiting:
        members, common = waiting.pop()
        hashes, offsets = shingle_hashes(
            [normalise_prompt(turns) for turns in _prompts_at(rows, index[members])]
        )
        sets = [np.setdiff1d(part, common) for part in np.split(hashes, offsets[1:-1].astype(np.int64))]
        pieces, counts = np.unique(np.concatenate(sets), return_counts=True)
        shared = pieces[2 * counts > len(members)]
        if not shared.size:
            continue
        common = np.union1d(common, shared)
        rest = np.array([len(np.setdiff1d(own, shared)) for own in sets])
        telling = members[rest > 0]
        if len(telling) < 2:
            continue
        parted = telling[unite_near(rows, index[telling], near, common)]
        # Whoever has next to nothing left stays with the others of that kind, and takes its likes along.
        untold = np.isin(parted, parted[rest[rest > 0] < LEAST_REST])
        left = np.union1d(members[rest == 0], telling[untold])
        if len(left) == len(members) or (not len(left) and len(set(parted.tolist())) == 1):
            continue
        found[telling[~untold]] = parted[~untold]
        found[left] = left[:1]
        waiting += [(group, common) for group in _crowds(parted[~untold], least, telling[~untold])]
        n_parted += len(members)
    if n_parted and notes is not None:
        notes.append(
            f"{n_parted:,} prompts share most of their text with many others, as answers to one question do, "
            "and are grouped by the rest of it (--near off: by equal prompts alone)"
        )
    return found


def _crowds(found: np.ndarray, least: int, at: np.ndarray | None = None) -> list[np.ndarray]:
    """Positions of the members of each group of ``least`` or more, ascending."""
    order = np.argsort(found, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(found[order])) + 1)
    return [group if at is None else at[group] for group in groups if len(group) >= least]


def unite_near(rows: Rows, index: np.ndarray, near: Near, common: np.ndarray | None = None) -> np.ndarray:
    """Unite near-duplicates among the prompts of the rows at ``index``.

    Parameters
    ----------
    rows : Rows
    index : ndarray of int
        Ascending.
    near : Near
    common : ndarray of uint64, optional
        Hashes of pieces that are left out of the comparison.

    Returns
    -------
    ndarray of shape (len(index),)
        A number a prompt, equal for the prompts of one united group.
    """
    parent = np.arange(len(index))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return int(i)

    shingles = _Shingles(rows, index, common)
    for keys in _band_keys(rows, index, near, common):
        order = np.argsort(keys, kind="stable")
        borders = np.flatnonzero(np.diff(keys[order])) + 1
        starts = np.concatenate([[0], borders])
        ends = np.concatenate([borders, [len(order)]])
        for at in np.flatnonzero(ends - starts > 1):
            met: dict[int, int] = {}  # root to the member met last
            for member in order[starts[at] : ends[at]].tolist():
                own = root(member)
                others = [(r, other) for r, other in met.items() if root(r) != own]
                for r, other in others[-MAX_COMPARED:]:
                    if root(r) != root(member) and shingles.jaccard(member, other) >= near.threshold:
                        parent[max(root(r), root(member))] = min(root(r), root(member))
                met.pop(own, None)
                met[root(member)] = member
    return np.array([root(i) for i in range(len(index))])


def _band_keys(
    rows: Rows, index: np.ndarray, near: Near, common: np.ndarray | None = None
) -> list[np.ndarray]:
    """MinHash every prompt; return one array of bucket keys a band."""
    from rensa import RMinHash

    count, width = near.bands
    keys = np.empty((count, len(index)), dtype=np.uint64)
    mix = np.random.default_rng(SIGNATURE_SEED).integers(1, 2**63, size=width, dtype=np.uint64) | np.uint64(1)
    chunks = range(0, len(index), CHUNK_ROWS)
    prompts = _prompts_at(rows, index)
    for start in progress(chunks, "finding near-duplicates", len(chunks), "chunk"):
        texts = [normalise_prompt(turns) for turns in itertools.islice(prompts, CHUNK_ROWS)]
        hashes, offsets = shingle_hashes(texts)
        if common is not None:
            kept = ~np.isin(hashes, common)
            offsets = np.concatenate([[0], np.cumsum(kept)])[offsets.astype(np.int64)].astype(np.uint64)
            hashes = hashes[kept]
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, offsets, N_PERMUTATIONS, SIGNATURE_SEED
        )
        signatures = np.array(matrix.to_rows(), dtype=np.uint64)[:, : count * width]
        # A polynomial of odd multipliers modulo 2^64; a rare collision costs one exact comparison.
        banded = (signatures.reshape(len(texts), count, width) + np.uint64(1)) * mix
        folded = banded.sum(axis=2, dtype=np.uint64)
        keys[:, start : start + len(texts)] = (folded ^ (folded >> np.uint64(29))).T
    return list(keys)


def shingle_hashes(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hash the five-character pieces of each text.

    Returns
    -------
    hashes : ndarray of uint64
        Of all texts, one after another; a text shorter than a piece is padded to one.
    offsets : ndarray of uint64, one more than there are texts
    """
    padded = [text.ljust(SHINGLE) for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(
        np.uint64
    )
    lengths = np.array([len(text) for text in padded])
    ends = np.cumsum(lengths)
    rolled = np.zeros(len(codes) - SHINGLE + 1, dtype=np.uint64)
    for j in range(SHINGLE):
        rolled = rolled * np.uint64(0x9E3779B97F4A7C15) + codes[j : len(codes) - SHINGLE + 1 + j]
    rolled ^= rolled >> np.uint64(31)
    rolled *= np.uint64(0xBF58476D1CE4E5B9)
    inside = np.ones(len(rolled), dtype=bool)
    for j in range(1, SHINGLE):
        inside[ends[:-1] - j] = False  # pieces that run from one text into the next
    offsets = np.zeros(len(texts) + 1, dtype=np.uint64)
    offsets[1:] = np.cumsum(lengths - SHINGLE + 1)
    return rolled[inside], offsets


class _Shingles:
    """Exact Jaccard similarity of prompts, a few thousand sets of pieces kept at hand."""

    def __init__(self, rows: Rows, index: np.ndarray, common: np.ndarray | None = None) -> None:
        self.prompts = rows.table.column("prompt")
        self.common = common
        self.index = index
        self.known: dict[int, frozenset] = {}

    def of(self, i: int) -> frozenset:
        if i not in self.known:
            if len(self.known) >= 2048:
                self.known.clear()
            text = normalise_prompt(self.prompts[int(self.index[i])].as_py()).ljust(SHINGLE)
            if self.common is None:
                self.known[i] = frozenset(text[j : j + SHINGLE] for j in range(len(text) - SHINGLE + 1))
            else:
                self.known[i] = frozenset(np.setdiff1d(shingle_hashes([text])[0], self.common).tolist())
        return self.known[i]

    def jaccard(self, i: int, j: int) -> float:
        one, two = self.of(i), self.of(j)
        if min(len(one), len(two)) < 0.3 * max(len(one), len(two)):
            return 0.0  # below every threshold already
        common = len(one & two)
        return common / (len(one) + len(two) - common)


def _prompts_at(rows: Rows, index: np.ndarray) -> Iterator[list[str]]:
    """Iterate over the prompts at ascending indices."""
    start = 0
    for batch in rows.table.select(["prompt"]).to_batches(CHUNK_ROWS):
        low, high = np.searchsorted(index, (start, start + batch.num_rows))
        if high > low:
            yield from batch.column(0).take(index[low:high] - start).to_pylist()
        start += batch.num_rows


def largest_groups(rows: Rows, groups: Sequence[str], limit: int = 5) -> list[tuple[str, int, str]]:
    """The largest groups of several rows: id, rows, and the beginning of a prompt of each."""
    found = [(group, n) for group, n in Counter(groups).most_common(limit) if n > 1]
    prompts = rows.table.column("prompt")
    return [(group, n, brief(" / ".join(prompts[groups.index(group)].as_py()), 60)) for group, n in found]
