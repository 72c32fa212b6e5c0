"""Import the heavy libraries quickly: it halves what starting a command takes.

What is imported stays, so nobody need look for garbage among it: neither while it is imported, when Python
does so hundreds of times, nor after every training, when accelerate does.

bitsandbytes, which PEFT imports, hands kernels that every device can run to ``torch.compile``, which imports
its compiler when it is called. Here they are handed over when one of them first runs, which is on devices
without kernels of their own: neither on CPUs nor on NVIDIA's GPUs.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial, wraps
from typing import Any


def compiled_when_called(function: Callable | None = None, **options: Any) -> Callable:
    """``torch.compile``, put off until what it returns is called."""
    if function is None:
        return partial(compiled_when_called, **options)

    @cache
    def compiled() -> Callable:
        import torch

        return torch.compile(function, **options)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return call


def _import() -> None:
    import torch

    compile_now = torch.compile
    torch.compile = compiled_when_called  # type: ignore[assignment]
    try:
        with suppress(ImportError):  # who needs it says what is missing
            import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compile_now
    import peft  # noqa: F401
    import transformers.trainer  # noqa: F401


def _without_collecting() -> None:
    alone, collects = "torch" not in sys.modules, gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        _import()
    finally:
        if collects:
            gc.enable()
    if alone:  # nobody has a model yet, which would be kept
        gc.freeze()


_without_collecting()
