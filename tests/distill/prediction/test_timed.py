"""A cascade against the clock keeps its budget, is whole at any moment, and goes on when it was killed."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.csv as pc
import pytest
from recipes import ROOT

from data.arena import ArenaConfig, simulate_arena
from data.dataset import prepare
from data.errors import UserError
from data.schema import read_rows
from distill import export, predict, teacher_oof
from distill.prediction import timed
from distill.prediction.timed import CHUNK_SECONDS, FEWEST, MARGIN, Clock, Ledger, fitting, in_time
from distill.runs.loaded import Loaded
from distill.runs.saved import Access, read_saved

CLASSES = ["winner_model_a", "winner_model_b", "winner_tie"]


class Machine:
    """A clock that goes on only by work: so many seconds for a unit of cost, and a warm-up once."""

    def __init__(self, cost, pace, warm_up=0.0):
        self.cost, self.pace, self.time, self.warm_up = cost, pace, 0.0, warm_up
        self.chunks = []

    def now(self):
        return self.time

    def work(self, chunk):
        self.chunks.append(chunk)
        self.time += self.cost[chunk].sum() * self.pace(self.time) + self.warm_up
        self.warm_up = 0.0


@pytest.mark.parametrize("minutes", [0.5, 3, 60])
@pytest.mark.parametrize("warm_up", [0.0, 5.0])
def test_the_budget_is_kept_and_spent(minutes, warm_up):
    cost = np.random.default_rng(0).uniform(100, 2000, size=20_000)
    machine = Machine(cost, lambda _: 4e-4, warm_up)
    clock = Clock(60 * minutes, now=machine.now)
    done = in_time(cost, clock.left, machine.work)
    assert 0 <= clock.left() <= max(0.15 * 60 * minutes, 2 * FEWEST)
    assert done == sum(c.stop - c.start for c in machine.chunks) == machine.chunks[-1].stop
    assert [c.start for c in machine.chunks[1:]] == [c.stop for c in machine.chunks[:-1]]


def test_a_machine_that_slows_down_within_the_margin_keeps_the_budget():
    cost = np.full(50_000, 500.0)
    machine = Machine(cost, lambda t: 4e-4 * (1 + MARGIN * t / 3600))
    clock = Clock(3600, now=machine.now)
    assert in_time(cost, clock.left, machine.work) < len(cost)
    assert clock.left() >= 0


def test_time_enough_does_every_row_and_none_begins_nothing():
    cost = np.ones(50)
    machine = Machine(cost, lambda _: 0.01)
    assert in_time(cost, Clock(1000, now=machine.now).left, machine.work) == 50
    assert in_time(cost, lambda: 0.0, machine.work) == 0
    assert in_time(cost[:0], lambda: 9.0, machine.work) == 0
    assert fitting(np.ones(5), 10, 0.0) == 5
    assert fitting(np.ones(1000), 1e6, 0.5) == int(CHUNK_SECONDS / (0.5 * (1 + MARGIN)))
    assert fitting(np.ones(1000), 1.0, 1.0) == 0


def test_a_ledger_of_other_predictions_or_a_damaged_one_counts_for_nothing(tmp_path):
    path, shape = tmp_path / "dear.npz", (4, 1, 3)
    ledger = Ledger(path, "key", shape)
    ledger.seen[2], ledger.dear[2] = True, [0.2, 0.3, 0.5]
    ledger.write(12.5)
    again = Ledger(path, "key", shape)
    assert again.seen.tolist() == [False, False, True, False]
    assert again.dear[2, 0].tolist() == [0.2, 0.3, 0.5]
    assert again.seconds == 12.5
    for other in (Ledger(path, "another", shape), Ledger(path, "key", (5, 1, 3))):
        assert not other.seen.any()
        assert other.seconds == 0
    path.write_bytes(path.read_bytes()[:100])
    assert not Ledger(path, "key", shape).seen.any()


def read(path):
    table = pc.read_csv(path)
    return table["id"].to_pylist(), np.stack([table[c].to_numpy() for c in CLASSES], axis=1)


def command(trained, out, *more, models=("student", "llama", "gemma2")):
    models = [str(trained / name) for name in models]
    return ["--cascade", *models, "--data", str(trained / "rows.parquet"), "--out", str(out), *more]


@pytest.fixture
def hopeful(monkeypatch):
    """Something is expected of the dear models on every row."""
    fit = timed.fit_cascade

    def hoping(P, y):
        found = fit(P, y)
        found.coefficients[0] += 10
        return found

    monkeypatch.setattr(timed, "fit_cascade", hoping)


def saw(shown):
    return int(re.search(r"rows, (\d+) of them", shown)[1])


def test_with_time_enough_the_dear_models_see_every_row_of_which_gain_is_expected(trained, tmp_path, capsys):
    out = tmp_path / "out.csv"
    predict.main(command(trained, out, "--minutes", "60"))
    shown = capsys.readouterr().out
    ids, probs = read(out)
    rows = read_rows(trained)
    assert ids == list(rows.row_ids)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    left = re.search(r"(\d+) rows were left to student", shown)
    assert saw(shown) + (int(left[1]) if left else 0) == len(rows)
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_a_budget_that_the_cheap_model_overdraws_leaves_a_whole_file_and_says_so(trained, tmp_path, capsys):
    out = tmp_path / "out.csv"
    predict.main(command(trained, out, "--minutes", "0.0001"))
    shown = capsys.readouterr().out
    assert saw(shown) == 0
    assert "more time was taken than given" in shown
    assert len(read(out)[0]) == 96


def test_a_killed_command_leaves_a_whole_file_and_goes_on_with_what_it_had(
    trained, tmp_path, capsys, monkeypatch, hopeful
):
    out, calls, original = tmp_path / "out.csv", [], Loaded.predict
    monkeypatch.setattr(timed, "CHUNK_SECONDS", 1e-9)  # chunks of the fewest rows

    def counted(self, rows, what, waiting=None):
        if waiting is None:
            calls.append((self.saved.name, rows.row_ids))
            if len(calls) == 4 and limit:
                raise KeyboardInterrupt
        return original(self, rows, what, waiting)

    monkeypatch.setattr(Loaded, "predict", counted)
    limit = True
    with pytest.raises(KeyboardInterrupt):
        predict.main(command(trained, out, "--minutes", "60"))
    first = read(out)
    assert len(first[0]) == 96
    had = {id for _, ids in calls[:2] for id in ids}
    assert len(had) == FEWEST
    limit, calls[:] = False, []
    predict.main(command(trained, out, "--minutes", "60"))
    assert not had & {id for _, ids in calls for id in ids}
    assert saw(capsys.readouterr().out) == 96
    killed = dict(zip(*read(out), strict=True))
    kept = dict(zip(*first, strict=True))
    for id in had:
        np.testing.assert_allclose(killed[id], kept[id], atol=1e-6)
    predict.main(command(trained, tmp_path / "at-once.csv", "--minutes", "60"))
    np.testing.assert_allclose(read(out)[1], read(tmp_path / "at-once.csv")[1], atol=1e-4)


def test_rows_for_which_a_dear_model_has_no_number_keep_the_cheap_ones(
    trained, tmp_path, capsys, monkeypatch, hopeful
):
    original = Loaded.predict

    def overflowing(self, rows, what, waiting=None):
        logits = original(self, rows, what, waiting)
        if self.saved.name == "gemma2":
            logits[:3] = np.nan
        return logits

    monkeypatch.setattr(Loaded, "predict", overflowing)
    out = tmp_path / "out.csv"
    predict.main(command(trained, out, "--minutes", "60"))
    assert "rows have no finite prediction of llama + gemma2" in capsys.readouterr().out
    assert np.isfinite(read(out)[1]).all()


def test_two_processes_leave_the_same_file(trained, tmp_path):
    """As on two cards: one clock, one file."""
    begin = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    one, two = (
        command(trained, tmp_path / name, "--minutes", "30", models=("llama", "gemma2"))
        for name in ("one.csv", "two.csv")
    )
    done = subprocess.run(
        [*begin, "-m", "distill.predict", *two],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("llama: 96 rows") == 1
    assert saw(done.stdout) > 0
    predict.main(one)
    np.testing.assert_allclose(read(tmp_path / "two.csv")[1], read(tmp_path / "one.csv")[1], atol=1e-4)


def test_a_run_in_32_bits_is_served_in_fewer(tmp_path, tiny_recipe):
    prepare(simulate_arena(ArenaConfig(n_rows=40, seed=1)), tmp_path / "arena", n_folds=2, seed=1)
    changed = ["teachers.llama.backbone.precision=fp32", "teachers.llama.train.epochs=0.3"]
    common = ["--recipe", str(tiny_recipe), "--data", str(tmp_path / "arena"), "--only", "llama"]
    teacher_oof.main([*common, *changed])
    export.main(["--model", str(tmp_path / "arena" / "llama"), "--average", "--out", str(tmp_path / "plain")])
    found = {}
    for precision in ("", "fp16", "int8"):
        out = tmp_path / f"{precision or 'own'}.csv"
        more = ["--precision", precision] if precision else []
        predict.main(
            ["--model", str(tmp_path / "plain"), "--data", str(tmp_path / "arena"), "--out", str(out), *more]
        )
        found[precision] = read(out)[1]
    for precision, close in (("fp16", 2e-3), ("int8", 3e-2)):
        assert 0 < abs(found[precision] - found[""]).max() < close
    with pytest.raises(UserError, match="has 2 fold models"):
        read_saved(tmp_path / "arena" / "llama", Access(precision="int8"))


def test_a_quantised_run_keeps_its_own_precision(trained):
    for precision in ("fp16", "int8"):
        assert read_saved(trained / "llama", Access(precision=precision)).access.precision == ""


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--minutes", "0"], "above 0"), (["--minutes", "9", "--budget", "0.5"], "not allowed with")],
)
def test_what_makes_no_sense_is_refused(trained, tmp_path, more, words):
    with pytest.raises(UserError, match=words):
        predict.main(command(trained, tmp_path / "out.csv", *more))


def test_minutes_need_a_cascade(trained, tmp_path):
    out = str(tmp_path / "out.csv")
    with pytest.raises(UserError, match="--cascade"):
        predict.main(
            ["--model", str(trained / "llama"), "--minutes", "3", "--data", str(trained), "--out", out]
        )


def test_each_run_finds_its_backbone_under_an_input_directory(trained, tmp_path):
    for name in ("llama", "student"):
        shutil.copytree(trained / name, tmp_path / "runs" / name)
    shutil.copytree(trained / "backbones", tmp_path / "input" / "some-set" / "models")
    for name in ("llama", "student"):
        found = read_saved(tmp_path / "runs" / name, Access(backbone=str(tmp_path / "input")))
        there = read_saved(trained / name)
        assert found.backbone.startswith(str(tmp_path / "input"))
        assert found.backbone.rsplit("/", 1)[1] == there.backbone.rsplit("/", 1)[1]
    (tmp_path / "nothing" / "x").mkdir(parents=True)
    (tmp_path / "nothing" / "x" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no checkpoint that .* was trained from"):
        read_saved(tmp_path / "runs" / "llama", Access(backbone=str(tmp_path / "nothing")))
