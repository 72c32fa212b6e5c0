"""Run every check on a subject: importing the rooms of checks registers them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from data.errors import UserError
from distill.doctor import attention, data, language, pooling, tokens, training
from distill.doctor.finding import GROUPS, PASS, REGISTRY, Check, Result, broken_off, failed
from distill.doctor.subject import Subject, open_subjects
from distill.quiet import quiet_transformers

CHECKS = (tokens, pooling, attention, language, training, data)
"""The files of checks; a new file is one more name here."""


def all_checks() -> list[Check]:
    """Every check, in the order of the groups."""
    return sorted(REGISTRY.values(), key=lambda c: GROUPS.index(c.group))


def diagnose(
    target: str | Path,
    *,
    data: str | Path | None = None,
    deep: bool = False,
    plain: bool = False,
    ids: str | Path | None = None,
    predict_ids: str | Path | None = None,
    backbone: str | None = None,
) -> list[Result]:
    """Look for the known plumbing faults in a checkpoint, adapter, recipe, run or data directory.

    Parameters
    ----------
    target : path or str
        What to examine; a hub name must be in the local cache.
    data : path, optional
        Prepared rows to check it against.
    deep : bool
        Every layer, and the slow checks.
    plain : bool
        Judge what plain transformers code gets by its defaults, not what this toolkit does.
    ids, predict_ids : path, optional
        Token ids that other code feeds in training and prediction, JSON lines.
    backbone : str, optional
        Where the checkpoint of a run or adapter is, if it has moved.

    Returns
    -------
    list of Result
        One a check: ``status`` (``pass``, ``warn``, ``fail``, or ``error`` where the check broke off), what
        was ``seen``, what it costs and how to mend it.

    Raises
    ------
    UserError
        ``target`` is none of the things that can be examined.
    """
    places = {"data": data, "ids": ids, "predict_ids": predict_ids}
    options = {name: None if place is None else Path(place) for name, place in places.items()}
    with tempfile.TemporaryDirectory(prefix="distill-doctor-") as scratch, quiet_transformers():
        subjects = open_subjects(
            str(target), Path(scratch), deep=deep, plain=plain, backbone=backbone, **options
        )
        return [result for subject in subjects for result in examine(subject)]


def examine(subject: Subject, only: Sequence[str] = ()) -> list[Result]:
    """Run every check that applies to ``subject``, or of those only the ones named; tell a cause once."""
    results: list[Result] = []
    for one in all_checks():
        told = {r.check for r in results if r.status != PASS}
        if (one.slow and not subject.deep) or (only and one.name not in only) or told & {*one.unless}:
            continue
        try:
            if any(getattr(subject, need) is None for need in one.needs):
                continue
            finding = one.function(subject)
        except UserError as mistake:
            refused = failed(str(mistake), "it cannot run at all", "as the message says")
            finding = None if refused.seen in {r.seen for r in results} else refused
        except Exception as error:  # a library that cannot do it must not hide the other findings
            finding = broken_off(error)
        if finding is not None:
            results.append(
                Result(
                    finding.status, finding.seen, finding.cost, finding.fix, subject.name, one.group, one.name
                )
            )
    return results
