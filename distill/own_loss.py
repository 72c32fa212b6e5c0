"""A loss of one's own, a function in a Python file: ``--loss mine.py:function``.

The file is code and is executed, so permission comes from the command line alone: a recipe may name such a
loss, but :func:`distill.recipe.load_recipe` takes it only where the command line names the same. The file's
hash stands in the run's manifest. The function takes logits and targets of shape (n, K) and, by their names,
what else it needs: ``teacher_logits`` (n, teachers, K), ``teacher_weights`` (n, teachers), and fields of
:class:`distill.config.DistillConfig`. It returns a loss a sequence, shape (n,), or a dictionary of such
terms, which are added up and logged one by one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from data.errors import UserError, brief, listing
from data.files import require_file, sha256_files
from distill.config import DistillConfig
from distill.losses import LOSSES, Formula, NamedLoss

if TYPE_CHECKING:
    from torch import Tensor

_OWN = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)")
_GIVEN = ("teacher_logits", "teacher_weights", *(field.name for field in fields(DistillConfig)))


def is_own(name: str) -> bool:
    """Whether a loss's name is that of a function in a file."""
    return _OWN.fullmatch(name) is not None


def use_own(name: str, source: str = "") -> None:
    """Execute the file that a loss's name says, and register its function as that loss.

    Parameters
    ----------
    name : str
        ``file.py:function``.
    source : str
        The same with the file's whole path, for a process that started elsewhere.

    Raises
    ------
    UserError
        No such file or function, one that fails when it is executed, or that needs what there is not.
    """
    found = _OWN.fullmatch(source or name)
    if found is None:
        raise UserError(f"{name}: not a loss of one's own; write it file.py:function")
    path = require_file(Path(found["file"]), "loss").resolve()
    function = getattr(_executed(path, name), found["function"], None)
    if not callable(function):
        raise UserError(f"{name}: the file has no function {found['function']}")
    LOSSES[name] = NamedLoss(
        _checked(name, function),
        f"{found['function']} of {path.name}",
        _needs(name, function),
        source=f"{path}:{found['function']}",
        hash=sha256_files([path]),
    )


def _executed(path: Path, name: str) -> ModuleType:
    """Run the file as a module of its own, which writes nothing beside it."""
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except Exception as error:
        raise UserError(
            f"{name}: the file cannot be executed ({type(error).__name__}: {brief(error)})"
        ) from error
    return module


def _needs(name: str, function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of what a loss takes beside logits and targets."""
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) < 2:
        raise UserError(f"{name}: takes {len(parameters)} arguments; the first two are logits and targets")
    further = parameters[2:]
    unknown = [p.name for p in further if p.name not in _GIVEN and p.default is p.empty]
    if unknown:
        known = listing(_GIVEN, len(_GIVEN))
        raise UserError(f"{name}: needs {listing(unknown)}, which there is not; it may take {known}")
    return tuple(p.name for p in further if p.name in _GIVEN)


def _checked(name: str, function: Callable[..., Any]) -> Formula:
    """Wrap a loss so that what it raises or returns amiss is told as the user's to mend."""

    def formula(logits: Tensor, targets: Tensor, **given: Any) -> Tensor | dict[str, Tensor]:
        import torch

        try:
            value = function(logits, targets, **given)
        except torch.OutOfMemoryError:  # the trainer knows what to do
            raise
        except Exception as error:
            raise UserError(f"{name}: fails ({type(error).__name__}: {brief(error)})") from error
        for term in value.values() if isinstance(value, dict) and value else [value]:
            if not isinstance(term, torch.Tensor) or term.shape != logits.shape[:1]:
                shown = tuple(term.shape) if isinstance(term, torch.Tensor) else type(term).__name__
                raise UserError(
                    f"{name}: returns {shown}; a loss is a tensor of one value a sequence, shape (n,) = "
                    f"({len(logits)},), or a dictionary of such terms"
                )
        return value

    return formula
