"""Tables of the study on real models: ``python -m benchmarks.study_report DIR --shared DATA``.

Differences are paired: the same rows, and where there are seeds the same seeds. Intervals of the questions on
all rows are over debates and, where there are seeds, seeds (variances pooled by Satterthwaite, 1946); those
of the questions on few rows over trainings, each scored on a fold of its own as far as there are folds.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from benchmarks.pretrained_baselines import untrained
from benchmarks.pretrained_data import CLASSES, ukp_rows
from benchmarks.pretrained_scores import Judge, gap_cells, header, line
from benchmarks.study_plan import (
    CURVE,
    FOLDS,
    GEMMA,
    LLAMA,
    MODELS,
    PARTS,
    RATES,
    SOUP,
    Size,
    jobs_of,
    rate_losses,
    teachers,
)
from benchmarks.trainings import read_results
from data.folds import make_folds
from data.softmax import softmax
from distill.doctor.cost import half_over_groups_and_seeds
from ensemble import Stack, blend
from ensemble.methods.temperature import TemperatureScaling
from ensemble.solvers.numbers import log_loss

STUDENTS = {
    "hard": "student on the labels alone: SmolLM2's first 10 layers",
    "strict, one teacher": "student, taught by one teacher",
    "strict, two teachers": "student, taught by two teachers",
    "strict, three teachers": "student, taught by three teachers",
}
ZERO = r"(?<![\d.])0\.(?=\d{3})"
SHORT = {LLAMA: "SmolLM2-135M", GEMMA: "Gemma-3-270M", MODELS[2]: "Qwen2.5-Coder-0.5B"}


def markdown(columns: list[str], lines: list[list[str]]) -> str:
    """A table as the pages have it, numbers without the zero before the point."""
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join(f"| {' | '.join(re.sub(ZERO, '.', cell) for cell in row)} |" for row in rows)


class Study:
    """Rows, and what every training left.

    Parameters
    ----------
    home : Path
        Where :mod:`benchmarks.study` left its results.
    shared : Path
        Directory of the data.
    """

    def __init__(self, home: Path, shared: Path) -> None:
        self.home = home
        self.rows, strict = ukp_rows(shared)
        self.folds = make_folds(self.rows, FOLDS, seed=0)
        self.fold, self.groups = self.folds.fold, np.array(self.folds.group_ids)
        self.judge = Judge.of(self.rows, self.folds, strict)
        self.size = Size(5, json.loads((home / "chosen.json").read_text()))
        planned, every = jobs_of(list(PARTS), self.size), read_results(home)
        known = [result for result in every if result["key"] in planned]
        self.results = {r["key"]: r for r in known if planned[r["key"]].left(r)}

    def logits(self, key: str) -> np.ndarray:
        """A training's logits (n, K), of the average over orders; NaN where it did not predict."""
        return np.load(self.home / "logits" / f"{key}.npy").astype(np.float64)

    def teacher(self, model: str, seed: int = 0) -> np.ndarray:
        """A teacher's out-of-fold probabilities, (n, K)."""
        found = np.full(self.rows.targets.shape, np.nan)
        jobs = teachers(self.size, model, seed=seed)
        for (fold,), job in ((w, j) for w, j in jobs.items() if len(w) == 1):
            found[self.fold == fold] = self.logits(job.key)[self.fold == fold]
        return softmax(found)

    def students(self, question: str) -> dict[str, dict[int, np.ndarray]]:
        """Probabilities (n, K) of every student that was scored on all folds, by name and seed."""
        parts: dict[str, dict[int, dict[int, str]]] = defaultdict(lambda: defaultdict(dict))
        for key in self.results:
            about, _, rest = key.partition("/")
            if about == question:
                name, _, end = rest.rpartition("/s")
                seed, _, fold = end.partition("-f")
                parts[name][int(seed)][int(fold)] = key
        whole: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
        for name, seeds in parts.items():
            for seed, keys in seeds.items():
                if len(keys) == FOLDS:
                    logits = np.stack([self.logits(key) for key in keys.values()])
                    whole[name][seed] = softmax(np.nansum(logits, axis=0))
        return whole


def against(losses: dict[int, np.ndarray], base: dict[int, np.ndarray], groups: np.ndarray) -> list[str]:
    """A difference of losses a row, by seed, with its interval, and in how many debates it is below zero."""
    seeds = sorted(losses.keys() & base.keys())
    gaps = np.stack([losses[seed] - base[seed] for seed in seeds])
    known = np.isfinite(gaps[0])
    gaps, groups = gaps[:, known], groups[known]
    codes = np.unique(groups, return_inverse=True)[1]
    mean, half = float(gaps.mean()), half_over_groups_and_seeds(gaps, groups)
    below = int((np.bincount(codes, weights=gaps.mean(axis=0)) < 0).sum())
    return [f"{mean:+.4f}", f"{mean - half:+.4f} to {mean + half:+.4f}", f"{below} of {codes.max() + 1}"]


def stacked(
    members: dict[str, np.ndarray], targets: np.ndarray, groups: np.ndarray, fold: np.ndarray
) -> Stack:
    """The stack of some members, by the folds of the members."""
    return blend(
        members, targets, groups=groups, folds=fold, classes=CLASSES, swap=[f"{CLASSES[0]}={CLASSES[1]}"]
    )


def again(study: Study) -> bool:
    """Whether the teachers of the second seed are there."""
    return all(job.key in study.results for job in PARTS["again"](study.size))


def teacher_table(study: Study) -> str:
    """Teachers, their mean, their stack and students of the first seed, beside class shares and lengths."""
    members = {SHORT[model]: study.teacher(model) for model in MODELS}
    found = untrained(study.rows, study.folds) | members
    found["mean of the three"] = np.mean(list(members.values()), axis=0)
    stack = stacked(members, study.rows.targets, study.groups, study.fold)
    assert stack.result is not None
    found["stack of the three"] = stack.result.probs[stack.result.chosen]
    if again(study):
        six = [*members.values(), *(study.teacher(model, seed=1) for model in MODELS)]
        found["mean of six, two seeds each"] = np.mean(six, axis=0)
    students = study.students("labels")
    for name, shown in STUDENTS.items():
        found |= {shown: students[name][0]} if 0 in students.get(name, {}) else {}
    scores = {
        name: study.judge.score(probs, None if name == "lengths" else found["lengths"])
        for name, probs in found.items()
    }
    table = markdown(header("lengths"), [line(name, score) for name, score in scores.items()])
    names = list(members)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    pairs += [("mean of the three", names[0]), ("stack of the three", "mean of the three")]
    cells = [[f"{a} - {b}", *gap_cells(study.judge.gap(found[a], found[b]))] for a, b in pairs]
    included = f"with the choice of its method cross-fitted the stack's log-loss is {stack.score_:.4f}"
    gain = scores["mean of the three"]["gap"]
    kept = [
        f"{n}: {scores[n]['gap'] / gain:.0%} of the mean's gain" for n in STUDENTS.values() if n in scores
    ]
    told = "\n\n".join(["; ".join(kept), included])
    return f"{table}\n\n{markdown(['log-loss', 'difference', '95 %', 'debates'], cells)}\n\n{told}"


def seeds_table(study: Study) -> str:
    """Teachers of two seeds: each model's loss, their differences, and what another seed's mean adds."""
    seeds, targets = (0, 1), study.rows.targets
    probs = {SHORT[model]: {seed: study.teacher(model, seed) for seed in seeds} for model in MODELS}
    probs["mean of the three"] = {s: np.mean([probs[SHORT[m]][s] for m in MODELS], axis=0) for s in seeds}
    losses = {name: {s: log_loss(p, targets) for s, p in found.items()} for name, found in probs.items()}
    names = list(losses)
    lines = [[name, *(f"{loss.mean():.4f}" for loss in found.values()), ""] for name, found in losses.items()]
    every = np.mean([p for name in names[:-1] for p in probs[name].values()], axis=0)
    both = log_loss(every, targets)
    lines.append(["mean of all six", f"{both.mean():.4f}", "", ""])
    gaps = [(a, b, losses[a], losses[b]) for i, a in enumerate(names) for b in names[i + 1 :]]
    gaps.append(("mean of all six", names[-1], dict.fromkeys(seeds, both), losses[names[-1]]))
    lines += [[f"{a} - {b}", *against(x, y, study.groups)] for a, b, x, y in gaps]
    return markdown(["log-loss", "first seed, or difference", "second seed, or 95 %", "debates"], lines)


def tempered(probs: np.ndarray, study: Study) -> np.ndarray:
    """Divide by one temperature, fitted for each fold on the others; (n, K)."""
    found = np.empty_like(probs)
    for fold in range(FOLDS):
        held = study.fold == fold
        scaling = TemperatureScaling().fit_on(probs[~held], study.rows.targets[~held])
        found[held] = scaling.predict_on(probs[held])
    return found


def label_table(study: Study, question: str = "labels", base: str = "hard") -> str:
    """Students by what they learnt from, as they are and after one temperature."""
    students = study.students(question)
    targets, strict = study.rows.targets, study.judge.strict
    as_is = {n: {s: log_loss(p, targets) for s, p in seeds.items()} for n, seeds in students.items()}
    after = {
        n: {s: log_loss(tempered(p, study), targets) for s, p in seeds.items()}
        for n, seeds in students.items()
    }
    lines = []
    for name, seeds in students.items():
        sides = [(p[:, :2].argmax(axis=1) == study.rows.labels)[strict].mean() for p in seeds.values()]
        cells = [name, str(len(seeds))]
        for losses in (as_is, after):
            cells.append(f"{np.mean([loss.mean() for loss in losses[name].values()]):.4f}")
            cells += ["", ""] if name == base else against(losses[name], losses[base], study.groups)[:2]
        lines.append([*cells, f"{np.mean(sides):.3f}"])
    lines.sort(key=lambda cells: cells[2])
    difference = [f"against {base}", "95 %"]
    columns = ["learnt from", "seeds", "log-loss", *difference, "with a temperature", *difference, "strict"]
    return markdown(columns, lines)


def few_table(study: Study, question: str, model: str, base: str) -> str:
    """Trainings on few rows against the same without the change, seed by seed."""
    scores: dict[str, dict[int, float]] = defaultdict(dict)
    for key, result in study.results.items():
        if key.startswith(f"{question}/{model}/"):
            name = key.split("/")[2]
            scores[name][result["seed"]] = result["log_loss"]
            for field, value in result.items():
                if field.startswith("on "):
                    scores[f"{name}, predicted {field}"][result["seed"]] = value
    lines = []
    for name, seeds in scores.items():
        shared = sorted(seeds.keys() & scores[base].keys())
        gaps = np.array([seeds[seed] - scores[base][seed] for seed in shared])
        cells = [name, str(len(shared)), f"{np.mean([seeds[seed] for seed in shared]):.4f}"]
        if name != base:
            half = float(t.ppf(0.975, len(gaps) - 1)) * gaps.std(ddof=1) / len(gaps) ** 0.5
            low, high = gaps.mean() - half, gaps.mean() + half
            cells += [f"{gaps.mean():+.4f}", f"{low:+.4f} to {high:+.4f}"]
        lines.append([*cells, "", ""][:5])
    return markdown(["", "trainings", "log-loss", f"against {base}", "95 %"], lines)


def honesty_table(study: Study) -> str:
    """Stacks as they are printed, against the debates that neither they nor their members have seen."""
    signed, lines, gaps = "{:+.4f}".format, [], []
    models = [m for m in MODELS if all(job.key in study.results for job in teachers(study.size, m).values())]
    for held in range(FOLDS):
        inside = study.fold != held
        inner, fresh = {}, {}
        for model in models:
            found = teachers(study.size, model)
            labels = np.full(study.rows.targets.shape, np.nan)
            for j in set(range(FOLDS)) - {held}:
                key = found[min(held, j), max(held, j)].key
                labels[study.fold == j] = study.logits(key)[study.fold == j]
            inner[SHORT[model]] = softmax(labels[inside])
            fresh[SHORT[model]] = softmax(study.logits(found[(held,)].key)[~inside])
        targets = study.rows.targets
        number = np.unique(study.fold[inside], return_inverse=True)[1]
        stack = stacked(inner, targets[inside], study.groups[inside], number)
        new = log_loss(stack.predict_proba(fresh), targets[~inside]).mean()
        plain = [np.mean(list(part.values()), axis=0) for part in (inner, fresh)]
        means = [log_loss(plain[0], targets[inside]).mean(), log_loss(plain[1], targets[~inside]).mean()]
        gaps.append([stack.score_ - means[0], new - means[1]])
        lines.append([str(held), *map(signed, gaps[-1]), f"{stack.score_:.4f}", f"{new:.4f}"])
    lines.append(["mean", *map(signed, np.mean(gaps, axis=0)), "", ""])
    return markdown(
        ["debates held out", "stack - mean, printed", "on the held out", "printed", "held out"], lines
    )


def tune_table(study: Study) -> str:
    """Log-loss by learning rate: its mean, and fold by fold."""
    every = {result["key"]: result["log_loss"] for result in read_results(study.home)}
    lines = []
    for who in RATES:
        for rate, losses in rate_losses(study.size, who, every).items():
            folds = " ".join(f"{loss:.4f}" for loss in losses)
            lines.append([SHORT.get(who, who), f"{rate:g}", f"{np.mean(losses):.4f}", folds])
    return markdown(["", "rate", "log-loss", "fold by fold"], lines)


def average_table(study: Study) -> str:
    """Seeds' students one by one, averaged in the space of weights, and averaged as predictions."""
    lines, targets = [], study.rows.targets
    for name, found in study.students("average").items():
        keys = [key for key in study.results if key.startswith(f"average/{name}/")]
        single = [
            softmax(np.nansum([study.logits(f"{key} seed {seed}") for key in keys], axis=0))
            for seed in range(SOUP)
        ]
        losses = [log_loss(probs, targets) for probs in single]
        one = {0: np.mean(losses, axis=0)}
        for what, probs in (("weights", found[0]), ("predictions", np.mean(single, axis=0))):
            loss = log_loss(probs, targets)
            gap = against({0: loss}, one, study.groups)
            lines.append([name, what, f"{one[0].mean():.4f}", f"{loss.mean():.4f}", *gap[:2]])
    return markdown(["learnt from", "averaged", "one by one", "averaged", "difference", "95 %"], lines)


def curve_table(study: Study) -> str:
    """What a teacher adds by the number of rows."""
    tables = []
    for rows in CURVE:
        if study.students(f"curve{rows}"):
            tables.append(f"{rows} rows\n\n{label_table(study, f'curve{rows}')}")
    return "\n\n".join(tables)


def main() -> None:
    """Print what stands there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("home", type=Path, help="where benchmarks.study left its results")
    parser.add_argument("--shared", type=Path, required=True, help="directory of the data")
    args = parser.parse_args()
    study = Study(args.home, args.shared)
    asked = {key.split("/")[0] for key in study.results}
    made: dict[str, Any] = {"Learning rates": tune_table(study)}
    mission = [job.key for job in PARTS["teachers"](study.size)]
    if set(mission) <= study.results.keys():
        made |= {"Teachers": teacher_table(study), "Scores as printed": honesty_table(study)}
    if "labels" in asked:
        made["Labels"] = label_table(study)
    if again(study):
        made["Teachers of two seeds"] = seeds_table(study)
    if "grid" in asked:
        made["Temperature and weight"] = label_table(study, "grid", "T=1 w=0.7")
    if "pseudo" in asked:
        made["Debates without labels"] = label_table(study, "pseudo", "labels of two folds")
    if "average" in asked:
        made["Averages of seeds"] = average_table(study)
    pairs = (("precision", "bf16"), ("precision", "nf4"), ("faults", "sound"), ("options", "as it is"))
    for question, base in pairs:
        for model in MODELS if question in asked else ():
            if any(key.startswith(f"{question}/{model}/") for key in study.results):
                made[f"{question.capitalize()}, {SHORT[model]}, against {base}"] = few_table(
                    study, question, model, base
                )
    made["Learning curve"] = curve_table(study)
    for title, table in made.items():
        if table:
            print(f"## {title}\n\n{table}\n", flush=True)


if __name__ == "__main__":
    main()
