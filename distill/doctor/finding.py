"""What a doctor's check is: a small function that looks at one subject and returns one finding.

A check states in its docstring what it looks for and the source of the fault; it is registered with what
it needs (a tokenizer, a model, a store), and runs on every subject that has that.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.console.lacking import wanting
from distill.doctor.subject import Subject

PASS, WARN, FAIL, ERROR = "pass", "warn", "fail", "error"
BAD = (FAIL, ERROR)
"""What the doctor exits with 1 on: a fault, or a check that broke off, which rules no fault out."""
GROUPS = ("tokens", "pooling", "attention", "training", "data")


@dataclass(frozen=True)
class Finding:
    """What a check saw.

    Attributes
    ----------
    status : {"pass", "warn", "fail", "error"}
        ``error``: the check itself broke off, so nothing is known.
    seen : str
        The evidence, with its numbers.
    cost : str
        What the fault is known to cost; empty where the check passed.
    fix : str
        What to do about it; empty where the check passed.
    """

    status: str
    seen: str
    cost: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Result(Finding):
    """A finding with the subject and the check it belongs to.

    Attributes
    ----------
    status, seen, cost, fix : str
        As in :class:`Finding`.
    subject : str
        As the user named it.
    group, check : str
        The check's.
    """

    subject: str = ""
    group: str = ""
    check: str = ""


Function = Callable[[Subject], Finding | None]


@dataclass(frozen=True)
class Check:
    """A registered check.

    Attributes
    ----------
    name : str
    group : str
    needs : tuple of str
        Attributes of a subject that must not be None.
    function : callable
        Returns None where the check does not apply.
    slow : bool
        Runs only with ``--deep``.
    unless : tuple of str
        Checks that tell the cause already, so that it is told once: where one of them did not pass, this one
        is left out.
    """

    name: str
    group: str
    needs: tuple[str, ...]
    function: Function
    slow: bool = False
    unless: tuple[str, ...] = ()


REGISTRY: dict[str, Check] = {}


def check(
    group: str, *needs: str, slow: bool = False, unless: tuple[str, ...] = ()
) -> Callable[[Function], Function]:
    """Register a function as a check of ``group`` that needs these parts of a subject; see :class:`Check`."""

    def register(function: Function) -> Function:
        name = function.__name__
        if name in REGISTRY and REGISTRY[name].function.__module__ != function.__module__:
            raise AssertionError(f"two checks are named {name}")
        REGISTRY[name] = Check(name, group, needs, function, slow, unless)
        return function

    return register


def passed(seen: str) -> Finding:
    """All is well."""
    return Finding(PASS, seen)


def warned(seen: str, cost: str, fix: str) -> Finding:
    """Something to know that need not be wrong."""
    return Finding(WARN, seen, cost, fix)


def failed(seen: str, cost: str, fix: str) -> Finding:
    """A fault."""
    return Finding(FAIL, seen, cost, fix)


def broken_off(error: Exception) -> Finding:
    """A check that raised instead of finding out: neither a pass nor a fault, and never taken for a pass."""
    unknown = "unknown: the fault that this check looks for is not ruled out"
    if lack := wanting(error):
        return Finding(ERROR, f"could not be checked: {lack}", unknown, "install it, and examine again")
    reason = (str(error).strip().splitlines() or [""])[0][:160]
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" at {Path(frame.filename).name}:{frame.lineno}" for frame in last)
    return Finding(
        ERROR,
        f"could not be checked: {type(error).__name__}: {reason}",
        unknown,
        f"report this{place}, with the versions of torch and transformers; if the checkpoint does run "
        "elsewhere, compare the versions first",
    )
