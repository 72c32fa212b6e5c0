"""Padding-free packs: which rows make which optimiser step, and how a step is cut into forward passes.

Sequences lie one behind another in a pack, told apart by ``cu_seqlens``. Within a shuffled window, rows
are dealt to steps so that all steps hold about as many tokens; a step is then cut into as few and as
equal packs as the token budget allows. Equal packs can be padded to one static size at little cost, and
a compiled model never sees another shape. Everything follows from the seed and the lengths, so a resumed
run meets the same steps.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.encoding.encode import Encoded
from distill.packing.examples import Examples

WINDOW_STEPS = 256
JITTER = 0.25
"""Share by which lengths are blurred while dealing, so that epochs do not repeat each other's steps."""
SIZE_MULTIPLE = 128
"""Static pack sizes are multiples of this: whole tiles of every kernel."""
EVEN = 16384
"""Length at which a document's attention takes as long as its matrix products.

By arithmetic about 30,000 tokens for Llama-3.1-8B and Gemma-2-9B in training; attention kernels reach about
half the rate of matrix products.
"""
CLOSE = 0.9
"""Share of the token budget from which on a static pack simply is as large as the budget."""


@dataclass(frozen=True)
class Step:
    """Sequences of one optimiser step: rows, and the order of each."""

    rows: np.ndarray
    swapped: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: np.ndarray) -> Step:
        """Return some of the sequences."""
        return Step(self.rows[chosen], self.swapped[chosen])

    def sequences(self, orders: int) -> np.ndarray:
        """Numbers of the encoded sequences."""
        return self.rows * orders + self.swapped


@dataclass(frozen=True)
class Pack:
    """Tensors of one forward pass.

    Attributes
    ----------
    input_ids, position_ids : int tensors of shape (1, T)
        Positions restart with every document.
    documents : int tensor of shape (T,)
        Which document a token belongs to.
    cu_seqlens : int32 tensor of shape (documents + 1,)
        Where documents start and end; a static pack repeats the end for documents of no tokens.
    last : int tensor of shape (used,)
        Index of the last token of every document that has tokens, fillers included.
    rows : int
        Documents that are rows; fillers come after them.
    max_length : int
        Upper bound of the documents' lengths.
    static : bool
        Whether the pack was filled up to a shape that others have too.
    """

    input_ids: Tensor
    position_ids: Tensor
    documents: Tensor
    cu_seqlens: Tensor
    last: Tensor
    rows: int
    max_length: int
    static: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Tokens, entries of ``cu_seqlens`` and bound of the lengths: what compiled code depends on."""
        return self.input_ids.shape[1], len(self.cu_seqlens), self.max_length

    def to(self, device: torch.device) -> Pack:
        """Copy to a device, without waiting where that device is a GPU."""
        moved = {f.name: send(getattr(self, f.name), device) for f in fields(self)}
        return replace(self, **moved)


def send(value: Any, device: torch.device) -> Any:
    """Copy a tensor to a device, to a GPU through pinned memory without waiting; leave anything else."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device) if device.type != "cuda" else value.pin_memory().to(device, non_blocking=True)


def plan_steps(
    train_rows: np.ndarray,
    lengths: np.ndarray,
    *,
    epochs: float,
    rows_per_step: int,
    orders: int,
    both_orders: bool,
    seed: int,
    random_order: bool = True,
) -> list[Step]:
    """Lay out the whole training as a list of optimiser steps.

    Parameters
    ----------
    train_rows : ndarray of int
        Row indices to train on.
    lengths : ndarray of int
        Tokens of every row.
    orders : int
        Orders a row has: 2 for pairs.
    both_orders : bool
        Put both orders in the step; otherwise one order a row and epoch, by lot.
    random_order : bool
        False takes every row as given instead.
    """
    total = max(1, math.ceil(epochs * len(train_rows)))
    steps: list[Step] = []
    for epoch in range(math.ceil(epochs)):
        generator = np.random.default_rng([seed, epoch])
        stream = generator.permutation(train_rows)[: total - epoch * len(train_rows)]
        swapped = generator.integers(orders, size=len(stream)).astype(bool) & random_order
        window = rows_per_step * WINDOW_STEPS
        for start in range(0, len(stream), window):
            rows, lots = stream[start : start + window], swapped[start : start + window]
            for chosen in _deal(lengths[rows], rows_per_step, generator):
                steps.append(Step(rows[chosen], lots[chosen]))
    if not both_orders or orders == 1:
        return steps
    return [Step(np.repeat(s.rows, 2), np.tile([False, True], len(s.rows))) for s in steps]


def _deal(lengths: np.ndarray, rows_per_step: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Deal a window's rows to steps of equal tokens: longest first, each to the emptiest step with room."""
    blurred = lengths * generator.uniform(1 - JITTER, 1 + JITTER, size=len(lengths))
    n_steps = math.ceil(len(lengths) / rows_per_step)
    short = n_steps * rows_per_step - len(lengths)
    room = [rows_per_step] * n_steps
    room[-1] -= short
    filling = [(0, number) for number in range(n_steps)]
    steps: list[list[int]] = [[] for _ in range(n_steps)]
    for row in np.argsort(-blurred, kind="stable"):
        tokens, number = heapq.heappop(filling)
        steps[number].append(int(row))
        if len(steps[number]) < room[number]:
            heapq.heappush(filling, (tokens + int(lengths[row]), number))
    order = [*generator.permutation(n_steps - 1), n_steps - 1] if short else generator.permutation(n_steps)
    return [np.array(steps[i]) for i in order]


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
    """

    tokens: int
    documents: int
    longest: int


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


def pack(encoded: Encoded, sequences: np.ndarray, pad_id: int, static: Static | None = None) -> Pack:
    """Lay sequences one behind another, filled up to the ``static`` shape if there is one."""
    pieces = [encoded[int(s)] for s in sequences]
    lengths = [len(piece) for piece in pieces]
    longest = max(lengths) if static is None else max(*lengths, static.longest)
    missing = 0 if static is None else max(0, static.tokens - sum(lengths))
    fillers = [min(longest, missing - start) for start in range(0, missing, longest)]
    all_lengths = np.array([*lengths, *fillers])
    ends = np.cumsum(all_lengths)
    bounds = np.concatenate([[0], ends])
    if static is not None:
        bounds = np.concatenate([bounds, np.full(max(0, static.documents - len(ends)), ends[-1])])
    ids = np.concatenate([*pieces, np.full(missing, pad_id, dtype=np.int32)])
    documents = np.repeat(np.arange(len(all_lengths)), all_lengths)
    positions = np.arange(len(ids)) - (ends - all_lengths)[documents]
    return Pack(
        input_ids=torch.from_numpy(ids.astype(np.int64))[None],
        position_ids=torch.from_numpy(positions)[None],
        documents=torch.from_numpy(documents.astype(np.int32)),
        cu_seqlens=torch.from_numpy(bounds.astype(np.int32)),
        last=torch.from_numpy(ends - 1),
        rows=len(pieces),
        max_length=longest,
        static=static is not None,
    )


def targets_of(examples: Examples, step: Step) -> dict[str, Tensor]:
    """What the sequences should learn, classes permuted in those that are swapped."""

    def in_order(values: np.ndarray) -> Tensor:
        own = values[step.rows]
        swapped = own[..., examples.permutation]
        shape = (len(own),) + (1,) * (own.ndim - 1)
        return torch.from_numpy(np.where(step.swapped.reshape(shape), swapped, own)).float()

    tensors = {"targets": in_order(examples.targets)}
    if examples.teacher_logits is not None:
        tensors["teacher_logits"] = in_order(examples.teacher_logits)
    if examples.teacher_weights is not None:
        tensors["teacher_weights"] = torch.from_numpy(examples.teacher_weights[step.rows]).float()
    return tensors


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
