"""The study's own rules: who labels what, in which order, and what a difference is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import study, study_report, study_tricks
from benchmarks.study import tuned
from benchmarks.study_plan import FOLDS, GEMMA, LABELS, LLAMA, PARTS, RATES, Size, rate_losses, tried

N = 40
SIZE = Size(2, {who: rates[0] for who, rates in RATES.items()})


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
    labels = study.Bench.labels(Stub(), LLAMA, kind, held, 0, 1.0)
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
    asked = [job.key.split("/")[1] for part in ("labels", "third", "kinds") for job in PARTS[part](SIZE)]
    assert LABELS.keys() <= set(asked)


def test_the_teachers_that_label_are_those_that_a_student_waits_for() -> None:
    asked = []

    class Listening(Stub):
        def logits(self, key: str) -> np.ndarray:
            asked.append(key)
            return super().logits(key)

    jobs = [job for part in PARTS.values() for job in part(SIZE) if job.spec.get("labels")]
    assert any(job.spec["rows"] for job in jobs)
    for job in jobs:
        spec, bench = job.spec, Listening()
        (held,) = spec["without"]
        asked.clear()
        for name in spec["teachers"]:
            study.Bench.labels(bench, name, spec["labels"], held, spec["rows"], spec["epochs"])
        assert sorted(asked) == sorted(job.needs), job.key


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


def adapter_outputs(scale: float, rate_of_b: float) -> torch.Tensor:
    """What a rank-2 adapter puts out, step by step, trained by Adam at 1e-3 for A and another rate for B."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, y, a = drawn(64, 5), drawn(64, 3), drawn(2, 5).requires_grad_()
    b = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    groups = [{"params": [a], "lr": 1e-3}, {"params": [b], "lr": rate_of_b}]
    optimizer, outputs = torch.optim.Adam(groups, eps=1e-30), []
    for _ in range(20):
        optimizer.zero_grad()
        output = scale * x @ a.T @ b.T
        (output - y).square().mean().backward()
        optimizer.step()
        outputs.append(output.detach())
    return torch.stack(outputs)


def test_a_faster_rate_for_b_is_a_larger_alpha() -> None:
    """LoRA+ by 16 is alpha times 16 under Adam, so it needs no option of its own."""
    torch.testing.assert_close(adapter_outputs(1.0, 16e-3), adapter_outputs(16.0, 1e-3))


def test_the_average_of_the_weights_is_what_is_left() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    averaged = study_tricks.Averaged([parameter], 0.5)
    expected = torch.zeros(2)
    for step in range(1, 31):
        with torch.no_grad():
            parameter.fill_(float(step))
        averaged.on_step_end(None, None, None)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    averaged.on_train_end(None, None, None)
    torch.testing.assert_close(parameter.detach(), expected)
    assert parameter[0] < 30


def test_a_rate_is_chosen_by_the_folds_that_all_rates_were_scored_on() -> None:
    low, high = sorted(RATES[GEMMA])[:2]
    jobs = tried(SIZE, GEMMA)
    losses = {job.key: 0.80 for job in jobs[low]} | {job.key: 0.81 for job in jobs[high][:2]}
    losses[jobs[low][3].key] = 1.5  # of a fold that the other rate has not: it must not count
    assert rate_losses(SIZE, GEMMA, losses) == {low: [0.80, 0.80], high: [0.81, 0.81]}
    assert tuned(SIZE, {key: {"log_loss": loss} for key, loss in losses.items()})[GEMMA] == low
    assert tuned(SIZE, {})[GEMMA] == RATES[GEMMA][0]
