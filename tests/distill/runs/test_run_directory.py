"""A run's directory knows what is finished and whose it is."""

from __future__ import annotations

import numpy as np
import pytest

from data.errors import UserError
from data.folds import Folds
from distill.config import ModelConfig
from distill.runs.run_directory import RunDirectory
from distill.runs.units import ModelSpec, Unit


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_a_parts_name_says_what_its_model_never_saw(tmp_path):
    directory = RunDirectory(tmp_path)
    folds = Folds([f"r{i}" for i in range(5)], ["g"] * 5, np.array([0, 1, 2, -1, 0]))
    held_out = {
        "fold-0": [1, 0, 0, 0, 1],
        "without-0-2": [1, 0, 1, 0, 1],
        "final": [0, 0, 0, 0, 0],
    }
    for name, rows in held_out.items():
        np.testing.assert_array_equal(directory.part(name).held_out(folds), np.array(rows, dtype=bool))
    parts = [directory.fold(k) for k in range(3)] + [directory.part("final")]
    parts += [directory.pair(1, 0), directory.pair(0, 2), directory.pair(1, 2)]
    numbers = [part.number(3) for part in parts]
    assert len(set(numbers)) == len(numbers)
    assert numbers[:4] == [0, 1, 2, 3]


def test_a_part_is_finished_when_all_it_is_to_leave_stands(tmp_path):
    directory = RunDirectory(tmp_path)
    assert not directory.finished("fold-0")
    touch(directory.fold(0).predictions)
    assert directory.finished("fold-0")
    assert not directory.finished("fold-0", everywhere=True)
    touch(directory.fold(0).elsewhere)
    assert directory.finished("fold-0", everywhere=True)
    assert not directory.finished("final")
    directory.part("final").adapter.mkdir(parents=True)
    assert directory.finished("final")
    touch(tmp_path / "oof.parquet")
    assert directory.finished("fold-1")
    assert not directory.finished("without-0-1")


def test_weights_are_kept_whole_or_not_at_all(tmp_path):
    part = RunDirectory(tmp_path).fold(0)
    (part.path / "checkpoint-3").mkdir(parents=True)

    def half(directory):
        directory.mkdir()
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        part.keep(half)
    assert not part.trained
    part.keep(lambda directory: directory.mkdir())
    assert part.trained
    assert [path.name for path in part.path.iterdir()] == ["adapter"]


def test_what_led_to_a_finished_part_is_swept_after_a_kill(tmp_path):
    """A command may be killed between the last file that it leaves and the deletion of what led to it."""
    part = RunDirectory(tmp_path).fold(0)
    for name in ("checkpoint-3", ".adapter.tmp", "predicting"):
        (part.path / name).mkdir(parents=True)
    part.tidy()
    assert len(list(part.path.iterdir())) == 3  # it is still needed
    part.adapter.mkdir()
    touch(part.predictions)
    Unit(ModelSpec("llama", ModelConfig(), tmp_path, tmp_path), "fold-0").run()
    assert sorted(path.name for path in part.path.iterdir()) == ["adapter", "oof.parquet"]


def test_what_was_half_written_in_a_part_is_swept_by_the_next_command(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.claim({"data": "a"}, ModelConfig())
    for half in ("fold-0/.oof.parquet.12.tmp", "final/.trained_on.json.12.tmp", ".manifest.json.12.tmp"):
        touch(directory.path / half)
    directory.claim({"data": "a"}, ModelConfig())
    assert {path.name for path in directory.path.rglob("*")} == {
        "config.yaml",
        "manifest.json",
        "fold-0",
        "final",
    }


def test_another_run_is_refused_once_something_was_trained(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.claim({"train": {"lr": 1.0}, "data": "a"}, ModelConfig())
    directory.claim({"train": {"lr": 2.0}, "data": "a"}, ModelConfig())
    directory.fold(0).adapter.mkdir(parents=True)
    directory.claim({"train": {"lr": 2.0}, "data": "b"}, ModelConfig())
    with pytest.raises(UserError, match=r"differs in train\.lr \(2\.0 there, 3\.0 asked for\)"):
        directory.claim({"train": {"lr": 3.0}, "data": "a"}, ModelConfig())
