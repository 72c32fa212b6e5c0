"""The faces of the packages: what a user imports from ``data``, ``ensemble`` and ``distill``."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from recipes import ROOT

import data
import distill
import ensemble
from data import UserError, load_prepared, prepare_rows, read_store
from ensemble import blend

PACKAGES = (data, ensemble, distill)
PUBLIC = [(package, name) for package in PACKAGES for name in package.__all__]


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=lambda value: getattr(value, "__name__", value))
def test_every_public_name_is_documented(package, name: str) -> None:
    """A docstring of numpydoc's kind, which names every parameter, and every public method one, too."""
    found = getattr(package, name)
    assert found.__doc__, name
    assert not found.__doc__.startswith(f"{name}("), name
    call = found if inspect.isfunction(found) else getattr(found, "__init__", None)
    parameters = (
        [p for p in inspect.signature(call).parameters if p not in {"self", "args", "kwargs"}] if call else []
    )
    text = found.__doc__
    for parameter in parameters:
        assert parameter in text, f"{name} says nothing of {parameter}"
    if inspect.isclass(found):
        for method, value in vars(found).items():
            if not method.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                inherited = any(
                    getattr(getattr(base, method, None), "__doc__", None) for base in found.__mro__
                )
                assert inherited, f"{name}.{method}"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_no_public_name_is_a_module_of_the_package(package) -> None:
    """``from distill import student`` is the command's module, and stays it."""
    folder = Path(package.__file__).parent
    modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not modules & set(package.__all__)
    assert importlib.import_module("distill.student").main is distill.student.main


def test_importing_a_package_imports_nothing_heavy() -> None:
    check = (
        "import sys, data, ensemble, distill\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'sklearn', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from ensemble import blend\nfrom data import prepare_rows\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_a_package_says_that_it_is_typed(package) -> None:
    assert (Path(package.__file__).parent / "py.typed").exists()


def texts(n: int = 40) -> pd.DataFrame:
    words = ["river", "engine", "poem", "tax"]
    return pd.DataFrame(
        {"text": [f"{words[i % 4]} number {i // 2}" for i in range(n)], "label": list("ab") * (n // 2)}
    )


def test_a_data_frame_is_prepared_as_its_file_is(tmp_path: Path) -> None:
    frame = texts()
    frame.to_csv(tmp_path / "frame.csv", index=False)
    columns = {"prompt": "text"}
    rows, folds = prepare_rows(frame, tmp_path / "one", folds=2, columns=columns, classes=["a", "b"])
    again, _ = prepare_rows(
        tmp_path / "frame.csv", tmp_path / "two", folds=2, columns=columns, classes=["a", "b"]
    )
    assert rows.content_hash == again.content_hash
    assert folds.n_folds == 2
    assert load_prepared(tmp_path / "one")[0].row_ids == rows.row_ids
    frame.index = [f"row {i}" for i in range(len(frame))]
    named, _ = prepare_rows(frame, tmp_path / "three", folds=2, columns=columns, classes=["a", "b"])
    assert named.row_ids[:2] == ["row 0", "row 1"]
    with pytest.raises(UserError, match="no such"):
        prepare_rows(tmp_path / "nowhere.csv", tmp_path / "four")
    assert not (tmp_path / "four").exists()


def test_a_store_is_read_as_a_table_and_blended(trained: Path) -> None:
    store = read_store(trained / "llama")
    frame = store.table.to_pandas()
    assert list(frame) == ["row_id", "fold", *store.classes.names]
    np.testing.assert_allclose(frame[list(store.classes.names)].to_numpy(), store.probs)
    rows, _ = load_prepared(trained)
    labels = pd.Series([rows.classes.names[k] for k in rows.labels], index=rows.row_ids)
    found = blend({"llama": store.table, "gemma2": str(trained / "gemma2")}, labels, method="mean")
    assert found.members_ == ("gemma2", "llama")


def test_a_run_predicts_rows_frames_and_files_alike(trained: Path, tmp_path: Path) -> None:
    rows, _ = load_prepared(trained)
    some = rows.take(np.arange(4))
    loaded = distill.load_run(trained / "student")
    wanted = loaded.predict_proba(some)
    assert wanted.shape == (4, 3)
    np.testing.assert_allclose(wanted.sum(axis=1), 1)
    frame = some.table.select(["row_id", "prompt", "response_a", "response_b"]).to_pandas()
    np.testing.assert_allclose(loaded.predict_proba(frame), wanted, atol=1e-6)
    frame.to_parquet(tmp_path / "some.parquet")
    np.testing.assert_allclose(loaded.predict_proba(tmp_path / "some.parquet"), wanted, atol=1e-6)
    assert loaded.classes_ == rows.classes.names


def test_what_is_trained_already_is_read(trained: Path, tiny_recipe: Path) -> None:
    """The functions go the commands' way, which leaves finished runs alone."""
    stores = distill.cross_fit(trained, recipe=str(tiny_recipe), only=["llama"])
    np.testing.assert_array_equal(stores["llama"].logits, read_store(trained / "llama").logits)
    student = distill.train_student(trained, recipe=str(tiny_recipe))
    np.testing.assert_array_equal(student.logits, read_store(trained / "student").logits)
    with pytest.raises(UserError, match="no teacher nobody"):
        distill.cross_fit(trained, recipe=str(tiny_recipe), only=["nobody"])


def test_the_doctor_returns_findings(trained: Path) -> None:
    found = distill.diagnose(trained / "llama", data=trained)
    assert {result.status for result in found} <= {"pass", "warn", "fail"}
    assert all(result.check and result.seen for result in found)
