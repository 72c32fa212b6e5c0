"""The first layers of a checkpoint: a plain directory that computes what those layers compute."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from data.arena import ArenaConfig, simulate_arena
from data.dataset import prepare
from data.encoding.template import Template
from data.errors import UserError
from distill import student, teacher_oof
from distill.config import TinyConfig
from distill.model.backbone import weight_hash
from distill.model.shallow import CUT_FROM, shallow_copy
from distill.model.tiny import tiny_backbone

DEEP = {"hidden_size": 64, "intermediate_size": 64, "layers": 4, "vocab_size": 400, "pretrain_steps": 0}


@pytest.fixture(scope="module", params=["llama", "gemma2", "bert"])
def deep(request, tmp_path_factory):
    """A checkpoint of four layers, in one file and in several."""
    from transformers import AutoModel, AutoTokenizer

    rows = simulate_arena(ArenaConfig(n_rows=24, seed=5))
    home = tmp_path_factory.mktemp("deep")
    whole = tiny_backbone(TinyConfig(family=request.param, **DEEP), rows, Template(), 0, home)
    sharded = home / "sharded"
    AutoModel.from_pretrained(whole).save_pretrained(sharded, max_shard_size="100KB")
    AutoTokenizer.from_pretrained(whole).save_pretrained(sharded)
    assert len(list(sharded.glob("*.safetensors"))) > 2
    return {"whole": whole, "sharded": sharded}


@pytest.mark.parametrize("form", ["whole", "sharded"])
def test_the_copy_computes_what_the_first_layers_compute(deep, form, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    copy = shallow_copy(str(deep[form]), 2, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    ids = torch.tensor([tokenizer("which of the two answers is better?")["input_ids"]])
    options = {"attn_implementation": "eager", "dtype": torch.float32}
    full = AutoModel.from_pretrained(deep[form], **options).eval()
    shallow, report = AutoModel.from_pretrained(copy, output_loading_info=True, **options)
    shallow.eval()
    assert not report["missing_keys"] - {"pooler.dense.weight", "pooler.dense.bias"}
    with torch.no_grad():
        expected = full(input_ids=ids, output_hidden_states=True).hidden_states[2]
        if hasattr(full, "norm"):
            expected = full.norm(expected)
        found = shallow(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, expected)
    assert shallow.config.num_hidden_layers == 2
    assert not torch.allclose(full(input_ids=ids).last_hidden_state, found, atol=1e-3)


def test_no_more_than_a_shard_is_loaded_at_a_time(deep, tmp_path, monkeypatch):
    """Each shard's kept weights are written before another shard is opened for reading."""
    written = []
    save = safetensors.torch.save_file
    monkeypatch.setattr(
        safetensors.torch, "save_file", lambda t, *a, **k: (written.append(set(t)), save(t, *a, **k))
    )
    copy = shallow_copy(str(deep["sharded"]), 1, tmp_path)
    index = json.loads((deep["sharded"] / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(written) > 1
    for names in written:
        assert len({index[name] for name in names}) == 1
    mine = json.loads((copy / "model.safetensors.index.json").read_text())
    assert set(mine["weight_map"]) == set.union(*written)
    assert set(mine["weight_map"].values()) == {f.name for f in copy.glob("*.safetensors")}
    assert not any(".1." in name for name in mine["weight_map"])


def test_a_copy_is_made_once_and_named_by_what_it_is_made_from(deep, tmp_path):
    first = shallow_copy(str(deep["whole"]), 2, tmp_path)
    made = (first / "model.safetensors").stat().st_mtime_ns
    assert shallow_copy(str(deep["whole"]), 2, tmp_path) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made
    assert shallow_copy(str(deep["whole"]), 3, tmp_path) != first
    origin = json.loads((first / CUT_FROM).read_text())
    assert origin["weight_hash"] == weight_hash(str(deep["whole"])) != weight_hash(str(first))


def test_mistakes_of_cutting_are_named(deep, tmp_path):
    for layers in (0, 5):
        with pytest.raises(UserError, match=f"has 4 layers, so backbone.first_layers cannot be {layers}"):
            shallow_copy(str(deep["whole"]), layers, tmp_path)
    with pytest.raises(UserError, match="cannot be fetched to cut its first layers"):
        shallow_copy("nobody/nothing", 1, tmp_path)
    next(deep["sharded"].glob("model-*.safetensors")).rename(tmp_path / "gone.safetensors")
    with pytest.raises(UserError, match="lacks model-"):
        shallow_copy(str(deep["sharded"]), 1, tmp_path)
    (tmp_path / "gone.safetensors").rename(next(iter(_missing(deep["sharded"]))))


def _missing(directory):
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    return [directory / name for name in sorted(set(index.values())) if not (directory / name).exists()]


def test_a_student_is_cut_from_its_teacher(tmp_path, tiny_recipe):
    """Same path and a number of layers; the run, its predictions and its card know what it is."""
    from distill.export import export
    from distill.model.backbone import BackboneConfig, load_base
    from distill.runs.saved import read_saved

    data = tmp_path / "arena"
    prepare(simulate_arena(ArenaConfig(n_rows=32, seed=1)), data, n_folds=2, seed=1)
    common = ["--recipe", str(tiny_recipe), "--data", str(data)]
    teacher_oof.main([*common, "--only", "llama", "teachers.llama.train.epochs=1"])
    manifest = json.loads((data / "llama" / "manifest.json").read_text())
    path = manifest["backbone_path"]
    cut = ["student.backbone.tiny=null", f"student.backbone.path={path}", "student.backbone.first_layers=1"]
    student.main([*common, "student.train.epochs=1", *cut])
    mine = json.loads((data / "student" / "manifest.json").read_text())
    assert mine["backbone_source"] == path
    assert mine["cut_from"]["weight_hash"] == manifest["backbone"]["weight_hash"]
    assert mine["backbone"]["weight_hash"] == weight_hash(mine["backbone_path"])
    assert mine["tokenizer_hash"] == manifest["tokenizer_hash"]
    base = load_base(BackboneConfig(path=path, precision="fp32"), mine["backbone_path"], 3)
    assert len(base.get_decoder().layers) == 1
    found = export(read_saved(data / "student"), tmp_path / "out", False, "float32", None, "mit")
    assert np.isfinite(found["log_loss"])
    assert "the first 1 of 2 layers" in (tmp_path / "out" / "README.md").read_text()
