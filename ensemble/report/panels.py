"""What the report's sections show, computed from a stack's results; the templates lay it out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import groupby
from typing import Any

import numpy as np

from ensemble.methods.blend import SimplexBlend
from ensemble.methods.pool import LogPool
from ensemble.reading.problem import Problem
from ensemble.report.charts import (
    LINE,
    MAP_CORNERS,
    RELIABILITY,
    Whisker,
    Whiskers,
    differences,
    map_cells,
    shade,
)
from ensemble.report.frame import fixed, signed, span
from ensemble.scoring.explore import linear_losses, take_sample, ternary_map, weight_curve
from ensemble.scoring.members import (
    SetLosses,
    limit_rows,
    member_correlation,
    member_values,
    smallest_sets,
)
from ensemble.scoring.results import Result
from ensemble.scoring.slices import Slice, compare_slices, confusion, member_slices, reliability
from ensemble.solvers.numbers import PROB_FLOOR, log_loss

MAP_STEPS = 20
WORST_ROWS = 12
EXCERPT = 420
_MOST_CLASSES = 12
_MOST_CONFUSIONS = 20


def explorer(problem: Problem, result: Result) -> dict[str, Any]:
    """Sliders and map of the weights; ``data`` is what the page's script reads."""
    simplex, pool = result.fitted.get("simplex"), result.fitted.get("log-pool")
    if not isinstance(simplex, SimplexBlend):
        simplex = SimplexBlend().fit(problem.P, problem.y, problem.weight)
    if not isinstance(pool, LogPool):
        pool = LogPool().fit(problem.P, problem.y, problem.weight, problem.groups)
    sample = take_sample(problem, seed=result.seed)
    P, y, names, weights = sample.P, sample.y, problem.names, simplex.weights_
    # The heaviest three, in the members' order.
    picked = np.sort(np.argsort(-weights, kind="stable")[:3]).tolist()
    data: dict[str, Any] = {
        "names": list(names),
        "sample": sample.to_json(),
        "linear": {"weights": weights.tolist(), "low": 0, "high": 1},
        "pool": {
            "weights": pool.weights_.tolist(),
            "bias": pool.bias_.tolist(),
            "floor": pool.floor_,
            "low": min(-0.5, float(np.floor(2 * pool.weights_.min()) / 2)),
            "high": max(1.5, float(np.ceil(2 * pool.weights_.max()) / 2)),
        },
        "corners": MAP_CORNERS,
        "steps": MAP_STEPS,
        "picked": picked,
    }
    found: dict[str, Any] = {
        "data": data,
        "n_rows": len(y),
        "floor": PROB_FLOOR,
        "floored": problem.P.min() < PROB_FLOOR,
        "fitted": float(linear_losses(P, y, weights)),
        "curve": None,
        "map": None,
    }
    if len(names) == 2:
        curve = weight_curve(P, y)
        axes = replace(LINE, low=float(curve["loss"].min()), high=float(curve["loss"].max()))
        data["line"] = asdict(axes)
        found |= {"curve": curve, "axes": axes, "least": int(curve["loss"].argmin())}
    elif len(names) > 2:
        losses = ternary_map(P, y, picked, MAP_STEPS)
        found |= {"map": {**losses, **map_cells(losses)}, "names": [names[m] for m in picked]}
    return found


def member_worth(problem: Problem, result: Result) -> dict[str, Any] | None:
    """What each member is worth, how few would do, how alike they are; ``None`` of a single member."""
    if len(problem.names) < 2:
        return None
    small, draws = limit_rows(problem, result.draws, seed=result.seed)
    sets = SetLosses(small, seed=result.seed)
    values = member_values(sets, draws, result.seed)
    path, smallest = smallest_sets(sets, draws)
    sets_of = [", ".join(problem.names[m] for m in part.members) for part in path]
    r = member_correlation(problem)
    # Members of one task resemble each other: shade what differs between pairs, not the common level.
    low = float(r.min())
    unlike = (r - low) / (1 - low) if low < 1 else np.ones_like(r)
    parts = member_slices(problem)
    return {
        "lost": differences((Whisker(v.name, v.lost, v.lost_interval) for v in values), better=1),
        "shapley": differences((Whisker(v.name, v.shapley, v.shapley_interval) for v in values), better=1),
        "path": [
            [str(len(p.members)), fixed(p.loss), signed(p.excess), span(p.interval, "+"), named]
            for p, named in zip(path, sets_of, strict=True)
        ],
        "smallest": smallest,
        "kept": sets_of[smallest],
        "kept_loss": path[smallest].loss,
        "alike": [
            [(fixed(value, 2), shade(strength)) for value, strength in zip(line, strengths, strict=True)]
            for line, strengths in zip(r, unlike, strict=True)
        ],
        "parts": [f"{kind}: {name} ({n:,})" for kind, name, n, _ in parts],
        "part_losses": [_losses(losses) for *_, losses in parts],
    }


def _losses(losses: np.ndarray) -> list[tuple[str, int]]:
    """Members' losses on a part of the rows, shaded between the greatest and the least."""
    spread = float(np.ptp(losses))
    strength = (losses.max() - losses) / spread if spread > 0 else np.zeros_like(losses)
    return [(fixed(loss, 3), shade(value)) for loss, value in zip(losses, strength, strict=True)]


def calibration(problem: Problem, result: Result) -> dict[str, Any]:
    """Reliability of the mean and of the chosen method, and their calibration errors.

    The errors are over all classes and, where these are few, of each.
    """
    methods = {"before": "mean", "after": result.chosen}
    parts = {"all classes": slice(None)}
    if problem.classes.n <= _MOST_CLASSES:
        parts |= {name: slice(k, k + 1) for k, name in enumerate(problem.classes.names)}
    found = {
        part: [
            reliability(result.probs[name][:, at], problem.y[:, at], weight=problem.weight)
            for name in methods.values()
        ]
        for part, at in parts.items()
    }
    both = found["all classes"]
    most = max(int(curve.count.max()) for curve in both)
    heights = [np.sqrt(curve.count / most) for curve in both]
    return {
        "axes": RELIABILITY,
        "curves": list(zip(methods.values(), methods, both, heights, strict=True)),
        "most": most,
        "errors": [
            [part, *(fixed(error) for error in (a.error, b.error, a.smooth.error, b.smooth.error))]
            for part, (a, b) in found.items()
        ],
    }


def confusions(problem: Problem, result: Result) -> dict[str, Any]:
    """True class against the most probable one: cells of all classes or, of many, the ``worst`` pairs."""
    counts, given = confusion(result.probs[result.chosen], problem.y)
    names = problem.classes.names
    n = len(names)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)
    if n > _MOST_CLASSES:
        off = counts * (1 - np.eye(n))
        order = np.argsort(-off, axis=None, kind="stable")[:_MOST_CONFUSIONS]
        pairs = [divmod(int(at), n) for at in order if off.flat[at] > 0]
        return {
            "worst": [[names[i], names[j], f"{counts[i, j]:,.0f}", f"{share[i, j]:.1%}"] for i, j in pairs]
        }
    cells = [
        [
            (f"{counts[i, j]:,.0f} · {share[i, j]:.0%} · p {given[i, j]:.2f}", shade(share[i, j]))
            for j in range(n)
        ]
        for i in range(n)
    ]
    return {"worst": None, "cells": cells}


def slices(problem: Problem, result: Result) -> list[tuple[str, Whiskers]]:
    """The chosen method against the best single member on parts of the rows, by kind of part."""
    single = problem.P[:, problem.names.index(result.best_single)]
    found = compare_slices(problem, single, result.probs[result.chosen], result.draws)
    return [
        (kind, differences([_slice(part) for part in group], better=-1))
        for kind, group in groupby(found, key=lambda part: part.kind)
    ]


def _slice(part: Slice) -> Whisker:
    losses = f"{part.single:.3f} → {part.blend:.3f}  "
    return Whisker(f"{part.name} ({part.n:,})", part.blend - part.single, part.interval, before=losses)


def worst_rows(problem: Problem, result: Result) -> Iterator[dict[str, Any]]:
    """Rows on which the chosen method lost most, with what it said and their texts."""
    probs = result.probs[result.chosen]
    losses = log_loss(probs, problem.y)
    names = problem.classes.names
    for i in np.argsort(-losses, kind="stable")[:WORST_ROWS].tolist():
        yield {
            "id": problem.row_ids[i],
            "label": names[problem.labels[i]],
            "loss": losses[i],
            "predicted": ", ".join(f"{name} {p:.2f}" for name, p in zip(names, probs[i], strict=True)),
            "texts": _texts(problem, i),
        }


def _texts(problem: Problem, i: int) -> list[tuple[str, str]]:
    """Shortened texts of a row, where the rows are known."""
    if problem.rows is None:
        return []
    found = []
    for column, key in (("prompt", "prompt"), ("response_a", "A"), ("response_b", "B")):
        text = "\n".join(turn or "" for turn in problem.rows.table.column(column)[i].as_py() or [])
        if text:
            found.append((key, text if len(text) <= EXCERPT else text[:EXCERPT].rstrip() + " …"))
    return found
