"""What only a GPU shows: NF4 with bf16 compute under autocast, 8-bit Adam, checkpointed activations.

Skipped without CUDA; ``benchmarks/README.md`` says how to run it.
"""

import json

import numpy as np
import pytest
import torch

from data.arena import ArenaConfig, simulate_arena
from data.dataset import prepare
from data.schema import read_rows
from data.softlabels import read_store

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    directory = tmp_path_factory.mktemp("gpu") / "arena"
    prepare(simulate_arena(ArenaConfig(n_rows=240, seed=1)), directory, n_folds=2)
    return directory


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_teacher_trains_and_predicts_in_nf4_with_bf16(arena, tiny_recipe, family):
    from distill import teacher_oof
    from distill.saved import predict_rows, read_saved

    where = f"teachers.{family}.train"
    options = ["optimizer=adamw_8bit", "gradient_checkpointing=true", "epochs=6", "micro_rows=4", "lr=2e-3"]
    teacher_oof.main(
        [
            "--recipe",
            str(tiny_recipe),
            "--data",
            str(arena),
            "--only",
            family,
            *(f"{where}.{o}" for o in options),
        ]
    )
    store = read_store(arena / family)
    assert store.manifest["backbone"]["compute"] == "bfloat16"
    assert np.isfinite(store.logits).all()
    lines = (arena / family / "fold-0" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]
    assert np.mean(losses[-10:]) < np.mean(losses[:5]) - 0.02

    saved = read_saved(arena / family)
    only = type(saved)(saved.path, saved.manifest, saved.model, [arena / family / "fold-1" / "adapter"])
    inside = np.flatnonzero(store.fold == 1)
    again = predict_rows(only, read_rows(arena).take(inside))
    np.testing.assert_allclose(again, store.logits[inside], atol=0.05)


def test_the_student_is_taught_on_the_gpu(arena, tiny_recipe):
    from distill import student

    student.main(["--recipe", str(tiny_recipe), "--data", str(arena)])
    assert np.isfinite(read_store(arena / "student").logits).all()
