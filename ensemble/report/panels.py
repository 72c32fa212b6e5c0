"""Parts of the report about the members: weights to try by hand, what each is worth, and confusions.

Each function returns HTML whose text is escaped; the script's data goes through :func:`script_json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from ensemble.methods.blend import SimplexBlend
from ensemble.methods.pool import LogOpinionPool
from ensemble.reading.problem import Problem
from ensemble.report.charts import LINE_BOX, MAP_CORNERS, heat_table, line_svg, ternary_svg, whisker_rows
from ensemble.scoring.bootstrap import Interval
from ensemble.scoring.explore import linear_losses, take_sample, ternary_map, weight_curve
from ensemble.scoring.members import (
    SetLosses,
    limit_rows,
    member_correlation,
    member_values,
    smallest_sets,
)
from ensemble.scoring.results import Result
from ensemble.scoring.slices import confusion, member_slices, reliability
from ensemble.solvers.numbers import PROB_FLOOR

MAP_STEPS = 20
_MOST_CLASSES = 12
_MOST_CONFUSIONS = 20


def span(interval: Interval, sign: str = "") -> str:
    """An interval as text."""
    return f"[{interval.low:{sign}.4f}, {interval.high:{sign}.4f}]"


def script_json(value: Any) -> str:
    """JSON that no text in it can end early: ``<``, ``>``, ``&`` and line separators become escapes."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def explorer(problem: Problem, result: Result) -> tuple[str, str]:
    """Sliders and map of the weights, and the script's data as JSON."""
    simplex, pool = result.fitted.get("simplex"), result.fitted.get("log-pool")
    if not isinstance(simplex, SimplexBlend):
        simplex = SimplexBlend().fit(problem.P, problem.y, problem.weight)
    if not isinstance(pool, LogOpinionPool):
        pool = LogOpinionPool().fit(problem.P, problem.y, problem.weight, problem.groups)
    sample = take_sample(problem, seed=result.seed)
    P, y = sample.P, sample.y
    names, weights = problem.names, simplex.weights_
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
    }
    # The heaviest three, in the members' order.
    picked = np.sort(np.argsort(-weights, kind="stable")[:3]).tolist()
    data["picked"] = picked
    chart = ""
    if len(names) == 2:
        curve = weight_curve(P, y)
        data["line"] = {**LINE_BOX, "low": float(curve["loss"].min()), "high": float(curve["loss"].max())}
        at = int(curve["loss"].argmin())
        chart = (
            "<h3>Log-loss against the weight</h3>"
            f"{line_svg(curve, names)}<p>Least {curve['loss'][at]:.4f} at {escape(names[0])} "
            f"{curve['weight'][at]:.2f}. The ring is where the sliders stand.</p>"
        )
    elif len(names) > 2:
        chart = _map(P, y, names, picked)
    fitted = float(linear_losses(P, y, weights))
    sliders = "".join(
        f'<div class="slider"><label for="w{m}">{escape(name)}</label>'
        f'<output id="o{m}" for="w{m}">{weights[m]:.3f}</output>'
        f'<input type="range" id="w{m}" min="0" max="1" step="any" value="{weights[m]:.6f}"></div>'
        for m, name in enumerate(names)
    )
    head = (
        f"Computed here, in the page, on {len(y):,} of the rows. What you set by hand is fitted to these "
        "rows; the nested log-loss above is what new rows will cost."
    )
    if problem.P.min() < PROB_FLOOR:
        head += f" Probabilities under {PROB_FLOOR:g} are taken as that here."
    if problem.weight is not None:
        head += " Rows count for their weights."
    controls = (
        '<fieldset><legend>Blend</legend><label><input type="radio" name="kind" value="linear" checked> '
        'mixture: weights sum to 1</label><label><input type="radio" name="kind" value="pool"> '
        "log-opinion pool: weights on log-probabilities, free</label></fieldset>"
        f'{sliders}<p class="now" role="status"><b id="loss">{fitted:.4f}</b> '
        f'<span><span id="change">+0.0000</span> against the fitted weights, <span id="fitted">{fitted:.4f}'
        '</span>; weights sum to <span id="sum">1.00</span></span></p>'
        '<button type="button" id="reset">Fitted weights</button> '
        '<button type="button" id="equal">Equal weights</button>'
        "<noscript><p>The sliders need JavaScript.</p></noscript>"
    )
    page = (
        f'<section id="explore"><h2>Weights by hand</h2><p>{head}</p><div class="two"><div>{controls}</div>'
        f"<div>{chart}</div></div></section>"
    )
    return page, script_json(data)


def _map(P: np.ndarray, y: np.ndarray, names: Sequence[str], picked: list[int]) -> str:
    found = ternary_map(P, y, picked, MAP_STEPS)
    chosen = [names[m] for m in picked]
    selects = ""
    if len(names) > 3:
        for corner, label in enumerate(("Top", "Left", "Right")):
            options = "".join(
                f'<option value="{m}"{" selected" if m == picked[corner] else ""}>{escape(name)}</option>'
                for m, name in enumerate(names)
            )
            selects += f'<label>{label} <select id="pick{corner}">{options}</select></label>'
        selects = f'<div class="picks">{selects}</div>'
    at = ", ".join(f"{name} {w:.2f}" for name, w in zip(chosen, found["best"], strict=True))
    return (
        f"<h3>Log-loss over three members' weights</h3>{selects}{ternary_svg(found, chosen)}"
        f'<p>Least (dot) <span id="bestText">{float(found["best_loss"]):.4f} at {escape(at)}</span>. Shade: '
        f'<span id="rangeText">{found["loss"].min():.4f} to {found["loss"].max():.4f}</span>, the more '
        "colour the better. The ring is where the sliders stand; choose a cell to set them.</p>"
    )


def members_panel(problem: Problem, result: Result) -> str:
    """What each member is worth, how few would do, and how alike they are."""
    if len(problem.names) < 2:
        return ""
    small, draws = limit_rows(problem, result.draws, seed=result.seed)
    sets = SetLosses(small, seed=result.seed)
    values = member_values(sets, draws, result.seed)
    path, smallest = smallest_sets(sets, draws)
    lost = whisker_rows(
        [
            (
                v.name,
                v.lost,
                v.lost_interval.low,
                v.lost_interval.high,
                f"{v.lost:+.4f}  {span(v.lost_interval, '+')}",
                "good" if v.lost_interval.low > 0 else "bad" if v.lost_interval.high < 0 else "",
            )
            for v in values
        ],
        zero=0.0,
        label="Log-loss lost without each member, with intervals",
    )
    shapley = whisker_rows(
        [
            (
                v.name,
                v.shapley,
                v.shapley_interval.low,
                v.shapley_interval.high,
                f"{v.shapley:+.4f}  {span(v.shapley_interval, '+')}",
                "good" if v.shapley_interval.low > 0 else "bad" if v.shapley_interval.high < 0 else "",
            )
            for v in values
        ],
        zero=0.0,
        label="Shapley value of each member, with intervals",
    )
    best = path[smallest]
    kept = ", ".join(problem.names[m] for m in best.members)
    path_table = _table(
        ["members", "nested", "over the best", "95 %", "set"],
        [
            [
                str(len(part.members)),
                f"{part.loss:.4f}",
                f"{part.excess:+.4f}",
                span(part.interval, "+"),
                ", ".join(problem.names[m] for m in part.members),
            ]
            for part in path
        ],
        marked=smallest,
        kind="wrapped",
    )
    r = member_correlation(problem)
    # Members of one task resemble each other: shade what differs between pairs, not the common level.
    low = float(r.min())
    shade = (r - low) / (1 - low) if low < 1 else np.ones_like(r)
    alike = heat_table(
        [[(f"{r[i, j]:.2f}", float(shade[i, j])) for j in range(len(r))] for i in range(len(r))],
        problem.names,
        problem.names,
        "",
    )
    helps = _helps(problem)
    return (
        "<section><h2>What each member is worth</h2><p>Nested log-loss of the best mixture without the "
        "member, less that of all: right of the line it is worth having.</p>"
        f"{lost}<h3>Shapley value</h3><p>What it brings on average over the orders in which members may "
        "join, from no member at all (class frequencies): alike members share what they bring.</p>"
        f"{shapley}<h3>How few would do</h3><p>The smallest set within noise of the best mixture: "
        f"<strong>{escape(kept)}</strong>, {best.loss:.4f}. Members dropped one by one:</p>{path_table}"
        "<h3>How alike they are</h3><p>Correlation of the log-probability that members gave to what "
        f"happened: high where they fail on the same rows.</p>{alike}{helps}</section>"
    )


def _helps(problem: Problem) -> str:
    """Members' losses on parts of the rows, shaded within each part: the more the better."""
    rows, cells = [], []
    for kind, name, n, losses in member_slices(problem):
        spread = float(np.ptp(losses))
        shade = (losses.max() - losses) / spread if spread > 0 else np.zeros_like(losses)
        rows.append(f"{kind}: {name} ({n:,})")
        cells.append([(f"{loss:.3f}", float(value)) for loss, value in zip(losses, shade, strict=True)])
    return (
        "<h3>Where each member helps</h3><p>Log-loss of each member alone on parts of the rows; in each "
        f"line, the more colour the better.</p>{heat_table(cells, rows, problem.names, '')}"
    )


def calibration_panel(problem: Problem, before: np.ndarray, after: np.ndarray) -> str:
    """Calibration errors of two predictions (n, K), over all classes and, where these are few, each."""
    parts = [("all classes", slice(None))]
    if problem.classes.n <= _MOST_CLASSES:
        parts += [(name, slice(k, k + 1)) for k, name in enumerate(problem.classes.names)]
    rows = []
    for name, part in parts:
        a, b = (
            reliability(probs[:, part], problem.y[:, part], weight=problem.weight)
            for probs in (before, after)
        )
        errors = (a.error, b.error, a.smooth.error, b.smooth.error)
        rows.append([name, *(f"{error:.4f}" for error in errors)])
    return _table(["", "binned before", "after", "smooth before", "after"], rows, kind="first")


def confusion_panel(problem: Problem, result: Result) -> str:
    """True class against the most probable one, and the mean probabilities."""
    counts, given = confusion(result.probs[result.chosen], problem.y)
    names = problem.classes.names
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)
    if len(names) > _MOST_CLASSES:
        off = counts * (1 - np.eye(len(names)))
        order = np.argsort(-off, axis=None, kind="stable")[:_MOST_CONFUSIONS]
        rows = [(int(i) // len(names), int(i) % len(names)) for i in order if off.flat[i] > 0]
        body = _table(
            ["true class", "most probable", "rows", "of the class"],
            [[names[i], names[j], f"{counts[i, j]:,.0f}", f"{share[i, j]:.1%}"] for i, j in rows],
        )
    else:
        body = heat_table(
            [
                [
                    (f"{counts[i, j]:,.0f} · {share[i, j]:.0%} · p {given[i, j]:.2f}", float(share[i, j]))
                    for j in range(len(names))
                ]
                for i in range(len(names))
            ],
            names,
            names,
            "true ↓  predicted →",
        )
    return (
        "<section><h2>Confusion by class</h2><p>Rows of each true class by the class that "
        f"{escape(result.chosen)} finds most probable: count, share of the true class, and the mean "
        f"probability given.</p>{body}</section>"
    )


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], marked: int | None = None, kind: str = ""
) -> str:
    lines = ["<tr>" + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header) + "</tr>"]
    for i, row in enumerate(rows):
        mark = ' class="chosen"' if i == marked else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f'<div class="scroll"><table class="{kind}">{"".join(lines)}</table></div>'
