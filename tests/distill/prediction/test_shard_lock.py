"""Labelled shards are of one model and one input: no two commands in one directory, no mixed parts."""

import json
import shutil

import pytest

from data.errors import UserError
from data.files import locked
from distill import predict
from ensemble.reading.members import load_member


def label(trained, model, out):
    rows = str(trained / "rows.parquet")
    model = str(trained / model)
    return predict.main(["--model", model, "--data", rows, "--out", str(out), "--shard-rows", "48"])


@pytest.fixture(scope="module")
def labelled(trained, tmp_path_factory):
    """Two directories of parts, of two models on the same rows."""
    home = tmp_path_factory.mktemp("labelled")
    for model in ("student", "llama"):
        assert label(trained, model, home / model) == 0
    return home


def test_a_directory_that_another_command_labels_into_is_refused(trained, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"), pytest.raises(UserError, match="another command is writing there"):
        label(trained, "student", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_parts_of_another_model_are_refused_by_name(labelled, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(labelled / "student", mixed)
    load_member(mixed)
    shutil.copy(labelled / "llama" / "part-000001.parquet", mixed)
    with pytest.raises(UserError, match=r"part-000001\.parquet: is not of the model and rows"):
        load_member(mixed)


def test_the_manifest_of_another_model_is_refused(labelled, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(labelled / "student", mixed)
    shutil.copy(labelled / "llama" / "manifest.json", mixed)
    with pytest.raises(UserError, match=r"part-000000\.parquet: is not of the model and rows"):
        load_member(mixed)


def test_parts_without_a_key_are_made_again(trained, labelled, tmp_path):
    import pyarrow.parquet as pq

    again = tmp_path / "again"
    shutil.copytree(labelled / "student", again)
    table = pq.read_table(again / "part-000000.parquet")
    pq.write_table(table.replace_schema_metadata({}), again / "part-000000.parquet")
    with pytest.raises(UserError, match="or of an earlier version"):
        load_member(again)
    assert label(trained, "student", again) == 0
    load_member(again)
    assert json.loads((again / "manifest.json").read_text())["model"] == "student"


def test_a_missing_model_is_told_as_such_and_not_as_a_wrong_out(trained, tmp_path):
    with pytest.raises(UserError, match="missing: no such directory"):
        label(trained, "missing", tmp_path / "out")
