"""A panel of judges from end to end: simulated ones, of whom the truth is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from stack_files import CLASSES, write_csv

from data.errors import UserError
from data.softmax import softmax
from ensemble import predict, stack
from ensemble.solvers.numbers import cross_entropy

WORDS = ("A", "B", "tie")
CONFUSION = np.array([[0.7, 0.15, 0.15], [0.25, 0.6, 0.15], [0.4, 0.3, 0.3]])
"""What a judge says of rows that A, B or neither wins; it favours the first side."""


class Panel:
    """Three judges that err independently: one asked once, one in both orders, one that scores both sides."""

    def __init__(self, folder: Path, n: int, seed: int) -> None:
        folder.mkdir()
        rng = np.random.default_rng(seed)
        self.labels = rng.choice(3, size=n, p=(0.4, 0.4, 0.2))
        self.ids = [f"r{i}" for i in range(n)]
        turned = np.array([1, 0, 2])

        def say(labels: np.ndarray) -> np.ndarray:
            return (rng.random((n, 1)) > CONFUSION[labels].cumsum(axis=1)).sum(axis=1).clip(0, 2)

        once, first, second = say(self.labels), say(self.labels), say(turned[self.labels])
        centre = np.array([1.0, -1.0, 0.0])[self.labels]
        score = centre + rng.normal(size=n)
        silent = rng.random(n) < 0.2
        lines = [[i, WORDS[v]] for i, v, no in zip(self.ids, once, silent, strict=True) if not no]
        self.files = [str(write_csv(folder / "once.csv", ["id", "verdict"], lines))]
        both = [[i, WORDS[a], WORDS[b]] for i, a, b in zip(self.ids, first, second, strict=True)]
        self.files.append(str(write_csv(folder / "both.csv", ["id", "verdict", "verdict_swapped"], both)))
        sides = [[i, 5 + s, 5] for i, s in zip(self.ids, score.tolist(), strict=True)]
        self.files.append(str(write_csv(folder / "sides.csv", ["id", "score_a", "score_b"], sides)))
        names = [[i, CLASSES[k]] for i, k in zip(self.ids, self.labels.tolist(), strict=True)]
        self.truth = str(write_csv(folder / "labels.csv", ["id", "label"], names))
        heard = np.where(silent[:, None], 1.0, CONFUSION[:, once].T)
        chances = CONFUSION[:, first].T * CONFUSION[turned][:, second].T * heard
        density = np.exp(-0.5 * (score[:, None] - np.array([1.0, -1.0, 0.0])) ** 2)
        self.bayes = softmax(np.log(np.array([0.4, 0.4, 0.2]) * chances * density))


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
    loss, best = cross_entropy(found[:, 0], y).mean(), cross_entropy(fresh.bayes, y).mean()
    assert best < loss < best + 0.02
    for k in range(3):  # calibrated: what is said often happens as often
        likely = found[:, 0, k] > 0.6
        if likely.sum() > 100:
            assert abs(found[likely, 0, k].mean() - y[likely, k].mean()) < 0.05


def test_intervals_hold_most_true_probabilities(made: tuple[Path, Panel, np.ndarray]) -> None:
    _, fresh, found = made
    probs, low, high = found.transpose(1, 0, 2)
    assert ((low <= probs) & (probs <= high)).all()
    assert (high - low).mean() < 0.15
    assert ((low <= fresh.bayes) & (fresh.bayes <= high)).mean() > 0.7  # what they say of few rows alone


def test_the_stack_carries_its_maps(made: tuple[Path, Panel, np.ndarray]) -> None:
    folder, fresh, _ = made
    content = json.loads((folder / "stack" / "stack.json").read_text(encoding="utf-8"))
    assert set(content["maps"]) == {"once", "both", "sides"}
    assert "both is a judge that gives verdicts, both sides alike" in " ".join(content["rows"]["notes"])
    once = fresh.files[0]
    command = ["--stack", str(folder / "stack"), "--oof", once, f"both={once}", fresh.files[2]]
    with pytest.raises(
        UserError, match=r"gives verdicts, where .* fitted on verdicts in both orders of both"
    ):
        predict.main([*command, "--out", str(folder / "odd.csv")])
    assert not (folder / "odd.csv").exists()
