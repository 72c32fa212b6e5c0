"""The race: one budget, the same rows, a killed race continued, the loser stopped and the winner finished."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from data.arena import ArenaConfig, simulate_arena
from data.dataset import prepare
from data.errors import UserError
from data.files import read_json
from distill.config import TrainConfig
from distill.race import __main__ as race
from distill.race.race import Race, Rules, rates_at_looks, row_losses
from distill.race.tuning import SHARE, best_rate, in_words

BACKBONES = ["--backbones", "llama", "gemma2"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Two tiny models that train to the end in seconds, one of them at a hopeless rate."""
    from recipes import TINY_RECIPE

    path = tmp_path_factory.mktemp("race") / "race.yaml"
    text = TINY_RECIPE.replace("epochs: 2,", "epochs: 1,").replace("pretrain_steps: 4", "pretrain_steps: 1")
    path.write_text(text.split("student:")[0])
    return path


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    directory = tmp_path_factory.mktemp("race-data")
    prepare(simulate_arena(ArenaConfig(n_rows=96, seed=1)), directory, n_folds=3, seed=1)
    return directory


@pytest.fixture(scope="module")
def finished(recipe, arena):
    out = arena / "race"
    race.main(["--recipe", str(recipe), "--data", str(arena), *BACKBONES, "--looks", "3"])
    return out


def losses(out):
    import pyarrow.parquet as pq

    return {
        (name, look): pq.read_table(out / name / f"look-{look}.parquet").column("loss").to_numpy()
        for name in ("llama", "gemma2")
        for look in (1, 2, 3)
        if (out / name / f"look-{look}.parquet").exists()
    }


def test_a_race_leaves_curves_a_verdict_and_a_winner_to_go_on_with(finished, capsys):
    page = (finished / "race.html").read_text()
    assert "<polyline" in page
    assert "is ahead at" in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert (finished / "race.svg").read_text().startswith("<svg")
    rows = {key: len(value) for key, value in losses(finished).items()}
    assert len(rows) == 6
    assert len(set(rows.values())) == 1
    done = [name for name in ("llama", "gemma2") if (finished / name / "fold-0" / "oof.parquet").exists()]
    assert len(done) == 1
    record = json.loads((finished / done[0] / "look-3.json").read_text())
    assert record["share"] == 1.0
    assert record["tokens"] > 0
    assert 0 < record["parameters"][0] < record["parameters"][1]


def test_every_look_is_told_as_it_is_taken(finished, recipe, arena, capsys):
    race.main(["--recipe", str(recipe), "--data", str(arena), *BACKBONES, "--looks", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["33%", "67%", "100%"]
    first = dict(zip(*[iter(lines[0].split()[1:])] * 2, strict=True))
    assert set(first) == {"llama", "gemma2"}
    for name, shown in first.items():
        assert float(shown) == pytest.approx(losses(finished)[name, 1].mean(), abs=1e-4)


def test_the_winner_was_continued_and_not_started_again(finished, recipe, arena, tmp_path):
    """Its steps appear once each, and its fold is that of a plain training of the same recipe."""
    from data.schema import read_rows
    from data.softlabels import read_logits
    from distill import teacher_oof

    (winner,) = [n for n in ("llama", "gemma2") if (finished / n / "fold-0" / "oof.parquet").exists()]
    metrics = (finished / winner / "fold-0" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in metrics if "loss" in json.loads(line)]
    assert steps == sorted(set(steps))
    shutil.copytree(finished / "backbones", tmp_path / "backbones")
    teacher_oof.main(
        ["--recipe", str(recipe), "--data", str(arena), "--out", str(tmp_path), "--only", winner]
    )
    classes = read_rows(arena).classes
    raced = read_logits(finished / winner / "fold-0" / "oof.parquet", classes)
    plain = read_logits(tmp_path / winner / "fold-0" / "oof.parquet", classes)
    assert raced[0] == plain[0]
    np.testing.assert_allclose(raced[2], plain[2], atol=1e-5)


def test_a_race_that_was_cut_short_continues_to_the_same_result(
    finished, recipe, arena, tmp_path, monkeypatch
):
    shutil.copytree(finished / "backbones", tmp_path / "backbones")
    words = [
        "--recipe",
        str(recipe),
        "--data",
        str(arena),
        *BACKBONES,
        "--looks",
        "3",
        "--out",
        str(tmp_path),
    ]
    real = Race._reach

    def killed(self, contestant, number):
        if contestant.name == "gemma2" and number == 2:
            raise KeyboardInterrupt
        real(self, contestant, number)

    monkeypatch.setattr(Race, "_reach", killed)
    with pytest.raises(KeyboardInterrupt):
        race.main(words)
    monkeypatch.undo()
    race.main(words)
    whole, again = losses(finished), losses(tmp_path)
    assert whole.keys() == again.keys()
    for key, value in whole.items():
        np.testing.assert_allclose(again[key], value, atol=1e-6)
    with pytest.raises(UserError, match="another race"):
        race.main([*words, "--alpha", "0.1"])


def test_a_race_that_was_cut_short_before_its_contestants_were_written_down_continues(
    finished, recipe, arena, tmp_path, monkeypatch
):
    for name in ("backbones", "race.json"):
        (shutil.copytree if name == "backbones" else shutil.copy)(finished / name, tmp_path / name)
    monkeypatch.setattr(Race, "go", lambda self, tell: None)
    monkeypatch.setattr(Race, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    words = [
        "--recipe",
        str(recipe),
        "--data",
        str(arena),
        *BACKBONES,
        "--looks",
        "3",
        "--out",
        str(tmp_path),
    ]
    with pytest.raises(KeyboardInterrupt):
        race.main(words)
    for name in ("llama", "gemma2"):
        assert {path.name for path in (tmp_path / name).iterdir()} == {"config.yaml", "manifest.json"}


def test_a_worse_backbone_is_stopped_and_its_steps_are_saved(finished, recipe, arena, tmp_path, monkeypatch):
    """Losses five nats apart: stopped at the fourth look, the first at which anything may be."""
    shutil.copytree(finished / "backbones", tmp_path / "backbones")
    from distill.race import race as racing

    real = racing.Race._train_to

    def train_to(self, contestant, share):
        found, record = real(self, contestant, share)
        return found + 5 * (contestant.name == "gemma2"), record

    monkeypatch.setattr(racing.Race, "_train_to", train_to)
    words = [
        "--recipe",
        str(recipe),
        "--data",
        str(arena),
        *BACKBONES,
        "--looks",
        "8",
        "--out",
        str(tmp_path),
    ]
    race.main(words)
    assert (tmp_path / "gemma2" / "look-4.json").exists()
    assert not (tmp_path / "gemma2" / "look-5.json").exists()
    assert "gemma2 was stopped at 50% of the budget" in (tmp_path / "race.html").read_text()
    assert (tmp_path / "llama" / "fold-0" / "oof.parquet").exists()


def test_budgets_of_tokens_and_seconds(recipe, arena, tmp_path):
    from data.dataset import load_prepared
    from distill.race.race import Rules, budget_tokens
    from distill.recipe import load_recipe

    rows, folds = load_prepared(arena)
    models = dict(load_recipe(str(recipe)).teachers)
    models["llama"].train.both_orders = False
    runs = race.plan_all(models, rows, folds, arena, tmp_path, Rules(4, budget="tokens"))
    inside = np.flatnonzero(folds.fold != 0)
    one, two = (budget_tokens(r, inside) for r in runs)
    assert one == pytest.approx(two)
    assert runs[1].model.train.epochs < runs[0].model.train.epochs
    assert runs[1].manifest["train"]["epochs"] == runs[1].model.train.epochs
    place = tmp_path / "timed"
    timed = race.plan_all(models, rows, folds, arena, place, Rules(4, budget="seconds=5"))
    again = race.plan_all(models, rows, folds, arena, place, Rules(4, budget="seconds=5"))
    assert [r.model.train.epochs for r in timed] == [r.model.train.epochs for r in again]  # paced once
    with pytest.raises(UserError, match="budget"):
        race.plan_all(models, rows, folds, arena, tmp_path, Rules(budget="steps"))


def test_tuning_picks_a_rate_by_another_fold(recipe, arena, tmp_path):
    from dataclasses import replace

    from data.dataset import load_prepared
    from distill.race.race import Rules
    from distill.race.tuning import FACTORS
    from distill.recipe import load_recipe

    rows, folds = load_prepared(arena)
    model = load_recipe(str(recipe)).teachers["llama"]
    model = replace(model, train=replace(model.train, epochs=4))
    runs = race.plan_all({"llama": model}, rows, folds, arena, tmp_path, Rules(tune="lr"))
    found = json.loads((tmp_path / "tuning" / "llama" / "tuned.json").read_text())
    assert found["fold"] == 1
    assert len(found["tried"]) == len(FACTORS)
    assert runs[0].model.train.lr == found["lr"]
    kept = {lr: tmp_path / "tuning" / "llama" / f"lr-{lr}" for lr in found["tried"]}
    losses = {float(lr): np.array(read_json(at / "losses.json", "")["losses"]) for lr, at in kept.items()}
    steps = [
        sum("loss" in json.loads(line) for line in (at / "metrics.jsonl").open()) for at in kept.values()
    ]
    assert min(steps) == max(steps) > 0  # each to its end
    means = {lr: float(loss.mean()) for lr, loss in losses.items()}
    assert found["lr"] == pytest.approx(best_rate(means, np.log(3)) * SHARE**0.5, rel=0.05)


RATES = (7.5e-5, 1.5e-4, 3e-4, 6e-4, 1.2e-3)


def test_two_sweeps_of_one_backbone_tell_one_rate():
    # The same trainings of a Gemma-3-270M, twice on one kind of card (benchmarks/study.md).
    first = best_rate(dict(zip(RATES, (0.9446, 0.9788, 0.8974, 0.9383, 1.0494), strict=True)), np.log(3))
    second = best_rate(dict(zip(RATES, (0.9428, 0.9318, 0.9159, 0.9370, 0.9718), strict=True)), np.log(3))
    assert first == pytest.approx(second, rel=0.05)


@pytest.mark.parametrize("best", [1.5e-4, 4e-4])
def test_the_lowest_point_of_a_parabola_is_found_between_the_rates(best):
    losses = {lr: 0.8 + 0.02 * np.log(lr / best) ** 2 for lr in RATES}
    assert best_rate(losses, np.log(3)) == pytest.approx(best)
    assert best_rate(losses | {2.4e-3: 7.0}, np.log(3)) == pytest.approx(best)  # it diverged and says nothing


def test_where_no_parabola_fits_the_rate_of_the_least_loss_is_taken():
    assert best_rate({1e-4: 0.9, 2e-4: 0.8}, 1.1) == 2e-4
    assert best_rate({1e-4: 0.8, 2e-4: 0.95, 4e-4: 0.9}, 1.1) == 1e-4  # bent the other way
    assert best_rate({1e-4: 1.2, 2e-4: 1.3, 4e-4: 1.5}, 1.1) == 1e-4
    assert best_rate({1e-4: 1.0, 2e-4: 0.9, 4e-4: 0.85}, 1.1) == 4e-4  # still falling: none beyond the tried


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ((0.95, 0.9, 0.88, 0.9, 1.0), r"8e-05 0\.9500, .*0\.0013 1\.0000$"),
        ((1.1, 1.12, 1.2, 1.3, None), r"0\.0013 diverged; none of them knows more than nothing \(1\.0986\)"),
        ((0.8, 0.9, 1.0, 1.1, 1.2), "; a lower one than these may be better still"),
        ((1.0, 0.98, 0.95, 0.9, 0.8), "; a higher one than these may be better still"),
        ((1.0, 0.98, 0.95, 0.9, None), r"diverged$"),
    ],
)
def test_what_a_sweep_is_worth_is_said(losses, words):
    tried = dict(zip(("8e-05", "0.00016", "0.00032", "0.00064", "0.0013"), losses, strict=True))
    line = in_words("llama", 1.5e-4, tried, 1, np.log(3))
    assert line.startswith(
        "llama: learning rate 0.00015, by a quarter of the budget at each, scored on fold 1"
    )
    assert re.search(words, line), line


def test_a_sweep_of_another_request_is_not_taken_up(recipe, arena, tmp_path, capsys):
    """As of one that was stopped for being slow, and is asked for anew with shorter rows."""
    from dataclasses import replace

    from data.dataset import load_prepared
    from distill.race.race import Rules
    from distill.recipe import load_recipe

    rows, folds = load_prepared(arena)
    model = load_recipe(str(recipe)).teachers["llama"]
    model = replace(model, train=replace(model.train, epochs=4))
    told = []
    for _ in range(2):
        race.plan_all({"llama": model}, rows, folds, arena, tmp_path, Rules(tune="lr"), told.append)
    assert told[0] == told[1]
    (tmp_path / "tuning" / "llama" / "tuned.json").unlink()
    shorter = replace(model, encode=replace(model.encode, max_length=64))
    dearer = replace(model, train=replace(model.train, lr=model.train.lr * 2))
    for other, field in ((shorter, "llama.truncation.max_length"), (dearer, "llama.train.lr")):
        with pytest.raises(UserError, match=f"another race: contestants.{field} .*another --out"):
            race.plan_all({"llama": other}, rows, folds, arena, tmp_path, Rules(tune="lr"))
    with pytest.raises(UserError, match=r"another race: rules\.budget"):
        race.plan_all({"llama": model}, rows, folds, arena, tmp_path, Rules(budget="seconds=9"))


def test_rates_at_the_looks_are_those_of_the_schedule():
    def rates(schedule, warmup):
        rows = SimpleNamespace(fold=np.arange(120) % 3)
        train = TrainConfig(schedule=schedule, warmup=warmup, epochs=1.0, rows_per_step=2)
        model, examples = SimpleNamespace(train=train), SimpleNamespace(labelled=np.ones(120, dtype=bool))
        return rates_at_looks(SimpleNamespace(model=model, folds=rows, examples=examples), Rules(looks=4))

    assert rates("linear", 0.0) == pytest.approx([0.75, 0.5, 0.25, 0])
    assert rates("cosine", 0.0)[::2] == pytest.approx([(1 + 2**-0.5) / 2, (1 - 2**-0.5) / 2])
    assert rates("constant", 0.0) == [1, 1, 1, 1]
    assert rates("constant_with_warmup", 0.5) == [0.5, 1, 1, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backbones", "llama"], "two or more"),
        (["--backbones", "llama", "nonsense"], "nonsense"),
        ([*BACKBONES, "--looks", "2"], "--looks"),
        ([*BACKBONES, "--fold", "9"], "--fold"),
        ([*BACKBONES, "--validation-rows", "-3"], "--validation-rows is -3"),
        ([*BACKBONES, "--budget", "seconds=0"], "--budget seconds=0: not rows"),
        ([*BACKBONES, "--budget", "seconds=nan"], "--budget seconds=nan: not rows"),
        ([*BACKBONES, "--probe", "--tune", "lr"], "--tune lr is of a race, and --probe trains nothing"),
        ([*BACKBONES, "--looks", "50"], "8 steps, too few for 50 looks"),
    ],
)
def test_mistakes_are_named(words, message, recipe, arena):
    with pytest.raises(UserError, match=message):
        race.main(["--recipe", str(recipe), "--data", str(arena), *words])


@pytest.mark.parametrize("words", [["--budget", "steps"], ["--looks", "50"]])
def test_a_mistake_is_named_before_rates_are_tuned(words, recipe, arena, tmp_path):
    out = ["--out", str(tmp_path / "race"), "--tune", "lr"]
    with pytest.raises(UserError, match=r"not rows, tokens|too few for 50 looks"):
        race.main(["--recipe", str(recipe), "--data", str(arena), *BACKBONES, *out, *words])
    assert not (tmp_path / "race" / "tuning").exists()


def test_tuning_asks_for_a_third_fold_before_a_backbone_is_made(recipe, tmp_path):
    data = tmp_path / "two"
    prepare(simulate_arena(ArenaConfig(n_rows=32)), data, n_folds=2)
    with pytest.raises(UserError, match="--tune lr needs a third fold to score on; the data have 2"):
        race.main(["--recipe", str(recipe), "--data", str(data), *BACKBONES, "--tune", "lr"])
    assert not (data / "race" / "backbones").exists()


def test_a_verdict_says_who_is_worse_than_knowing_nothing():
    """A rate too high for one backbone had it end at 1.47, and the verdict spoke of backbones alone."""

    def verdict(*means, tune=""):
        look = SimpleNamespace(difference=0.4, low=-1.4, high=2.2, share=1.0)
        contestants = [
            SimpleNamespace(name=name, losses=[np.full(4, mean)], stopped=None)
            for name, mean in zip(("smol", "qwen"), means, strict=True)
        ]
        rows = SimpleNamespace(classes=SimpleNamespace(n=3), sizes=None)
        rules = SimpleNamespace(alpha=0.05, tune=tune)
        given = {"contestants": contestants, "groups": 99, "rows": rows, "rules": rules}
        return race.verdict_of(SimpleNamespace(winner=0, last_look=lambda *_: look, **given))

    assert "Worse than knowing nothing, 1.0986: qwen; that tells of a learning rate" in verdict(1.05, 1.47)
    assert "knowing nothing" not in verdict(1.05, 1.09)
    assert "qwen; that tells of too few rows, and not" in verdict(1.05, 1.47, tune="lr")


def test_row_losses_average_the_orders():
    logits = np.array([[[2.0, 0, 0], [0, 0, 0]]])
    expected = -1 + np.log(np.exp(1) + 2)
    assert row_losses(logits, np.array([[1.0, 0, 0]])) == pytest.approx([expected])


def test_the_threads_recipe_freezes_the_layers_it_says():
    from distill.recipe import load_recipe

    shares = {n: m.lora.first_layer for n, m in load_recipe("seed-thread").teachers.items()}
    assert round(shares["gemma2-9b"] * 42) == 16
    assert round(shares["llama31-8b-same-layers"] * 32) == 16
    assert round(shares["llama31-8b-same-share"] * 32) == 12


def test_an_options_value_that_looks_like_an_override_is_the_options():
    words = [
        "--budget",
        "seconds=60",
        "--backbones",
        "a",
        "b",
        "teachers.a.train.lr=1",
        "--out",
        "seed=1/race",
    ]
    args = race.arguments(words)
    assert (args.budget, str(args.out), args.backbones) == ("seconds=60", "seed=1/race", ["a", "b"])
    assert args.overrides == ["teachers.a.train.lr=1"]
