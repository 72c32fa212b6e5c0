"""Fresh predictions for a fitted stack: members matched by name, rows by id, classes by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.classes import Classes
from data.errors import UserError, listing
from data.ids import places
from ensemble.reading.maps import JudgeMap
from ensemble.reading.members import Member, load_member, onto_common, split_name

_WORDS = {
    None: "probabilities",
    ("verdict", False): "verdicts",
    ("verdict", True): "verdicts in both orders",
    ("score", False): "scores in one order",
    ("score", True): "scores of both sides",
}
"""What a member gives, by the kind of a judge's word and whether it treats both sides alike."""


@dataclass(frozen=True)
class Fresh:
    """Members' fresh predictions.

    Attributes
    ----------
    row_ids : list of str
        Of the first member.
    members : dict of str to list of Member
        In the stack's order; several of a name are averaged.
    stack : str
        For messages.
    """

    row_ids: list[str]
    members: dict[str, list[Member]]
    stack: str

    def seen(self, maps: Mapping[str, JudgeMap]) -> np.ndarray:
        """Probabilities (n, members, K), those of judges by these maps.

        Raises
        ------
        UserError
            A member does not give the kind of thing that the stack was fitted on.
        """
        first = next(iter(self.members.values()))[0]
        P = np.zeros((len(self.row_ids), len(self.members), first.classes.n))
        for m, (name, parts) in enumerate(self.members.items()):
            for part in parts:
                probs = probabilities(part, maps.get(name), self.stack)
                P[places(part.row_ids, self.row_ids), m] += probs / len(parts)
        return P


def read_fresh(
    arguments: Sequence[str], wanted: Sequence[str], classes: Classes, stack: Path, average_folds: bool
) -> Fresh:
    """Read a fresh set for every member of a stack.

    Parameters
    ----------
    arguments : sequence of str
        ``PATH`` or ``NAME=PATH``.
    wanted : sequence of str
        The stack's members.
    classes : Classes
    stack : Path
        For messages.
    average_folds : bool
        Average the probabilities of sets that bear the same name.

    Raises
    ------
    UserError
        A member is missing, unknown or given twice, or the sets predict different rows.
    """
    members: dict[str, list[Member]] = {}
    for argument in arguments:
        name, path = split_name(argument)
        member = load_member(path, classes, name)
        if member.name in members and not average_folds:
            raise UserError(
                f"{path}: a second set named {member.name}; name it with --oof NAME={path}, or average the "
                "models of several folds with --average-folds"
            )
        members.setdefault(member.name, []).append(member)
    return joined(members, wanted, str(stack))


def refuse_other_names(
    names: Collection[str], wanted: Sequence[str], stack: str | Path, spare: Collection[str] = ()
) -> None:
    """Refuse sets that are not those of a stack's members; names in ``spare`` may be there nonetheless."""
    missing = [name for name in wanted if name not in names]
    unknown = [name for name in names if name not in {*wanted, *spare}]
    if missing or unknown:
        parts = [f"no predictions of {listing(missing)}"] if missing else []
        parts += [f"{listing(unknown)} is no member"] if unknown else []
        raise UserError(
            f"{stack}: {'; '.join(parts)}; its members are {listing(wanted, 12)}, and a set of another name "
            "is matched with --oof NAME=PATH"
        )


def joined(
    members: Mapping[str, Sequence[Member]], wanted: Sequence[str], stack: str, spare: Sequence[str] = ()
) -> Fresh:
    """Join fresh members by row id.

    Parameters
    ----------
    members : mapping of str to sequence of Member
        Several of one name are averaged.
    wanted : sequence of str
        In the stack's order.
    stack : str
        For messages.
    spare : sequence of str
        Names that are no members and may be there nonetheless.

    Raises
    ------
    UserError
        A member is missing or unknown, or the sets predict different rows.
    """
    refuse_other_names(members, wanted, stack, spare)
    common = onto_common([member for name in wanted for member in members[name]])
    first = common[0]
    for member in common:
        differing = sorted(set(first.row_ids).symmetric_difference(member.row_ids))
        if differing:
            raise UserError(
                f"{first.path} and {member.path} predict different rows: {len(differing)} are in one "
                f"alone, e.g. {listing(differing, 3)}"
            )
    in_order = iter(common)
    return Fresh(first.row_ids, {name: [next(in_order) for _ in members[name]] for name in wanted}, stack)


def probabilities(member: Member, judge_map: JudgeMap | None, stack: str) -> np.ndarray:
    """A member's probabilities (n, K), a judge's by the map that the stack learnt of it.

    Raises
    ------
    UserError
        It does not give the kind of thing that the stack was fitted on.
    """
    judge = member.judge
    known = None if judge_map is None else (judge_map.kind, judge_map.swap is not None)
    found = None if judge is None else (judge.kind, judge.swap is not None)
    if known != found:
        raise UserError(
            f"{member.path}: gives {_WORDS[found]}, where {stack} was fitted on {_WORDS[known]} of "
            f"{member.name}"
        )
    return member.probs if judge is None or judge_map is None else judge_map(judge.signal)
