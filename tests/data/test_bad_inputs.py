"""Bad input to ``data.prepare``: one message that names it, exit status 2, and nothing left behind."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rights import mistake_without_rights, shut

from data.errors import UserError
from data.prepare import main
from data.sources.clean import MAX_TEXT

ROOT = Path(__file__).resolve().parents[2]

LMSYS = "id,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie\n"
TABLE = "id,prompt,response_a,response_b,label\n"
GOOD = "".join(f"r{i},question {i} here,yes,no,{i % 3}\n" for i in range(12))


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def record(**changes: Any) -> dict[str, Any]:
    return {"id": "x", "prompt": "p", "response_a": "a", "response_b": "b", "label": 0, **changes}


def packed(size: int) -> bytes:
    return gzip.compress(b"id,prompt\n" + b"a" * size)


def parquet(**columns: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


def messages(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def arena(**changes: Any) -> dict[str, Any]:
    conversation = messages(("user", "q"), ("assistant", "a"))
    return {
        "id": "1",
        "conversation_a": conversation,
        "conversation_b": conversation,
        "winner": "tie",
        **changes,
    }


MANY_CLASSES = ",".join(map(str, range(100_001)))
DEEP = "[" * 100_000 + "]" * 100_000

# name of the file, its content (or what makes it), what the one message must say, further arguments
CASES: dict[str, tuple[str, Any, str, list[str]]] = {
    "empty file": ("t.csv", b"", "is empty", []),
    "header alone": ("t.csv", TABLE, "holds no rows", []),
    "latin-1": (
        "t.csv", (TABLE + "1,caf\xe9,a,b,0\n").encode("latin-1"), "not UTF-8 text .* save it as UTF-8", [],
    ),
    "utf-16": ("t.csv", (TABLE + GOOD).encode("utf-16"), "not UTF-8 text soon after line 1", []),
    "ragged row": ("t.csv", TABLE + "1,p,a,b\n", "line 2 on has 4 cells where the header names 5", []),
    "too many cells": ("t.csv", TABLE + "1,p,a,b,0,9\n", "has 6 cells where the header names 5 columns", []),
    "quote left open": (
        "t.csv", TABLE + GOOD + 'z,"p,a,b,0\n' + GOOD, "row from line 14 on: unexpected end .* quote", [],
    ),
    "quote left open in the last column": ("t.csv", TABLE + GOOD + 'z,p,a,b,"0\n', "line 14 on: unexp", []),
    "quote that swallows rows": (
        "t.csv", "id,label,prompt\n1,0,sun\n2,1,\"moon\n3,0,sea\n4,1,\"sky\"\n", "line 3 on: ',' expected",
        [],
    ),
    "text after a quote": ("t.csv", TABLE + '1,"say" no,a,b,0\n', "a quote missing, or one inside", []),
    "header of NULs": ("t.csv", (TABLE + GOOD).encode("utf-16-le"), "NUL characters in its header", []),
    "empty lines": ("t.csv", "\n\n", "holds no rows, only empty lines", []),
    "forty-megabyte field": ("t.csv", TABLE + f'1,"{"x" * 40_000_000}",a,b,0\n', "40,000,000 characters", []),
    "a field without end": ("t.csv", TABLE + f'1,"{"x" * 70_000_000}",a,b,0\n', "larger than field", []),
    "key twice": ("t.jsonl", lines(record()) + '{"id": 2, "label": 0, "label": 1}\n', "key label twice", []),
    "key twice in a list": ("t.json", '[{"id": 2, "label": 0, "label": 1}]', "row 0 .* key label twice", []),
    "JSON without a comma": ("t.json", '[{"id": 1} {"id": 2}]', "row 1 .* comma or the list's end", []),
    "JSON with a comma too many": ("t.json", '[{"id": 1}, ]', "row 1 .* not valid JSON", []),
    "JSON and more": ("t.json", '[{"id": 1}] []', "text follows the list's end", []),
    "pipe": ("t.csv", os.mkfifo, "is a pipe, a socket or a device", []),
    "split of a file": ("t.csv", TABLE + GOOD, "--split and --streaming have no", ["--split", "test"]),
    "stream of a file": ("t.csv", TABLE + GOOD, "--split and --streaming have no meaning", ["--streaming"]),
    "column twice": ("t.csv", "id,id,prompt\n1,2,p\n", "a column name appears twice", []),
    "NUL byte": ("t.csv", TABLE + "1,p\0q,a,b,0\n", "row 1, column prompt holds a NUL", []),
    "NUL in JSON": ("t.jsonl", lines(record(response_a="a\0b")), "column response_a holds a NUL", []),
    "ten-megabyte field": (
        "t.jsonl", lines(record(prompt="x" * 10_000_000)),
        f"10,000,000 characters, more than {MAX_TEXT:,}", [],
    ),
    "id twice": ("t.csv", TABLE + "1,p,a,b,0\n1,q,a,b,0\n", "1 row ids appear more than once: 1", []),
    "id missing": ("t.csv", TABLE + "1,p,a,b,0\n,q,a,b,0\n", r"row 1 \(counted from 0\) has no row_id", []),
    "ids differ by type": ("t.jsonl", lines(record(id=1), record(id="1")), "ids mix numbers and text", []),
    "fractional id": ("t.jsonl", lines(record(id=1.0)), "id '1.0' of type float", []),
    "truth as id": ("t.jsonl", lines(record(id=True)), "of type bool", []),
    "id of a megabyte": ("t.jsonl", lines(record(id="i" * 1_000_000)), "an id of 1,000,000 characters", []),
    "no id column": ("t.csv", "prompt,label\np,0\n", "no column row_id or id", ["--ids", "column"]),
    "no prompt column": ("t.csv", "id,words\n1,p\n", "no column prompt", []),
    "one response": ("t.csv", "id,prompt,response_a\n1,p,a\n", "has one of response_a and response_b", []),
    "label out of range": (
        "t.csv", TABLE + "1,p,a,b,3\n", "row 1 has label 3", ["--classes", "A,B,tie"],
    ),
    "negative label": ("t.csv", TABLE + "1,p,a,b,-1\n", "label -1", ["--classes", "A,B,tie"]),
    "unknown class": ("t.csv", TABLE + "1,p,a,b,first\n", "labels first means", []),
    "not one-hot": (
        "t.csv", LMSYS + '1,"[""p""]","[""a""]","[""b""]",1,1,0\n', "exactly one of them must be 1", [],
    ),
    "half a vote": (
        "t.csv", LMSYS + '1,"[""p""]","[""a""]","[""b""]",0.5,0.4,0\n', "exactly one of them", [],
    ),
    "no turn list": (
        "t.csv", LMSYS + '1,p,"[""a""]",b,1,0,0\n', "row 1, column prompt is not a JSON list", [],
    ),
    "nested turns": (
        "t.csv", LMSYS + '1,"[[""p""]]","[""a""]","[""b""]",1,0,0\n', "where text or a list of texts", [],
    ),
    "deep turns": ("t.csv", LMSYS + f'1,{DEEP},"[]","[]",1,0,0\n', "is not a JSON list of turns", []),
    "probabilities off": (
        "t.jsonl", lines(record(label_probs=[0.5, 0.6, 0.2])), "label_probs .* not 3 non-negative numbers",
        ["--classes", "A,B,tie"],
    ),
    "probabilities NaN": (
        "t.jsonl", lines(record(label_probs=[float("nan"), 0.5, 0.5])), "not 3 non-negative numbers",
        ["--classes", "A,B,tie"],
    ),
    "probabilities short": (
        "t.jsonl", lines(record(label_probs=[0.5, 0.5])), "not 3 numbers", ["--classes", "A,B,tie"],
    ),
    "JSON cut off": ("t.json", '[{"id": 1, "prom', "not valid JSON", []),
    "JSON of one object": ("t.json", '{"id": 1}', "no column prompt among id", []),
    "JSON of one object, indented": ("t.json", '{\n "id": 1\n}', "line 1: not valid JSON", []),
    "JSON of numbers": ("t.json", "[1, 2]", "expected a list of objects", []),
    "JSON too deep": ("t.json", DEEP, "nested too deep", []),
    "line cut off": ("t.jsonl", lines(record()) + '{"id": ', "line 2: not valid JSON", []),
    "line of a list": ("t.jsonl", "[1]\n", "expected a list of objects", []),
    "line too deep": ("t.jsonl", DEEP + "\n", "line 1: JSON nested too deep", []),
    "object as prompt": ("t.jsonl", lines(record(prompt={"a": [1]})), "column prompt holds", []),
    "Parquet of bad text": (
        "t.parquet", parquet(id=["1"], prompt=pa.array([b"\xff"]).view(pa.string()), label=[0]),
        "column prompt is not UTF-8 text", ["--classes", "a,b"],
    ),
    "not Parquet": ("t.parquet", b"PAR1 nothing", "not a readable Parquet file", []),
    "Parquet cut off": (
        "t.parquet", lambda path: (parquet(id=["1"] * 99)(path), path.write_bytes(path.read_bytes()[:-9])),
        "not a readable Parquet file", [],
    ),
    "Parquet of wrong types": (
        "t.parquet", parquet(id=["1"], prompt=[b"\xff"], label=[0]),
        "column prompt holds", ["--classes", "a,b"],
    ),
    "gzip bomb": ("t.csv.gz", packed(100_000_000), "unpacks to more than 100 times its size", []),
    "gzip cut off": ("t.csv.gz", packed(100)[:-6], "cannot be unpacked as gzip", []),
    "not gzip": ("t.csv.gz", b"id,prompt\n1,p\n", "cannot be unpacked as gzip", []),
    "unknown kind": ("t.xlsx", b"PK", "unknown kind of file", []),
    "a directory with no data": ("t", lambda path: path.mkdir(), "cannot be read as a data set", []),
    "a directory named as a file": ("t.csv", lambda path: path.mkdir(), "cannot be read as a data set", []),
    "arena winner": ("t.jsonl", lines(arena(winner="both")), "winner both; it must be one of", []),
    "arena role": (
        "t.jsonl", lines(arena(conversation_a=messages(("tool", "x")))), "role 'tool' out of turn", [],
    ),
    "arena starts with an answer": (
        "t.jsonl", lines(arena(conversation_b=messages(("assistant", "x")))), "out of turn", [],
    ),
    "arena questions differ": (
        "t.jsonl", lines(arena(conversation_b=messages(("user", "z"), ("assistant", "x")))),
        "different questions", [],
    ),
    "arena without messages": (
        "t.jsonl", lines(arena(conversation_a=[])), "list of messages was expected", [],
    ),
    "arena content": ("t.jsonl", lines(arena(conversation_a=messages(("user", 7)))), "has content|where", []),
    "unrated": (
        "t.jsonl",
        lines({"instruction": "i", "completions": [{"response": "a", "overall_score": "N/A"}]}),
        "row 0 has the rating N/A", [],
    ),
    "one completion": (
        "t.jsonl", lines({"instruction": "i", "completions": [{"response": "a", "overall_score": 1}]}),
        "two completions to compare", [],
    ),
    "WSDM tie": (
        "t.csv", "id,prompt,response_a,response_b,winner\n1,p,a,b,tie\n", "winner tie; it must be one of", [],
    ),
    "PandaLM vote": (
        "t.json",
        json.dumps([{"idx": 1, "instruction": "i", "response1": "a", "response2": "b", "annotator1": 5}]),
        "a vote is 0", [],
    ),
    "too few prompts": (
        "t.csv", TABLE + "1,p,a,b,0\n2,P,a,c,1\n", "distinct prompts .those of a similarity from 0.8", [],
    ),
    "unknown pin": ("t.csv", TABLE + GOOD, "--pin extra: no such source", ["--pin", "extra"]),
    "all pinned": ("t.csv", TABLE + GOOD, "too few for 5 folds", ["--pin", "t.csv"]),
    "near is no number": ("t.csv", TABLE + GOOD, "--near much", ["--near", "much"]),
    "near out of range": ("t.csv", TABLE + GOOD, "outside 0.3 to 1", ["--near", "1.5"]),
    "no such tokenizer": ("t.csv", TABLE + GOOD, "no such tokenizer file", ["--tokenizer", "gone.json"]),
    "no such template": (
        "t.csv", TABLE + GOOD, "no template fancy", ["--tokenizer", "gone.json", "--template", "fancy"],
    ),
    "inspect without tokenizer": (
        "t.csv", TABLE + GOOD, "--inspect shows rows as token ids", ["--inspect", "2"],
    ),
    "max_length": ("t.csv", TABLE + GOOD, "max_length is 3", ["--tokenizer", "t", "--max-length", "3"]),
    "id of spaces": (
        "t.jsonl", lines(record(), record(id="  ")), r"row 1 \(counted from 0\) has no row_id", [],
    ),
    "id of half a character": ("t.jsonl", lines(record(id="\ud800")), "a lone surrogate in it", []),
    "model of another kind": (
        "t.jsonl", lines(record(model_a={"a": 1})), "model_a holds .* model's name", [],
    ),
    "NUL in a model": ("t.jsonl", lines(record(model_b="m\0")), "row x, column model_b holds a NUL", []),
    "too many class names": (
        "t.csv", "id,prompt\n1,p\n", "100001 classes are more than the 100000", ["--classes", MANY_CLASSES],
    ),
    "class without a name": ("t.csv", TABLE + GOOD, "class name '' is empty", ["--classes", "A,,B"]),
    "class of half a character": (
        "t.jsonl", lines({"id": 1, "prompt": "p", "label": "\ud800"}, {"id": 2, "prompt": "q", "label": "b"}),
        "class name .* control characters", [],
    ),
    "one odd label": ("t.csv", TABLE + GOOD + "z,p,a,b,inf\n", "inf is first in row 12, counted from 0", []),
    "label with a leading zero": ("t.csv", TABLE + "1,p,a,b,01\n", "label 01", ["--classes", "A,B,tie"]),
    "one column twice": (
        "t.csv", TABLE + GOOD, "column response_b is to be both", ["--columns", "response_a=response_b"],
    ),
    "no such column": ("t.csv", TABLE + GOOD, "no column nope; it has", ["--columns", "prompt=nope"]),
    "lists and a bad label": (
        "t.csv", TABLE + '1,"[""p""]","[""a""]","[""b""]",7\n', "row 1 has label 7", [],
    ),
    "arena without a question": (
        "t.jsonl", lines(arena(conversation_a=messages(("system", "x")))),
        "has no question", [],
    ),
    "arena with a system message last": (
        "t.jsonl", lines(arena(conversation_a=messages(("user", "q"), ("assistant", "a"), ("system", "x")))),
        "a system message after the last", [],
    ),
    "truth as rating": (
        "t.jsonl", lines({"instruction": "i", "completions": [{"response": "a", "overall_score": True}]}),
        "row 0 has the rating True", [],
    ),
    "completion's model": (
        "t.jsonl", lines({"instruction": "i", "completions": [{"response": "a", "score": 1, "model": [1]}]}),
        "column completions holds .* model's name", [],
    ),
    "binarized without a question": (
        "t.jsonl",
        lines({"prompt": "p", "chosen": messages(("system", "x")), "rejected": messages(("system", "x")),
               "score_chosen": 1, "score_rejected": 0}),
        "column chosen has no question", [],
    ),
    "negative seed": ("t.csv", TABLE + GOOD, "a seed of -1 is negative", ["--seed=-1"]),
    "no folds": ("t.csv", TABLE + GOOD, "0 folds cannot be cross-validated", ["--folds", "0"]),
    "more folds than prompts": (
        "t.csv", TABLE + GOOD, "too few for 1000000000 folds", ["--folds", "1000000000"],
    ),
    "sources file, negative seed": ("t.yaml", "seed: -1\nsources: [a.csv]\n", "a seed of -1 is negative", []),
    "sources file, ids": (
        "t.yaml", "sources: [{path: a.csv, ids: none}]\n", "must be one of column, row-n", [],
    ),
    "sources file, truth as class": (
        "t.yaml", "sources: [{path: a.csv, classes: [yes, no]}]\n", "classes of source a.csv holds True", [],
    ),
    "sources file, truth in a swap": (
        "t.yaml", "sources: [{path: a.csv, swap: [true, 0]}]\n", "swap of source a.csv holds True", [],
    ),
    "sources file, key twice": (
        "t.yaml", "folds: 3\nfolds: 4\nsources: [a.csv]\n", "duplicate key folds", [],
    ),
    "sources file, a bomb": (
        "t.yaml",
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in ["ab", "bc", "cd", "de", "ef"])
        + "sources: *f\n",
        "not a readable YAML file", [],
    ),
    "sources file that runs code": (
        "t.yaml", "sources: !!python/object/apply:os.system ['false']\n", "not a readable YAML file", [],
    ),
    "sources file in UTF-16": (
        "t.yaml", "sources: [a.csv]\n".encode("utf-16"), "not a readable YAML file", [],
    ),
    "sources file of text": ("t.yaml", "nothing", "expected a list of sources", []),
    "sources file, cyclic": (
        "t.yaml", "sources: &a\n  - *a\n", "not a readable YAML file|a source is a path", [],
    ),
    "sources file, unknown key": ("t.yaml", "sorces: []\nsources: [a.csv]\n", "unknown key sorces", []),
    "sources file, wrong type": (
        "t.yaml", "sources: [{path: a.csv, limit: many}]\n", "limit of source a.csv", [],
    ),
    "sources file, folds": ("t.yaml", "folds: many\nsources: [a.csv]\n", "folds is 'many'", []),
    "sources file, no path": ("t.yaml", "sources: [{name: a}]\n", "a source is a path", []),
}  # fmt: skip


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_bad_input_ends_in_one_message_and_nothing_left(tmp_path: Path, name: str) -> None:
    file, content, message, arguments = CASES[name]
    source, out = tmp_path / "in" / file, tmp_path / "deep" / "out"
    source.parent.mkdir()
    if callable(content):
        content(source)
    elif isinstance(content, str):
        source.write_text(content, encoding="utf-8", newline="")
    else:
        source.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        main(["--source", str(source), "--out", str(out), *arguments])
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1000
    assert not (tmp_path / "deep").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def command(
    *arguments: str, limits: Callable[[], None] | None = None, **options: Any
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "data.prepare", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limits,
        **options,
    )


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A file-size limit stands for the full disk: the system refuses the write in the same way."""

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = command("--source", "arena", "--rows", "2000", "--out", str(tmp_path / "out"), limits=small_files)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["source", "out", "under out"])
def test_no_permission(what: str) -> None:
    with shut(0o777 if what == "source" else 0o555 if what == "out" else 0o000) as place:
        source = place.parent / "t.csv"
        source.write_text(TABLE + GOOD)
        source.chmod(0o000 if what == "source" else 0o644)
        said = mistake_without_rights(lambda: main(["--source", str(source), "--out", str(place / "out")]))
        place.chmod(0o755)
        assert list(place.iterdir()) == []
    assert re.match(r"UserError: .*cannot be (read|made a directory|opened) \(Permission denied\)", said)


def test_out_in_the_way_or_unnamed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE + GOOD)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file where a directory is to be written"):
        main(["--source", str(tmp_path / "t.csv"), "--out", str(tmp_path / "file")])
    with pytest.raises(UserError, match="cannot be made a directory"):
        main(["--source", str(tmp_path / "t.csv"), "--out", str(tmp_path / "file" / "under")])
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(UserError, match="--out is missing"):
        main(["--source", str(tmp_path / "t.csv")])
    with pytest.raises(UserError, match="nothing to do"):
        main(["--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match=r"cannot be opened|no such"):
        main(["--source", "x" * 5000 + ".csv", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
