"""A panel of judges from end to end: simulated ones, of whom the truth is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from stack_files import CLASSES

from benchmarks.judges import Panel
from data.errors import UserError
from ensemble import predict, stack
from ensemble.solvers.numbers import cross_entropy


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Panel, np.ndarray]:
    folder = tmp_path_factory.mktemp("panel")
    known, fresh = Panel(folder / "known", 900, 0), Panel(folder / "fresh", 2000, 1)
    stack.main(["--oof", *known.files, "--labels", known.truth, "--out", str(folder / "stack")])
    command = ["--stack", str(folder / "stack"), "--oof", *fresh.files[::-1], "--interval"]
    predict.main([*command, "--out", str(folder / "blend.csv")])
    with open(folder / "blend.csv", encoding="utf-8") as handle:
        rows = {row["id"]: row for row in csv.DictReader(handle)}
    columns = [f"{name}{end}" for end in ("", "_low", "_high") for name in CLASSES]
    values = np.array([[float(rows[i][name]) for name in columns] for i in fresh.ids])
    return folder, fresh, values.reshape(-1, 3, 3)


def test_the_panel_comes_near_the_true_probabilities(made: tuple[Path, Panel, np.ndarray]) -> None:
    _, fresh, found = made
    y = np.eye(3)[fresh.labels]
    loss, best = cross_entropy(found[:, 0], y).mean(), cross_entropy(fresh.chances, y).mean()
    assert best < loss < best + 0.02
    for k in range(3):  # calibrated: what is said often happens as often
        likely = found[:, 0, k] > 0.6
        if likely.sum() > 100:
            assert abs(found[likely, 0, k].mean() - y[likely, k].mean()) < 0.05


def test_intervals_hold_most_true_probabilities(made: tuple[Path, Panel, np.ndarray]) -> None:
    _, fresh, found = made
    probs, low, high = found.transpose(1, 0, 2)
    assert ((low <= probs) & (probs <= high)).all()
    assert (high - low).mean() < 0.2
    assert ((low <= fresh.chances) & (fresh.chances <= high)).mean() > 0.9


def test_the_stack_carries_its_maps(made: tuple[Path, Panel, np.ndarray]) -> None:
    folder, fresh, _ = made
    content = json.loads((folder / "stack" / "stack.json").read_text(encoding="utf-8"))
    assert set(content["maps"]) == {"once", "both", "sides"}
    assert content["drawn_from"]["kind"] == "LogPool"
    assert "both is a judge that gives verdicts, both sides alike" in " ".join(content["rows"]["notes"])
    once = fresh.files[0]
    command = ["--stack", str(folder / "stack"), "--oof", once, f"both={once}", fresh.files[2]]
    with pytest.raises(
        UserError, match=r"gives verdicts, where .* fitted on verdicts in both orders of both"
    ):
        predict.main([*command, "--out", str(folder / "odd.csv")])
    assert not (folder / "odd.csv").exists()
