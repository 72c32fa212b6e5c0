"""The price of a router: how many nats a unit of cost must be expected to buy for a row to be sent.

One price for all rows is what meets a mean budget at the least expected loss. Rows at the price itself, of
which there are many where the cheap model says few different things, are sent by lot, and the lot is drawn
from the row's id: the same row is decided alike wherever and whenever it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

TIE = 1e-9
"""Rows within this share of the price are at it."""
_DIGITS = 8


@dataclass(frozen=True)
class Price:
    """Which rows are worth their cost.

    Attributes
    ----------
    price : float
        Nats for a unit of cost, 0 or more; rows above it are sent.
    at_price : float
        Share of the rows at the price that are sent, too, by lot.
    tie : float
        How near to the price is at it.
    """

    price: float
    at_price: float
    tie: float

    def send(self, rate: np.ndarray, ids: Sequence[str]) -> np.ndarray:
        """Decide rows by expected nats for a unit of cost (n,) and their ids; returns a mask (n,)."""
        chosen = np.asarray(rate > self.price + self.tie)
        for i in np.flatnonzero((rate >= self.price - self.tie) & ~chosen).tolist():
            chosen[i] = lot(ids[i]) < self.at_price
        return chosen


def lot(row_id: str) -> float:
    """A number from 0 to 1 that a row's id alone decides: the first 32 bits of its SHA-256."""
    return int(sha256(row_id.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS], 16) / 16**_DIGITS


def price_for(
    gain: np.ndarray, cost: np.ndarray, allowance: float, weight: np.ndarray | None = None
) -> Price:
    """Find the price at which rows like these cost what is allowed, on average.

    Parameters
    ----------
    gain, cost : ndarray of shape (n,)
        Expected gain in nats of showing a row to the dear models, and what that costs.
    allowance : float
        What may be spent on a row by the dear models, on average. Where it is more than all rows cost from
        which anything is expected, the price is 0.
    weight : ndarray of shape (n,), optional
        What each row counts for.
    """
    weight = np.ones(len(gain)) if weight is None else weight
    rate, spent = gain / cost, cost * weight / weight.sum()
    order = np.argsort(-rate, kind="stable")
    so_far = np.cumsum(spent[order])
    at = int(np.searchsorted(so_far, allowance, side="right"))
    if at == len(order) or rate[order[at]] <= 0:
        return Price(0.0, 0.0, 0.0)
    price = float(rate[order[at]])
    tie = TIE * price
    above = rate > price + tie
    ties = ~above & (rate >= price - tie)
    left = (allowance - float(spent[above].sum())) / float(spent[ties].sum())
    return Price(price, min(max(left, 0.0), 1.0), tie)
