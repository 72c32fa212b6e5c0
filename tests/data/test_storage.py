"""Storage elsewhere: mirrors, order of publication, and no credentials anywhere."""

from __future__ import annotations

import re
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from data import storage
from data.arena import ArenaConfig, simulate_arena
from data.dataset import prepare
from data.errors import UserError
from distill import predict, teacher_oof


@pytest.fixture(autouse=True)
def mirrors(tmp_path, monkeypatch):
    monkeypatch.setenv(storage.SCRATCH, str(tmp_path / "scratch"))
    fs = fsspec.filesystem("memory")
    yield fs
    for name in list(fs.store):
        del fs.store[name]


def test_an_ordinary_path_stays_what_it_is(tmp_path):
    assert storage.local_path("runs/x") == Path("runs/x")
    assert storage.local_path(f"file://{tmp_path}") == tmp_path
    assert storage.address_of(tmp_path / "x") is None
    assert storage.fetch(tmp_path / "x") == tmp_path / "x"
    storage.publish(tmp_path / "x")


def test_a_mirrors_path_says_where_it_belongs():
    path = storage.local_path("s3://bucket/a/b")
    assert storage.address_of(path / "c") == "s3://bucket/a/b/c"
    assert storage.shown(path) == "s3://bucket/a/b"


@pytest.mark.parametrize("address", ["s3://key:secret@bucket/x", "https://h/x?token=secret"])
def test_credentials_in_an_address_are_refused_and_not_repeated(address):
    with pytest.raises(UserError, match="environment") as caught:
        storage.local_path(address)
    assert "secret" not in str(caught.value)


def test_only_what_changed_is_fetched(mirrors):
    mirrors.pipe({"/m/top.txt": b"1", "/m/fold-0/a": b"2", "/m/fold-1/b": b"3", "/m/fold-1/adapter/w": b"4"})
    path = storage.local_path("memory://m")
    storage.fetch(path, ["fold-0"])
    assert sorted(p.name for p in path.rglob("*") if p.is_file()) == [".fetched.json", "a", "top.txt"]
    storage.fetch(path, skip=["adapter"])
    assert (path / "fold-1" / "b").exists()
    assert not (path / "fold-1" / "adapter").exists()
    before = (path / "top.txt").stat().st_mtime_ns
    mirrors.pipe("/m/fold-0/a", b"new")
    storage.fetch(path)
    assert (path / "fold-0" / "a").read_bytes() == b"new"
    assert (path / "top.txt").stat().st_mtime_ns == before


def test_what_proves_a_directory_finished_is_sent_last(mirrors, monkeypatch):
    path = storage.local_path("memory://m/fold-0")
    (path / "adapter").mkdir(parents=True)
    for name in ("oof.parquet", "adapter/w", "trained_on.json", "metrics.jsonl", "zebra"):
        (path / name).write_text(name)
    sent = []
    put = type(mirrors).put_file
    monkeypatch.setattr(
        type(mirrors), "put_file", lambda self, a, b, **k: (sent.append(b), put(self, a, b, **k))[1]
    )
    storage.publish(path)
    assert sent[-1] == "/m/fold-0/oof.parquet"
    assert len(sent) == 5
    assert sent.index("/m/fold-0/trained_on.json") > sent.index("/m/fold-0/adapter/w")


def test_what_is_not_there_or_not_known_is_named(mirrors, trained):
    with pytest.raises(UserError, match="not a kind of storage"):
        storage.open_storage("nonsense://x/y")
    with pytest.raises(UserError, match="memory://nothing/rows: holds no Parquet files"):
        predict.main(
            [
                "--model",
                str(trained / "llama"),
                "--data",
                "memory://nothing/rows",
                "--out",
                "memory://nothing/out",
            ]
        )
    with pytest.raises(UserError, match="memory://nothing/at/all: holds no prepared data"):
        teacher_oof.main(["--data", "memory://nothing/at/all"])


def test_a_teacher_trains_from_and_to_another_storage(
    mirrors, tiny_recipe, trained, tmp_path, monkeypatch, capsys
):
    for name in ("rows.parquet", "folds.parquet"):
        mirrors.pipe(f"/arena/{name}", (trained / name).read_bytes())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    command = ["--recipe", str(tiny_recipe), "--only", "llama", "--data", "memory://arena"]
    assert teacher_oof.main([*command, "--out", "memory://stores"]) == 0
    assert mirrors.cat("/stores/llama/oof.parquet") == (trained / "llama" / "oof.parquet").read_bytes()
    assert mirrors.exists("/stores/llama/fold-1/adapter/adapter_model.safetensors")
    assert not [name for name, file in mirrors.store.items() if b"hunter2" in file.getvalue()]

    monkeypatch.setenv("DISTILLSTACK_SCRATCH", str(tmp_path / "another machine"))
    capsys.readouterr()
    assert teacher_oof.main([*command, "--out", "memory://stores", "--dry-run"]) == 0
    assert re.findall(r"^llama/fold-\d .* finished$", capsys.readouterr().out, re.M)
    assert not list((tmp_path / "another machine").rglob("*.safetensors"))

    # A machine was lost while it sent a model: another takes it for one that is still to be trained.
    whole = mirrors.cat("/stores/llama/oof.parquet")
    for name in ("oof.parquet", *(f"fold-0/{x}" for x in ("oof.parquet", "trained_on.json"))):
        mirrors.rm(f"/stores/llama/{name}")
    mirrors.rm("/stores/llama/fold-0/adapter/adapter_model.safetensors")
    monkeypatch.setenv("DISTILLSTACK_SCRATCH", str(tmp_path / "a third machine"))
    assert teacher_oof.main([*command, "--out", "memory://stores"]) == 0
    assert mirrors.cat("/stores/llama/oof.parquet") == whole
    assert mirrors.exists("/stores/llama/fold-0/adapter/adapter_model.safetensors")

    rows = tmp_path / "rows"
    prepare(simulate_arena(ArenaConfig(n_rows=24, seed=9)), rows, n_folds=2)
    mirrors.pipe("/new/rows.parquet", (rows / "rows.parquet").read_bytes())
    out = ["--data", "memory://new/rows.parquet", "--out", "memory://labels/llama.csv"]
    assert predict.main(["--model", "memory://stores/llama", *out]) == 0
    assert mirrors.cat("/labels/llama.csv").decode().count("\n") == 25
    out = ["--data", "memory://new", "--out", "memory://labels/parts"]
    assert predict.main(["--model", "memory://stores/llama", *out]) == 0
    with mirrors.open("/labels/parts/part-000000.parquet") as part:
        assert pq.read_table(part).num_rows == 24
