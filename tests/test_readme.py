"""Every line of README and docs that a user types works: the blocks are run, in order, in an empty directory.

A fence says what a block is: ``sh`` is typed, ``python`` is run, ``text`` is shown. What cannot run stands in
``ELSEWHERE`` with the reason; everything else runs as it stands, on small rows of the real layout. Recipes
that need gated backbones are replaced by one with tiny models under the same names.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from recipes import ROOT, TINY_RECIPE
from stack_files import competition, write_csv

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {
    "make": "CI runs both commands themselves",
    "#!/bin/bash": "a Slurm cluster",
    "srun": "a Slurm cluster",
    "ray start": "a cluster started by hand",
    "s3://": "an object store",
    "--launcher ray": "a cluster; tests/distill/cluster has units run by Ray",
    "--nproc-per-node 8": "eight GPUs",
    "--num_processes 8": "eight GPUs",
    "served": "a trained run; tests/distill/test_export.py and test_onnx.py do the same",
    "vllm": "vLLM, and a GPU",
    "benchmarks.": "a measurement",
}
LANGUAGES = {"sh", "text", "python"}


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page, each with its language, which is checked."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    unknown = {name for name, _ in found} - LANGUAGES
    assert not unknown, f"{page.name}: a fence says one of {sorted(LANGUAGES)}, not {sorted(unknown)}"
    return found


def commands(block: str) -> list[str]:
    """The commands of a block, continuation lines joined and comments dropped."""
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def elsewhere(command: str) -> bool:
    """Whether a command needs what a test has not."""
    return any(mark in command for mark in ELSEWHERE)


def typed(page: Path) -> list[tuple[str, str]]:
    """Every command and every Python block of a page that is run, in order, with its language."""
    found: list[tuple[str, str]] = []
    for language, block in blocks(page):
        if language == "python" and not elsewhere(block):
            found.append((language, block))
        elif language == "sh" and not elsewhere(block.splitlines()[0]):
            found += [(language, command) for command in commands(block) if not elsewhere(command)]
    return found


def competition_rows(folder: Path, n: int, name: str, labelled: bool) -> None:
    """Rows in LMSYS's own layout, some prompts repeated."""
    rng = np.random.default_rng(len(name))
    words = ["river", "engine", "poem", "tax", "python", "cat", "proof", "garden"]
    header = ["id", "model_a", "model_b", "prompt", "response_a", "response_b"]
    winners = ["winner_model_a", "winner_model_b", "winner_tie"]
    lines = []
    for i in range(n):
        label = int(rng.integers(3))
        a, b = (" ".join(rng.choice(words, size=int(rng.integers(3, 12)))) for _ in "ab")
        row: list[object] = [
            1000 + i,
            "m",
            "n",
            f'["tell me about {words[i % 8]} {i // 2}"]',
            f'["{a}"]',
            f'["{b}"]',
        ]
        lines.append([*row, *[int(label == k) for k in range(3)]] if labelled else [row[0], *row[3:]])
    header = [*header, *winners] if labelled else [header[0], *header[3:]]
    write_csv(folder / name, header, lines)


def prediction_sets(folder: Path) -> None:
    """Two members' predictions of the same rows, their labels, and predictions of test rows."""
    P, y = competition(120)
    fresh, _ = competition(30, seed=1)
    ids, new = [str(i) for i in range(120)], [str(5000 + i) for i in range(30)]
    header = ["id", "winner_model_a", "winner_model_b", "winner_tie"]
    for m, names in enumerate((("model1", "teacher_m1_predictions"), ("model2", "teacher_m2_predictions"))):
        for name in names:
            write_csv(
                folder / f"{name}.csv", header, [[i, *p] for i, p in zip(ids, P[:, m].tolist(), strict=True)]
            )
        for name in (f"model{m + 1}_test", f"test{m + 1}"):
            write_csv(
                folder / f"{name}.csv",
                header,
                [[i, *p] for i, p in zip(new, fresh[:, m].tolist(), strict=True)],
            )
    for name in ("labels", "teacher_labels"):
        write_csv(folder / f"{name}.csv", ["id", "label"], list(zip(ids, y.tolist(), strict=True)))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty directory with a stranger's files in it, and recipes of the pages' that train in no time."""
    folder = tmp_path / "stranger"
    folder.mkdir()
    competition_rows(folder, 96, "train.csv", labelled=True)
    competition_rows(folder, 24, "test.csv", labelled=False)
    prediction_sets(folder)
    for name, teachers in (
        ("lmsys", ("llama31-8b", "gemma2-9b")),
        ("seed-thread", ("llama31-8b", "gemma2-9b")),
        ("qwen3-4b", ("qwen3-14b", "gemma3-12b")),
        ("map", ("qwen3-8b", "gemma2-9b")),
    ):
        text = TINY_RECIPE.replace("  llama: &teacher", f"  {teachers[0]}: &teacher")
        text = text.replace("  gemma2:\n", f"  {teachers[1]}:\n").replace("epochs: 2", "epochs: 0.3")
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def test_every_block_says_what_it_is() -> None:
    for page in PAGES:
        blocks(page)
    assert any(typed(page) for page in PAGES)


@pytest.mark.parametrize("page", [page for page in PAGES if typed(page)], ids=lambda page: page.name)
def test_every_line_that_a_user_types_works(home: Path, page: Path) -> None:
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
    }
    for language, command in typed(page):
        own = re.sub(
            r"--recipe ([\w-]+)(?![\w.-])",
            lambda m: f"--recipe {m[1]}.yaml" if (home / f"{m[1]}.yaml").exists() else m[0],
            command,
        )
        words = [sys.executable, "-c", command] if language == "python" else ["bash", "-c", own]
        done = subprocess.run(words, cwd=home, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
