"""The notebooks run from top to bottom, and are kept without outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recipes import ROOT
from stack_files import prepared, write_store

EVERY = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ["blend_weights", "calibration"]
NOTEBOOKS = [ROOT / "notebooks" / f"{name}.ipynb" for name in NAMES]
"""Those that explore a run; ``test_kaggle.py`` runs the submission's."""
TUTORIALS = {
    "compete": "submission.csv: 40 rows",
    "classify": "out-of-fold accuracy",
    "blend": "nested log-loss",
}


def test_all_are_here() -> None:
    assert {path.stem for path in EVERY} == {*NAMES, *TUTORIALS, "kaggle"}


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From an empty directory, with tiny models."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is missing; pip install -e '.[notebooks]'")
    import nbformat

    environment(monkeypatch, tmp_path, tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert TUTORIALS[name] in printed, printed
    assert "error:" not in printed, printed
    assert "is not read here" not in printed, printed
    assert "in_sample out-of-fold" not in printed, printed


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    assert path.stat().st_size < 30_000
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert not cell["metadata"]


def environment(monkeypatch: pytest.MonkeyPatch, run: Path, scratch: Path) -> None:
    """What a notebook's kernel starts with: the run that it opens, and places of its own to write to."""
    monkeypatch.setenv("DISTILLSTACK_RUN", str(run))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("MPLCONFIGDIR", str(scratch / "matplotlib"))
    monkeypatch.setenv("IPYTHONDIR", str(scratch / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(scratch / "jupyter"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_runs_on_what_the_demo_left(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CI runs ``make demo`` before the tests."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is missing; pip install -e '.[notebooks]'")
    import nbformat

    demo = ROOT / "runs" / "demo"
    if not (demo / "student" / "oof.parquet").exists():
        pytest.skip("no finished demo in runs/demo; make demo leaves one")
    environment(monkeypatch, demo, tmp_path)
    book = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        book, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "1500 rows, 3 members (gemma2, llama, student)" in printed


@pytest.mark.parametrize("members", [0, 2])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_runs(path: Path, members: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stores where a run has them, and on simulated members where it has none."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is missing; pip install -e '.[notebooks]'")
    import nbformat

    run = tmp_path / "run"
    if members:
        _, P = prepared(run, n=120)
        for m in range(members):  # as the demo leaves them
            write_store(run / f"teacher-{m}", run, P[:, m])
            write_store(run / f"teacher-{m}-in_sample", run, P[:, m], label_kind="in_sample")
    environment(monkeypatch, run, tmp_path)
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    if not members:  # the plain fallback
        book.cells.insert(0, nbformat.v4.new_code_cell("import sys; sys.modules['ipywidgets'] = None"))
    elif path.stem == "blend_weights":
        moved = "sliders[0].value = 0.4; print('moved to', [round(s.value, 6) for s in sliders])"
        book.cells.append(nbformat.v4.new_code_cell(moved))
    nbclient.NotebookClient(
        book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert not members or f"folds: {run} (" in printed or f"folds: {run}\n" in printed, printed
    assert ("teacher-0, teacher-1" if members else "member 1, member 2, member 3") in printed
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    if members and path.stem == "blend_weights":
        assert "moved to [0.4, 0.6]" in printed
