"""A small decoder's pass over a pack as two launches: forward and backward captured in CUDA graphs.

A layer costs the host some hundred launches, out of Python, whatever its size. A decoder of 100 million
parameters does its arithmetic in less time than that takes, so the GPU waits. Packs of a compiled model
all have one shape: the launches of the first are recorded, and replayed for the others.

What is recorded reads and writes memory at fixed places:

- the pack's tensors, copied there before a replay; ``last`` up to the number of documents, what is not used
  pointing at the first token and left out of what is returned;
- the adapters' factors in the products' dtype, cast from the trained float32 at the start of a replay, all
  in a handful of launches where the layers would cast each by itself;
- their gradients, which a replay writes in one piece and the parameters' own are views of.

A replay launches the very kernels that the layers would, so results are theirs; the head and the loss stay
outside and are whatever they are. A pass must go back before the next goes forward, as the activations lie
in one place too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from distill.kernels.linear import fused_factors
from distill.model.decoder import Plan, first_trained, pooled_hidden
from distill.packing.pack import Pack

log = logging.getLogger(__name__)

SMALL = 2.5e9
"""Parameters of a decoder's layers below which launches cost as much as arithmetic, or more."""
KEPT = 4
"""Shapes whose graphs are kept; a fifth makes all be recorded again."""
ALIGNED = 64
"""Factors start at multiples of so many elements in their common buffer."""


def is_small(decoder: Any) -> bool:
    """Whether the layers' weights are so few that launches matter."""
    return sum(p.numel() for p in decoder.layers.parameters()) < SMALL


class Graphs:
    """The recorded passes of one decoder, a pair a shape of packs.

    Its modules and parameters must stay the same objects, though their values may change: see :meth:`forget`.
    """

    def __init__(self) -> None:
        self._trained: list[nn.Parameter] | None = None
        self.pool: Any = None
        self._recorded: dict[tuple[Any, ...], _Recorded] = {}

    def pooled(self, decoder: Any, pack: Pack, plan: Plan) -> Tensor:
        """What :func:`distill.model.decoder.pooled_hidden` returns, by a replay where one is possible.

        A pass that cannot be recorded, for want of memory or because a layer talks to the host, is run as
        it is, and no other is tried.
        """
        if not plan.graphs or not pack.static:
            return pooled_hidden(decoder, pack, plan)
        if self._trained is None:
            self._trained = [p for p in decoder.parameters() if p.requires_grad]
        parameters = self._trained
        learning = torch.is_grad_enabled() and bool(parameters)
        if learning and not _keeps_all(plan, decoder):
            return pooled_hidden(decoder, pack, plan)
        key = (*pack.shape, learning, plan.compiled, decoder.training)
        if key not in self._recorded:
            if len(self._recorded) == KEPT:
                self._recorded.clear()
            if self.pool is None and pack.input_ids.is_cuda:
                self.pool = torch.cuda.graph_pool_handle()
            try:
                trained = parameters if learning else []
                self._recorded[key] = _Recorded(decoder, pack, plan, trained, self.pool)
            except (RuntimeError, _Recomputes) as error:
                plan.graphs = False
                self._recorded.clear()
                log.warning("layers are launched one by one, as they cannot be recorded: %s", error)
                torch.cuda.empty_cache()
                return pooled_hidden(decoder, pack, plan)
        return self._recorded[key].replay(pack)

    def forget(self) -> None:
        """Drop what is recorded: after a change of modules, as by merging adapters."""
        self._recorded.clear()
        self._trained = self.pool = None


class _Recomputes(Exception):
    """Activations do not all fit: what is recomputed is not recorded."""


def _keeps_all(plan: Plan, decoder: Any) -> bool:
    """Whether no layer recomputes its activations, as far as is known before ``auto`` has measured."""
    if plan.checkpoint != "auto":
        return plan.checkpoint == "none"
    layers = decoder.layers
    most = len(layers) - 1
    return plan.kept is None or plan.kept >= most or first_trained(layers) + plan.kept >= most


class _Recorded:
    """The graphs of one shape.

    Parameters
    ----------
    parameters : list of Parameter
        What is trained; empty for prediction.
    pool : tuple
        Memory that the graphs share.
    """

    def __init__(
        self, decoder: Any, pack: Pack, plan: Plan, parameters: list[nn.Parameter], pool: Any
    ) -> None:
        self.pack = _copied(pack)
        self.parameters = parameters
        self.turn = 0
        self.anchor = torch.zeros((), device=pack.input_ids.device, requires_grad=True)
        factors = [p for p in fused_factors(decoder) if p.dtype != self._dtype(decoder)] if parameters else []
        self.casts = _views(factors, self._dtype(decoder), as_parameters=True)
        if parameters:
            self.fresh = _views(parameters, parameters[0].dtype)
            self.total = _views(parameters, parameters[0].dtype)
        swaps = dict(zip(map(id, factors), self.casts, strict=True))
        wanted = [swaps.get(id(p), p) for p in parameters]

        def forward() -> None:
            with _swapped(decoder, swaps), torch.set_grad_enabled(bool(parameters)):
                if factors:
                    torch._foreach_copy_([c.data for c in self.casts], [f.data for f in factors])
                self.output = pooled_hidden(decoder, self.pack, plan)

        def backward() -> None:
            found = torch.autograd.grad(self.output, wanted, self.gradient, allow_unused=True)
            pairs = [(f, g) for f, g in zip(self.fresh, found, strict=True) if g is not None]
            torch._foreach_copy_([f for f, _ in pairs], [g for _, g in pairs])

        recorder = _Recorder(pack.input_ids.device, pool)
        with recorder.warming():
            for _ in range(2):  # what compiles or tunes itself does so now
                forward()
                self.gradient = torch.zeros_like(self.output, requires_grad=False)
                if parameters:
                    backward()
        if parameters and not _keeps_all(plan, decoder):
            raise _Recomputes("activations do not fit into memory together")
        self.forward = recorder.record(forward)
        self.backward = recorder.record(backward) if parameters else None

    @staticmethod
    def _dtype(decoder: Any) -> torch.dtype:
        return decoder.embed_tokens.weight.dtype

    def replay(self, pack: Pack) -> Tensor:
        """Run forward; a backward pass through what is returned replays the other graph."""
        for own, given in zip(_tensors(self.pack), _tensors(pack), strict=True):
            own[..., : given.shape[-1]].copy_(given, non_blocking=True)
        if not self.parameters:
            self.forward()
            return self.output[: pack.rows].clone()
        return _Replay.apply(self.anchor, self, pack.rows)

    def deliver(self) -> None:
        """Add what a backward pass found to the parameters' gradients."""
        held = [p.grad for p in self.parameters]
        if all(grad is None for grad in held):
            torch._foreach_copy_(self.total, self.fresh)
            for parameter, grad in zip(self.parameters, self.total, strict=True):
                parameter.grad = grad
            return
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        torch._foreach_add_([p.grad for p in self.parameters if p.grad is not None], self.fresh)


class _Recorder:
    """Records launches into graphs that share memory; a CPU has none, and does it all again."""

    def __init__(self, device: torch.device, pool: Any) -> None:
        self.pool = pool
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None

    @contextmanager
    def warming(self) -> Iterator[None]:
        """Within, run on the stream that is recorded later."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream().wait_stream(self.stream)

    def record(self, what: Callable[[], None]) -> Callable[[], None]:
        """Record what a function launches; return what launches it again."""
        if self.stream is None:
            return what
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            what()
        return graph.replay


class _Replay(torch.autograd.Function):
    """Connects the graphs to what goes on outside; the anchor makes autograd come back here."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, recorded: _Recorded, rows: int) -> Tensor:
        """Replay the forward pass."""
        recorded.forward()
        recorded.turn += 1
        ctx.recorded, ctx.rows, ctx.turn = recorded, rows, recorded.turn
        return recorded.output.detach()[:rows].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        """Replay the backward pass and leave the gradients with the parameters."""
        recorded = ctx.recorded
        if ctx.turn != recorded.turn:
            raise RuntimeError("a recorded pass must go back before the next goes forward")
        recorded.gradient.zero_()
        recorded.gradient[: ctx.rows].copy_(grad)
        recorded.backward()
        recorded.deliver()
        return None, None, None


def _tensors(pack: Pack) -> list[Tensor]:
    return [value for f in fields(pack) if isinstance(value := getattr(pack, f.name), Tensor)]


def _copied(pack: Pack) -> Pack:
    """A pack of the same shape at a place of its own, with room for the last tokens of all documents."""
    documents = len(pack.cu_seqlens) - 1
    own: dict[str, Any] = {
        f.name: v.clone() for f in fields(pack) if isinstance(v := getattr(pack, f.name), Tensor)
    }
    own["last"] = pack.last.new_zeros(documents)
    own["last"][: len(pack.last)] = pack.last
    return replace(pack, **own, rows=documents)


def _views(parameters: list[nn.Parameter], dtype: torch.dtype, as_parameters: bool = False) -> list[Any]:
    """Zeros of the parameters' shapes, side by side in one buffer."""
    sizes = [-(-p.numel() // ALIGNED) * ALIGNED for p in parameters]
    if not sizes:
        return []
    buffer = torch.zeros(sum(sizes), dtype=dtype, device=parameters[0].device)
    views = [b[: p.numel()].view(p.shape) for b, p in zip(buffer.split(sizes), parameters, strict=True)]
    return [nn.Parameter(view) for view in views] if as_parameters else views


@contextmanager
def _swapped(decoder: nn.Module, swaps: dict[int, nn.Parameter]) -> Iterator[None]:
    """Within, the decoder's modules hold other parameters: by the identity of those they hold."""
    held = [
        (module, name, parameter)
        for module in decoder.modules()
        for name, parameter in module._parameters.items()
        if id(parameter) in swaps
    ]
    try:
        for module, name, parameter in held:
            module._parameters[name] = swaps[id(parameter)]
        yield
    finally:
        for module, name, parameter in held:
            module._parameters[name] = parameter
