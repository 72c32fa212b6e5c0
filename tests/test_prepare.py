"""The command ``data.prepare`` and what it leaves: written once, kept, finished after a kill, never mixed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.arena import ArenaConfig, simulate_arena
from data.dataset import load_prepared, prepare
from data.errors import UserError
from data.folds import Folds, read_folds, write_folds
from data.prepare import main
from data.schema import Classes, Rows, read_rows, write_rows

ROOT = Path(__file__).resolve().parents[1]
FILES = ["folds.parquet", "manifest.json", "rows.parquet"]


@pytest.fixture(scope="module")
def rows() -> Rows:
    return simulate_arena(ArenaConfig(n_rows=60))


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def run_command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "data.prepare", *args], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_prepare_leaves_what_load_reads(tmp_path: Path, rows: Rows) -> None:
    folds = prepare(rows, tmp_path, n_folds=4)
    assert sorted(contents(tmp_path)) == FILES
    for path in (tmp_path, tmp_path / "rows.parquet"):
        back, back_folds = load_prepared(path)
        assert back.content_hash == rows.content_hash
        assert back.table.column_names == rows.table.column_names
        assert back_folds.content_hash == folds.content_hash
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest == {
        "kind": "data",
        "format": 1,
        "source": "simulated arena",
        "sources": {"simulated arena": 60},
        "n_rows": 60,
        "classes": ["winner_model_a", "winner_model_b", "winner_tie"],
        "swap": [1, 0, 2],
        "rows_hash": rows.content_hash,
        "folds_hash": folds.content_hash,
        "n_folds": 4,
        "n_groups": len(set(folds.group_ids)),
        "near": None,
        "pin": [],
        "n_pinned": 0,
        "label_counts": dict(zip(rows.classes.names, np.bincount(rows.labels).tolist(), strict=True)),
    }


def test_fold_file_is_the_truth_and_is_kept(tmp_path: Path, rows: Rows) -> None:
    first = prepare(rows, tmp_path, seed=0)
    before = contents(tmp_path)
    assert prepare(rows, tmp_path, seed=99).content_hash == first.content_hash
    assert contents(tmp_path) == before


def test_folds_made_elsewhere_are_kept_if_sound(tmp_path: Path, rows: Rows) -> None:
    write_rows(tmp_path / "rows.parquet", rows)
    made = prepare(rows, tmp_path / "other", seed=5)
    order = np.arange(len(rows))[::-1]
    own = Folds([made.row_ids[i] for i in order], [made.group_ids[i] for i in order], made.fold[order])
    write_folds(tmp_path, own)
    before = (tmp_path / "folds.parquet").read_bytes()
    assert prepare(rows, tmp_path).content_hash == made.content_hash
    assert (tmp_path / "folds.parquet").read_bytes() == before


def test_other_rows_or_classes_or_fold_counts_are_refused_and_nothing_changes(
    tmp_path: Path, rows: Rows
) -> None:
    prepare(rows, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"already holds other rows .* choose another --out"):
        prepare(rows.take(np.arange(40)), tmp_path)
    with pytest.raises(UserError, match="already holds other classes"):
        prepare(Rows(rows.table, Classes(rows.classes.names, (0, 1, 2))), tmp_path)
    with pytest.raises(UserError, match="into 5 folds, not 3"):
        prepare(rows, tmp_path, n_folds=3)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("finished", [[], ["rows.parquet"], ["rows.parquet", "folds.parquet"]])
def test_any_state_a_kill_leaves_is_finished_alike(tmp_path: Path, rows: Rows, finished: list[str]) -> None:
    prepare(rows, tmp_path / "whole")
    partial = tmp_path / "partial"
    partial.mkdir()
    for name in finished:
        (partial / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    (partial / ".rows.parquet.123.tmp").write_bytes(b"PAR1 cut off")
    prepare(rows, partial)
    (partial / ".rows.parquet.123.tmp").unlink()
    assert contents(partial) == contents(tmp_path / "whole")


def test_killed_command_is_finished_by_the_same_command(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    args = ["--source", "arena", "--rows", "3000"]
    assert run_command(*args, "--out", str(whole)).returncode == 0
    killed_early = 0
    for delay in (0.3, 0.6, 0.9):
        with subprocess.Popen(
            [sys.executable, "-m", "data.prepare", *args, "--out", str(killed)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        ) as process:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        killed_early += process.returncode == -signal.SIGKILL
    assert killed_early
    assert run_command(*args, "--out", str(killed)).returncode == 0
    assert {name: contents(killed)[name] for name in FILES} == contents(whole)


def test_folds_without_rows_or_a_file_in_the_way_are_refused(tmp_path: Path, rows: Rows) -> None:
    prepare(rows, tmp_path / "a")
    (tmp_path / "a" / "rows.parquet").unlink()
    with pytest.raises(UserError, match=r"holds folds\.parquet but no rows\.parquet"):
        prepare(rows, tmp_path / "a")
    (tmp_path / "b").write_text("a file")
    with pytest.raises(UserError, match="is a file where a directory is to be written"):
        prepare(rows, tmp_path / "b")


def test_loading_what_is_missing_or_mixed_says_what_to_do(tmp_path: Path, rows: Rows) -> None:
    with pytest.raises(
        UserError, match=r"rows\.parquet: no such row table; make one with python -m data\.prepare"
    ):
        load_prepared(tmp_path)
    write_rows(tmp_path / "rows.parquet", rows)
    with pytest.raises(UserError, match=r"folds\.parquet: no such fold file"):
        load_prepared(tmp_path)
    folds = prepare(rows, tmp_path)
    write_folds(tmp_path, Folds(folds.row_ids[1:], folds.group_ids[1:], folds.fold[1:]))
    with pytest.raises(UserError, match=r"no fold for 1 of 60 rows: arena-0-000000"):
        load_prepared(tmp_path)


def test_command_prints_a_table_and_keeps_the_folds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--source", "arena", "--rows", "80", "--folds", "4", "--out", str(tmp_path)]
    main(args)
    first = capsys.readouterr().out
    assert "80 rows" in first
    assert "4 folds" in first
    assert first.endswith("folds.parquet: written\n")
    fold_rows = [int(line.split()[1]) for line in first.splitlines() if line[:1].isdigit()]
    assert fold_rows == np.bincount(read_folds(tmp_path).fold).tolist()
    main(args)
    assert capsys.readouterr().out.endswith("folds.parquet: kept as it was\n")


def test_command_reads_a_table_through_a_yaml_column_map(tmp_path: Path) -> None:
    source, columns = tmp_path / "t.csv", tmp_path / "map.yaml"
    lines = [f"k{i},question {i},yes,no,{'AB'[i % 2]},{i % 2},{1 - i % 2}" for i in range(8)]
    source.write_text("key,q,one,two,better,pa,pb\n" + "\n".join(lines) + "\n")
    columns.write_text("row_id: key\nprompt: q\nresponse_a: one\nresponse_b: two\nlabel_probs: [pb, pa]\n")
    main(
        ["--source", str(source), "--out", str(tmp_path / "out"), "--folds", "2", "--classes", "A,B",
         "--columns", str(columns), "label=better"]
    )  # fmt: skip
    rows = read_rows(tmp_path / "out")
    assert rows.classes == Classes(("A", "B"), (1, 0))
    assert rows.labels.tolist() == [0, 1] * 4
    np.testing.assert_array_equal(rows.targets, np.eye(2)[rows.labels])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--source", "gone.csv"], "gone.csv: no such source file"),
        (["--source", "arena", "--limit", "5"], "--limit has no meaning with --source arena"),
        (["--source", "t.csv", "--rows", "5"], "--rows sizes the simulated arena"),
        (["--source", "t.csv", "--columns", "prompt"], "--columns prompt: give field=column"),
        (["--source", "t.csv", "--columns", "gone.yaml"], "gone.yaml: no such column map"),
        (["--source", "t.csv", "--swap", "a,b"], "--swap a,b: give one class index a class"),
        (["--source", "arena", "--rows", "3", "--folds", "5"], "too few for 5 folds"),
    ],
)
def test_mistakes_end_with_one_message_and_nothing_written(
    tmp_path: Path, args: list[str], message: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError) as caught:
        main([*args, "--out", str(out)])
    assert message in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("text", ["- prompt\n", "prompt: [1]\n", "prompt: {a: b}\n", "prompt: [q\n", "\t: :"])
def test_bad_column_maps_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(UserError, match=r"map\.yaml"):
        main(["--source", "t.csv", "--out", str(tmp_path / "out"), "--columns", str(tmp_path / "map.yaml")])


def test_exit_status_and_message_of_a_mistake(tmp_path: Path) -> None:
    done = run_command("--source", "gone.csv", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: gone.csv: no such source file")
    assert "Traceback" not in done.stderr


def test_help_is_quick() -> None:
    started = time.perf_counter()
    done = run_command("--help")
    assert done.returncode == 0
    assert "--source" in done.stdout
    assert time.perf_counter() - started < 2  # about 0.05 s; heavy imports would take several


def test_real_rows_prepare(real_data: Path, tmp_path: Path) -> None:
    main(["--source", str(real_data / "lmsys" / "preferences.csv"), "--out", str(tmp_path)])
    rows, folds = load_prepared(tmp_path)
    assert len(rows) == len(folds) == 1470
    assert folds.n_folds == 5
