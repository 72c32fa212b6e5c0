"""From members' files to predictions of new rows, by the commands that the commands themselves name."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stack_files import CLASSES, prepared, write_csv, write_sets, write_store

from data.classes import PREFERENCE
from data.errors import UserError
from data.files import locked
from ensemble import predict, stack
from ensemble.output import write_result
from ensemble.reading.features import NAMES
from ensemble.reading.load import load_problem
from ensemble.reading.members import load_member
from ensemble.reading.stores import member_stores
from ensemble.saved import load_stack, save_stack


def run_next(printed: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the last command that ``ensemble.stack`` printed as it stands; returns its words."""
    line = printed.strip().splitlines()[-1].removeprefix("next: ").strip()
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "ensemble.predict"]
    monkeypatch.chdir(folder)
    predict.main(words[3:])
    return words


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Members of prepared rows, and the same members of the rows to predict, in another order than these."""
    folder = tmp_path_factory.mktemp("roads")
    rows, P = prepared(folder / "arena")
    table = rows.table.to_pydict()
    for m, name in enumerate(("one", "the other")):
        lines = [[row_id, *p] for row_id, p in zip(rows.row_ids, P[:, m].tolist(), strict=True)]
        write_csv(folder / f"{name}.csv", ["id", *CLASSES], lines)
        write_csv(folder / f"{name}_test.csv", ["id", *CLASSES], lines[:20][::-1])
    texts = [
        [row_id, *(json.dumps(table[key][i]) for key in ("prompt", "response_a", "response_b"))]
        for i, row_id in enumerate(rows.row_ids[:20])
    ]
    write_csv(folder / "test.csv", ["id", "prompt", "response_a", "response_b"], texts)
    return folder


@pytest.mark.parametrize(
    ("members", "method"),
    [(1, None), (2, "geometric mean"), (2, "lightgbm")],
    ids=["single", "plain", "rows"],
)
def test_what_a_stack_names_next_works_as_it_stands(
    home: Path,
    tmp_path: Path,
    members: int,
    method: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if method == "lightgbm":  # on so few rows none that looks at these would be chosen
        monkeypatch.setattr("ensemble.methods.trees.LightGBMStacker.needs_rows", property(lambda _: True))
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    names = ["one.csv", "the other.csv"][:members]
    words = [
        "--oof",
        *names,
        "--data",
        "arena",
        "--out",
        "stacked",
        *(["--method", method] if method else []),
    ]
    stack.main(words)
    typed = run_next(capsys.readouterr().out, tmp_path / "home", monkeypatch)
    assert ("--data" in typed) == (method == "lightgbm")
    content = json.loads(Path("stacked/stack.json").read_text(encoding="utf-8"))
    assert method in (None, content["chosen"])
    found = load_member(Path("blend.csv"), PREFERENCE)
    order = load_member(Path("one.csv"), PREFERENCE).row_ids[:20]
    assert found.row_ids == (order if "--data" in typed else order[::-1])
    with_data = [*typed[3:-1], "with.csv", *([] if "--data" in typed else ["--data", "test.csv"])]
    predict.main(with_data)
    again = load_member(Path("with.csv"), PREFERENCE)
    assert again.row_ids == order
    np.testing.assert_array_equal(again.probs, found.probs if "--data" in typed else found.probs[::-1])


@pytest.fixture
def looking(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stack that looks at the rows: an untrained one, whose prediction depends on a row's own features."""
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    from ensemble.methods.blend import SimplexBlend

    P = np.random.default_rng(0).dirichlet([1, 1, 1], size=(40, 2))
    method = SimplexBlend().fit(P, np.arange(40) % 3)
    content = {"classes": list(CLASSES), "swap": [1, 0, 2], "members": ["one", "the other"], "chosen": "x"}
    save_stack(Path("stacked"), content, method)
    monkeypatch.setattr(SimplexBlend, "needs_rows", property(lambda _: True))

    def by_length(_: SimplexBlend, P: np.ndarray, X: np.ndarray) -> np.ndarray:
        assert X.shape == (len(P), len(NAMES))
        share = X[:, :1] / X[:, :1].max()
        return share * P[:, 0] + (1 - share) * P[:, 1]

    monkeypatch.setattr(SimplexBlend, "predict_on", by_length)
    return Path()


USUAL = ["--stack", "stacked", "--oof", "one=one_test.csv", "the other=the other_test.csv", "--data"]


def as_parquet(folder: Path) -> str:
    columns = predict_columns(folder)
    pq.write_table(pa.table(columns), folder / "test.parquet")
    return "test.parquet"


def as_json_lines(folder: Path) -> str:
    columns = predict_columns(folder)
    records = [dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)]
    (folder / "test.jsonl").write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return "test.jsonl"


def predict_columns(folder: Path) -> dict[str, list]:
    rows = pq.read_table(folder / "arena" / "rows.parquet").slice(0, 20)
    return {"id": rows["row_id"].to_pylist()} | {
        key: rows[key].to_pylist() for key in ("prompt", "response_a", "response_b")
    }


@pytest.mark.parametrize(
    "write", [as_parquet, as_json_lines, lambda _: "arena", lambda _: "arena/rows.parquet"]
)
def test_rows_are_read_from_whatever_distill_predict_reads(
    looking: Path, write: Callable[[Path], str]
) -> None:
    predict.main([*USUAL, "test.csv", "--out", "a.csv"])
    predict.main([*USUAL, write(looking), "--out", "b.csv"])
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()


def test_rows_that_lack_a_predicted_one_are_refused(looking: Path) -> None:
    lines = Path("test.csv").read_text(encoding="utf-8").splitlines()
    Path("short.csv").write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"short\.csv: lacks 1 of the predicted rows, e\.g\. r0019"):
        predict.main([*USUAL, "short.csv", "--out", "a.csv"])
    with pytest.raises(UserError, match=r"looks at the rows themselves too.*--data FILE"):
        predict.main([*USUAL[:-1], "--out", "a.csv"])
    assert not Path("a.csv").exists()
    assert not list(Path().glob(".*"))


def test_two_commands_do_not_write_one_prediction_set(looking: Path) -> None:
    with (
        locked(Path(".a.csv.predicting")),
        pytest.raises(UserError, match="another command is writing there"),
    ):
        predict.main([*USUAL, "test.csv", "--out", "a.csv"])
    predict.main([*USUAL, "test.csv", "--out", "a.csv"])


def test_what_a_killed_command_left_is_swept(looking: Path) -> None:
    Path(".a.csv.predicting").mkdir()
    Path(".a.csv.123.tmp").write_text("half")
    predict.main([*USUAL, "test.csv", "--out", "a.csv"])
    assert not list(Path().glob(".a.csv*"))


def test_names_do_not_command_the_terminal_and_modes_are_the_users(
    looking: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.umask(0o027)
    try:
        predict.main([*USUAL, "test.csv", "--out", "a\x1b[31m.csv"])
    finally:
        os.umask(before)
    assert "\x1b" not in capsys.readouterr().out
    assert Path("a\x1b[31m.csv").stat().st_mode & 0o777 == 0o640


def test_an_unknown_method_is_refused_with_the_list(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    with pytest.raises(UserError, match=r"--method average: is no method; there are .*simplex, .*mlp"):
        stack.main(["--oof", "one.csv", "--data", "arena", "--out", "none", "--method", "average"])
    assert not Path("none").exists()


@pytest.mark.parametrize("how", ["gone", "a directory"])
def test_a_store_without_its_manifest_is_not_left_out_silently(tmp_path: Path, how: str) -> None:
    _, P = prepared(tmp_path)
    for name in ("llama", "student"):
        write_store(tmp_path / name, tmp_path, P[:, 0])
    (tmp_path / "student" / "manifest.json").unlink()
    if how == "a directory":
        (tmp_path / "student" / "manifest.json").mkdir()
    with pytest.raises(UserError, match=r"student/manifest\.json: (no such|is a directory)"):
        member_stores(tmp_path)


def test_members_are_the_honest_stores_and_the_others_are_named(tmp_path: Path) -> None:
    _, P = prepared(tmp_path)
    for name, kind in (("llama", "oof"), ("llama-in_sample", "in_sample"), ("student", "oof")):
        write_store(tmp_path / name, tmp_path, P[:, 0], label_kind=kind)
    shutil.copytree(tmp_path / "llama", tmp_path / "gemma2")
    (tmp_path / "gemma2" / "oof.parquet").unlink()
    paths, notes = member_stores(tmp_path)
    assert paths == [str(tmp_path / name) for name in ("llama", "student")]
    assert [note.split(" is left out: ")[0] for note in notes] == ["gemma2", "llama-in_sample"]
    write_store(tmp_path / "spoilt", tmp_path, P[:, 0], label_kind="ooof")
    with pytest.raises(UserError, match=r"spoilt/manifest\.json: label_kind 'ooof' is none of oof"):
        member_stores(tmp_path)


def test_a_new_report_beside_an_old_stack_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble.report.page import write_report
    from ensemble.scoring.results import evaluate

    paths, labels = write_sets(tmp_path)
    problem = load_problem(paths, Path(labels))
    result = evaluate(problem, draws=50)
    out = tmp_path / "stack"
    write_report(out / "report.html", problem, result)
    write_result(out, problem, result)
    load_stack(out)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ensemble.output.save_stack", killed)
    write_report(out / "report.html", problem, replace(result, seed=5))
    with pytest.raises(KeyboardInterrupt):
        write_result(out, problem, result)
    with pytest.raises(UserError, match=r"report\.html: was not written with the stack\.json beside it"):
        load_stack(out)
    (out / "report.html").unlink()  # not needed to predict
    load_stack(out)
