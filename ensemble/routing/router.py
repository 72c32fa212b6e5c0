"""A fitted router: which rows are worth the dear models, and the answer for every row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError, listing
from data.files import write_text
from data.ids import places
from ensemble.reading.fresh import probabilities
from ensemble.reading.given import member_given, named_members
from ensemble.reading.members import Member
from ensemble.records import begins_with, held_for
from ensemble.routing.cascade import route
from ensemble.routing.costs import costs_given, spread
from ensemble.routing.page import TITLE, render_report
from ensemble.routing.rule import ROUTER, Rule, load_rule, save_rule

REPORT = "router.html"
FILES = {
    REPORT: begins_with(f"<title>{TITLE}</title>".encode()),
    ROUTER: begins_with(b'"kind": "router"'),
}
GAIN, SEND = "expected_gain", "send"
"""Columns of what is decided, beside the classes."""


@dataclass(frozen=True)
class Decisions:
    """What a router makes of rows that the cheap model has seen.

    Attributes
    ----------
    row_ids : list of str, length n
    own : ndarray of shape (n, K)
        The cheap model's probabilities as they were given, or as they are made of a judge's words.
    probs : ndarray of shape (n, K)
        The same, calibrated.
    expected_gain : ndarray of shape (n,)
        Expected fall of the log-loss if the dear models see the row too, in nats.
    send : ndarray of bool, shape (n,)
        Rows that the dear models are to see.
    cheap_cost, dear_cost : ndarray of shape (n,)
        Of a row, by the cheap model and by all dear ones together.
    """

    row_ids: list[str]
    own: np.ndarray
    probs: np.ndarray
    expected_gain: np.ndarray
    send: np.ndarray
    cheap_cost: np.ndarray
    dear_cost: np.ndarray

    @property
    def sent(self) -> list[str]:
        """Ids of the rows that are sent, in order."""
        return [self.row_ids[i] for i in np.flatnonzero(self.send).tolist()]

    @property
    def spent(self) -> float:
        """What all these rows cost, the cheap model's cost included."""
        return float(self.cheap_cost.sum() + self.dear_cost[self.send].sum())


@dataclass(frozen=True, repr=False)
class Router:
    """A cheap model for every row, dear ones for the rows where they are expected to be worth their cost.

    Attributes
    ----------
    content : dict
        What ``router.json`` says: the rule, and how it did on rows that it was not fitted on.
    rule : Rule
        What decides.
    """

    content: dict[str, Any]
    rule: Rule

    @property
    def classes_(self) -> tuple[str, ...]:
        """Class names, in the order of the columns."""
        return self.rule.classes.names

    @property
    def members_(self) -> tuple[str, ...]:
        """The models, the cheap one first."""
        return self.rule.names

    @property
    def verdict(self) -> str:
        """Whether routing helps beyond noise, or what to do instead, in a sentence."""
        return str(self.content["measured"]["verdict"])

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know: rows left out, labels as they were read."""
        return tuple(self.content["rows"]["notes"])

    def decide(
        self, cheap: Any, *, cost: Mapping[str, Any] | None = None, budget: float | None = None
    ) -> Decisions:
        """Decide which rows the dear models are to see, from what the cheap one says of them.

        Parameters
        ----------
        cheap : ndarray of shape (n, K), data frame or path
            The cheap model's own probabilities of new rows, not calibrated.
        cost : mapping of str to array of shape (n,), Series, data frame or path, optional
            What models cost for each of these rows, of models whose rows have costs of their own.
        budget : float, optional
            What these rows may cost all together, the cheap model's cost included, in the unit of the costs.
            It is spent on the best rows for their cost and never exceeded. By default each row is decided by
            itself, at the router's price, which meets the fitted budget on average alone.

        Raises
        ------
        UserError
            No distributions over these classes, rows without a cost, a budget that the cheap model alone
            exceeds, or a file that a router wrote.
        """
        name = self.rule.names[0]
        member = self._member(cheap, name)
        cheap_cost, dear_cost = self._costs(cost or {}, member.row_ids)
        own = self._probabilities(member)
        gain = self.rule.cascade.expected_gain(own)
        if budget is None:
            send = self.rule.price.send(gain / dear_cost, member.row_ids)
        else:
            left = check_amount(budget) - float(cheap_cost.sum())
            if left < 0:
                raise UserError(
                    f"--budget {budget:g}: {name} alone costs {cheap_cost.sum():.6g} for {len(gain)} rows; "
                    "give more, or fewer rows"
                )
            send = route(gain, dear_cost, left / float(dear_cost.sum())) & (gain > 0)
        probs = self.rule.cascade.cheap(own)
        return Decisions(member.row_ids, own, probs, gain, send, cheap_cost, dear_cost)

    def predict_proba(
        self,
        cheap: Any,
        dear: Any = None,
        *,
        cost: Mapping[str, Any] | None = None,
        budget: float | None = None,
    ) -> np.ndarray:
        """Answer all rows (n, K): sent ones by the blend of all models, the others by the cheap one.

        Parameters
        ----------
        cheap, cost, budget
            As :meth:`decide` had them; rows are decided anew, and alike.
        dear : mapping or list of ndarray, data frame or path, optional
            The dear models' probabilities of at least the rows that are sent, by name, or in their order.
            Arrays have a row for each of these, in order. Rows that are not sent are not used.

        Raises
        ------
        UserError
            A dear model or a row that is sent is missing, or a row is none of the cheap model's.
        """
        return self.answer(self.decide(cheap, cost=cost, budget=budget), dear)

    def answer(self, decided: Decisions, dear: Any = None) -> np.ndarray:
        """Answer rows that are decided already (n, K).

        Parameters
        ----------
        decided : Decisions
            From :meth:`decide`.
        dear
            As in :meth:`predict_proba`.

        Raises
        ------
        UserError
            As there.
        """
        probs, names, sent = decided.probs.copy(), self.rule.names[1:], decided.sent
        given = (
            dict(named_members(dear, None if isinstance(dear, Mapping) else names))
            if dear is not None
            else {}
        )
        missing = [name for name in names if name not in given]
        unknown = [name for name in given if name not in names]
        if unknown or (missing and sent):
            parts = [f"no predictions of {listing(missing)}"] if missing else []
            parts += [f"{listing(unknown)} is no dear model"] if unknown else []
            raise UserError(
                f"{'; '.join(parts)}; the router's are {listing(names, 12)}, matched by NAME=FILE"
            )
        if not sent:
            return probs
        P = [decided.own[decided.send]]
        for name in names:
            member = self._member(given[name], name, sent)
            at = places(sent, member.row_ids)
            absent = [row_id for row_id, place in zip(sent, at.tolist(), strict=True) if place < 0]
            if absent:
                raise UserError(
                    f"{member.path}: lacks {len(absent)} of the {len(sent)} rows that are sent, e.g. "
                    f"{listing(absent, 3)}; predict them with {name}"
                )
            strange = sorted(set(member.row_ids).difference(decided.row_ids))
            if strange:
                raise UserError(
                    f"{member.path}: predicts {len(strange)} rows that {self.rule.names[0]} does not, "
                    f"e.g. {listing(strange, 3)}"
                )
            P.append(self._probabilities(member)[at])
        probs[decided.send] = self.rule.cascade.all_models(np.stack(P, axis=1))
        return probs

    def _member(self, part: Any, name: str, row_ids: Sequence[str] | None = None) -> Member:
        member = member_given(part, name, self.rule.classes, row_ids)
        if {GAIN, SEND} <= set(member.spare):
            raise UserError(
                f"{member.path}: is what a router decided, whose probabilities are calibrated already; give "
                f"{name}'s own predictions"
            )
        return member

    def _probabilities(self, member: Member) -> np.ndarray:
        return probabilities(member, self.rule.maps.get(member.name), "the router")

    def _costs(self, given: Mapping[str, Any], ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        known, names = self.rule.cost, self.rule.names
        own = [name for name in names if known[name] is None]
        found = costs_given(given, own, ids, free=names[0])
        columns = [spread(found.get(name, known[name] or 0.0), len(ids)) for name in names]
        return columns[0], np.sum(columns[1:], axis=0)

    def save(self, out: str | Path) -> None:
        """Write what ``ensemble.route`` leaves: ``router.json`` and the report.

        Raises
        ------
        UserError
            The directory cannot be written, or holds files of another origin.
        """
        with held_for("router", Path(out), [], FILES):
            self.write(Path(out))

    def write(self, out: Path) -> None:
        """:meth:`save` into a directory that is held already."""
        self.report(out / REPORT)
        save_rule(out, self.content)

    def report(self, path: str | Path) -> None:
        """Write the report: one page of HTML that needs no network."""
        write_text(Path(path), render_report(self.content))

    def __repr__(self) -> str:
        """Models, price and verdict."""
        return (
            f"Router of {self.rule.names[0]} and {listing(self.rule.names[1:])} at "
            f"{self.rule.price.price:.6g} nats a unit: {self.verdict}"
        )


def read_router(path: str | Path) -> Router:
    """Read a router that ``ensemble.route`` or :meth:`Router.save` wrote.

    Parameters
    ----------
    path : path
        Its directory.

    Raises
    ------
    UserError
        No router, or one that was damaged or changed.
    """
    return Router(*load_rule(Path(path)))


def check_amount(budget: float) -> float:
    """Return a budget, or refuse one that is no amount above 0."""
    if not math.isfinite(budget) or budget <= 0:
        raise UserError(f"--budget {budget:g}: must be an amount above 0, in the unit of the costs")
    return float(budget)
