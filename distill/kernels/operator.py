"""Operators that the compiler does not look into, with as little as can be between a call and its kernel.

``torch.library.custom_op`` looks at every result of every call, whether it is one of the inputs; at tens of
microseconds a call that is as long as the kernels of a small model take. Here the function itself is what the
dispatcher calls; that its results are new tensors is for tests to see (``torch.library.opcheck``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "distillstack"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Register a function as ``torch.ops.distillstack.<name>``, which the decorated name then is.

    The function has annotations that ``torch.library.infer_schema`` reads, changes none of its inputs and
    returns none of them. What is returned takes ``torch.library.register_fake`` and ``register_autograd``.
    """

    def register(function: Callable[..., Any]) -> Any:
        schema = torch.library.infer_schema(function, mutates_args=())
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, function, "CompositeExplicitAutograd")
        return getattr(getattr(torch.ops, NAMESPACE), name).default

    return register
