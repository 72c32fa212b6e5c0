"""An average of runs changes the base by the mean of their changes, and is a run like any other."""

import json
import shutil

import numpy as np
import pyarrow.csv as pc
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.errors import UserError
from data.softlabels import read_store
from distill import average, average_runs, export, predict, train_student
from distill.doctor.__main__ import main as doctor
from distill.prediction.merge import merged_model
from distill.runs.averaged import write_mean
from distill.runs.saved import Access, read_saved

NAME = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def runs(trained, tiny_recipe, tmp_path_factory):
    """The session's student, and another of the same base: its own seed, rank and scale."""
    base = json.loads((trained / "student" / "manifest.json").read_text())["backbone_path"]
    other = tmp_path_factory.mktemp("seeds") / "seed1"
    own = ["backbone.tiny=null", f"backbone.path={base}", "train.seed=1", "lora.r=6", "lora.alpha=9"]
    overrides = [f"student.{key}" for key in own]
    train_student(trained, recipe=str(tiny_recipe), out=other, overrides=overrides)
    return [trained / "student", other]


@pytest.fixture(scope="module")
def mean(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("average") / "mean"
    average.main(["--model", *map(str, runs), "--out", str(out)])
    return out


def adapter(run, part):
    return load_file(run / part / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("part", ["fold-0", "fold-1", "final"])
def test_the_averages_change_is_the_mean_of_the_changes(runs, mean, part):
    found, parts = adapter(mean, part), [adapter(run, part) for run in runs]
    a, b = found[f"{NAME}.lora_A.weight"], found[f"{NAME}.lora_B.weight"]
    assert a.shape[0] == b.shape[1] == 4 + 6
    settings = json.loads((mean / part / "adapter" / "adapter_config.json").read_text())
    assert settings["r"] == settings["lora_alpha"] == 10
    changes = [
        scale * own[f"{NAME}.lora_B.weight"] @ own[f"{NAME}.lora_A.weight"]
        for scale, own in zip([8 / 4, 9 / 6], parts, strict=True)
    ]
    torch.testing.assert_close(b @ a, sum(changes) / 2, atol=1e-8, rtol=1e-5)
    assert (changes[0] - changes[1]).abs().max() > 1e-4
    head = "base_model.model.score.weight"
    torch.testing.assert_close(found[head], (parts[0][head] + parts[1][head]) / 2)


def test_the_whole_merged_model_is_the_mean_of_the_merged_models(runs, mean):
    def merged(path):
        saved = read_saved(path)
        return merged_model(saved.model, saved.backbone, saved.weights, 3, torch.float32).state_dict()

    found, parts = merged(mean), [merged(run) for run in runs]
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (parts[0][name] + parts[1][name]) / 2, atol=1e-6, rtol=1e-5)


def test_it_is_scored_out_of_fold_beside_the_ensemble(runs, mean, capsys):
    stores, store = [read_store(run) for run in runs], read_store(mean)
    assert store.row_ids == stores[0].row_ids
    assert (store.fold == stores[0].fold).all()
    # Between its runs to first order, and none of them.
    middle = (stores[0].mean_logits + stores[1].mean_logits) / 2
    apart = np.abs(stores[0].mean_logits - stores[1].mean_logits).max()
    assert 0 < np.abs(store.mean_logits - middle).max() < apart / 2
    average.main(["--model", *map(str, runs), "--out", str(mean)])  # finished: it only tells
    shown = capsys.readouterr().out
    for words in ("seed1", "mean of the predictions", "average of the weights", "95 % over prompts"):
        assert words in shown
    manifest = json.loads((mean / "manifest.json").read_text())
    assert [run["name"] for run in manifest["averaged"]] == ["student", "seed1"]
    assert [run["seed"] for run in manifest["averaged"]] == [0, 1]


def test_it_is_predicted_with_exported_and_examined_like_any_run(trained, mean, tmp_path):
    probs = []
    for model in (mean, tmp_path / "plain"):
        if model != mean:
            export.main(["--model", str(mean), "--out", str(model)])
            assert "the mean of 2 runs (student, seed1)" in (model / "README.md").read_text()
        out = tmp_path / f"{model.name}.csv"
        predict.main(["--model", str(model), "--data", str(trained / "rows.parquet"), "--out", str(out)])
        probs.append(np.stack([c.to_numpy() for c in pc.read_csv(out).columns[1:]], axis=1))
    folded = json.loads((tmp_path / "plain" / "distillstack.json").read_text())["scores"]["folded"]
    logits = np.log(probs[0]) / folded
    again = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(again, probs[1], atol=1e-4)
    assert doctor([str(mean)]) == 0


def test_one_that_was_killed_goes_on(runs, mean, tmp_path):
    again = tmp_path / mean.name
    shutil.copytree(mean, again)
    (again / "oof.parquet").unlink()
    shutil.rmtree(again / "fold-1")
    found = average_runs(runs, again)
    np.testing.assert_array_equal(found.logits, read_store(mean).logits)
    assert adapter(again, "fold-1").keys() == adapter(mean, "fold-1").keys()


def test_full_weights_are_averaged_in_their_own_dtype(tmp_path):
    states = [{"w": torch.tensor([1.0, 3.0]).bfloat16()}, {"w": torch.tensor([2.0, 3.0]).bfloat16()}]
    for number, state in enumerate(states):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "config.json").write_text("{}")
        save_file(state, tmp_path / str(number) / "model.safetensors")
    write_mean([tmp_path / "0", tmp_path / "1"], tmp_path / "mean")
    found = load_file(tmp_path / "mean" / "model.safetensors")["w"]
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [1.5, 3.0]
    assert (tmp_path / "mean" / "config.json").read_text() == "{}"


def test_what_cannot_be_averaged_is_refused_by_name(trained, runs, mean, tmp_path):
    def refused(models, words, out="out"):
        with pytest.raises(UserError, match=words):
            average_runs(models, tmp_path / out)
        assert not (tmp_path / out / "manifest.json").exists()

    refused([runs[0]], "two runs or more")
    refused([runs[0], runs[0]], "runs appear more than once")
    refused([trained / "llama", trained / "gemma2"], "differ in (backbone|tokenizer)")
    refused([trained / "llama", runs[0]], "differ in kind")
    changed = tmp_path / "changed"
    shutil.copytree(runs[1], changed)
    manifest = json.loads((changed / "manifest.json").read_text())
    manifest["truncation"]["side"] = "left"
    (changed / "manifest.json").write_text(json.dumps(manifest))
    refused([runs[0], changed], "truncation|was changed or damaged")
    damaged = tmp_path / "damaged"
    shutil.copytree(runs[1], damaged)
    file = damaged / "fold-0" / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    refused([runs[0], damaged], "was changed or damaged")
    with pytest.raises(UserError, match="holds another run"):
        average_runs([runs[1], runs[0]], mean)
    base = tmp_path / "base"
    shutil.copytree(json.loads((runs[0] / "manifest.json").read_text())["backbone_path"], base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    with pytest.raises(UserError, match=r"base/config\.json: is not as it was when"):
        average.averaged(runs, tmp_path / "out", None, Access(backbone=str(base)))


def test_adapters_of_another_kind_are_refused(runs, tmp_path):
    odd = tmp_path / "odd"
    shutil.copytree(runs[1] / "final" / "adapter", odd)
    settings = json.loads((odd / "adapter_config.json").read_text())
    (odd / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(UserError, match="use_dora"):
        write_mean([runs[0] / "final" / "adapter", odd], tmp_path / "mean")
