"""A model that is trained on another data set first: what is kept, what is left out, what is recorded."""

import csv
import json
import shutil
from itertools import cycle

import numpy as np
import pyarrow.csv as pc
import pytest
import torch
from safetensors.torch import load_file

from data import prepare_rows
from data.dataset import load_prepared
from data.errors import UserError
from data.softlabels import read_store
from distill import export, predict, student, teacher_oof
from distill.config import BackboneConfig, LoraConfig
from distill.doctor.__main__ import main as doctor
from distill.model.backbone import add_adapters, load_base
from distill.race.__main__ import main as race

LORA = "base_model.model.model.layers.1.mlp.down_proj.lora_{}.weight"
HEAD = "base_model.model.score.weight"
SHARED = 7


@pytest.fixture(scope="module")
def others(trained, tmp_path_factory):
    """Prepared texts of four classes, seven of which are prompts of the arena's rows."""
    home = tmp_path_factory.mktemp("others")
    texts = [f"sentence {i} of {word} and nothing else" for i in range(8) for word in "abcd"]
    return prepared_texts(home, [*texts, *prompts_of(trained)], "wxyz")


def prompts_of(trained):
    """Some of the arena's prompts, of one turn."""
    rows, _ = load_prepared(trained)
    found = [turns[0] for turns in rows.table.column("prompt").to_pylist() if len(turns) == 1]
    return list(dict.fromkeys(found))[:SHARED]


def prepared_texts(home, texts, labels):
    with open(home / "texts.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, cycle(labels), strict=False)])
    prepare_rows(home / "texts.csv", home / "texts", folds=2)
    return home / "texts"


def overrides(others, whom="teachers.llama"):
    return [f"{whom}.pretrain.data={others}", f"{whom}.pretrain.epochs=1"]


@pytest.fixture(scope="module")
def place(trained, others, tiny_recipe, tmp_path_factory):
    """A teacher with a stage before it, whose own training leaves next to everything where it was."""
    out = tmp_path_factory.mktemp("pretrained")
    shutil.copytree(trained / "backbones", out / "backbones")
    own = ["teachers.llama.train.lr=1e-12", "teachers.llama.pretrain.lr=1e-3", *overrides(others)]
    teacher_oof.main(command(trained, tiny_recipe, out, own))
    return out


def command(trained, recipe, out, own):
    return ["--recipe", str(recipe), "--data", str(trained), "--out", str(out), "--only", "llama", *own]


def adapter(run, part):
    return load_file(run / part / "adapter" / "adapter_model.safetensors")


def test_every_training_starts_from_the_stage_with_a_head_of_its_own(place):
    run = place / "llama"
    stage = adapter(run / "pretrain", "final")
    assert stage[HEAD].shape[0] == 4
    assert stage[LORA.format("B")].abs().max() > 1e-4
    for part in ("fold-0", "fold-1"):
        found = adapter(run, part)
        assert found[HEAD].shape[0] == 3
        for name in (LORA.format("A"), LORA.format("B")):
            torch.testing.assert_close(found[name], stage[name], atol=1e-6, rtol=0)


def test_rows_of_the_runs_own_prompts_are_left_out_and_all_is_on_record(trained, others, place):
    run = place / "llama"
    manifest = json.loads((run / "manifest.json").read_text())
    rows, _ = load_prepared(others)
    assert manifest["pretrain"]["rows_hash"] == rows.content_hash
    assert manifest["pretrain"] == manifest["pretrain"] | {
        "classes": list("wxyz"), "epochs": 1, "lr": 1e-3, "seed": 0
    }  # fmt: skip
    stage = json.loads((run / "pretrain" / "manifest.json").read_text())
    assert (stage["n_rows"], stage["left_out"]) == (len(rows) - SHARED, SHARED)
    assert stage["backbone"]["weight_hash"] == manifest["backbone"]["weight_hash"]
    kept = json.loads((run / "pretrain" / "final" / "trained_on.json").read_text())
    for part in ("fold-0", "fold-1"):
        record = json.loads((run / part / "trained_on.json").read_text())
        assert record["start_hash"] == kept["weights_hash"]
    assert read_store(run).logits.shape == read_store(trained / "llama").logits.shape


def test_a_run_goes_on_and_refuses_another_stage(trained, others, tiny_recipe, place, tmp_path):
    own = ["teachers.llama.train.lr=1e-12", "teachers.llama.pretrain.lr=1e-3", *overrides(others)]
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    run = tmp_path / "llama"
    before = (run / "pretrain" / "final" / "trained_on.json").stat().st_mtime_ns
    (run / "oof.parquet").unlink()
    shutil.rmtree(run / "fold-1")
    teacher_oof.main(command(trained, tiny_recipe, tmp_path, own))
    assert (run / "pretrain" / "final" / "trained_on.json").stat().st_mtime_ns == before
    np.testing.assert_array_equal(read_store(run).logits, read_store(place / "llama").logits)
    with pytest.raises(UserError, match=r"holds another run: its manifest differs in pretrain.epochs"):
        teacher_oof.main(command(trained, tiny_recipe, tmp_path, [*own, "teachers.llama.pretrain.epochs=2"]))
    shutil.rmtree(run / "fold-1")
    (run / "oof.parquet").unlink()
    weights = run / "pretrain" / "final" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UserError, match="was changed or damaged"):
        teacher_oof.main(command(trained, tiny_recipe, tmp_path, own))


def test_a_dry_run_reckons_with_it(trained, others, tiny_recipe, tmp_path, capsys):
    teacher_oof.main([*command(trained, tiny_recipe, tmp_path, overrides(others)), "--dry-run"])
    assert "llama/pretrain" in capsys.readouterr().out
    assert not (tmp_path / "llama").exists()


def test_a_student_needs_nothing_of_it_once_it_is_trained(trained, others, tiny_recipe, tmp_path):
    shutil.copytree(trained / "backbones", tmp_path / "backbones")
    out = tmp_path / "student"
    common = ["--recipe", str(tiny_recipe), "--data", str(trained)]
    student.main([*common, "--out", str(out), *overrides(others, "student")])
    moved = tmp_path / "elsewhere" / "student"
    shutil.copytree(out, moved, ignore=shutil.ignore_patterns("pretrain"))
    probs = []
    for path in (out, moved):
        file = tmp_path / f"{path.parent.name}.csv"
        base = str(tmp_path / "backbones")
        data = str(trained / "rows.parquet")
        predict.main(["--model", str(path), "--data", data, "--out", str(file), "--backbone", base])
        probs.append(np.stack([column.to_numpy() for column in pc.read_csv(file).columns[1:]]))
    np.testing.assert_array_equal(*probs)
    export.main(["--model", str(out), "--out", str(tmp_path / "plain")])
    assert "trained on other rows" in (tmp_path / "plain" / "README.md").read_text()
    assert doctor([str(out)]) == 0


def test_other_data_that_cannot_serve_are_refused(trained, others, tiny_recipe, tmp_path):
    def refused(data, words):
        with pytest.raises(UserError, match=words):
            teacher_oof.main(command(trained, tiny_recipe, tmp_path, overrides(data)))

    shutil.copytree(trained / "backbones", tmp_path / "backbones")
    refused(trained, "the very rows")
    refused(tmp_path / "none", "no such row table")
    refused(prepared_texts(tmp_path, prompts_of(trained), "ab"), f"no labelled rows but {SHARED}")
    assert not (tmp_path / "llama" / "fold-0").exists()


def test_how_alike_prompts_count_as_one_must_be_known(trained, others, tiny_recipe, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("rows.parquet", "folds.parquet"):
        shutil.copyfile(trained / name, data / name)
    with pytest.raises(UserError, match=r"data/manifest\.json: is missing"):
        teacher_oof.main(command(data, tiny_recipe, tmp_path / "out", overrides(others)))
    assert not list((tmp_path / "out").glob("*"))


def test_a_race_has_no_stage(trained, others, tiny_recipe, tmp_path):
    own = ["--backbones", "llama", "gemma2", "--out", str(tmp_path / "race"), *overrides(others)]
    with pytest.raises(UserError, match=r"llama has pretrain\.data, which is no part of a race"):
        race(["--recipe", str(tiny_recipe), "--data", str(trained), *own])


def test_full_weights_start_from_full_weights(trained, tmp_path):
    path = str(next((trained / "backbones").glob("*llama*")))
    config, full = BackboneConfig(path=path, precision="fp32"), LoraConfig(enabled=False)
    first = add_adapters(load_base(config, path, 4), full, seed=1)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.5)
    first.save(tmp_path)
    second = add_adapters(load_base(config, path, 3), full, seed=1)
    second.start_from(tmp_path)
    wanted = dict(first.named_parameters())
    for name, parameter in second.named_parameters():
        if name == "model.score.weight":
            assert not parameter.any()
        else:
            torch.testing.assert_close(parameter, wanted[name])
