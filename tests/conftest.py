"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import hypothesis
import pytest
from recipes import ROOT, TINY_RECIPE

# Set before anything imports torch or a hub client: nothing here may need a network, and one thread runs
# tiny models at a speed that does not depend on what else the machine does.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("untimed")
gc.disable()  # until all is imported: what is imported stays


LONG = (
    "tests/test_campaign.py",  # forks, which the threads that Ray leaves in a process do not live through
    "tests/test_readme.py",
    "tests/distill/cluster/test_ray.py",
    "tests/distill/test_processes.py",
    "tests/test_notebooks.py",
    "tests/test_commands.py",
    "tests/test_packaging.py",
    "tests/test_docs.py",
    "tests/ensemble/test_stack.py",
)
"""Files of tests that take long: started first, they do not keep one worker busy at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long ones first."""
    places = {file: place for place, file in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(LONG)))


def pytest_collection_finish() -> None:
    """Garbage, which every training has collected, is from here on looked for among what tests make."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The directory of real data sets; the test is skipped, saying so, where it is absent."""
    given = os.environ.get("DISTILLSTACK_DATA")
    path = Path(given) if given else ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set DISTILLSTACK_DATA to its directory")
    return path


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


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classroom's rows with candidates, two teachers' stores and a student's, made by the commands.

    Treat it as read-only.
    """
    from pyarrow import csv

    from data.classroom import simulate_classroom
    from data.prepare import prepare_rows
    from distill import student, teacher_oof

    folder = tmp_path_factory.mktemp("classroom")
    table = simulate_classroom(100, 5, 1)
    csv.write_csv(table.slice(0, 72), folder / "train.csv")
    csv.write_csv(table.slice(72).drop_columns(["Category", "Misconception"]), folder / "test.csv")
    (folder / "recipe.yaml").write_text(TINY_RECIPE.replace("epochs: 2", "epochs: 1"))
    prepare_rows(folder / "train.csv", folder / "data", folds=2)
    common = ["--recipe", str(folder / "recipe.yaml"), "--data", str(folder / "data")]
    teacher_oof.main([*common, "--labels", "in_sample"])
    student.main([*common, "student.distill.leakage=apart"])
    return folder
