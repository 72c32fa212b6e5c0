"""Several processes of one command, as ``torchrun`` or ``accelerate launch`` starts them, one a GPU.

Every process runs the same code on the same rows. What is decided or written is decided and written by the
first alone (:func:`on_first`), so that no two ever disagree; steps and predictions are shared out
(:func:`distill.packing.cutting.share_out`). In one process all of this does nothing.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data.errors import UserError
from data.files import locked

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

for _name in ("torch", "transformers", "accelerate", "peft"):  # missed at once; to import them takes seconds
    if find_spec(_name) is None:
        raise ModuleNotFoundError(f"No module named {_name!r}", name=_name)


def join_others() -> None:
    """Join the processes that were started with this one; only the first goes on printing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or is_distributed():
        return
    import torch
    from accelerate import PartialState

    import distill.quick  # noqa: F401 - before accelerate imports what it imports quicker

    PartialState(cpu=not torch.cuda.is_available())
    atexit.register(_leave)
    if process()[0]:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def stand_alone(command: str) -> None:
    """Refuse to be one of several processes.

    Raises
    ------
    UserError
        The command was started by ``torchrun`` or ``accelerate launch`` with more than one process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{command} runs in one process; start it with python -m {command}")


def _leave() -> None:
    """End together: a process that tears its connections down under another one's feet aborts it."""
    if is_distributed():
        from torch import distributed

        with suppress(RuntimeError):  # another has gone already, for a reason that it has told
            distributed.monitored_barrier(_host_group(), timedelta(seconds=10))
        _host_group.cache_clear()
        distributed.destroy_process_group()


def is_distributed() -> bool:
    """Whether there are other processes; who has none need not wait for torch."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


def process() -> tuple[int, int]:
    """Return the number of this process, and how many there are."""
    if not is_distributed():
        return 0, 1
    from torch import distributed

    return distributed.get_rank(), distributed.get_world_size()


@cache
def _host_group() -> Any:
    """A group that talks over the hosts' memory, and never waits for a GPU."""
    from torch import distributed

    return distributed.new_group(backend="gloo")


def on_first(what: Callable[[], T]) -> T:
    """Have the first process alone do something while the others wait; return what it returned to all.

    An exception is raised in all of them.
    """
    rank, world = process()
    if world == 1:
        return what()
    from torch import distributed

    outcome: list[Any] = [None, None]
    if rank == 0:
        try:
            outcome[0] = what()
        except Exception as error:
            outcome[1] = error
    distributed.broadcast_object_list(outcome, src=0, group=_host_group())
    if outcome[1] is not None:
        outcome[1].told = rank > 0  # the first process tells the user
        raise outcome[1]
    return outcome[0]


def gathered(own: T) -> list[T]:
    """Return every process's own object, in the order of the processes."""
    world = process()[1]
    if world == 1:
        return [own]
    from torch import distributed

    found: list[Any] = [None] * world
    distributed.all_gather_object(found, own, group=_host_group())
    return found


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a directory for this command and all of its processes, as :func:`data.files.locked` does.

    Raises
    ------
    UserError
        Another command holds it, or it cannot be made.
    """
    with ExitStack() as stack:
        on_first(lambda: stack.enter_context(locked(directory)))
        yield


def lowest(values: Sequence[int]) -> list[int]:
    """Return the least of each value over all processes, without waiting for GPUs."""
    if process()[1] == 1:
        return list(values)
    import torch
    from torch import distributed

    tensor = torch.tensor(values, dtype=torch.int64)
    distributed.all_reduce(tensor, distributed.ReduceOp.MIN, group=_host_group())
    return tensor.tolist()


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Add up the processes' gradients in one message a dtype; a missing gradient counts as zeros."""
    if process()[1] == 1:
        return
    import torch
    from torch import distributed

    kinds: dict[torch.dtype, list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault(parameter.dtype, []).append(parameter)
    for alike in kinds.values():
        for parameter in alike:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients: list[torch.Tensor] = [p.grad for p in alike if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        pieces = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(pieces, gradients, strict=True)])
