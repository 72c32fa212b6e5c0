"""What a run is loaded from is what was recorded when it was trained, or the command line accepts it."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.csv as pc
import pytest
from rights import mistake_without_rights, shut
from safetensors.torch import load_file, save_file

from data.errors import UserError
from data.files import sha256_files
from distill import predict
from distill.config import BackboneConfig
from distill.model.backbone import load_base, weight_hash
from distill.model.files import INDEX, SINGLE, shards_of, writing
from distill.runs.saved import Access, read_saved


@pytest.fixture
def moved(trained, tmp_path):
    """A student and the backbones beside it, at another place than where they were trained."""
    home = tmp_path / "moved"
    for name in ("student", "backbones"):
        shutil.copytree(trained / name, home / name)
    return home


def predicted(run, trained, out, *options):
    predict.main(["--model", str(run), "--data", str(trained), "--out", str(out), *options])
    table = pc.read_csv(out)
    return np.stack([column.to_numpy() for column in table.columns[1:]], axis=1)


def backbone_of(run):
    return (run / json.loads((run / "manifest.json").read_text())["backbone_beside"]).resolve()


def set_field(file, name, value):
    config = json.loads(file.read_text())
    assert config[name] != value
    file.write_text(json.dumps(config | {name: value}))


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_a_moved_run_takes_the_backbone_beside_it(trained, moved):
    assert read_saved(moved / "student").backbone == str(backbone_of(moved / "student"))


def test_a_run_alone_takes_the_backbone_that_is_named(trained, moved, tmp_path):
    run = moved / "student"
    elsewhere = shutil.move(str(backbone_of(run)), tmp_path / "elsewhere")
    edit(run / "manifest.json", str((trained / "backbones").resolve()), "/gone")
    for record in run.glob("*/trained_on.json"):  # as if it had been trained from there
        stated = json.loads(record.read_text())
        record.write_text(json.dumps(stated | {"manifest_hash": sha256_files([run / "manifest.json"])}))
    with pytest.raises(UserError, match=r"is not there, nor in the local hub cache; .* --backbone"):
        read_saved(run)
    wanted = predicted(trained / "student", trained, tmp_path / "wanted.csv")
    for named in (elsewhere, tmp_path):  # itself, and a directory that it lies in
        found = predicted(run, trained, tmp_path / "found.csv", "--backbone", str(named))
        np.testing.assert_array_equal(found, wanted)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no config\.json"):
        predicted(run, trained, tmp_path / "x.csv", "--backbone", str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("where", "file", "old", "new"),
    [
        ("backbone", "config.json", '"rms_norm_eps": ', '"rms_norm_eps": 1'),
        ("backbone", "config.json", '"rope_theta": ', '"rope_theta": 1'),
        ("backbone", "tokenizer_config.json", '"pad_token": ', '"padding_token": '),
        ("run", "config.yaml", "precision: nf4", "precision: fp32"),
        ("run", "config.yaml", "double_quant: false", "double_quant: true"),
        ("run", "config.yaml", "head: score", "head: tokens"),
    ],
)
def test_a_changed_setting_is_refused_by_the_files_name(trained, moved, tmp_path, where, file, old, new):
    run = moved / "student"
    place = run if where == "run" else backbone_of(run)
    edit(place / file, old, new)
    with pytest.raises(UserError, match=rf"{file}: .*(was changed|is not as it was).*--accept-changed"):
        predicted(run, trained, tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()


def test_an_accepted_change_is_told_and_used(trained, moved, tmp_path, caplog):
    run = moved / "student"
    set_field(backbone_of(run) / "config.json", "rms_norm_eps", 0.5)
    wanted = predicted(trained / "student", trained, tmp_path / "wanted.csv")
    found = predicted(run, trained, tmp_path / "found.csv", "--accept-changed")
    assert "config.json: is not as it was" in caplog.text
    assert np.abs(found - wanted).max() > 1e-4


def test_weights_without_a_record_are_refused(trained, moved, tmp_path):
    (moved / "student" / "final" / "trained_on.json").unlink()
    with pytest.raises(UserError, match=r"made by an earlier version, or lost .*--accept-changed"):
        predicted(moved / "student", trained, tmp_path / "x.csv")
    predicted(moved / "student", trained, tmp_path / "y.csv", "--accept-changed")


def test_an_adapters_configuration_is_part_of_the_record(trained, moved, tmp_path):
    adapter = moved / "student" / "final" / "adapter"
    set_field(adapter / "adapter_config.json", "lora_alpha", 9)
    with pytest.raises(UserError, match="adapter: was changed or damaged"):
        predicted(moved / "student", trained, tmp_path / "x.csv")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/tmp/x.safetensors", "a/b.safetensors", ".."])
def test_an_index_names_files_of_its_own_directory_only(trained, tmp_path, name):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(backbone_of(trained / "student"), checkpoint)
    state = load_file(checkpoint / SINGLE)
    save_file(state, tmp_path / "outside.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, name)}
    (checkpoint / INDEX).write_text(json.dumps(index))
    (checkpoint / SINGLE).rename(checkpoint / "other.safetensors")
    for precision in ("fp32", "nf4"):
        with pytest.raises(UserError, match="lies outside of the checkpoint"):
            load_base(BackboneConfig(path=str(checkpoint), precision=precision), str(checkpoint), 3)
    with pytest.raises(UserError, match="lies outside of the checkpoint"):
        weight_hash(str(checkpoint))


def test_a_damaged_index_is_named(tmp_path):
    for text in ("{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'):
        (tmp_path / INDEX).write_text(text)
        with pytest.raises(UserError, match=INDEX):
            shards_of(tmp_path / INDEX)


def test_offline_a_hub_name_fails_at_once_in_one_line(trained, tmp_path):
    from distill import teacher_oof

    recipe = tmp_path / "recipe.yaml"
    for path, words in (("some-org/model", "the hub is out of reach"), ("/gone/away/model", "no name on")):
        recipe.write_text(f"teachers: {{a: {{backbone: {{path: {path}, precision: fp32}}}}}}")
        with pytest.raises(UserError, match=words) as refused:
            teacher_oof.main(
                ["--recipe", str(recipe), "--data", str(trained), "--out", str(tmp_path / "out")]
            )
        assert "\n" not in str(refused.value)


def test_a_directory_that_is_not_ours_is_named():
    def write(directory):
        with writing(directory):
            (directory / "file").write_text("")

    with shut(0o555) as directory:
        said = mistake_without_rights(lambda: write(directory))
    assert said.startswith(f"UserError: {directory}: cannot be written")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"PytorchStreamWriter failed writing file: {os.strerror(errno.ENOSPC)}"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_what_libraries_raise_when_they_cannot_write_names_the_directory(tmp_path, error):
    with pytest.raises(UserError, match=r"model: cannot be written"), writing(tmp_path / "model"):
        raise error


def test_a_full_disk_leaves_nothing_half_written(trained, tmp_path, monkeypatch):
    from transformers import PreTrainedModel

    from distill import export

    def full(self, directory, **options):
        Path(directory).mkdir(parents=True)
        (Path(directory) / "model.safetensors").write_text("half")
        raise RuntimeError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(UserError, match="cannot be written"):
        export.main(["--model", str(trained / "student"), "--out", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("field", ["versions", "truncated_share", "data"])
def test_what_may_differ_when_a_run_is_continued_may_not_be_edited_afterwards(trained, tmp_path, field):
    """A card names them, and no hash of the run itself covers them."""
    copy = tmp_path / "llama"
    for name in ("llama", "backbones"):
        shutil.copytree(trained / name, tmp_path / name)
    read_saved(copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    edited = {"versions": {"torch": "x"}, "truncated_share": 0.5, "data": "elsewhere"}[field]
    (copy / "manifest.json").write_text(json.dumps(manifest | {field: edited}))
    with pytest.raises(UserError, match=r"manifest\.json: was changed or damaged after fold-0 was trained"):
        read_saved(copy)
    read_saved(copy, Access(None, True, ""))
