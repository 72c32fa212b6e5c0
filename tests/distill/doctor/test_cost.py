"""Paired trainings with and without a fault: what is edited, what is compared, what the interval covers."""

import numpy as np
import pytest

from data.arena import ArenaConfig, simulate_arena
from data.encoding.encode import Encoded
from data.folds import make_folds
from distill.config import TinyConfig
from distill.doctor import cost, faults
from distill.doctor.examine import all_checks


def test_edits_are_what_a_faulty_pipeline_feeds():
    encoded = Encoded(np.arange(1, 10, dtype=np.int32), np.array([0, 4, 9]), 1, 0)

    def lists(edit):
        changed = cost.edited(encoded, edit, 1)
        return [changed[s].tolist() for s in range(2)]

    assert lists(faults._no_bos) == [[2, 3, 4], [6, 7, 8, 9]]
    assert lists(faults._two_bos) == [[1, 1, 2, 3, 4], [1, 5, 6, 7, 8, 9]]
    assert lists(faults._bos_inside)[1] == [5, 6, 1, 7, 8, 1, 9]
    assert lists(faults._neighbour_in_sight)[0] == [5, 6, 7, 8, 9, 1, 2, 3, 4]


def test_every_cost_belongs_to_a_check():
    assert set(faults.FAULTS.values()) <= {check.name for check in all_checks()}
    assert len(faults.FAULTS) == len(faults.FAULT_ARMS)


def test_rows_of_one_prompt_count_once():
    values = np.random.default_rng(0).standard_normal(200)
    alone = cost.grouped_variance(values, np.arange(200))
    assert alone == pytest.approx(values.var(ddof=1) / 200)
    thrice = cost.grouped_variance(np.repeat(values, 3), np.repeat(np.arange(200), 3))
    assert thrice == pytest.approx(alone)


def test_few_seeds_widen_the_interval_as_students_t_does():
    assert cost.half_width([(1.0, 10**9)]) == pytest.approx(1.96, abs=0.001)
    assert cost.half_width([(1.0, 1)]) == pytest.approx(12.706, abs=0.001)
    assert 1.96 < cost.half_width([(0.5, 300), (0.5, 3)]) < 3.183
    assert cost.half_width([(0.0, 5), (0.0, 1)]) == 0


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    rows = simulate_arena(ArenaConfig(n_rows=48, seed=3))
    tiny = TinyConfig(hidden_size=64, intermediate_size=64, layers=1, vocab_size=300, pretrain_steps=0)
    return cost.Bench(rows, make_folds(rows, 3), tmp_path_factory.mktemp("bench"), tiny)


def test_a_fault_is_measured_against_its_faultless_twin(bench):
    arms = [
        faults.Fault("none at all", "one_start_token", faults.Arm()),
        faults.Fault("head starts large", "first_loss_is_uniform", faults.Arm(adapt=faults._large_head)),
    ]
    nothing, large = cost.measure(bench, arms, seeds=1)
    assert (nothing.difference, nothing.half) == (0, 0)
    assert "makes no difference" in nothing.in_words()
    assert large.difference - large.half > 0
    assert large.faulty - large.clean == pytest.approx(large.difference)
    assert large.rows == len(bench.held_out)
    assert large.in_words().startswith("head starts large costs +")


def test_another_twin_may_be_found_better(bench):
    rng = np.random.default_rng(0)
    clean = rng.random((2, len(bench.held_out)))
    found = bench.compare(faults.FAULT_ARMS[0], clean, clean - 0.1)
    assert found.difference == pytest.approx(-0.1)
    assert "helps" in found.in_words()
