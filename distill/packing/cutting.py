"""How sequences are cut into packs of like size, and shared out to processes, and the one shape of all packs.

Packs are as few and as equal as the token budget allows: they can be padded to one static size at little
cost, and a compiled model never sees another shape.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

EVEN = 16384
"""Length at which a document's attention takes as long as its matrix products.

By arithmetic about 30,000 tokens for Llama-3.1-8B and Gemma-2-9B in training; attention kernels reach about
half the rate of matrix products.
"""
SIZE_MULTIPLE = 128
"""Static pack sizes are multiples of this: whole tiles of every kernel."""
CLOSE = 0.9
"""Share of the token budget from which on a static pack simply is as large as the budget."""


def cut(lengths: np.ndarray, budget: int, most: int = 0) -> list[np.ndarray]:
    """Cut sequences into as few packs within ``budget`` tokens as their lengths allow, of about equal size.

    Parameters
    ----------
    lengths : ndarray of int
    budget : int
        Tokens a pack may have; a sequence longer than that gets a pack of its own.
    most : int
        Sequences a pack may have; 0 for any number.

    Returns
    -------
    list of ndarray
        Indices into ``lengths``, longest first.
    """
    order = np.argsort(-lengths, kind="stable")
    fewest = max(1, math.ceil(int(lengths.sum()) / budget), math.ceil(len(lengths) / most) if most else 1)
    for count in range(min(fewest, len(lengths)), len(lengths) + 1):
        packs: list[list[int]] = [[] for _ in range(count)]
        filling = [(0, number) for number in range(count)]
        fits = True
        for i in order:
            tokens, number = heapq.heappop(filling)
            fits = tokens == 0 or tokens + int(lengths[i]) <= budget
            if not fits:
                break
            packs[number].append(int(i))
            if not most or len(packs[number]) < most:
                heapq.heappush(filling, (tokens + int(lengths[i]), number))
        if fits:
            return [np.array(pack) for pack in packs if pack]
    raise AssertionError("a pack of one sequence always fits")


def cost(lengths: np.ndarray) -> np.ndarray:
    """Time that documents take, in tokens' worth of matrix products: attention grows with the square."""
    return lengths * (1 + lengths / EVEN)


def share_out(lengths: np.ndarray, processes: int, together: int = 1) -> list[np.ndarray]:
    """Share sequences out to processes, so that all have about as much to do: dearest first, to the freest.

    Parameters
    ----------
    lengths : ndarray of int
    together : int
        Neighbours that must not be parted: 2 for the two orders of a pair.

    Returns
    -------
    list of ndarray
        Indices into ``lengths``, in their order; a process may have none.
    """
    costs = cost(lengths).reshape(-1, together).sum(axis=1)
    if processes == 1:
        return [np.arange(len(lengths))]
    load = [(0.0, 0, number) for number in range(processes)]
    shares: list[list[int]] = [[] for _ in range(processes)]
    for unit in np.argsort(-costs, kind="stable"):
        done, count, number = heapq.heappop(load)
        shares[number].append(int(unit))
        heapq.heappush(load, (done + float(costs[unit]), count + 1, number))
    units = [np.sort(np.array(share, dtype=np.int64)) for share in shares]
    return [(together * share[:, None] + np.arange(together)).ravel() for share in units]


@dataclass(frozen=True)
class Cutter:
    """How steps are cut: for how many processes, into packs of how many tokens and sequences.

    Attributes
    ----------
    budget : int
        Tokens a pack may have.
    most : int
        Sequences a pack may have; 0 for any number.
    processes : int
    together : int
        Neighbouring sequences that must be in one pack, side by side: 2 for losses on whole pairs.
    """

    budget: int
    most: int = 0
    processes: int = 1
    together: int = 1

    def packs(self, lengths: np.ndarray) -> list[list[np.ndarray]]:
        """Each process's packs of a step: indices into ``lengths``."""
        shares = share_out(lengths, self.processes, self.together)
        return [[share[p] for p in self._cut(lengths[share])] for share in shares]

    def _cut(self, lengths: np.ndarray) -> list[np.ndarray]:
        if not len(lengths):
            return []
        n = self.together
        if n == 1:
            return cut(lengths, self.budget, self.most)
        groups = lengths.reshape(-1, n).sum(axis=1)
        parts = cut(groups, max(self.budget, int(groups.max())), self.most // n)
        return [(n * part[:, None] + np.arange(n)).ravel() for part in parts]


def by_length(lengths: np.ndarray, budget: int, most: int = 0) -> list[np.ndarray]:
    """Cut sequences into packs, longest first, so that memory peaks at once and packs hold like lengths."""
    packs: list[np.ndarray] = []
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        within = np.searchsorted(np.cumsum(lengths[order[start:]]), budget, side="right")
        count = max(1, int(within))
        packs.append(order[start : start + (min(count, most) if most else count)])
        start += len(packs[-1])
    return packs


@dataclass(frozen=True)
class Static:
    """The one shape of all packs of a compiled model.

    Attributes
    ----------
    tokens : int
        Every pack is filled up to these with documents of padding.
    documents : int
        Entries of ``cu_seqlens``, less one.
    longest : int
        Bound of the documents' lengths.
    keys : int
        Entries of ``key_tokens``, where prefixes are shared (:mod:`distill.packing.sharing`).
    """

    tokens: int
    documents: int
    longest: int
    keys: int = 0


def static_shape(packs: Iterable[np.ndarray], longest: int, budget: int = 0) -> Static:
    """The smallest round shape that holds every pack, given as its documents' lengths.

    Parameters
    ----------
    budget : int
        Take this many tokens, if a pack comes close to it: the next fold's packs then have the same shape.
    """
    tokens, documents = 1, 1
    for lengths in packs:
        tokens = max(tokens, int(lengths.sum()))
        documents = max(documents, len(lengths))
    if CLOSE * budget <= tokens <= budget:
        tokens = budget
    tokens = math.ceil(tokens / SIZE_MULTIPLE) * SIZE_MULTIPLE
    # A pack's fillers are as long as the longest document, but for one.
    documents += math.ceil(tokens / longest)
    return Static(tokens, 32 * 2 ** max(0, math.ceil(math.log2(documents / 32))), longest)
