"""Run every check on a subject: importing the rooms of checks registers them."""

from __future__ import annotations

from collections.abc import Sequence

from data.errors import UserError
from distill.doctor import attention, data, pooling, tokens, training
from distill.doctor.finding import GROUPS, REGISTRY, Check, Result, broken_off, failed
from distill.doctor.subject import Subject

CHECKS = (tokens, pooling, attention, training, data)
"""The files of checks; a new file is one more name here."""


def all_checks() -> list[Check]:
    """Every check, in the order of the groups."""
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
