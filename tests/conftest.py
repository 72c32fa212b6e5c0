"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before anything imports torch or a hub client: nothing here may need a network, and one thread runs
# tiny models at a speed that does not depend on what else the machine does.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The directory of real data sets; the test is skipped, saying so, where it is absent."""
    given = os.environ.get("DISTILLSTACK_DATA")
    path = Path(given) if given else ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set DISTILLSTACK_DATA to its directory")
    return path


TINY_RECIPE = """
data: {rows: 96, folds: 2, seed: 1}
teachers:
  llama: &teacher
    backbone:
      tiny: {family: llama, hidden_size: 64, intermediate_size: 64, layers: 2, heads: 4, kv_heads: 2,
             vocab_size: 400, pretrain_steps: 4}
    lora: {r: 4, alpha: 8}
    encode: {max_length: 192}
    train: {epochs: 2, lr: 1.0e-3, head_lr: 1.0e-2, rows_per_step: 8,
            log_steps: 1, checkpoint_steps: 3}
  gemma2:
    <<: *teacher
    backbone:
      tiny: {family: gemma2, hidden_size: 64, intermediate_size: 64, layers: 2, heads: 4, kv_heads: 2,
             vocab_size: 400, pretrain_steps: 4}
student:
  <<: *teacher
  backbone:
    tiny: {family: llama, hidden_size: 64, intermediate_size: 64, layers: 1, heads: 2, kv_heads: 1,
           vocab_size: 300, pretrain_steps: 4}
  distill: {weight: 0.6, temperature: 2.0}
"""


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two teachers and a student that trains in seconds."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY_RECIPE, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path) -> Path:
    """A directory of prepared arena rows with two teachers' stores and a student's, made by the commands.

    Treat it as read-only.
    """
    from data.arena import ArenaConfig, simulate_arena
    from data.dataset import prepare
    from distill import student, teacher_oof

    directory = tmp_path_factory.mktemp("trained") / "arena"
    prepare(simulate_arena(ArenaConfig(n_rows=96, seed=1)), directory, n_folds=2, seed=1)
    common = ["--recipe", str(tiny_recipe), "--data", str(directory)]
    teacher_oof.main(common)
    student.main(common)
    return directory
