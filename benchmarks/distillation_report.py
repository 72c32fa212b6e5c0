"""Tables and pictures of the ablation: ``python -m benchmarks.distillation_report RUN... [--to DIR]``.

Reads what ``benchmarks.distillation`` left, finished or cut short, and writes ``distillation.md`` with its
pictures; each question is answered from the run that gave it the most trainings. Losses are expected ones,
under the arena's true probabilities, less those of the truth itself: the regret. Differences are paired by
test row. Their 95 % intervals add the variance between prompt groups, by bootstrap, to that between seeds,
with Student's t at Satterthwaite's degrees of freedom: a percentile bootstrap of five seeds would be too
narrow by a third.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t

from benchmarks.distillation import row_losses
from benchmarks.distillation_pictures import Difference, heat_map, whiskers
from benchmarks.distillation_plan import FOLDS, STUDENT, TEACHERS
from data.files import write_text
from data.softmax import softmax
from ensemble.methods.calibrate import TemperatureScaling
from ensemble.scoring.bootstrap import bootstrap

DRAWS = 1000
QUESTIONS = {
    "labels": ("Which labels?", "labels/hard", "One teacher; kl, T = 1, w = .7; both orders in a step."),
    "teachers": ("How many teachers, and mixed how?", "labels/oof", "Out-of-fold labels; kl, T = 1, w = .7."),
    "loss": (
        "Which loss?",
        "labels/oof",
        "One teacher, out-of-fold labels; the reference is kl, T = 1, w = .7.",
    ),
    "swap": ("How to treat the order of a pair?", "labels/oof", "One teacher, out-of-fold labels."),
    "grid": ("Which temperature and weight?", "labels/oof", "One teacher, out-of-fold labels, loss kl."),
}


CHOICES = """## What to choose

Read by hand from the tables below, as they stand in the repository (five seeds, all parts in one run of
four minutes on four H100s; an earlier whole run on two cards agrees but where it says so); a new run may
say otherwise.

- **Distil, from out-of-fold labels.** Every kind of soft label beats hard labels by .007 to .008, in all
  seeds. The kinds cannot be told from one another here, so choose by what the score must be worth (last
  point). Hard-label smoothing does not help.
- **One good teacher does most of it.** A second and third changed the student by -.0002 to -.0006 here,
  which five seeds do not resolve (-.0011 to -.0013 in the earlier run). Fitted weights, confidence and log
  space change nothing. The teachers' own blend gains far more (.0906 to .0828): blend them where you can
  afford to.
- **The loss hardly matters**: `blackpearl`, `wsdm1` and `mse` are within .0009 of plain CE + KL; `wsdm3`,
  which is T = 5 with w = .9, costs .0024 with one teacher, none of it with three (earlier run). The default
  stays `kl`.
- **Both orders in one step.** A random order a row costs .005 at the same number of epochs, and is even
  again with twice as many: what counts is that both orders are learnt. A consistency loss on top does not
  help.
- **Any temperature, w between .5 and .75.** All 25 settings beat hard labels and none beats the default, T
  = 1 and w = .7; choosing one by the other seeds loses .0013 (-.0003 to .0028) to the default. Temperature
  alone makes no difference that five seeds resolve; w = .25 and w = 1 cost .002 to .005 at every
  temperature.
- **A student's own out-of-fold score flatters it** when its labels came from teachers that saw the scored
  fold, as out-of-fold labels do: by .010 here, more than distillation gains. Before such a score decides
  anything, or the student joins a stack, use `--leakage strict`, or `apart`: the student scored on fold k
  then learns from the one model that never saw fold k, at no further training. On a thousand real rows it
  is worth up to .014 to .035 (`real_rows.md`)."""

ALSO = {"loss": ["labels/hard"]}
"""What else stands in a question's table."""


class Results:
    """A run's results, by question and name, a row of test losses a seed."""

    def __init__(self, run: Path) -> None:
        self.run = run
        lines = (run / "results.jsonl").read_text(encoding="utf-8").splitlines()
        self.lines = [json.loads(line) for line in lines]
        self.scale = json.loads((run / "scale.json").read_text(encoding="utf-8"))
        with np.load(run / "blocks.npz") as found:
            block, group, truth, label = (found[k] for k in ("block", "group", "truth", "label"))
        self.test = block >= self.scale["seeds"] * FOLDS
        self.block, self.group, self.label = block, group, label
        self.all_truth = truth
        self.truth = truth[self.test]
        self.groups = np.unique(group[self.test], return_inverse=True)[1]
        self.floor = row_losses(np.log(np.maximum(self.truth, 1e-30)), self.truth)
        self.drawn = draws(self.groups)

    def names(self, question: str) -> list[str]:
        """Names of a question's variants, in the order they were asked in."""
        keys = [r["spec"]["name"] for r in self.lines if r["spec"].get("question") == question]
        return list(dict.fromkeys(keys))

    def logits(self, key: str) -> dict[int, np.ndarray]:
        """Test logits of ``question/name`` by seed."""
        found = {}
        for seed in range(self.scale["seeds"]):
            path = self.run / "logits" / f"{f'{key}/s{seed}'.replace('/', '_')}.npy"
            if path.exists():
                found[seed] = np.load(path)
        return found

    def regrets(self, key: str, calibrated: bool = False) -> dict[int, np.ndarray]:
        """Expected regret a test row, by seed."""
        return {s: self._regret(self._cooled(x) if calibrated else x) for s, x in self.logits(key).items()}

    def _regret(self, logits: np.ndarray) -> np.ndarray:
        return row_losses(logits, self.truth) - self.floor

    def _cooled(self, logits: np.ndarray) -> np.ndarray:
        """Temperature-scaled, each half of the prompt groups by the labels of the other."""
        out = np.empty_like(logits)
        half = self.groups % 2
        probs, labels = softmax(logits), self.label[self.test]
        for side in (0, 1):
            fitted = TemperatureScaling().fit(probs[half != side], labels[half != side])
            out[half == side] = logits[half == side] / fitted.temperature_
        return out

    def label_loss(self, key: str) -> float:
        """Mean log-loss on the labels as they fell."""
        targets = np.eye(3)[self.label[self.test]]
        return float(np.mean([row_losses(x, targets).mean() for x in self.logits(key).values()]))

    def blend(self, names: Sequence[str]) -> dict[int, np.ndarray]:
        """Expected regret of the equal mean of teachers, each the mean of its fold models, by seed."""
        found = {}
        for seed in range(self.scale["seeds"]):
            paths = [self.run / "logits" / f"teacher_{t}_s{seed}.npy" for t in names]
            if all(path.exists() for path in paths):
                probs = np.mean([softmax(np.load(path)) for path in paths], axis=0)
                found[seed] = self._regret(np.log(probs))
        return found

    def compare(self, a: dict[int, np.ndarray], b: dict[int, np.ndarray]) -> Difference | None:
        """``a`` less ``b`` over the seeds that both have."""
        seeds = sorted(set(a) & set(b))
        if not seeds:
            return None
        return difference(np.stack([a[s] - b[s] for s in seeds]), self.groups, self.drawn)


def draws(groups: np.ndarray) -> np.ndarray:
    """How often each bootstrap draw takes each group, (draws, groups)."""
    return bootstrap(groups, DRAWS).counts.astype(np.float32)


def difference(values: np.ndarray, groups: np.ndarray, drawn: np.ndarray) -> Difference:
    """Mean of ``values`` (seeds, n) with its interval; one seed alone tells nothing of other seeds."""
    sums = np.bincount(groups, weights=values.mean(axis=0), minlength=drawn.shape[1])
    of_groups = float(((drawn @ sums) / (drawn @ np.bincount(groups, minlength=drawn.shape[1]))).var())
    seeds = values.mean(axis=1)
    return with_interval(seeds, of_groups, drawn.shape[1])


def with_interval(seeds: np.ndarray, of_groups: float = 0.0, n_groups: int = 2) -> Difference:
    """Mean over seeds; its variance is theirs and that of the groups they share."""
    n = len(seeds)
    of_seeds = float(seeds.var(ddof=1)) / n if n > 1 else 0.0
    total = of_seeds + of_groups
    weight = of_seeds**2 / max(1, n - 1) + of_groups**2 / (n_groups - 1)
    half = student_t.ppf(0.975, total**2 / weight) * total**0.5 if weight else 0.0
    mean = float(seeds.mean())
    return Difference(mean, mean - half, mean + half, seeds.tolist())


def mean_of(regrets: dict[int, np.ndarray]) -> float:
    """Mean over seeds and rows."""
    return float(np.mean([r.mean() for r in regrets.values()])) if regrets else float("nan")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def question_section(results: Results, question: str, to: Path) -> str:
    """A question's table, picture and verdict."""
    title, reference, setting = QUESTIONS[question]
    names = results.names(question)
    taught_by_three = question == "loss" and any(
        r["spec"].get("question") == "loss" and r["spec"]["teachers"] == "abc" for r in results.lines
    )
    if taught_by_three:
        reference = "teachers/a + b + c"
        setting = "Three teachers, out-of-fold labels; the reference is kl, T = 1, w = .7, of the same three."
    base = results.regrets(reference)
    keys = [f"{question}/{name}" for name in names]
    if reference not in keys:
        keys.insert(0, reference)
    keys[1:1] = ALSO.get(question, [])
    if not base or not names:
        return f"## {title}\n\nNo result: the run had no time for it.\n"
    rows, drawn = [], []
    for key in keys:
        regrets = results.regrets(key)
        if not regrets:
            continue
        against = results.compare(regrets, base)
        name = key.split("/", 1)[1] + (" (reference)" if key == reference else "")
        wins = (
            ""
            if against is None or key == reference
            else f"{sum(d < 0 for d in against.seeds)}/{len(against.seeds)}"
        )
        rows.append(
            [
                name,
                str(len(regrets)),
                f"{results.label_loss(key):.4f}",
                f"{mean_of(regrets):.4f}",
                f"{mean_of(results.regrets(key, calibrated=True)):.4f}",
                "" if key == reference or against is None else against.shown(),
                wins,
            ]
        )
        if against is not None and key != reference:
            drawn.append((name, against))
    header = [
        "",
        "seeds",
        "log-loss",
        "regret",
        "regret, temperature-scaled",
        "regret against the reference, 95 %",
        "better",
    ]
    picture = f"distillation-{question}.svg"
    write_text(to / picture, whiskers(drawn, f"regret against {reference.split('/', 1)[1]}, nats") + "\n")
    parts = [f"## {title}", setting, table(header, rows), f"![{title}]({picture})", verdict(drawn, reference)]
    pair = [results.regrets(f"loss/{name}, two teachers") for name in ("blackpearl", "kl")]
    if question == "loss" and all(pair) and (found := results.compare(*pair)):
        parts.append(f"With two teachers, for which it was made, blackpearl less kl: {found.shown()}.")
    return "\n\n".join(parts) + "\n"


def verdict(drawn: list[tuple[str, Difference]], reference: str) -> str:
    """In words: what is surely better or worse than the reference, and what cannot be told."""
    name = reference.split("/", 1)[1]

    def listed(found: list[tuple[str, Difference]]) -> str:
        return ", ".join(f"{label} ({d.mean:+.4f})" for label, d in sorted(found, key=lambda x: x[1].mean))

    better = [x for x in drawn if x[1].sure and x[1].mean < 0]
    worse = [x for x in drawn if x[1].sure and x[1].mean > 0]
    rest = [x for x in drawn if not x[1].sure]
    parts = [
        f"Better than {name}, the interval excluding zero: {listed(better) or 'none'}.",
        f"Worse: {listed(worse) or 'none'}.",
        f"Not to be told apart: {listed(rest) or 'none'}.",
    ]
    return " ".join(parts)


def grid_section(results: Results, to: Path) -> str:
    """Temperature by weight: a table of regrets, a heat map, and the best against T = 1, w = .7."""
    title, reference, setting = QUESTIONS["grid"]
    scale, base = results.scale, results.regrets(reference)
    found = {n: results.regrets(f"grid/{n}") for n in results.names("grid")}
    seeds = sorted(set.intersection(set(base), *map(set, found.values()))) if found else []
    if not seeds:
        return f"## {title}\n\nNo result: the run had no time for it.\n"
    base, *_ = every = [{s: r[s] for s in seeds} for r in (base, *found.values())]
    found = dict(zip(found, every[1:], strict=True))
    rows, cells = [], []
    for t in scale["temperatures"]:
        line = [f"T = {t:g}"]
        for w in scale["weights"]:
            key = f"T={t:g} w={w:g}"
            regrets = found.get(key, {})
            cooled = {s: r for s, r in results.regrets(f"grid/{key}", calibrated=True).items() if s in seeds}
            line.append(f"{mean_of(regrets):.4f} ({mean_of(cooled):.4f})" if regrets else "")
            cells.append((f"{t:g}", f"{w:g}", mean_of(regrets)))
        rows.append(line)
    best = sorted(found, key=lambda n: mean_of(found[n]))[:5]
    against = [(n, d) for n in best if (d := results.compare(found[n], base)) is not None]
    write_text(to / "distillation-grid.svg", heat_map(cells) + "\n")
    hard = results.regrets("labels/hard")
    beaten = [n for n in found if (d := results.compare(found[n], hard)) and d.sure and d.mean < 0]
    parts = [
        f"## {title}",
        f"{setting} Mean regret over {len(seeds)} seeds, and in brackets after temperature scaling; T = 1, "
        f"w = .7 has {mean_of(base):.4f} ({mean_of(results.regrets(reference, calibrated=True)):.4f}).",
        table(["", *(f"w = {w:g}" for w in scale["weights"])], rows),
        "![Temperature and weight](distillation-grid.svg)",
        f"{len(beaten)} of {len(found)} settings beat hard labels with an interval that excludes zero. The "
        "best five against T = 1, w = .7 (chosen for being best, so their intervals flatter them): "
        + "; ".join(f"{n} {d.shown()}" for n, d in against)
        + "."
        + chosen_by_others(found, base),
    ]
    return "\n\n".join(parts) + "\n"


def chosen_by_others(found: dict[str, dict[int, np.ndarray]], base: dict[int, np.ndarray]) -> str:
    """In words: what a setting chosen on all seeds but one gains on that one, which no choice flatters."""
    if len(base) < 3:
        return ""
    means = {n: {s: float(r.mean()) for s, r in regrets.items()} for n, regrets in found.items()}
    choices = {s: min(means, key=lambda n: np.mean([v for o, v in means[n].items() if o != s])) for s in base}
    gain = with_interval(np.array([means[n][s] - float(base[s].mean()) for s, n in choices.items()]))
    names = ", ".join(dict.fromkeys(choices.values()))
    return f" Chosen by the other seeds ({names}), the setting changes regret by {gain.shown()}."


def leakage_section(results: Results) -> str:
    """What the second-order leak does to the score on a student's own held-out fold."""
    names = results.names("leakage")
    held: dict[str, dict[int, np.ndarray]] = {}
    for name in names:
        for seed in range(results.scale["seeds"]):
            path = results.run / "logits" / f"leakage_{name}_s{seed}-held-out.npy"
            if path.exists():
                inside = results.block == seed * FOLDS
                targets = np.eye(3)[results.label[inside]]
                held.setdefault(name, {})[seed] = row_losses(np.load(path), targets)
    title = "## Does it matter that a teacher saw the scored fold?"
    if "strict" not in held:
        return f"{title}\n\nNo result: the run had no time for it.\n"
    rows = []
    for name, losses in held.items():
        test = results.label_loss(f"leakage/{name}")
        own = float(np.mean([v.mean() for v in losses.values()]))
        rows.append(
            [
                name,
                str(len(losses)),
                f"{own:.4f}",
                f"{test:.4f}",
                f"{mean_of(results.regrets(f'leakage/{name}')):.4f}",
            ]
        )
    lines = []
    for name in held:
        if name in {"strict", "hard labels"}:
            continue
        seeds = sorted(set(held[name]) & set(held["strict"]))
        # Every seed has rows of its own, so their means are independent.
        held_out = np.array([(held[name][s] - held["strict"][s]).mean() for s in seeds])
        fresh = results.compare(results.regrets(f"leakage/{name}"), results.regrets("leakage/strict"))
        assert fresh is not None
        leak = with_interval(held_out - np.array(fresh.seeds))
        lines.append(
            f"{name} less strict: {with_interval(held_out).shown()} on the held-out fold, {fresh.shown()} in "
            f"expected loss on fresh rows, so the leak flatters the score by {leak.shown()}."
        )
    parts = [
        title,
        "One teacher; students of three folds, scored on the fourth and on fresh rows. A leak would make "
        "the held-out score better than strict's by more than fresh rows bear out. Strict teachers are "
        "trained on half the rows, not three quarters; *standard, teachers of strict's size* evens that out.",
        table(
            ["soft labels", "seeds", "log-loss, held-out fold", "log-loss, fresh rows", "regret, fresh rows"],
            rows,
        ),
        " ".join(lines),
    ]
    return "\n\n".join(parts) + "\n"


def headline(results: Results) -> str:
    """What had to be shown: distilled against hard labels, the share of the gap, size and speed."""
    hard, oof = results.regrets("labels/hard"), results.regrets("labels/oof")
    lines = []
    for names, key in (("a", "labels/oof"), ("ab", "teachers/a + b"), ("abc", "teachers/a + b + c")):
        student, blend = results.regrets(key), results.blend(names)
        against = results.compare(student, hard)
        if against is None or not blend:
            continue
        gap = mean_of(hard) - mean_of(blend)
        share = (mean_of(hard) - mean_of(student)) / gap if gap > 0 else float("nan")
        lines.append(
            [" + ".join(names), f"{mean_of(hard):.4f}", f"{mean_of(student):.4f}", f"{mean_of(blend):.4f}",
             against.shown(), f"{sum(d < 0 for d in against.seeds)}/{len(against.seeds)}", f"{share:.0%}"]
        )  # fmt: skip
    if not lines or not oof:
        return "No student was finished.\n"
    text = table(
        [
            "teachers",
            "regret, hard labels",
            "regret, distilled",
            "regret, teachers' blend",
            "distilled less hard, 95 %",
            "seeds better",
            "gap closed",
        ],
        lines,
    )
    speed = next((r["speed"] for r in results.lines if r["kind"] == "speed"), None)
    if speed:
        small = speed[STUDENT]
        text += "\n\n" + "; ".join(
            f"teacher {t}: {speed[t]['parameters'] / small['parameters']:.1f} times the student's "
            f"parameters, {small['rows_per_second'] / speed[t]['rows_per_second']:.1f} times slower"
            for t in TEACHERS
            if t in speed
        )
        text += f" (student: {small['parameters']:,} parameters, {small['rows_per_second']:,} rows a second)."
    trained = [r for r in results.lines if r["kind"] == "teacher" and len(r["spec"]["without"]) == 1]
    for t in TEACHERS:
        mine = [r for r in trained if r["spec"]["teacher"] == t]
        if mine:
            own, seen = (float(np.mean([r[k] for r in mine])) for k in ("own_fold", "trained_rows"))
            text += (
                f"\n\nTeacher {t}: log-loss {own:.4f} out of fold, {seen:.4f} on the rows it was trained on."
            )
    return text + "\n"


def setting_of(results: Results) -> str:
    """What a run's tables were made of."""
    scale = results.scale
    tuned = {who: min((r for r in results.lines if r["kind"] == "tune" and r["spec"]["who"] == who),
                      key=lambda r: r["log_loss"])["spec"]["rate"] for who in scale["tune"]}  # fmt: skip
    return (
        f"{scale['seeds']} seeds of {FOLDS * scale['block']:,} training rows each, in {FOLDS} folds; "
        f"{results.test.sum():,} common test rows in {len(set(results.groups)):,} prompt groups that no "
        f"training row shares. The best possible log-loss is {results.floor.mean():.4f} in expectation. "
        "Learning rate and epochs were chosen once, on hard labels: "
        + "; ".join(f"{who} {lr:g}, {epochs:g}" for who, (lr, epochs) in tuned.items())
        + "."
    )


def answered(results: Results, question: str) -> int:
    """How many trainings a run gave a question, beyond the two students that every run trains."""
    plain = {"hard", "oof"} if question == "labels" else set()
    asked = [r["spec"] for r in results.lines if r["spec"].get("question") == question]
    return sum(spec["name"] not in plain for spec in asked)


def write_report(runs: Sequence[Path], to: Path) -> Path:
    """Write ``distillation.md`` and its pictures into ``to``."""
    sections = [
        "# Distillation: what helps, measured",
        "Simulated arena, whose true probabilities are known; regret is what a model loses beyond them, in "
        "nats. Tiny Llamas of the true architecture, pretrained on the rows' text, then fully fine-tuned in "
        "float32; all predict in both orders. Differences are paired; 95 % intervals (Student's t) cover "
        "prompt groups and seeds. Made by `python -m benchmarks.distillation`.",
        CHOICES,
    ]
    every = [Results(run) for run in runs]
    best = {q: max(every, key=lambda r: answered(r, q)) for q in [*QUESTIONS, "leakage"]}
    for number, results in enumerate(every):
        sections.append(
            setting_of(results) if len(runs) == 1 else f"**Run {number + 1}.** {setting_of(results)}"
        )
        if number == 0:
            sections += ["## Does distillation pay?", headline(results)]
        for question, chosen in best.items():
            if chosen is results:
                make = {"grid": grid_section, "leakage": lambda r, _: leakage_section(r)}.get(question)
                sections.append(make(results, to) if make else question_section(results, question, to))
    path = to / "distillation.md"
    write_text(path, "\n\n".join(section.strip() for section in sections) + "\n")
    return path


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="an --out of benchmarks.distillation")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent, help="directory of the report")
    args = parser.parse_args()
    print(write_report(args.runs, args.to))


if __name__ == "__main__":
    main()
