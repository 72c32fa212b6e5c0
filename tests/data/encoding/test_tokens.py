"""The token store: same ids as without it, whatever happens to its files or to the process that builds it."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_tokenizers import small_tokenizer

from data.arena import ArenaConfig, simulate_arena
from data.encoding import encode as encode_module
from data.encoding import tokens as tokens_module
from data.encoding.encode import Encoder, Tokens
from data.encoding.template import Template
from data.encoding.tokens import check_store, find_tokens, open_tokens
from data.encoding.truncate import Truncation
from data.errors import UserError
from data.schema import Rows


@pytest.fixture(scope="module")
def rows() -> Rows:
    return simulate_arena(ArenaConfig(n_rows=300))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(small_tokenizer("byte_bpe"), Template(), Truncation(128))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "CHUNK_ROWS", 16)
    monkeypatch.setattr(tokens_module, "CHECKPOINT_CHUNKS", 3)


def equal(one: Tokens, two: Tokens) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in ("ids", "lengths", "turns"))


def test_a_store_holds_what_tokenizing_gives(tmp_path: Path, rows: Rows, encoder: Encoder) -> None:
    stored, what = open_tokens(rows, encoder, tmp_path)
    assert what == "built"
    assert stored.ids.dtype == np.uint32
    assert isinstance(stored.ids, np.memmap)
    assert equal(stored, encoder.tokenize(rows))
    direct, spliced = encoder.encode(rows), encoder.assemble(stored, rows.classes.orders)
    np.testing.assert_array_equal(direct.ids, spliced.ids)
    np.testing.assert_array_equal(direct.offsets, spliced.offsets)
    assert direct.truncated == spliced.truncated > 0
    part = encoder.assemble(stored, rows.classes.orders, 100, 110)
    np.testing.assert_array_equal(part[3], direct[203])
    assert stored.totals().sum() == len(stored.ids)
    again, what = open_tokens(rows, encoder, tmp_path)
    assert what == "opened"
    assert equal(again, stored)


def test_a_store_that_is_whole_is_found_and_encoded_from_without_tokenizing(
    tmp_path: Path, rows: Rows, encoder: Encoder, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_tokens(rows, encoder, tmp_path) is None
    assert not any(tmp_path.iterdir())
    open_tokens(rows, encoder, tmp_path)
    direct = encoder.encode(rows)
    monkeypatch.setattr(Encoder, "tokenize", lambda *_: pytest.fail("tokenized again"))
    monkeypatch.setattr(encode_module, "CHUNK_ROWS", 64)
    stored = encoder.encode(rows, find_tokens(rows, encoder, tmp_path))
    np.testing.assert_array_equal(direct.ids, stored.ids)
    np.testing.assert_array_equal(direct.offsets, stored.offsets)
    assert direct.truncated == stored.truncated
    (store,) = tmp_path.glob("tokens-*")
    with open(store / "ids.u32", "r+b") as handle:
        handle.write(b"\xff")
    assert find_tokens(rows, encoder, tmp_path) is None


def test_truncation_makes_no_difference_but_template_and_tokenizer_do(
    tmp_path: Path, rows: Rows, encoder: Encoder
) -> None:
    open_tokens(rows, encoder, tmp_path)
    tokenizer = encoder.tokenizer
    assert open_tokens(rows, Encoder(tokenizer, Template(), Truncation(64)), tmp_path)[1] == "opened"
    assert open_tokens(rows, Encoder(tokenizer, Template("winner"), Truncation(64)), tmp_path)[1] == "built"
    other = Encoder(small_tokenizer("wordpiece"), Template(), Truncation(64))
    assert open_tokens(rows, other, tmp_path)[1] == "built"
    assert len(list(tmp_path.iterdir())) == 3


def test_swapping_costs_no_tokenization(
    rows: Rows, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    plain = encoder.plain.__class__.flat

    def counted(self, texts):
        calls.append(len(texts))
        return plain(self, texts)

    monkeypatch.setattr(encoder.plain.__class__, "flat", counted)
    stored = encoder.tokenize(rows)
    texts = {
        t
        for name in ("prompt", "response_a", "response_b")
        for turn in rows.table[name].to_pylist()
        for t in turn
    }
    assert calls == [len(texts)]  # each text once
    encoder.assemble(stored, rows.classes.orders)
    assert calls == [len(texts)]


@pytest.mark.parametrize("file", ["ids.u32", "lengths.u32", "turns.u32", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_a_damaged_store_is_found_and_rebuilt(
    tmp_path: Path, rows: Rows, encoder: Encoder, file: str, harm: str
) -> None:
    open_tokens(rows, encoder, tmp_path)
    (store,) = tmp_path.iterdir()
    path = store / file
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    elif harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    rebuilt, what = open_tokens(rows, encoder, tmp_path)
    assert what.startswith("rebuilt: ") or (file, harm) == ("manifest.json", "gone")
    assert equal(rebuilt, encoder.tokenize(rows))
    assert check_store(store) is None
    assert sorted(path.name for path in store.iterdir()) == [
        "ids.u32",
        "lengths.u32",
        "manifest.json",
        "turns.u32",
    ]


def test_a_store_of_other_rows_is_stale(tmp_path: Path, rows: Rows, encoder: Encoder) -> None:
    open_tokens(rows, encoder, tmp_path)
    fewer = rows.take(np.arange(40))
    stored, what = open_tokens(fewer, encoder, tmp_path)
    assert what == "rebuilt: it is stale, its rows_hash is another"
    assert len(stored) == 40


def interrupt(rows: Rows, encoder: Encoder, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a store and die in its ninth chunk."""
    seen: list[int] = []
    tokenize = Encoder.tokenize

    class Killed(BaseException):
        pass

    def dying(self, rows, start=0, stop=None):
        if len(seen) == 8:
            raise Killed
        seen.append(start)
        return tokenize(self, rows, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "tokenize", dying)
        with pytest.raises(Killed):
            open_tokens(rows, encoder, home)


@pytest.mark.usefixtures("small_chunks")
def test_a_killed_build_goes_on_from_its_checkpoint(
    tmp_path: Path, rows: Rows, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = open_tokens(rows, encoder, tmp_path / "whole")
    interrupt(rows, encoder, tmp_path / "killed", monkeypatch)
    (store,) = (tmp_path / "killed").iterdir()
    assert json.loads((store / "progress.json").read_text())["rows"] == 6 * 16
    seen: list[int] = []
    tokenize = Encoder.tokenize

    def counted(self, rows, start=0, stop=None):
        seen.append(start)
        return tokenize(self, rows, start, stop)

    monkeypatch.setattr(Encoder, "tokenize", counted)
    resumed, what = open_tokens(rows, encoder, tmp_path / "killed")
    assert what == "continued"
    assert seen[0] == 6 * 16
    assert equal(resumed, whole)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("harm", ["ids.u32", "lengths.u32", "turns.u32", "rows", "words"])
def test_what_a_killed_build_left_is_gone_on_from_only_if_it_is_sound(
    tmp_path: Path, rows: Rows, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    whole, _ = open_tokens(rows, encoder, tmp_path / "whole")
    interrupt(rows, encoder, tmp_path / "killed", monkeypatch)
    (store,) = (tmp_path / "killed").iterdir()
    if harm in ("rows", "words"):
        state = json.loads((store / "progress.json").read_text())
        state["rows"] = state["rows"] - 16 if harm == "rows" else "many"
        (store / "progress.json").write_text(json.dumps(state))
    else:
        content = bytearray((store / harm).read_bytes())
        content[9] ^= 1
        (store / harm).write_bytes(content)
    assert equal(open_tokens(rows, encoder, tmp_path / "killed")[0], whole)
    assert check_store(store) is None


@pytest.mark.usefixtures("small_chunks")
def test_of_two_that_want_a_store_one_builds_it(
    tmp_path: Path, rows: Rows, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = encoder.tokenize(rows)
    tokenize, seen, halfway, other_waits = Encoder.tokenize, [], threading.Event(), threading.Event()

    def slow(self, rows, start=0, stop=None):
        seen.append(start)
        if len(seen) == 8:
            halfway.set()
            other_waits.wait(10)
        return tokenize(self, rows, start, stop)

    monkeypatch.setattr(Encoder, "tokenize", slow)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(open_tokens, rows, encoder, tmp_path)
        assert halfway.wait(10)
        two = pool.submit(open_tokens, rows, encoder, tmp_path)
        with pytest.raises(TimeoutError):
            two.result(0.5)
        other_waits.set()
        assert (one.result()[1], two.result()[1]) == ("built", "opened")
    assert equal(one.result()[0], expected)
    assert equal(two.result()[0], expected)
    assert len(seen) == 19


@pytest.mark.usefixtures("small_chunks")
def test_a_damaged_checkpoint_costs_time_and_nothing_else(
    tmp_path: Path, rows: Rows, encoder: Encoder
) -> None:
    whole, _ = open_tokens(rows, encoder, tmp_path)
    (store,) = tmp_path.iterdir()
    manifest = json.loads((store / "manifest.json").read_text())
    for progress in (
        "{",
        json.dumps({**manifest, "rows": 96}),
        json.dumps({**manifest, "rows_hash": "x", "rows": 9}),
    ):
        shutil.rmtree(store)
        store.mkdir()
        (store / "progress.json").write_text(progress)
        assert equal(open_tokens(rows, encoder, tmp_path)[0], whole)


@pytest.mark.usefixtures("small_chunks")
def test_several_processes_give_the_same_store(tmp_path: Path, rows: Rows, encoder: Encoder) -> None:
    one, _ = open_tokens(rows, encoder, tmp_path / "one", workers=1)
    two, _ = open_tokens(rows, encoder, tmp_path / "two", workers=2)
    assert equal(one, two)


@pytest.mark.usefixtures("small_chunks")
def test_a_worker_killed_from_outside_is_told_and_the_build_goes_on(
    tmp_path: Path, rows: Rows, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tokens_module._packed
    kills = iter([*[False] * 6, True])  # when all are at work

    def killing(table: pa.Table) -> pa.Buffer:
        if next(kills, False):
            for child in multiprocessing.active_children():
                child.kill()
        return packed(table)

    monkeypatch.setattr(tokens_module, "_packed", killing)
    with pytest.raises(UserError, match="ended from outside"):
        open_tokens(rows, encoder, tmp_path, workers=2)
    found, what = open_tokens(rows, encoder, tmp_path, workers=1)
    assert what == "continued" or what.startswith("built")
    assert equal(found, encoder.tokenize(rows))
