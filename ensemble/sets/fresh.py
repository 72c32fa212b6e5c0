"""Fresh predictions of rows with candidates, for a stack to be applied to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.errors import UserError, listing
from ensemble.reading.fresh import refuse_other_names
from ensemble.reading.members import split_name
from ensemble.sets.long import SetMember, read_member


def fresh_sets(
    arguments: Sequence[str], wanted: Sequence[str], stack: Path, average_folds: bool = False
) -> tuple[list[str], list[list[str]], np.ndarray]:
    """Read a set for every member; returns ids, candidates and P (n, members, K) in the first one's order.

    Parameters
    ----------
    arguments : sequence of str
        ``PATH`` or ``NAME=PATH``.
    wanted : sequence of str
        The stack's members, in its order.
    stack : Path
        For messages.
    average_folds : bool
        Average the sets that bear one name.

    Raises
    ------
    UserError
        A member is missing, unknown or given twice, or the sets have other rows or candidates.
    """
    members: dict[str, list[SetMember]] = {}
    for argument in arguments:
        name, path = split_name(argument)
        member = read_member(path, name)
        if member.name in members and not average_folds:
            raise UserError(
                f"{path}: a second set named {member.name}; name it with --oof NAME={path}, or average the "
                "models of several folds with --average-folds"
            )
        members.setdefault(member.name, []).append(member)
    refuse_other_names(members, wanted, stack)
    first = members[wanted[0]][0]
    width = first.probs.shape[1]
    P = np.zeros((len(first.row_ids), len(wanted), width))
    for m, name in enumerate(wanted):
        for member in members[name]:
            extra = sorted(set(member.row_ids) - set(first.row_ids))
            if extra:
                raise UserError(
                    f"{member.path}: predicts {len(extra)} rows that {first.path} does not, e.g. "
                    f"{listing(extra, 3)}"
                )
            joined = member.onto(first.row_ids, first.candidates, str(first.path))
            P[:, m] += joined.probs[:, :width] / len(members[name])
    return first.row_ids, first.candidates, P
