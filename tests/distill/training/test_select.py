"""The kept moment of a training is the best one, on rows that it was not trained on."""

import json

import numpy as np
import pytest

from data.dataset import load_prepared
from distill import teacher_oof
from distill.runs.loaded import predict_rows
from distill.runs.saved import read_saved
from distill.training.keep_best import held_back, scaled_log_loss


def test_whole_groups_are_held_back():
    groups = [f"g{i // 3}" for i in range(900)]
    back = held_back(groups, 0.2, 1)
    assert (back.reshape(-1, 3).all(axis=1) == back.reshape(-1, 3).any(axis=1)).all()
    assert 0.12 < back.mean() < 0.28
    assert (back != held_back(groups, 0.2, 2)).any()


def test_boldness_does_not_count():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=200)
    targets = np.eye(3)[labels]
    logits = rng.normal(size=(200, 2, 3)) + targets[:, None]  # knows something, so the best T is finite
    assert scaled_log_loss(3 * logits, targets) == pytest.approx(scaled_log_loss(logits, targets), abs=1e-6)


def test_the_best_weights_are_kept_and_a_hopeless_training_stopped(trained, tmp_path, tiny_recipe):
    """At a rate that ruins the model, the stored predictions are those of the best look."""
    options = ("lr=0.5", "select_share=0.3", "select_steps=1", "patience=3", "epochs=6", "schedule=constant")
    command = [
        "--recipe",
        str(tiny_recipe),
        "--data",
        str(trained),
        "--out",
        str(tmp_path),
        "--only",
        "llama",
    ]
    teacher_oof.main([*command, *(f"teachers.llama.train.{o}" for o in options)])
    rows, folds = load_prepared(trained)
    for fold in (0, 1):
        directory = tmp_path / "llama" / f"fold-{fold}"
        looks = json.loads((directory / "selection.json").read_text())["looks"]
        losses = [look["loss"] for look in looks]
        best = int(np.argmin(losses))
        assert len(losses) == best + 4 or looks[-1]["step"] == 36
        assert not (directory / "best").exists()
        saved = read_saved(tmp_path / "llama")
        only = type(saved)(saved.path, saved.manifest, saved.model, [directory / "adapter"])
        back = np.flatnonzero(held_back(folds.group_ids, 0.3, fold) & (folds.fold != fold))
        kept = scaled_log_loss(predict_rows(only, rows.take(back)), rows.targets[back])
        assert kept == pytest.approx(losses[best], abs=1e-4)
        assert losses[-1] > losses[best]
