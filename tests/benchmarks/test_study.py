"""The study's own rules: who labels what, in which order, and what a difference is."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import study, study_report
from benchmarks.study_plan import FOLDS, LABELS, LLAMA, PARTS, RATES, Size

N = 40
SIZE = Size(2, 10, {who: rates[0] for who, rates in RATES.items()})


class Stub:
    """Teachers whose logit of every row tells which folds they were trained without."""

    size = SIZE
    fold = np.arange(N) % FOLDS
    rows = type("Rows", (), {"classes": type("Classes", (), {"n": FOLDS}), "__len__": lambda self: N})()

    def logits(self, key: str) -> np.ndarray:
        without = [int(f) for f in key.split("-without-")[1].split("-")]
        return np.tile([float(f in without) for f in range(FOLDS)], (N, 1))


@pytest.mark.parametrize("held", range(FOLDS))
@pytest.mark.parametrize("kind", ["strict", "apart", "fold_mean", "standard"])
def test_labels_come_from_teachers_that_saw_what_their_kind_says(kind: str, held: int) -> None:
    labels = study.Bench.labels(Stub(), LLAMA, kind, held, 0)
    learning = Stub.fold != held
    saw_scored = labels[learning, held] == 0
    own = labels[np.arange(N), Stub.fold][learning]
    assert saw_scored.all() == (kind == "standard")
    assert saw_scored.any() == (kind == "standard")
    expected = {"strict": 1.0, "standard": 1.0, "apart": 0.0, "fold_mean": 1 / (FOLDS - 1)}[kind]
    np.testing.assert_allclose(own, expected, rtol=1e-6)  # the share of its labellers that never saw the row


def test_every_training_waits_only_for_those_before_it() -> None:
    jobs = [job for part in PARTS.values() for job in part(SIZE)]
    needed = {need for job in jobs for need in job.needs}
    assert needed <= {job.key for job in jobs}
    for job in jobs:
        if job.spec.get("labels") not in {None, "standard"}:
            (held,) = job.spec["without"]
            assert job.needs
            assert all(str(held) in need.split("-without-")[1].split("-") for need in job.needs), job.key
    assert {job.key.split("/")[1] for job in PARTS["labels"](SIZE)} == LABELS.keys()


def test_a_difference_is_paired_and_its_interval_widens_with_seeds_that_disagree() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(8), 50)
    base = {seed: rng.normal(1, 0.3, 400) for seed in range(4)}
    better = {seed: loss - 0.05 for seed, loss in base.items()}
    mean, interval, below = study_report.against(better, base, groups)
    assert (mean, interval, below) == ("-0.0500", "-0.0500 to -0.0500", "8 of 8")
    unsteady = {seed: loss - 0.1 * (seed % 2) for seed, loss in base.items()}
    low, high = map(float, study_report.against(unsteady, base, groups)[1].split(" to "))
    assert low < -0.1
    assert high > 0
