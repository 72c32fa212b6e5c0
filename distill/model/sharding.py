"""A frozen base cut over the GPUs of several processes, for bases that do not fit into one.

Every process keeps an equal part of each layer's big tensors. A layer is gathered just before it runs, while
the one before it still computes, into one of two rooms that all layers share. That is what FSDP and ZeRO-3 do
with parameters (Rajbhandari et al., arXiv 1910.02054); frozen weights have no gradients to scatter and no
optimizer state, so gathering is all of it, in whatever precision they are stored. Activations are always
computed again in the backward pass, for a layer's weights are gone by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from distill.kernels.linear import parts
from distill.processes import process

SMALLEST = 2**16
"""Bytes below which a tensor is kept whole by every process."""


class CutLayers:
    """The parts of a decoder's layers that this process keeps, and rooms for two whole layers.

    Attributes
    ----------
    held : list of int
        The layer in each room; -1 for none.
    """

    def __init__(self) -> None:
        self.layers: list[
            list[tuple[nn.Linear, str, tuple[int, int], list[Tensor], list[Tensor | None]]]
        ] = []
        self.numbers: dict[int, int] = {}
        self.rooms: list[list[Tensor]] = []
        self.held = [-1, -1]
        self._arriving: list[list[Any]] = [[], []]
        self._previous = 0

    def take(self, layer: int, module: nn.Linear) -> None:
        """Keep this process's part of a linear module of a layer, and let the module go of the rest."""
        rank, world = process()
        kind, shape, stored = parts(module)
        own: list[Tensor | None] = []
        whole: list[Tensor] = []
        for tensor in stored:
            size = tensor.numel() * tensor.element_size()
            cut = size >= SMALLEST and size % (16 * world) == 0
            own.append(
                tensor.contiguous().view(-1).view(torch.uint8).chunk(world)[rank].clone() if cut else None
            )
            whole.append(torch.empty_like(tensor, device="meta") if cut else tensor.detach())
        module.weight.data = module.weight.data.new_empty(0)
        if getattr(module, "turned", None) is not None:
            module.turned = None  # type: ignore[assignment]
        while len(self.layers) <= layer:
            self.layers.append([])
        self.layers[layer].append((module, kind, shape, whole, own))

    def furnish(self, layers: nn.ModuleList) -> None:
        """Make the rooms, and let every module find its tensors there."""
        self.numbers = {id(layer): number for number, layer in enumerate(layers)}
        world = process()[1]
        for parity in range(min(2, len(self.layers))):
            parts_kept = self._parts(parity)
            self.rooms.append([part.new_empty(part.numel() * world) for part in parts_kept])
        for number, modules in enumerate(self.layers):
            places = iter(self.rooms[number % 2])
            for module, kind, shape, whole, own in modules:
                found = [
                    tensor if part is None else next(places).view(tensor.dtype).view(tensor.shape)
                    for tensor, part in zip(whole, own, strict=True)
                ]
                object.__setattr__(module, "stored", (kind, shape, tuple(found)))

    def _parts(self, number: int) -> list[Tensor]:
        return [part for *_, own in self.layers[number] for part in own if part is not None]

    def around(self, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return ``run(layer, ...)`` with the layer's weights in their room."""

        def gathering(layer: nn.Module, *rest: Any) -> Tensor:
            self.bring(layer)
            return run(layer, *rest)

        return gathering

    def bring(self, layer: nn.Module) -> None:
        """Have a layer's weights in their room, and the next layer's on their way."""
        number = self.numbers[id(layer)]
        ahead = number + (1 if number >= self._previous else -1)
        self._previous = number
        self._gather(number)
        for work in self._arriving[number % 2]:
            work.wait()
        self._arriving[number % 2] = []
        if 0 <= ahead < len(self.layers):
            self._gather(ahead)

    @torch.no_grad()
    def _gather(self, number: int) -> None:
        if self.held[number % 2] == number:
            return
        self.held[number % 2] = number
        self._arriving[number % 2] = [
            distributed.all_gather_into_tensor(room, part, async_op=True)
            for room, part in zip(self.rooms[number % 2], self._parts(number), strict=True)
        ]
