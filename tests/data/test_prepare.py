"""The command ``data.prepare`` and what it leaves: written once, kept, finished after a kill, never mixed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tables import STORY, distinct, hash_word, tokenizer_file, write_table

from data.arena import ArenaConfig, simulate_arena
from data.classes import Classes
from data.dataset import load_prepared, prepare
from data.errors import UserError
from data.files import locked, sha256_files
from data.folds import Folds, read_folds, write_folds
from data.prepare import main
from data.schema import Rows, read_rows, write_rows

ROOT = Path(__file__).resolve().parents[2]
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
        "files": {name: sha256_files([tmp_path / name]) for name in ("rows.parquet", "folds.parquet")},
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
        (["--source", "arena", "--prefix-ids"], "--prefix-ids has no meaning with --source arena"),
        (["--source", "arena", "--format", "lmsys"], "--format has no meaning with --source arena"),
        (["--source", "arena", "--seed=-1"], "a seed of -1 is negative"),
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


def test_real_rows_prepare(real_data: Path, tmp_path: Path) -> None:
    main(["--source", str(real_data / "lmsys" / "preferences.csv"), "--out", str(tmp_path)])
    rows, folds = load_prepared(tmp_path)
    assert len(rows) == len(folds) == 1470
    assert folds.n_folds == 5


def test_near_duplicates_are_on_by_default_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_table(tmp_path / "t.csv", [STORY + "." * i for i in range(5)] + distinct(30))
    main(["--source", source, "--out", str(tmp_path / "near")])
    out = capsys.readouterr().out
    assert "35 rows, 31 prompt groups" in out
    assert f": 5 rows, {STORY[:40]}" in out
    main(["--source", source, "--out", str(tmp_path / "exact"), "--near", "off"])
    assert "35 rows, 35 prompt groups" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"was made with near-duplicates from 0\.8, not off"):
        main(["--source", source, "--out", str(tmp_path / "near"), "--near", "off"])
    (tmp_path / "exact" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"near-duplicate group .* is split"):  # folds there, made without
        main(["--source", source, "--out", str(tmp_path / "exact")])


def test_a_sources_file_combines_pins_and_prefixes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = distinct(30)
    write_table(tmp_path / "main.csv", prompts)
    write_table(tmp_path / "extra.csv", [*prompts[:3], *distinct(9, "other")], [2] * 12)
    (tmp_path / "sources.yaml").write_text(
        "near: 0.9\nfolds: 3\nprefix_ids: true\n"
        "sources:\n  - main.csv\n  - {path: extra.csv, name: extra, pin: true}\n"
    )
    out = tmp_path / "out"
    main(["--source", str(tmp_path / "sources.yaml"), "--out", str(out)])
    shown = capsys.readouterr().out
    assert "39 rows, 39 prompt groups, 3 folds" in shown
    assert (
        "3 rows of extra repeat a pair of an earlier source, left out: extra:r0, extra:r1, extra:r2" in shown
    )
    assert "2 pairs have contradicting labels, kept as soft labels" in shown
    assert "pinned to every training: 9 of the 9 rows of extra" in shown
    rows, folds = load_prepared(out)
    assert folds.pinned.sum() == 9
    assert rows.row_ids[0] == "main.csv:r0"
    np.testing.assert_allclose(rows.targets[0], [0.5, 0, 0.5])
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["sources"] == {"main.csv": 30, "extra": 9}
    assert manifest["repeats"]["between_sources"] == {"extra": 3}
    before = contents(out)
    main(["--source", str(tmp_path / "sources.yaml"), "--out", str(out)])
    assert contents(out) == before
    (tmp_path / "sources.yaml").write_text(
        "{near: 0.9, folds: 3, prefix_ids: true, sources: [main.csv, {path: extra.csv, name: extra}]}"
    )
    with pytest.raises(UserError, match=r"pinned to every training there and not by this command's --pin"):
        main(["--source", str(tmp_path / "sources.yaml"), "--out", str(out)])
    assert contents(out) == before


def test_inspect_shows_rows_cuts_lengths_and_a_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [
        {"id": f"r{i}", "prompt": ["Hi \x1b[31m <|begin_of_text|>", "mid", f"end {hash_word(i)}"],
         "response_a": ["a" * 200 * i, "b", "c"], "response_b": ["d", "e", "f"], "label": i % 3}
        for i in range(6)
    ]  # fmt: skip
    source, out = tmp_path / "t.jsonl", tmp_path / "out"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    main(["--source", str(source), "--out", str(out)])
    common = [
        "--out",
        str(out),
        "--tokenizer",
        tokenizer_file(tmp_path),
        "--max-length",
        "200",
        "--inspect",
        "2",
    ]
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    capsys.readouterr()
    main(common)
    plain = capsys.readouterr().out
    assert "tokens: built" in plain
    assert "── row r0 · winner_model_a" in plain
    assert "turns left out whole: 2" in plain  # of the long row
    assert "⟨response_a, turn 1: cut to" in plain
    assert "⟦<|begin_of_text|>⟧<prompt>" in plain
    assert "Hi ␛[31m <|begin_of_text|>" in plain  # text, not a token, and no command to the terminal
    assert "\x1b" not in plain
    assert "rows cut" in plain
    svg = (out / "lengths.svg").read_text()
    assert svg.startswith("<svg")
    assert "max_length 200" in svg
    monkeypatch.setenv("FORCE_COLOR", "1")
    main(common)
    coloured = capsys.readouterr().out
    assert "tokens: opened" in coloured
    assert "\x1b[36m" in coloured
    assert "\x1b[7m⟦<|begin_of_text|>⟧\x1b[0m" in coloured
    import re

    assert re.sub("\x1b\\[[0-9]+m", "", coloured).split("── row")[1:] == plain.split("── row")[1:]


def test_a_template_that_cannot_be_used_costs_no_reading(tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("{{ prompts[0] }} {{ responses_a[0] }}")
    given = ["--source", str(tmp_path / "unread.csv"), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="template own: puts turn 1 of response_b nowhere"):
        main([*given, "--tokenizer", tokenizer_file(tmp_path), "--template", str(own)])


def test_what_inspect_shows_is_what_is_encoded(tmp_path: Path) -> None:
    from small_tokenizers import small_tokenizer

    from data.encoding.encode import Encoder
    from data.encoding.lengths import cuts, measure
    from data.encoding.show import explain
    from data.encoding.template import Template
    from data.encoding.truncate import Truncation

    rows = simulate_arena(ArenaConfig(n_rows=50))
    encoder = Encoder(small_tokenizer("byte_bpe"), Template(), Truncation(140))
    tokens, encoded = encoder.tokenize(rows), encoder.encode(rows)
    for i in range(len(rows)):
        pieces, _ = explain(encoder, tokens, i, True)
        assert np.concatenate([piece.ids for piece in pieces]).tolist() == encoded[2 * i].tolist()
    lengths = measure(encoder, tokens, True)
    untouched = Encoder(encoder.tokenizer, Template(), Truncation(10_000)).encode(rows)
    assert lengths.rows.tolist() == untouched.lengths[::2].tolist()
    ((limit, cut, lost),) = cuts(encoder, tokens, lengths, True, [140])
    assert limit == 140
    assert cut == encoded.truncated / len(encoded.lengths)
    assert lost == pytest.approx(1 - encoded.lengths[::2].sum() / lengths.rows.sum(), abs=0.01)


def test_scratch_of_a_killed_run_is_swept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".scratch").mkdir(parents=True)
    (out / ".scratch" / "0.arrow").write_bytes(b"half")
    main(["--source", write_table(tmp_path / "t.csv", distinct(20)), "--out", str(out)])
    assert sorted(path.name for path in out.iterdir()) == FILES


def test_two_commands_do_not_write_into_one_directory(tmp_path: Path) -> None:
    source = write_table(tmp_path / "t.csv", distinct(20))
    out = tmp_path / "out"
    out.mkdir()
    with locked(out), pytest.raises(UserError, match="out: another command is writing there"):
        main(["--source", source, "--out", str(out)])
    main(["--source", source, "--out", str(out)])
    assert sorted(path.name for path in out.iterdir()) == FILES


def test_a_mistake_leaves_what_another_command_made_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two commands start at once and find no ``runs``; the one that fails must not take it away again."""
    import data.sources.read

    def fail(*_: object) -> None:
        (tmp_path / "runs" / "good").mkdir()
        raise UserError("a mistake")

    monkeypatch.setattr(data.sources.read, "read_source", fail)
    with pytest.raises(UserError, match="a mistake"):
        main(["--source", "t.csv", "--out", str(tmp_path / "runs" / "bad")])
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["good"]


def test_any_prompt_can_be_reported_anywhere(tmp_path: Path) -> None:
    """A terminal of another encoding, a prompt that would command it, and a reader that has gone."""
    source = write_table(tmp_path / "t.csv", ["caf\u00e9 \x1b[31m au lait"] * 2 + distinct(20))
    command = f"{sys.executable} -m data.prepare --source {source} --out {tmp_path}"
    for encoding in ("ascii", "utf-8"):
        done = subprocess.run(
            f"{command}/{encoding}", shell=True, cwd=ROOT, capture_output=True, check=False,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert b"\x1b" not in done.stdout
        assert ("caf\u00e9 " if encoding == "utf-8" else "caf\\xe9 ").encode() in done.stdout
    done = subprocess.run(
        ["bash", "-c", f"{command}/pipe | true; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert done.returncode in (0, 141)  # 0 where all was written before the other end was closed
    assert done.stderr == b""
    assert sorted(contents(tmp_path / "pipe")) == FILES


def test_plain_texts_are_shown_in_a_template_of_one_s_own(tmp_path: Path, capsys) -> None:
    """One that no pair fits into, which was refused before the rows were read, and ignored if it did fit."""
    lines = ["id,prompt,label", *(f"r{i},text number {hash_word(i)},c{i % 2}" for i in range(20))]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    own = tmp_path / "own.jinja"
    own.write_text("Some text: {{ prompts | join(' ') }} Topic:")
    given = ["--source", str(tmp_path / "t.csv"), "--out", str(tmp_path / "out"), "--inspect", "1"]
    given += ["--folds", "2", "--near", "off", "--tokenizer", tokenizer_file(tmp_path)]
    main([*given, "--template", str(own)])
    shown = capsys.readouterr().out
    assert "Some text: text number" in shown
    assert "Topic:" in shown
    own.write_text("Nothing of it")
    with pytest.raises(UserError, match="turn 1 of prompt nowhere"):
        main([*given, "--template", str(own)])
