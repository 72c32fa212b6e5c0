"""Routers on rows that they were not fitted on: ``python -m benchmarks.router DATA [--cuts 10]``.

Real models' out-of-fold predictions are cut into random halves. A router is fitted on each half for a
budget, by the command's own code, and applied to the other, which it never saw. Printed, mean over the
halves: what was spent by the threshold against the budget, the log-loss foretold by cross-fitting against
the real one, and the gain, on as much spent by lot, of the rule, of the cheap model's entropy alone (the
usual baseline), and of an oracle. Intervals are 95 % of the paired differences over rows, of losses averaged
over the cuts; each cut tests every row once.

``DATA`` holds ``lmsys/teacher_*`` and ``stacks/``; what they are stands in ``router.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ensemble.reading.load import load_problem
from ensemble.reading.problem import Problem
from ensemble.routing.cascade import Cascade, features, foretell, route
from ensemble.routing.fitting import route_problem
from ensemble.scoring.bootstrap import bootstrap
from ensemble.solvers.folds import group_folds
from ensemble.solvers.numbers import log_loss, log_probs

BUDGETS = (0.2, 0.4, 0.7)
CHEAP = 0.1
"""What the cheap model costs for a row, where the dear ones together cost 1."""


@dataclass(frozen=True)
class Setting:
    """A cheap model and dear ones, by names of members."""

    name: str
    problem: Problem
    cheap: str
    dear: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (self.cheap, *self.dear)


def settings(data: Path) -> list[Setting]:
    """The settings that ``router.md`` names, from a directory of data sets."""
    lmsys = load_problem(
        [f"m{m}={data}/lmsys/teacher_m{m}_predictions.csv" for m in (1, 2)],
        data / "lmsys" / "teacher_labels.csv",
    )
    found = [Setting("LMSYS", lmsys, "m1", ("m2",)), Setting("LMSYS", lmsys, "m2", ("m1",))]
    for name in ("ifcs", "hms"):
        files = sorted(map(str, (data / "stacks" / name).glob("*.parquet")))
        problem = load_problem(files, data / "stacks" / name / "labels.csv")
        losses = {n: log_loss(problem.P[:, m], problem.y).mean() for m, n in enumerate(problem.names)}
        ranked = sorted(problem.names, key=losses.__getitem__)
        found.append(Setting(name, problem, ranked[-1], (ranked[0],)))
        found.append(Setting(name, problem, ranked[-1], tuple(ranked[:4])))
        found.append(Setting(name, problem, ranked[0], tuple(ranked[1:4])))
    return found


@dataclass
class Found:
    """What the untouched halves say of a setting at a budget."""

    spent: list[float] = field(default_factory=list)
    foretold: list[float] = field(default_factory=list)
    real: list[float] = field(default_factory=list)
    losses: dict[str, np.ndarray] = field(default_factory=dict)
    times: np.ndarray | None = None

    def add(self, rows: np.ndarray, n: int, **losses: np.ndarray) -> None:
        self.times = np.zeros(n) if self.times is None else self.times
        self.times[rows] += 1
        for name, values in losses.items():
            self.losses.setdefault(name, np.zeros(n))[rows] += values

    def of_cuts(self, name: str) -> np.ndarray:
        """The mean of both halves of each cut, in which the halves' own luck cancels out."""
        return np.array(getattr(self, name)).reshape(-1, 2).mean(axis=1)

    def gain(self, better: str, worse: str) -> str:
        """What one gains on the other: a mean over rows and halves, and its interval over rows."""
        assert self.times is not None
        seen = self.times > 0
        values = ((self.losses[worse] - self.losses[better])[seen]) / self.times[seen]
        low, high = bootstrap(np.arange(len(values))).interval(values).as_list()
        return f"{values.mean():+.4f} ({low:+.4f} to {high:+.4f})"


def entropy(probs: np.ndarray) -> np.ndarray:
    """Of each row (n,), in nats."""
    return -(probs * log_probs(probs, 1e-12)).sum(axis=1)


def without_logarithms(cascade: Cascade, part: Problem, probs: np.ndarray) -> np.ndarray:
    """Expected gain (n,) by a rule that has every feature but the logarithms of the probabilities."""
    known, k = cascade.cheap(part.P[:, 0]), probs.shape[1]
    gain = log_loss(known, part.y) - log_loss(cascade.all_models(part.P), part.y)
    mean, scale, found = foretell(features(known)[:, :-k], gain, np.full(len(gain), 1 / len(gain)))
    return found[0] + (features(probs)[:, :-k] - mean) / scale @ found[1:]


def on_one_half(setting: Setting, budget: float, fit: np.ndarray, rest: np.ndarray, found: Found) -> None:
    """Fit on one half, spend on the other."""
    problem, ids = setting.problem, np.array(setting.problem.row_ids)
    order = [problem.names.index(name) for name in setting.names]
    part = replace(
        problem,
        row_ids=ids[fit].tolist(),
        P=problem.P[fit][:, order],
        y=problem.y[fit],
        fold=group_folds(problem.y[fit], None, 5, 0),
        groups=np.arange(len(fit)),
        names=setting.names,
        sources=(),
    )
    dear = 1.0 / len(setting.dear)
    cost = {name: CHEAP if name == setting.cheap else dear for name in setting.names}
    router = route_problem(part, setting.names, cost, CHEAP + budget, trust=setting.names)
    cascade: Cascade = router.rule.cascade
    P, y, one = problem.P[rest][:, order], problem.y[rest], np.ones(len(rest))
    decided = router.decide(P[:, 0])
    cheap, full = log_loss(decided.probs, y), log_loss(cascade.all_models(P), y)
    share = float(decided.send.mean())
    plain = route(without_logarithms(cascade, part, decided.probs), one, share)
    alike = route(entropy(decided.probs), one, share)
    found.spent.append(share)
    found.foretold.append(router.content["measured"]["at_budget"]["routed"])
    rule = np.where(decided.send, full, cheap)
    found.real.append(float(rule.mean()))
    found.add(
        rest,
        len(problem),
        rule=rule,
        lot=share * full + (1 - share) * cheap,
        entropy=np.where(alike, full, cheap),
        plain=np.where(plain, full, cheap),
        oracle=np.where(route(cheap - full, one, share) & (cheap > full), full, cheap),
        none=cheap,
        all=full,
    )


def measured(setting: Setting, budget: float, cuts: int) -> Found:
    """Both halves of every cut, of a setting at a budget."""
    found, n = Found(), len(setting.problem)
    for seed in range(cuts):
        shuffled = np.random.default_rng(seed).permutation(n)
        one, other = shuffled[: n // 2], shuffled[n // 2 :]
        on_one_half(setting, budget, one, other, found)
        on_one_half(setting, budget, other, one, found)
    return found


def spread(values: Sequence[float] | np.ndarray) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):.4f} ± {np.std(values):.4f}"


def line(setting: Setting, budget: float, found: Found) -> tuple[list[str], list[str]]:
    """The setting's lines of the two tables."""
    dear = setting.dear[0] if len(setting.dear) == 1 else f"{len(setting.dear)} models"
    name = f"{setting.name}: {setting.cheap}, {dear}"
    error = found.of_cuts("real") - found.of_cuts("foretold")
    kept = [
        name,
        f"{budget:.1f}",
        spread(found.spent),
        spread(found.foretold),
        spread(found.real),
        spread(error),
    ]
    total = {key: float(values.sum()) for key, values in found.losses.items()}
    captured = (total["lot"] - total["rule"]) / (total["lot"] - total["oracle"])
    pairs = (("rule", "lot"), ("entropy", "lot"), ("rule", "entropy"), ("rule", "plain"))
    gains = [found.gain(*pair) for pair in pairs]
    regret = found.gain("oracle", "rule").split()[0]
    return kept, [
        name,
        f"{budget:.1f}",
        *gains,
        regret,
        f"{100 * captured:.0f} %",
        found.gain("rule", "none"),
    ]


def main() -> None:
    """Measure, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--cuts", type=int, default=10)
    args = parser.parse_args()
    kept, won = [], []
    for setting in settings(args.data):
        for budget in BUDGETS:
            one, other = line(setting, budget, measured(setting, budget, args.cuts))
            kept.append(one)
            won.append(other)
    headers = (
        ["cheap, dear", "budget", "sent", "log-loss foretold", "real", "real less foretold"],
        [
            "cheap, dear", "budget", "rule on lot", "entropy on lot", "rule on entropy",
            "rule on itself without logarithms", "regret",
            "of the oracle's", "rule on none",
        ],
    )  # fmt: skip
    for header, rows in zip(headers, (kept, won), strict=True):
        print(
            "\n".join(["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)])
        )
        print()


if __name__ == "__main__":
    main()
