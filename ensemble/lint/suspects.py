"""A lint for members that look in-sample: better than honest, on the very rows that nobody can know.

A model that saw a row's label is right where the others are surprised by it; an honest model, however
strong, shares their surprise at a mislabelled or ambiguous row. That speaks of members far below the others;
what was learnt in part only is told by :mod:`ensemble.lint.leak`, from more rows. Both are statistical:
where a manifest says what a store holds, that is exact and comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.errors import UserError, listing
from data.softlabels import is_store
from data.softmax import softmax
from ensemble.lint.leak import ROWS, partly_learnt
from ensemble.reading.oddities import tempered
from ensemble.reading.problem import Problem
from ensemble.solvers.numbers import cross_entropy, log_probs

FAR_BELOW = 0.6
"""Share of the best other member's loss under which a member is looked at."""
HARD = 0.05
"""Share of rows that count as hard: those whose label surprises the other members most."""
KNOWS = 0.6
"""Mean probability of the true class on hard rows from which a member is said to know them."""
RIGHT = 0.85
"""Share of hard rows that it must also get right."""
AHEAD = 0.85
"""Share of the next best member's loss, each at its temperature, from which a member is remarked upon."""
_MIN_ROWS = 200
_LOOKED_AT = 20_000


@dataclass(frozen=True)
class Suspect:
    """A member that looks in-sample.

    Attributes
    ----------
    name : str
    evidence : str
        Why, with the numbers.
    """

    name: str
    evidence: str


def in_sample_suspects(P: np.ndarray, y: np.ndarray, names: Sequence[str]) -> list[Suspect]:
    """Return the members that look as if they had seen the labels.

    A suspect's loss is under :data:`FAR_BELOW` of the best other member's, and on the :data:`HARD` share
    of rows whose label surprises the geometric mean of the others most, it gives the true class at least
    :data:`KNOWS` on average and is right in :data:`RIGHT` of them. Several leaks do not hide one another:
    a member is judged by those of greater loss alone. Where none is such, those that
    :func:`ensemble.lint.leak.partly_learnt` finds.

    Parameters
    ----------
    P : ndarray of shape (n, members, K)
    y : ndarray of shape (n, K)
        Target distributions.
    names : sequence of str
    """
    n, n_members, _ = P.shape
    if n < _MIN_ROWS or n_members < 2:
        return []
    losses = np.array([cross_entropy(P[:, m], y).mean() for m in range(n_members)])
    truth = np.einsum("nmk,nk->nm", P, y)
    order = np.argsort(losses, kind="stable")
    found: list[Suspect] = []
    for place in range(n_members - 1, 0, -1):  # where members below are to be judged by those above
        leak, others = order[:place], order[place:]
        if losses[leak].max() >= FAR_BELOW * losses[others].min():
            continue
        consensus = softmax(log_probs(P[:, others]).mean(axis=1))
        hard = np.argsort((consensus * y).sum(axis=1), kind="stable")[: max(int(HARD * n), 10)]
        knows = truth[np.ix_(hard, leak)].mean(axis=0)
        known = truth[np.ix_(hard, others)].mean(axis=0).max()
        right = P[hard][:, leak].argmax(axis=2) == y[hard].argmax(axis=1)[:, None]
        if right.mean(axis=0).min() < RIGHT:
            continue
        if knows.min() < KNOWS or knows.min() < 2 * known:
            continue
        for m, share in zip(leak, knows, strict=True):
            found.append(
                Suspect(
                    names[m],
                    f"its log-loss {losses[m]:.4f} is far below the others' best, "
                    f"{losses[others].min():.4f}, and on the {len(hard)} rows whose labels surprise the "
                    f"others most it gives the true class {share:.2f} on average, the others at most "
                    f"{known:.2f}",
                )
            )
        break
    return found or _partial(P, y, names)


def _partial(P: np.ndarray, y: np.ndarray, names: Sequence[str]) -> list[Suspect]:
    """Members that know part of the labels, in words; not told where rows have candidates of their own."""
    if (P.max(axis=1) == 0).any():
        return []
    leaks, verdicts, _ = partly_learnt(P, y)
    return [
        Suspect(
            names[m],
            "classes happen more often than it says (slope "
            f"{verdict.slope:.2f} ± {verdict.slope_error:.2f}) and what the other members say counts against "
            f"the label beside it (weight {verdict.weight:+.2f} ± {verdict.weight_error:.2f}), as if it had "
            "learnt some of the labels",
        )
        for m, verdict in zip(leaks, verdicts, strict=True)
    ]


def leave_out_suspects(problem: Problem, trust: Sequence[str] = ()) -> Problem:
    """Return the problem without members that look in-sample, and with a note for each.

    Parameters
    ----------
    problem : Problem
    trust : sequence of str
        Names of members to keep, whatever they look like.

    Raises
    ------
    UserError
        ``trust`` names no member.
    """
    unknown = [name for name in trust if name not in problem.names]
    if unknown:
        raise UserError(f"--trust {listing(unknown)}: no such member; there are {listing(problem.names, 12)}")
    notes = list(problem.notes)
    if len(problem) < _MIN_ROWS and len(problem.names) > 1:
        notes.append(
            f"{len(problem)} rows are too few to tell whether a member saw the labels it is scored on; from "
            f"{_MIN_ROWS} they do"
        )
    left_out = set()
    for suspect in in_sample_suspects(problem.P, problem.y, problem.names):
        if suspect.name in trust:
            notes.append(f"{suspect.name} looks in-sample and is trusted: {suspect.evidence}")
        else:
            left_out.add(suspect.name)
            notes.append(
                f"{suspect.name} looks in-sample and is left out: {suspect.evidence}; "
                f"keep it with --trust {suspect.name}"
            )
    if _MIN_ROWS <= len(problem) < ROWS and len(problem.names) > 1:
        notes.append(
            f"{len(problem):,} rows tell a member that knows nearly all labels it is scored on, and are too "
            f"few to tell one that learnt some of them; from {ROWS:,} they do"
        )
    if left_out:
        kept = [m for m, name in enumerate(problem.names) if name not in left_out]
        problem = replace(
            problem,
            P=problem.P[:, kept],
            names=tuple(problem.names[m] for m in kept),
            sources=tuple(problem.sources[m] for m in kept) if problem.sources else (),
        )
    return replace(problem, notes=(*notes, *_far_ahead(problem, trust)))


def _far_ahead(problem: Problem, trust: Sequence[str]) -> list[str]:
    """A note on a member that is far better than all others, where no store's record says why.

    A model that was trained on some of the rows, as one of other folds, is no other than a strong one by its
    predictions: it is certain and right there, as one that reads what nobody else does.
    """
    n_members = problem.P.shape[1]
    if n_members < 2 or len(problem) < _MIN_ROWS or (problem.P.max(axis=1) == 0).any():
        return []
    P, y = problem.P[:_LOOKED_AT], problem.y[:_LOOKED_AT]
    losses = [float(tempered(log_probs(P[:, m]), y).mean()) for m in range(n_members)]
    best, second = np.argsort(losses, kind="stable")[:2]
    if losses[best] >= AHEAD * losses[second] or problem.names[best] in trust:
        return []
    if problem.sources and is_store(problem.sources[best].path):
        return []
    name, other = problem.names[best], problem.names[second]
    return [
        f"{name} is far ahead: {losses[best]:.4f} where the next best, {other}, has {losses[second]:.4f}, "
        "each at its temperature. Predictions alone do not tell a strong model from one that was trained on "
        "some of these rows; make sure that each was predicted by a model that had seen neither it nor its "
        f"prompt, and say so with --trust {name}"
    ]
