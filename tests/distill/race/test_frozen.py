"""A probe by command: frozen backbones read the rows, their verdicts are kept, and lengths are the mark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from paired_texts import pairs
from recipes import TINY_RECIPE

from data.arena import ArenaConfig, simulate_arena
from data.dataset import prepare
from data.errors import UserError
from data.folds import make_folds
from distill.race import __main__ as race
from distill.race import frozen
from distill.race.frozen import LENGTHS, Probed, probe_lines, some_rows


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "probe.yaml"
    path.write_text(TINY_RECIPE.replace("pretrain_steps: 4", "pretrain_steps: 1").split("student:")[0])
    return path


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("probe-data")
    prepare(simulate_arena(ArenaConfig(n_rows=90, seed=1)), directory, n_folds=3, seed=1)
    return directory


def test_the_command_ranks_backbones_and_reads_none_twice(
    recipe: Path, arena: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--recipe", str(recipe), "--data", str(arena), "--backbones", "llama", "gemma2", "--probe"]
    race.main(command)
    printed = capsys.readouterr().out
    for name in ("llama", "gemma2", LENGTHS):
        assert name in printed
    assert "90 rows" in printed
    assert not (arena / "race").exists()

    def refuse(*_: object) -> None:
        raise AssertionError("a backbone was read again")

    monkeypatch.setattr(frozen, "states_of", refuse)
    race.main(command)
    again = capsys.readouterr().out
    for name in ("llama", "gemma2"):
        line = next(line for line in printed.splitlines() if line.startswith(f"{name} "))
        assert (
            line.split()[1:3]
            == next(line for line in again.splitlines() if line.startswith(f"{name} ")).split()[1:3]
        )
    with pytest.raises(AssertionError, match="read again"):
        race.main([*command, "--probe-rows", "40"])
    with pytest.raises(UserError, match="--probe-rows is -1"):
        race.main([*command, "--probe-rows", "-1"])


def test_padding_and_the_order_of_texts_leave_states_alone(recipe: Path, arena: Path) -> None:
    from data.dataset import load_prepared
    from data.encoding.template import read_template
    from distill.model.backbone import load_base, load_tokenizer
    from distill.recipe import load_recipe
    from distill.runs.run import resolve_backbone

    rows = load_prepared(arena)[0]
    model = load_recipe(str(recipe), []).teachers["gemma2"]
    home = resolve_backbone(model, rows, read_template(model.template), arena / "probe")
    base = load_base(model.backbone, home, 2).base_model
    tokenizer = load_tokenizer(model.backbone, home)
    texts = [("a question\n\n", "short"), ("", "a longer answer with many more words in it"), ("q\n\n", "")]
    together = frozen.frozen_states(base, tokenizer, texts, "test")
    for i, text in enumerate(texts):
        alone = frozen.frozen_states(base, tokenizer, [text], "test")
        np.testing.assert_allclose(together[i], alone[0], atol=2e-5)
    ids = tokenizer("a question\n\n", add_special_tokens=False)["input_ids"]
    own = tokenizer("short", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        states = base(input_ids=torch.tensor([[tokenizer.bos_token_id, *ids, *own]])).last_hidden_state[0]
    expected = torch.cat([states[-len(own) :].mean(dim=0), states[-1]])
    np.testing.assert_allclose(together[0], expected.float().numpy(), atol=2e-5)


def test_every_fold_keeps_its_share_and_lines_are_paired() -> None:
    rows, _ = pairs(200)
    folds = make_folds(rows, 4, seed=0)
    few, some = some_rows(rows, folds, 60)
    assert len(few) == 60
    own = dict(zip(folds.row_ids, zip(folds.group_ids, folds.fold.tolist(), strict=True), strict=True))
    for one in zip(some.row_ids, some.group_ids, some.fold.tolist(), strict=True):
        assert own[one[0]] == one[1:]
    assert set(some.fold) == {0, 1, 2, 3}
    assert some_rows(rows, folds, 0)[0] is rows
    base = np.random.default_rng(0).uniform(0.5, 1.5, len(rows))
    right = np.ones(len(rows), dtype=bool)
    found = [Probed(LENGTHS, base, right, 0.0), Probed("good", base - 0.2, right, 1.0)]
    best, other = probe_lines(found, folds)
    assert best[:3] == ["good", f"{base.mean() - 0.2:.4f}", "1.000"]
    assert best[3] == "-0.2000"
    assert best[4].startswith("-0.2000 to")
    assert best[5:7] == ["", ""]
    assert other[0] == LENGTHS
    assert other[5] == "+0.2000"
