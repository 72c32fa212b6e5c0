"""What a doctor's check is: a small function that looks at one subject and returns one finding.

A check states in its docstring what it looks for and the source of the fault; it is registered with what
it needs (a tokenizer, a model, a store), and runs on every subject that has that.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import UserError

if TYPE_CHECKING:
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
    """A finding with the subject and the check it belongs to."""

    subject: str = ""
    group: str = ""
    check: str = ""


Function = Callable[["Subject"], Finding | None]


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
    """

    name: str
    group: str
    needs: tuple[str, ...]
    function: Function
    slow: bool = False


REGISTRY: dict[str, Check] = {}


def check(group: str, *needs: str, slow: bool = False) -> Callable[[Function], Function]:
    """Register a function as a check of ``group`` that needs these parts of a subject."""

    def register(function: Function) -> Function:
        name = function.__name__
        if name in REGISTRY and REGISTRY[name].function.__module__ != function.__module__:
            raise AssertionError(f"two checks are named {name}")
        REGISTRY[name] = Check(name, group, needs, function, slow)
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
    reason = (str(error).strip().splitlines() or [""])[0][:160]
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" at {Path(frame.filename).name}:{frame.lineno}" for frame in last)
    return Finding(
        ERROR,
        f"could not be checked: {type(error).__name__}: {reason}",
        "unknown: the fault that this check looks for is not ruled out",
        f"report this{place}, with the versions of torch and transformers; if the checkpoint does run "
        "elsewhere, compare the versions first",
    )


def all_checks() -> list[Check]:
    """Every check, in the order of the groups."""
    from distill.doctor import (  # noqa: F401  (importing registers them)
        attention,
        data,
        pooling,
        tokens,
        training,
    )

    return sorted(REGISTRY.values(), key=lambda c: GROUPS.index(c.group))


def examine(subject: Subject, only: Sequence[str] = ()) -> list[Result]:
    """Run every check that applies to ``subject``, or of those only the ones named."""
    results = []
    for one in all_checks():
        if (one.slow and not subject.deep) or (only and one.name not in only):
            continue
        try:
            if any(getattr(subject, need) is None for need in one.needs):
                continue
            finding = one.function(subject)
        except UserError as mistake:
            finding = failed(str(mistake), "it cannot run at all", "as the message says")
        except Exception as error:  # a library that cannot do it must not hide the other findings
            finding = broken_off(error)
        if finding is not None:
            results.append(
                Result(
                    finding.status, finding.seen, finding.cost, finding.fix, subject.name, one.group, one.name
                )
            )
    return results
