"""The report: one self-contained HTML page, without network, that shows what the stack found.

Text from rows, files and members is escaped wherever it enters the page, whose policy lets only its own
script run.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

import numpy as np

from data.files import write_text
from ensemble.reading.problem import Problem
from ensemble.report.charts import bars, reliability_svg, whisker_rows
from ensemble.report.frame import PAGE, SCRIPT, SCRIPT_HASH
from ensemble.report.panels import calibration_panel, confusion_panel, explorer, members_panel, span
from ensemble.scoring.results import Result, Score, shown_weights
from ensemble.scoring.slices import compare_slices, reliability
from ensemble.solvers.numbers import log_loss

WORST_ROWS = 12
EXCERPT = 420


def write_report(path: Path, problem: Problem, result: Result) -> None:
    """Write the page, atomically."""
    write_text(path, render_report(problem, result))


def render_report(problem: Problem, result: Result) -> str:
    """Return the page as text."""
    best = result.score(result.chosen)
    weights_of, weights = shown_weights(result)
    before, after = (
        reliability(result.probs[name], problem.y, weight=problem.weight) for name in ("mean", result.chosen)
    )
    curves = [("mean", "before", before), (result.chosen, "after", after)]
    sliders, data = explorer(problem, result)
    note = f"Weights of {weights_of}."
    if weights_of != result.chosen:
        note += (
            f" The chosen {result.chosen} has no single weight a member; these show what a mixture would use."
        )
    return PAGE.substitute(
        n_members=len(problem.names),
        n_rows=f"{len(problem):,}",
        n_groups=f"{int(problem.groups.max()) + 1:,}",
        n_folds=len(np.unique(problem.fold)),
        folds_from=escape(problem.folds_from),
        repeats=f", dealt {result.repeats} times" if result.repeats > 1 else "",
        tiles=_tiles(result, best),
        notes=_notes([*problem.notes, *result.notes]),
        prior_note=escape(f" Not drawn: the prior, {result.prior.loss:.4f}."),
        losses=whisker_rows(
            [
                (
                    s.name,
                    s.loss,
                    s.ci.low,
                    s.ci.high,
                    f"{s.loss:.4f}  {span(s.ci)}",
                    _kind(s, result),
                )
                for s in [*result.members, *result.methods, *([result.bayes] if result.bayes else [])]
            ],
            label="Nested log-loss of members and methods with intervals",
        ),
        differences=whisker_rows(
            [
                (
                    s.name,
                    s.vs_mean,
                    s.vs_mean_ci.low,
                    s.vs_mean_ci.high,
                    f"{s.vs_mean:+.4f}  {span(s.vs_mean_ci, '+')}",
                    _kind(s, result),
                )
                for s in result.methods
                if s.name != "mean"
            ],
            zero=0.0,
            label="Difference of each method to the mean with intervals",
        ),
        table=_table(result),
        why=escape(result.why),
        weights_note=escape(note),
        weights=bars(list(zip(problem.names, weights.tolist(), strict=True)), "Blend weights"),
        reliability=reliability_svg(curves),
        calibration=calibration_panel(problem, result.probs["mean"], result.probs[result.chosen]),
        explorer=sliders,
        members=members_panel(problem, result),
        confusion=confusion_panel(problem, result),
        data=data,
        script=SCRIPT,
        script_hash=SCRIPT_HASH,
        chosen=escape(result.chosen),
        single=escape(result.best_single),
        slices=_slices(problem, result),
        worst=_worst(problem, result),
        footer=f"seed {result.seed}",
    )


def _notes(notes: Sequence[str]) -> str:
    """What the user should know before any number, where there is something."""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if notes else ""


def _kind(score: Score, result: Result) -> str:
    return "chosen" if score.name == result.chosen and score.in_sample is not None else ""


def _tiles(result: Result, best: Score) -> str:
    single = next(s for s in result.members if s.name == result.best_single)
    tiles = [
        (f"{best.loss:.4f}", f"{result.chosen}, chosen"),
        (
            f"{result.choice_included:.4f}",
            f"the same, the choice itself cross-fitted {span(result.choice_included_ci)}",
        ),
        (f"{best.vs_mean:+.4f}", f"against the mean {span(best.vs_mean_ci, '+')}"),
        (f"{single.loss:.4f}", f"best single model, {single.name}"),
        (f"{result.prior.loss:.4f}", "prior: class frequencies"),
    ]
    if result.bayes is not None:
        tiles.append((f"{result.bayes.loss:.4f}", "Bayes optimum: the true probabilities"))
    return "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(text)}</span></div>' for value, text in tiles
    )


def _table(result: Result) -> str:
    header = ["", "nested", "95 %", "in-sample", "optimism", "against the mean", "against the best single"]
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in header) + "</tr>"]
    for s in result.all_scores:
        inside = "" if s.in_sample is None else f"{s.in_sample:.4f}"
        optimism = "" if s.in_sample is None else f"{s.loss - s.in_sample:+.4f}"
        cells = [
            s.name,
            f"{s.loss:.4f}",
            span(s.ci),
            inside,
            optimism,
            f"{s.vs_mean:+.4f} {span(s.vs_mean_ci, '+')}",
            f"{s.vs_single:+.4f} {span(s.vs_single_ci, '+')}",
        ]
        lines.append(
            f'<tr class="{_kind(s, result)}">' + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>"
        )
    return f"<table>{''.join(lines)}</table>"


def _slices(problem: Problem, result: Result) -> str:
    single = problem.P[:, problem.names.index(result.best_single)]
    found = compare_slices(problem, single, result.probs[result.chosen], result.draws)
    parts = []
    for kind, group in groupby(found, key=lambda part: part.kind):
        rows = [
            (
                f"{part.name} ({part.n:,})",
                part.blend - part.single,
                part.interval.low,
                part.interval.high,
                f"{part.single:.3f} → {part.blend:.3f}  {part.blend - part.single:+.4f} "
                f"{span(part.interval, '+')}",
                "good" if part.interval.high < 0 else "bad" if part.interval.low > 0 else "",
            )
            for part in group
        ]
        parts.append(f"<h3>By {escape(kind)}</h3>{whisker_rows(rows, 0.0, f'Difference by {kind}')}")
    return "".join(parts)


def _worst(problem: Problem, result: Result) -> str:
    probs = result.probs[result.chosen]
    losses = log_loss(probs, problem.y)
    names = problem.classes.names
    parts = []
    for i in np.argsort(-losses, kind="stable")[:WORST_ROWS]:
        given = ", ".join(f"{name} {p:.2f}" for name, p in zip(names, probs[i], strict=True))
        text = "".join(
            f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in _texts(problem, int(i))
        )
        parts.append(
            f"<article><strong>{escape(problem.row_ids[i])}</strong> · label "
            f"<strong>{escape(names[problem.labels[i]])}</strong> · loss {losses[i]:.2f}"
            f"<dl><dt>predicted</dt><dd>{escape(given)}</dd>{text}</dl></article>"
        )
    return "".join(parts)


def _texts(problem: Problem, i: int) -> list[tuple[str, str]]:
    """Shortened texts of a row, where the rows are known."""
    if problem.rows is None:
        return []
    columns = {"prompt": "prompt", "response_a": "A", "response_b": "B"}
    found = []
    for column, key in columns.items():
        turns: Sequence[str | None] = problem.rows.table.column(column)[i].as_py() or []
        text = "\n".join(turn or "" for turn in turns)
        if text:
            found.append((key, text if len(text) <= EXCERPT else text[:EXCERPT].rstrip() + " …"))
    return found
