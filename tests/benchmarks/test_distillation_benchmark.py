"""The ablation's own rules: who labels what in each mode, and intervals that mean what they say."""

import sys

import numpy as np
import pytest
from recipes import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks import distillation, distillation_pictures, distillation_plan, distillation_report

N = 40


class Stub:
    """Teachers whose logit of every row tells which folds they were trained without."""

    def places(self, seed):
        return np.arange(N), np.arange(N) % distillation_plan.FOLDS, np.arange(0)

    def teacher(self, key):
        without = [int(f) for f in key.split("-without-")[1].split("-")]
        return np.tile([float(f in without) for f in range(distillation_plan.FOLDS)], (N, 1))[:, :4]


@pytest.mark.parametrize(
    ("kind", "held", "saw_own", "saw_scored"),
    [
        ("oof", None, False, None),
        ("in_sample", None, True, None),
        ("oof", 0, False, True),
        ("strict", 0, False, False),
        ("strict_size", 0, False, True),
    ],
)
def test_labels_come_from_teachers_that_saw_what_the_mode_says(monkeypatch, kind, held, saw_own, saw_scored):
    monkeypatch.setattr(distillation.np, "zeros", lambda shape, dtype=None: np.full((shape[0], 4), np.nan))
    job = distillation_plan.Job(
        "x", "student", 0, {"labels": kind, **({} if held is None else {"held_out": held})}
    )
    fold = np.arange(N) % distillation_plan.FOLDS
    labels = distillation.soft_labels(Stub(), job, "a", fold)
    learning = fold != held
    without_own = labels[np.arange(N), fold][learning]
    assert (without_own == (0.0 if saw_own else 1.0)).all()
    if saw_scored is not None:
        assert (labels[learning, held] == (0.0 if saw_scored else 1.0)).all()


@pytest.mark.parametrize(
    "parts", [list(distillation_plan.PARTS), ["losses"], ["grid", "strict"], ["five-term"]]
)
def test_every_job_waits_only_for_jobs_before_it(parts):
    jobs = distillation_plan.chosen_jobs(distillation_plan.FULL, parts)
    keys = [job.key for job in jobs]
    assert len(set(keys)) == len(keys)
    seen = set()
    for job in jobs:
        assert set(job.needs) <= seen, job.key
        seen.add(job.key)


def test_intervals_cover_as_often_as_they_say_and_exclude_a_true_difference():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), 3)
    drawn = distillation_report.draws(groups)
    covered = 0
    for _ in range(200):
        seeds = 0.02 * rng.normal(size=(5, 1))
        shared = np.repeat(0.2 * rng.normal(size=200), 3)  # rows of a group go together, in every seed
        found = distillation_report.difference(
            seeds + shared + 0.2 * rng.normal(size=(5, 600)), groups, drawn
        )
        covered += found.low <= 0 <= found.high
    assert 183 <= covered <= 199  # a percentile bootstrap covers about 170
    sure = distillation_report.difference(0.05 + 0.1 * rng.normal(size=(5, 600)), groups, drawn)
    assert sure.sure
    assert sure.low < 0.05 < sure.high
    assert len(sure.seeds) == 5


def test_a_setting_chosen_by_other_seeds_is_not_flattered():
    rng = np.random.default_rng(0)
    base = {s: np.zeros(50) for s in range(5)}
    found = {f"T={t} w=1": {s: rng.normal(size=50) for s in base} for t in range(25)}
    best = min(np.mean([r.mean() for r in cell.values()]) for cell in found.values())
    said = distillation_report.chosen_by_others(found, base)
    chosen = float(said.split("changes regret by ")[1].split(" ")[0])
    assert best < -0.05 < chosen


def test_pictures_hold_every_variant():
    difference = distillation_pictures.Difference(-0.01, -0.02, -0.005, [-0.01, -0.012])
    drawn = [("oof", difference), ("a < b", difference)]
    svg = distillation_pictures.whiskers(drawn, "regret")
    assert svg.count("<circle") == 6
    assert "a &lt; b" in svg
    assert distillation_report.verdict(drawn, "labels/hard").startswith("Better than hard")
    cells = [("1", "0.5", 0.03), ("1", "1", float("nan")), ("5", "0.5", 0.01)]
    assert distillation_pictures.heat_map(cells).count("<rect") == 3
