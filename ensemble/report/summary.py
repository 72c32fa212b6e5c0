"""What ``ensemble.stack`` prints of its result, and the command that comes next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from data.console.command import format_table
from data.softlabels import is_store
from ensemble.reading.members import Source
from ensemble.reading.problem import Problem
from ensemble.scoring.results import Result, Score
from ensemble.scoring.verdict import verdict

MOST_MEMBERS = 5
"""Members in the summary; the table of all has the others."""


def by_score(scores: list[Score]) -> list[Score]:
    """Scores from the least loss to the greatest."""
    return sorted(scores, key=lambda score: score.loss)


def score_table(result: Result) -> str:
    """Lay out all scores, the best first: Bayes optimum where it is known, methods, members, prior."""
    header = ["", "log-loss", "95 %", "in-sample", "against the mean"]

    def line(score: Score) -> list[str]:
        mark = "* " if score.name == result.chosen and score.in_sample is not None else "  "
        inside = "" if score.in_sample is None else f"{score.in_sample:.4f}"
        gap = f"{score.vs_mean:+.4f} [{score.vs_mean_ci.low:+.4f}, {score.vs_mean_ci.high:+.4f}]"
        return [
            mark + score.name,
            f"{score.loss:.4f}",
            f"[{score.ci.low:.4f}, {score.ci.high:.4f}]",
            inside,
            "" if score.name == "mean" else gap,
        ]

    return format_table(header, [line(score) for score in by_score(result.all_scores)])


def summary(problem: Problem, result: Result) -> str:
    """Members, mean, the chosen stack, its honest score, and the verdict: some ten lines."""

    def line(what: str, loss: float, low: float, high: float) -> list[str]:
        return [what, f"{loss:.4f}", f"[{low:.4f}, {high:.4f}]"]

    members = by_score(result.members)
    lines = [line(score.name, score.loss, *score.ci.as_list()) for score in members[:MOST_MEMBERS]]
    if len(members) > MOST_MEMBERS:
        lines.append([f"and {len(members) - MOST_MEMBERS} other members (--all)", "", ""])
    chosen = result.score(result.chosen)
    if chosen.name != "mean":
        mean = result.score("mean")
        lines.append(line("mean of the members", mean.loss, *mean.ci.as_list()))
    if result.bayes is not None:
        lines.append(line("Bayes optimum", result.bayes.loss, *result.bayes.ci.as_list()))
    lines.append(line(f"chosen: {chosen.name}", chosen.loss, *chosen.ci.as_list()))
    honest = result.choice_included_ci.as_list()
    lines.append(line("the same, its choice cross-fitted", result.choice_included, *honest))
    table = format_table(["", "log-loss", "95 %"], lines)
    return f"{table}\nverdict: {verdict(problem, result).sentence}"


def next_commands(problem: Problem, out: Path, needs_rows: bool = False) -> list[str]:
    """The commands that predict new rows, those of ``test.csv``, by a stack that is written to ``out``.

    A member that is a store is predicted by its model first; the others' predictions are files of the user's
    own, here called ``MEMBER_test.csv``. Rows are named to a method that ``needs_rows``.
    """
    commands, given = member_commands(problem.names, problem.sources)
    last = ["ensemble.predict", "--stack", str(out), "--oof", *given]
    if needs_rows:
        last += ["--data", "test.csv"]
    commands.append(shlex.join(["python", "-m", *last, "--out", "blend.csv"]))
    return commands


def member_commands(names: Sequence[str], sources: Sequence[Source]) -> tuple[list[str], list[str]]:
    """The commands that predict ``test.csv`` by those members that are stores, and each ``MEMBER=FILE``."""
    commands, given = [], []
    for name, source in zip_longest(names, sources):  # simulated members come from no file
        file = f"{name}_test.csv"
        given.append(f"{name}={file}")
        if source is not None and is_store(source.path):
            model = ["distill.predict", "--model", str(source.path), "--data", "test.csv", "--out", file]
            commands.append(shlex.join(["python", "-m", *model]))
    return commands, given


def next_lines(commands: Sequence[str]) -> list[str]:
    """How commands to go on with are printed."""
    return [f"next: {commands[0]}", *(f"      {line}" for line in commands[1:])]
