"""Which rows make which optimiser step: within a shuffled window, all steps hold about as many tokens.

Everything follows from the seed and the lengths, so a resumed run meets the same steps.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.encoding.encode import Encoded
from distill.packing.examples import Examples
from distill.packing.sharing import laid_lengths

WINDOW_STEPS = 256
JITTER = 0.25
"""Share by which lengths are blurred while dealing, so that epochs do not repeat each other's steps."""


@dataclass(frozen=True)
class Step:
    """Sequences of one optimiser step: rows, and the order of each; a row with candidates stands for all."""

    rows: np.ndarray
    swapped: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: np.ndarray) -> Step:
        """Return some of the sequences."""
        return Step(self.rows[chosen], self.swapped[chosen])

    def sequences(self, orders: int) -> np.ndarray:
        """Numbers of the encoded sequences, one each."""
        return self.rows * orders + self.swapped

    def documents(self, encoded: Encoded) -> np.ndarray:
        """Numbers of the encoded sequences: one each, or all of a row's candidates, one behind another."""
        return self.sequences(encoded.orders) if encoded.sizes is None else encoded.of_rows(self.rows)

    def lengths(self, encoded: Encoded, prefixes: np.ndarray | None = None) -> np.ndarray:
        """Tokens of each; of a row with candidates those of all, for they stay in one pack.

        Parameters
        ----------
        prefixes : ndarray of shape (all rows,), optional
            Tokens that are laid out once a row; both orders of a pair are neighbours then.
        """
        if encoded.sizes is None:
            return laid_lengths(encoded, self.sequences(encoded.orders), prefixes)
        lengths = encoded.row_lengths[self.rows]
        return lengths if prefixes is None else lengths - (encoded.sizes - 1)[self.rows] * prefixes[self.rows]


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
