"""On a real Ray cluster of three nodes: whatever dies, the files end as a plain local run leaves them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recipes import ROOT

from data.arena import ArenaConfig, simulate_arena
from data.errors import UserError
from data.softlabels import read_logits, read_store
from distill import predict, student, teacher_oof

ray = pytest.importorskip("ray", reason="needs pip install 'distillstack[ray]'")

DEADLINE_S = 240
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
    "worker_niceness": 0,  # other tests beside them would starve them
    "kill_idle_workers_interval_ms": 0,  # a worker that has torch loaded is kept for the next test
}
NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that is storage of its own, ``dir://``, in this process and in all that it starts."""
    from fsspec.config import conf

    path = tmp_path_factory.mktemp("remote")
    settings = {"path": str(path), "target_protocol": "file"}
    conf["dir"] = settings
    os.environ |= {f"FSSPEC_DIR_{key.upper()}": value for key, value in settings.items()}
    os.environ["DISTILLSTACK_SCRATCH"] = str(tmp_path_factory.mktemp("scratch"))
    yield path
    del conf["dir"], os.environ["DISTILLSTACK_SCRATCH"]
    for key in settings:
        del os.environ[f"FSSPEC_DIR_{key.upper()}"]


@pytest.fixture(scope="module")
def cluster(remote: Path) -> Iterator[object]:
    """Three nodes on this machine, two of which work; this process is connected to them."""
    from ray.cluster_utils import Cluster

    from distill.cluster.connect import connect

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": QUICK},
    )
    os.environ["RAY_ADDRESS"] = cluster.address
    connect()  # while there is no other: a test may end a node, and this process with its own would be lost
    for _ in range(2):
        cluster.add_node(**NODE)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    del os.environ["RAY_ADDRESS"]


def wait_for(reached: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not reached():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended too early: {process.communicate()[1].decode()[-2000:]}")
        assert time.monotonic() < deadline
        time.sleep(0.002)


def in_background(work: Callable[[], object]) -> Callable[[], object]:
    """Run ``work`` in a thread; returns what waits for it and gives its result."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()

    def result() -> object:
        thread.join()
        return found[0]

    return result


def kill_machine(cluster: Any, pid: int) -> None:
    """End the node that a worker belongs to, with everything on it, and bring a fresh one."""
    import psutil

    raylet = psutil.Process(pid).ppid()
    (node,) = (n for n in cluster.list_all_nodes() if n.all_processes["raylet"][0].process.pid == raylet)
    cluster.remove_node(node, allow_graceful=False)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    cluster.add_node(**NODE)


def workers(log: Path) -> list[int]:
    """Process ids of a unit's starts."""
    return [int(pid) for pid in re.findall(r"starts on [^:]+:(\d+)", log.read_text())] if log.exists() else []


def same_files(mine: Path, theirs: Path, pattern: str) -> int:
    """Assert that files are equal to the bit; returns how many there are."""
    names = sorted(path.relative_to(theirs) for path in theirs.glob(pattern))
    assert sorted(path.relative_to(mine) for path in mine.glob(pattern)) == names
    for name in names:
        assert (mine / name).read_bytes() == (theirs / name).read_bytes(), name
    return len(names)


def beside(trained: Path, home: Path, *names: str) -> Path:
    """A place for runs on the same rows and backbones as the finished ones."""
    home.mkdir(exist_ok=True)
    for name in ("rows.parquet", "folds.parquet", "manifest.json", "backbones", *names):
        copy = shutil.copytree if (trained / name).is_dir() else shutil.copy
        copy(trained / name, home / name)
    return home


def test_a_machine_dies_and_a_unit_fails_and_the_others_end_as_a_local_run_does(
    cluster, trained, tiny_recipe, tmp_path, capsys
):
    home = beside(trained, tmp_path / "home")
    common = ["--recipe", str(tiny_recipe), "--data", str(home), "--launcher", "ray"]
    ended = in_background(lambda: teacher_oof.main([*common, "teachers.gemma2.train.lr=1.0e+30"]))
    training = home / "llama" / "fold-0"
    wait_for(lambda: (training / "checkpoint-3" / "trainer_state.json").exists())
    log = home / "units" / "llama-fold-0.log"
    kill_machine(cluster, workers(log)[-1])
    assert ended() == 1
    shown = capsys.readouterr()
    assert "2 finished, 2 failed" in shown.out
    for fold in (0, 1):
        assert f"failed: gemma2/fold-{fold}: gemma2, fold {fold}: the loss is" in shown.out
    assert len(workers(log)) == 2
    assert same_files(home / "llama", trained / "llama", "fold-*/oof.parquet") == 2
    assert not list(home.glob("llama/fold-*/checkpoint-*"))
    summary = json.loads((home / "units" / "teacher_oof.json").read_text())
    assert {line["unit"]: (line["state"], line["starts"]) for line in summary}["llama/fold-0"] == (
        "finished",
        2,
    )
    assert re.search(r"gemma2/fold-1 +failed", (home / "units" / "teacher_oof.txt").read_text())

    shutil.rmtree(home / "gemma2")
    assert teacher_oof.main(common) == 0
    for name in ("llama", "gemma2"):
        assert same_files(home / name, trained / name, "oof.parquet") == 1
        mine, theirs = (json.loads((at / name / "manifest.json").read_text()) for at in (home, trained))
        assert {**mine, "backbone_path": ""} == {**theirs, "backbone_path": ""}


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(cluster, trained, tiny_recipe, tmp_path):
    """Started in a directory of its own, which the cluster was not, with a path from there."""
    home = beside(trained, tmp_path / "home", "llama", "gemma2")
    command = ["--recipe", str(tiny_recipe), "--data", str(home), "--launcher", "ray"]
    process = subprocess.Popen(
        [sys.executable, "-m", "distill.student", *command, "--data", "home"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a shell's background
    )
    wait_for(lambda: bool(list(home.glob("student/*/checkpoint-3/trainer_state.json"))), process)
    process.send_signal(signal.SIGINT)
    message = process.communicate()[1].decode()
    assert process.returncode == 130, message
    assert "interrupted; the same command continues" in message
    assert "Traceback" not in message
    assert not (home / "student" / "oof.parquet").exists()
    assert "stopped" in (home / "units" / "student.txt").read_text()
    assert student.main(command) == 0
    assert same_files(home / "student", trained / "student", "oof.parquet") == 1
    assert same_files(home / "student", trained / "student", "final/adapter/adapter_model.safetensors") == 1


def test_two_processes_on_two_machines_share_a_unit(cluster, trained, tiny_recipe, tmp_path):
    from distill.cluster.units import run_units
    from distill.recipe import load_recipe
    from distill.runs.units import ModelSpec, Unit

    pytest.importorskip("distill.processes", reason="needs training that several processes share")
    pytest.importorskip("ray.train.torch", reason="needs pip install 'ray[train]'")
    home = beside(trained, tmp_path / "home")
    recipe = load_recipe(str(tiny_recipe), ["teachers.llama.resources.processes=2"])
    unit = Unit(ModelSpec("llama", recipe.teachers["llama"], home, home / "llama"), "fold-0")
    board = run_units([unit], home, "test")
    log = (home / "units" / "llama-fold-0.log").read_text()
    assert board.counts() == "1 finished", log
    assert set(re.findall(r"is process (\d) of 2", log)) == {"0", "1"}
    classes = read_store(trained / "llama").classes
    mine, one = (read_logits(at / "llama" / "fold-0" / "oof.parquet", classes) for at in (home, trained))
    assert mine[0] == one[0]
    np.testing.assert_allclose(mine[2], one[2], atol=1e-5)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows in two files, of small row groups and of one large one."""
    path = tmp_path_factory.mktemp("many")
    table = simulate_arena(ArenaConfig(n_rows=360, seed=5)).table
    pq.write_table(table.slice(0, 150), path / "a.parquet", row_group_size=20)
    pq.write_table(table.slice(150), path / "b.parquet")
    return path


@pytest.fixture(scope="module")
def labelled(trained: Path, many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of them."""
    out = tmp_path_factory.mktemp("labelled") / "here"
    assert predict.main(labelling(trained, many, out)) == 0
    return out


def labelling(trained: Path, source: object, out: object) -> list[str]:
    model = str(trained / "llama")
    return ["--model", model, "--data", str(source), "--out", str(out), "--shard-rows", "20"]


def ids(out: Path) -> list[str]:
    return [i for part in sorted(out.glob("part-*")) for i in pq.read_table(part)["id"].to_pylist()]


def test_every_row_is_labelled_once_whatever_dies(cluster, trained, many, labelled, tmp_path, capsys):
    source = pa.concat_tables([pq.read_table(many / name) for name in ("a.parquet", "b.parquet")])
    assert ids(labelled) == source["row_id"].to_pylist()
    out = tmp_path / "out"
    command = [*labelling(trained, many, out), "--launcher", "ray", "--workers", "2"]

    # The driver is killed.
    process = subprocess.Popen(
        [sys.executable, "-m", "distill.predict", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_for(lambda: bool(list(out.glob("part-*"))), process)
    process.kill()
    process.communicate()
    assert len(list(out.glob("part-*"))) < len(list(labelled.glob("part-*")))

    # A part is cut short, another cannot be written; a worker dies.
    first = sorted(out.glob("part-*"))[0]
    first.write_bytes(first.read_bytes()[:-20])
    blocked = out / "part-000017.parquet"
    blocked.unlink(missing_ok=True)
    blocked.mkdir()
    before = {path.name for path in out.glob("part-*")}
    ended = in_background(lambda: predict.main(command))
    wait_for(lambda: len({path.name for path in out.glob("part-*")} - before) >= 2)
    kill_machine(cluster, labelling_worker())
    assert ended() == 1
    assert "failed: shard 17" in capsys.readouterr().out

    # What a cluster began a single process may finish.
    blocked.rmdir()
    assert predict.main(labelling(trained, many, out)) == 0
    assert "20 rows labelled, 340 had been before" in capsys.readouterr().out
    assert same_files(out, labelled, "part-*") == len(list(labelled.glob("part-*")))


def labelling_worker() -> int:
    """Process id of an actor that holds a model."""
    import psutil

    found = [
        p.pid
        for p in psutil.process_iter(["cmdline"])
        if "ray::Labeller" in " ".join(p.info["cmdline"] or ())
    ]
    assert found
    return found[-1]


def test_other_storage_gives_the_same_stores_and_labels(
    cluster, remote, trained, tiny_recipe, many, labelled, capsys
):
    beside(trained, remote / "arena")
    shutil.copytree(many, remote / "many")
    recipe = ["--recipe", str(tiny_recipe), "--only", "llama", "--launcher", "ray"]
    assert teacher_oof.main([*recipe, "--data", "dir://arena"]) == 0
    assert same_files(remote / "arena" / "llama", trained / "llama", "*oof.parquet") == 1
    assert (remote / "arena" / "units" / "llama-fold-1.log").exists()
    assert not list((remote / "arena" / "llama").glob("fold-*/checkpoint-*"))
    command = labelling(trained, "dir://many", "dir://labels")
    assert predict.main(command) == 0
    assert same_files(remote / "labels", labelled, "part-*.parquet") == len(list(labelled.glob("part-*")))


def test_what_the_cluster_does_not_have_is_refused_at_once(cluster, trained, tiny_recipe, tmp_path):
    home = beside(trained, tmp_path / "home")
    common = ["--recipe", str(tiny_recipe), "--data", str(home), "--only", "llama", "--launcher", "ray"]
    with pytest.raises(UserError, match=r"llama/fold-0 asks for 64 CPU, which no machine"):
        teacher_oof.main([*common, "teachers.llama.resources.cpus=64"])


def test_without_ray_the_command_says_what_to_install(monkeypatch, trained, tiny_recipe, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    home = beside(trained, tmp_path / "home")
    with pytest.raises(UserError, match=r"pip install 'distillstack\[ray\]'"):
        teacher_oof.main(["--recipe", str(tiny_recipe), "--data", str(home), "--launcher", "ray"])
