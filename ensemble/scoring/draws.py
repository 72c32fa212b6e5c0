"""How far a prediction of judged rows would have moved, had other rows been labelled.

Groups of rows are drawn with replacement; judges' maps and the log-opinion pool are fitted to each draw anew.
The pool is what the stack departs from: how its predictions spread is taken as the spread of the stack's own.
What a penalty or a prior draws all fits towards is not in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ensemble.methods.base import Blender, from_dict
from ensemble.methods.pool import LogPool
from ensemble.reading.maps import JudgeMap, fit_map
from ensemble.reading.problem import Problem
from ensemble.scoring.bootstrap import NORMAL, bootstrap

DRAWS = 60
_LEAST = 1e-6


def drawn_pools(problem: Problem, pool: Blender, seed: int) -> list[dict[str, Any]]:
    """Maps and pools of several draws of groups, as JSON values; none where no member is a judge.

    Parameters
    ----------
    problem : Problem
    pool : LogPool
        Fitted to all rows; its choices are kept.
    seed : int
    """
    judges = {name: judge for name, judge in problem.judges.items() if name in problem.names}
    if not judges or not isinstance(pool, LogPool):
        return []
    drawn = bootstrap(problem.groups, DRAWS, seed)
    found = []
    for counts in drawn.counts[:, drawn.groups].astype(np.float64):
        weight = counts if problem.weight is None else counts * problem.weight
        maps = {name: fit_map(judge, problem.y, weight) for name, judge in judges.items()}
        P = problem.P.copy()
        for m, name in enumerate(problem.names):
            if name in maps:
                P[:, m] = maps[name](judges[name].signal)
        found.append(
            {
                "maps": {name: judge_map.to_dict() for name, judge_map in maps.items()},
                "pool": pool.refit(P, problem.y, weight).to_dict(),
            }
        )
    return found


def maps_of(draw: dict[str, Any]) -> dict[str, JudgeMap]:
    """The maps of a draw, by the judge's name."""
    return {name: JudgeMap.from_dict(state) for name, state in draw["maps"].items()}


def interval(
    probs: np.ndarray, draws: list[dict[str, Any]], seen: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends (n, K), around each probability, of where 95 % of the draws' lie.

    Parameters
    ----------
    probs : ndarray of shape (n, K)
        Of the stack.
    draws : list of dict
        As from :func:`drawn_pools`.
    seen : list of ndarray of shape (n, members, K)
        Members' probabilities by the maps of each draw.
    """
    odds = np.stack(
        [_log_odds(from_dict(draw["pool"]).predict_proba(P)) for draw, P in zip(draws, seen, strict=True)]
    )
    centre, reach = _log_odds(probs), NORMAL * odds.std(axis=0, ddof=1)
    return _chance(centre - reach), _chance(centre + reach)


def _log_odds(probs: np.ndarray) -> np.ndarray:
    probs = np.clip(probs, _LEAST, 1 - _LEAST)
    return np.log(probs) - np.log1p(-probs)


def _chance(odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-odds))
