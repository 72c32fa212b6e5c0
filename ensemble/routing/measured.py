"""What routing wins on labelled rows: log-loss against cost, where a budget lands, the regret to an oracle.

All of it is cross-fitted: temperatures, blend, expected gain and price are each row's other folds'. The
oracle knows what the dear models would have gained on each row, the luck of its label included; no rule can.
It bounds from above what routing could win, and says nothing of how much of that is within reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ensemble.routing.held import Held
from ensemble.routing.price import price_for
from ensemble.scoring.bootstrap import Bootstrap, Interval

SHARES = tuple(share / 10 for share in range(11))


@dataclass(frozen=True)
class Difference:
    """A mean difference of log-losses in nats, and its paired 95 % interval over groups of rows."""

    value: float
    interval: Interval

    @property
    def beyond_noise(self) -> bool:
        """Whether it is above 0 in all of its interval."""
        return self.interval.low > 0

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"value": self.value, "ci95": self.interval.as_list()}


@dataclass(frozen=True)
class Point:
    """Routing at one cost.

    Attributes
    ----------
    share : float
        Of what the dear models cost on all rows, that is spent.
    cost : float
        A row's, on average, the cheap model's included.
    routed, lot, oracle : float
        Log-loss by the rule, by as much spent on rows drawn by lot, and by the oracle for as much at most.
    gain : Difference
        Of the rule on the lot; more is better.
    regret : Difference
        Of the rule to the oracle.
    """

    share: float
    cost: float
    routed: float
    lot: float
    oracle: float
    gain: Difference
    regret: Difference

    @property
    def captured(self) -> float:
        """Share of what the oracle gains on the lot that the rule gains; 0 where the oracle gains nothing."""
        most = self.lot - self.oracle
        return (self.lot - self.routed) / most if most > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        plain = {key: value for key, value in asdict(self).items() if key not in ("gain", "regret")}
        differences = {"gain": self.gain.as_dict(), "regret": self.regret.as_dict()}
        return {**plain, **differences, "captured": self.captured}


@dataclass(frozen=True)
class Landing:
    """Where a budget lands: by the threshold, each row decided by itself, on rows it was not fitted on.

    Attributes
    ----------
    budget : float
        What a row may cost, on average.
    point : Point
        At what was really spent.
    sent : float
        Share of the rows that the dear models saw.
    cheap, dear : float
        Log-loss with none of the rows sent, and with all.
    full : float
        What a row costs with all sent.
    on_none, on_all : Difference
        What the rule gains on sending none, and on sending all.
    deviation : float
        Of one row's cost under the rule, from row to row.
    """

    budget: float
    point: Point
    sent: float
    cheap: float
    dear: float
    full: float
    on_none: Difference
    on_all: Difference
    deviation: float

    @property
    def enough(self) -> bool:
        """Whether the budget would do for all rows."""
        return self.budget >= self.full

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        plain = ("budget", "sent", "cheap", "dear", "full", "deviation")
        return {
            **{name: getattr(self, name) for name in plain},
            **self.point.as_dict(),
            "gain_on_none": self.on_none.as_dict(),
            "gain_on_all": self.on_all.as_dict(),
        }


def difference(held: Held, draws: Bootstrap, better: np.ndarray, worse: np.ndarray) -> Difference:
    """What ``better`` gains on ``worse``, log-losses (n,)."""
    values = (worse - better) * held.weight
    return Difference(float(values.mean()), draws.interval(values))


def point(held: Held, draws: Bootstrap, chosen: np.ndarray, cheap: np.ndarray, dear: np.ndarray) -> Point:
    """Score a choice of rows (a mask) whose models cost ``cheap`` and ``dear`` (n,)."""
    spent = held.mean(chosen * dear)
    share = spent / held.mean(dear)
    routed, lot = held.routed(chosen), held.by_lot(share)
    oracle = held.routed(held.foreseen(dear, share))
    return Point(
        share,
        held.mean(cheap) + spent,
        held.mean(routed),
        held.mean(lot),
        held.mean(oracle),
        difference(held, draws, routed, lot),
        difference(held, draws, oracle, routed),
    )


def curve(held: Held, draws: Bootstrap, cheap: np.ndarray, dear: np.ndarray) -> list[Point]:
    """Score the best rows by expected gain, for :data:`SHARES` of what the dear models cost on all."""
    chosen = (held.best(held.gain, dear, share) for share in SHARES)
    return [point(held, draws, mask, cheap, dear) for mask in chosen]


def land(
    held: Held,
    draws: Bootstrap,
    ids: Sequence[str],
    costs: tuple[np.ndarray, np.ndarray],
    budget: float,
) -> Landing:
    """Spend a budget by the thresholds of the other folds.

    Parameters
    ----------
    held : Held
    draws : Bootstrap
    ids : sequence of str
    costs : tuple of two ndarrays of shape (n,)
        Of the cheap model, and of all dear ones together.
    budget : float
        A row's, the cheap model's cost included.
    """
    cheap, dear = costs
    chosen = np.zeros(len(ids), dtype=bool)
    for number, gain in held.known.items():
        inside = held.fold == number
        rest, weight = ~inside, held.weight[~inside]
        allowance = budget - float((cheap[rest] * weight).sum() / weight.sum())
        price = price_for(gain, dear[rest], allowance, weight)
        rows = np.flatnonzero(inside)
        chosen[rows] = price.send(held.gain[rows] / dear[rows], [ids[i] for i in rows.tolist()])
    routed, paid = held.routed(chosen), cheap + chosen * dear
    return Landing(
        budget,
        point(held, draws, chosen, cheap, dear),
        held.mean(chosen),
        held.mean(held.cheap),
        held.mean(held.dear),
        held.mean(cheap + dear),
        difference(held, draws, routed, held.cheap),
        difference(held, draws, routed, held.dear),
        float(np.sqrt(held.mean((paid - held.mean(paid)) ** 2))),
    )
