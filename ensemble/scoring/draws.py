"""How far a prediction of judged rows may be from the chances that it estimates: a parametric bootstrap.

Groups of rows are drawn with replacement and labelled by lot, from the probabilities of a pool that penalties
hardly hold, as if these were the true chances; judges' maps and the log-opinion pool are fitted to each draw
anew. How far such fits are from the probabilities that their labels were drawn from shows both how far chance
moves a fit and what penalties and priors draw all fits towards, which a bootstrap of the labels that there
are does not. The pool is what the stack departs from: its errors are taken as those of the stack.

Rows drawn anew as well as their labels make the spread wider, by the root of two, than labels alone would: on
simulated panels of known truth these alone held too little, what no map and no pool can follow being in no
draw (``benchmarks.judges``).

Davison and Hinkley, *Bootstrap methods and their application* (1997), chapter 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ensemble.methods.base import Blender, from_dict
from ensemble.methods.pool import LogPool
from ensemble.reading.judges import Judge
from ensemble.reading.maps import JudgeMap, fit_map
from ensemble.reading.problem import Problem
from ensemble.scoring.bootstrap import NORMAL, bootstrap

DRAWS = 60
HARDLY = 0.3
"""Penalty, in rows, of the pool that labels are drawn from."""
_LEAST = 1e-6


def drawn_pools(problem: Problem, pool: Blender, seed: int) -> tuple[list[dict[str, Any]], LogPool | None]:
    """Maps and pools fitted to drawn labels, as JSON values, and the pool that these were drawn from.

    Nothing where no member is a judge.

    Parameters
    ----------
    problem : Problem
    pool : LogPool
        Fitted to all rows; its choices are kept.
    seed : int
    """
    judges = {name: judge for name, judge in problem.judges.items() if name in problem.names}
    if not judges or not isinstance(pool, LogPool):
        return [], None
    rng, drawn = np.random.default_rng(seed), bootstrap(problem.groups, DRAWS, seed)
    source = LogPool(HARDLY, seed=seed, floor=pool.floor_).fit(problem.P, problem.y, problem.weight)
    chances = source.predict_proba(_mapped(problem, _fit_maps(judges, problem.y, problem.weight)))
    classes = np.eye(problem.y.shape[1])
    found = []
    for counts in drawn.counts[:, drawn.groups].astype(np.float64):
        weight = counts if problem.weight is None else counts * problem.weight
        beyond = rng.random((len(chances), 1)) > chances.cumsum(axis=1)
        y = classes[np.minimum(beyond.sum(axis=1), len(classes) - 1)]
        maps = _fit_maps(judges, y, weight)
        found.append(
            {
                "maps": {name: judge_map.to_dict() for name, judge_map in maps.items()},
                "pool": pool.refit(_mapped(problem, maps), y, weight).to_dict(),
            }
        )
    return found, source


def _fit_maps(judges: Mapping[str, Judge], y: np.ndarray, weight: np.ndarray | None) -> dict[str, JudgeMap]:
    return {name: fit_map(judge, y, weight) for name, judge in judges.items()}


def _mapped(problem: Problem, maps: Mapping[str, JudgeMap]) -> np.ndarray:
    """Members' probabilities (n, members, K), those of judges by these maps."""
    P = problem.P.copy()
    for m, name in enumerate(problem.names):
        if name in maps:
            P[:, m] = maps[name](problem.judges[name].signal)
    return P


def maps_of(draw: dict[str, Any]) -> dict[str, JudgeMap]:
    """The maps of a draw, by the judge's name."""
    return {name: JudgeMap.from_dict(state) for name, state in draw["maps"].items()}


def interval(
    probs: np.ndarray, drawn_from: np.ndarray, draws: list[dict[str, Any]], seen: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends (n, K) around each probability: 1.96 times what the draws are off, in log-odds.

    Parameters
    ----------
    probs : ndarray of shape (n, K)
        Of the stack.
    drawn_from : ndarray of shape (n, K)
        Of the pool whose probabilities the draws' labels were drawn from.
    draws : list of dict
        As from :func:`drawn_pools`.
    seen : list of ndarray of shape (n, members, K)
        Members' probabilities by the maps of each draw.
    """
    odds = np.stack(
        [_log_odds(from_dict(draw["pool"]).predict_proba(P)) for draw, P in zip(draws, seen, strict=True)]
    )
    off = odds - _log_odds(drawn_from)
    centre, reach = _log_odds(probs), NORMAL * np.sqrt((off**2).mean(axis=0))
    return _chance(centre - reach), _chance(centre + reach)


def _log_odds(probs: np.ndarray) -> np.ndarray:
    probs = np.clip(probs, _LEAST, 1 - _LEAST)
    return np.log(probs) - np.log1p(-probs)


def _chance(odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-odds))
