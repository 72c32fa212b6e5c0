"""The table of stacking methods: each registers its name, its place, and how it is built.

A method is added by a file that ends in :func:`register`, and its import in
:mod:`ensemble.methods.catalogue`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ensemble.methods.base import Blender, Swap, Training

Kind = TypeVar("Kind", bound=Blender)


@dataclass(frozen=True)
class Method:
    """A line of the table.

    Attributes
    ----------
    build : callable
        Fits the method on the rows of a :class:`Fitting`, from others that it has already fitted.
    rank : int
        Its place, simplest first: ties in the choice go to the simpler.
    calibrated : bool
        Whether it is tried with the best of all calibrations too; on every method it would crowd the table.
    """

    build: Callable[[Fitting], Blender]
    rank: int
    calibrated: bool


_METHODS: dict[str, Method] = {}


def register(name: str, rank: int, build: Callable[[Fitting], Blender], calibrated: bool = False) -> None:
    """Enter a method under a name and a rank that no other has; see :class:`Method`."""
    if name in _METHODS or any(rank == other.rank for other in _METHODS.values()):
        raise ValueError(f"{name}, {rank}: another stacking method has this name or rank")
    _METHODS[name] = Method(build, rank, calibrated)


def registered() -> dict[str, Method]:
    """Every method by name, simplest first."""
    return dict(sorted(_METHODS.items(), key=lambda entry: entry[1].rank))


class Fitting:
    """Methods fitted on the same rows: each once, when it is first asked for.

    Parameters
    ----------
    data : Training
    swap : tuple of int, optional
        The permutation of classes when a pair is swapped.
    seed : int
    """

    def __init__(self, data: Training, swap: Swap = None, seed: int = 0) -> None:
        self.data, self.swap, self.seed = data, swap, seed
        self._fitted: dict[str, Blender] = {}

    def __getitem__(self, name: str) -> Blender:
        """The method of that name, fitted."""
        if name not in self._fitted:
            self._fitted[name] = _METHODS[name].build(self)
        return self._fitted[name]

    def get(self, name: str, kind: type[Kind]) -> Kind:
        """The method of that name, fitted, which is of that kind."""
        found = self[name]
        assert isinstance(found, kind)
        return found
