"""Fitting a router: the rule on all labelled rows, and its figures on rows that it was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.errors import UserError, listing
from data.ids import places
from ensemble.lint.suspects import leave_out_suspects
from ensemble.reading.in_memory import problem_given
from ensemble.reading.maps import fit_map
from ensemble.reading.problem import Problem
from ensemble.records import versions
from ensemble.routing.cascade import fit_cascade
from ensemble.routing.costs import Cost, costs_given, spread
from ensemble.routing.held import cross_fit
from ensemble.routing.measured import curve, land
from ensemble.routing.price import price_for
from ensemble.routing.router import GAIN, SEND, Router, check_amount
from ensemble.routing.rule import Rule
from ensemble.routing.verdict import verdict
from ensemble.scoring.bootstrap import bootstrap
from ensemble.solvers.threads import one_blas_thread


def fit_router(
    members: Any,
    y: Any,
    *,
    cost: Mapping[str, Any],
    budget: float,
    n_rows: int | None = None,
    groups: Any = None,
    folds: Any = None,
    sample_weight: Any = None,
    classes: Sequence[str] | None = None,
    trust: Sequence[str] = (),
    seed: int = 0,
) -> Router:
    """Fit which rows are worth the dear models, within a budget, and measure it by cross-fitting.

    What the dear models gain on a row is predicted from the cheap one's probabilities; rows that are expected
    to gain more than a price in nats for a unit of cost are sent. The price is what meets the budget on rows
    like these, on average.

    Parameters
    ----------
    members : list or mapping of members, the cheap one first
        A member is an array (n, K) of probabilities, a data frame with one column a class, or the path of a
        soft-label store or prediction set. Each must have been predicted by a model that did not see the
        row's label.
    y : array of shape (n,) or (n, K), Series, data frame or path
        What happened, as :func:`ensemble.blend` takes it.
    cost : mapping of str to amount, array of shape (n,), Series, data frame or path
        What each member costs for a row, in any one unit, money or seconds; or for each row, where a file or
        a frame has an id and a column ``cost``. Members of a list without names are ``member1``, ...
    budget : float
        What ``n_rows`` new rows may cost, the cheap model's cost of all of them included.
    n_rows : int, optional
        How many; by default the budget is a row's.
    groups : array of shape (n,), optional
        Rows that share a group, such as a prompt, share a fold.
    folds : array of shape (n,), optional
        The fold of each row; dealt here by default.
    sample_weight : array of shape (n,), optional
        What each row counts for, in losses and in costs.
    classes : sequence of str, optional
        Names of the columns of arrays, in order.
    trust : sequence of str
        Members to keep that look as if they had seen the labels.
    seed : int
        Of folds and bootstrap.

    Returns
    -------
    Router

    Raises
    ------
    UserError
        What cannot be blended, a member without a cost, or a budget that the cheap model alone uses up.

    Notes
    -----
    Cascades of language models: Chen, Zaharia and Zou, *FrugalGPT* (arXiv 2305.05176). One price for all rows
    is optimal where gains are known in expectation: Dekoninck, Baader and Vechev, *A unified approach to
    routing and cascading for LLMs* (arXiv 2410.10347).
    """
    a_row = budget_of_a_row(budget, n_rows)
    problem, names, ids = problem_given(members, y, groups, folds, sample_weight, None, classes, seed)
    costs, at = costs_given(cost, names, ids, free=names[0]), places(problem.row_ids, ids)
    known = {name: value if isinstance(value, float) else value[at] for name, value in costs.items()}
    return route_problem(problem, names, known, a_row, n_rows, trust, seed)


def budget_of_a_row(budget: float, n_rows: int | None) -> float:
    """What a row may cost; refuses what is no budget."""
    if n_rows is not None and n_rows < 1:
        raise UserError(f"--rows {n_rows}: the budget is for 1 row or more")
    return check_amount(budget) / (n_rows or 1)


def route_problem(
    problem: Problem,
    names: Sequence[str],
    costs: Mapping[str, Cost],
    budget: float,
    n_rows: int | None = None,
    trust: Sequence[str] = (),
    seed: int = 0,
) -> Router:
    """Fit a router on a problem whose members are ``names``, the cheap one first, for a row's budget.

    ``costs`` are those of the problem's rows; :func:`fit_router` says what is what, and what is refused.
    """
    problem = checked(problem, names, trust)
    columns = [spread(costs[name], len(problem)) for name in names]
    cheap, dear = columns[0], np.sum(columns[1:], axis=0)
    weight = np.ones(len(problem)) if problem.weight is None else problem.weight
    alone = float((cheap * weight).mean())
    if budget <= alone * (1 + 1e-9):
        raise UserError(
            f"--budget: {budget:.6g} a row leaves nothing for {listing(names[1:])}, as {names[0]} alone "
            f"costs {alone:.6g}; give more, or a cheaper model"
        )
    order = [problem.names.index(name) for name in names]
    P = problem.P[:, order]
    with one_blas_thread():
        held = cross_fit(
            P, problem.y, problem.fold, problem.weight, lambda rows: problem.seen_from(rows, seed).P[:, order]
        )
        draws = bootstrap(problem.groups, seed=seed, weight=problem.weight)
        landing = land(held, draws, problem.row_ids, (cheap, dear), budget)
        points = curve(held, draws, cheap, dear)
        cascade = fit_cascade(P, problem.y, problem.weight)
    price = price_for(cascade.expected_gain(P[:, 0]), dear, budget - alone, problem.weight)
    stated = {name: _stated(costs[name]) for name in names}
    maps = {name: fit_map(judge, problem.y, problem.weight) for name, judge in problem.judges.items()}
    rule = Rule(problem.classes, tuple(names), stated, cascade, price, maps)
    content = {
        **rule.to_dict(),
        "budget": {"a_row": budget, "rows": n_rows},
        "measured": {
            "verdict": verdict(landing),
            "at_budget": landing.as_dict(),
            "curve": [point.as_dict() for point in points],
        },
        "rows": problem.record(),
        "bootstrap_draws": draws.draws,
        "seed": seed,
        "versions": versions("distillstack", "numpy", "scipy"),
    }
    return Router(content, rule)


def _stated(cost: Cost) -> float | None:
    return cost if isinstance(cost, float) else None


def checked(problem: Problem, names: Sequence[str], trust: Sequence[str]) -> Problem:
    """Refuse members that cannot be routed, and classes whose name is a column's of what is decided."""
    if len(names) < 2:
        raise UserError("a router needs a cheap model and a dear one; give one --dear NAME=FILE or more")
    taken = {GAIN, SEND} & set(problem.classes.names)
    if taken:
        raise UserError(f"class {listing(taken)}: is a column's name of what a router decides; rename it")
    problem = leave_out_suspects(problem, trust)
    lost = [name for name in names if name not in problem.names]
    if lost:
        raise UserError(next(note for note in problem.notes if note.startswith(f"{lost[0]} looks in-sample")))
    return problem
