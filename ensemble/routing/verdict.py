"""What a router's figures mean, in a sentence: whether to route, and if not, what to do instead."""

from __future__ import annotations

from ensemble.routing.measured import Difference, Landing
from ensemble.scoring.verdict import short


def verdict(found: Landing) -> str:
    """Say whether routing helps beyond noise at the budget, or else to send none, all, or rows by lot.

    Beyond noise is what a paired 95 % interval leaves out.
    """
    on_lot, on_none, on_all = found.point.gain, found.on_none, found.on_all
    if not found.sent:
        return "nothing is expected of the dear models on any row: send none"
    if not on_none.beyond_noise:
        return (
            f"the dear models are not shown to help at this budget: sending {_percent(found.sent)} of the "
            f"rows gains {told(on_none)} on sending none, which may be noise; send none"
        )
    if found.enough:
        return _with_enough(found)
    if on_lot.beyond_noise:
        return (
            f"routing helps beyond noise: it gains {told(on_lot)} on as much spent on rows drawn by lot, and "
            f"{told(on_none)} on sending none"
            + ("; it is better than sending all, too" if on_all.beyond_noise else "")
        )
    return (
        f"routing is not shown to help: it gains {told(on_lot)} on as much spent on rows drawn by lot; send "
        f"rows by lot, or more of them: sending any gains {told(on_none)} on sending none"
    )


def _with_enough(found: Landing) -> str:
    if found.on_all.interval.high < 0:
        return (
            f"the budget is enough for all rows, and leaving out those that promise nothing loses "
            f"{told(_turned(found.on_all))}: send all"
        )
    return (
        f"the budget is enough for all rows, and sending {_percent(found.sent)} of them, those that promise "
        f"anything, gains {told(found.on_all)} on sending all, for {found.point.cost:.4g} a row instead of "
        f"{found.full:.4g}"
    )


def told(found: Difference) -> str:
    """A gain with its interval."""
    return f"{short(found.value)} ({short(found.interval.low)} to {short(found.interval.high)})"


def _turned(found: Difference) -> Difference:
    low, high = found.interval.as_list()
    return Difference(-found.value, type(found.interval)(-high, -low))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
