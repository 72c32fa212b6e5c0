"""Shards: every row once and in order, whatever the row groups; parts are known for what they are."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import UserError
from data.shards import Shard, ShardReader, missing_parts, plan_shards, write_part
from distill.prediction.labelling import Lanes


def write(path: Path, sizes: list[list[int]]) -> int:
    """Write files of row groups of these sizes, holding 0, 1, 2, ...; return how many rows."""
    schema, n = pa.schema([("row_id", pa.int64())]), 0
    for number, groups in enumerate(sizes):
        with pq.ParquetWriter(path / f"{number:02d}.parquet", schema) as writer:
            for size in groups:
                writer.write_table(pa.table({"row_id": np.arange(n, n + size)}, schema=schema))
                n += size
    return n


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(0, 40), max_size=5), min_size=1, max_size=3),
    shard_rows=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_every_row_is_in_one_shard_and_in_order(tmp_path_factory, sizes, shard_rows, seed):
    path = tmp_path_factory.mktemp("in")
    n = write(path, sizes)
    if n == 0:
        with pytest.raises(UserError, match="no rows"):
            plan_shards(str(path), shard_rows)
        return
    plan = plan_shards(str(path), shard_rows)
    assert max(shard.rows for shard in plan.shards) <= shard_rows
    reader, parts = ShardReader(), {}
    order = np.random.default_rng(seed).permutation(len(plan.shards))
    for i in [*order, *range(len(plan.shards))]:  # any order, then the cheap one
        parts[i] = reader.read(plan.shards[i])["row_id"].to_pylist()
    assert [row for i in range(len(plan.shards)) for row in parts[i]] == list(range(n))


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in", [[30], [10, 10]])
    return plan_shards(str(tmp_path / "in"), 10)


def test_a_part_is_missing_if_cut_short_or_of_another_job(plan, tmp_path):
    out = str(tmp_path / "out")
    assert missing_parts(out, plan, "key") == plan.shards
    for shard in plan.shards:
        write_part(out, shard, pa.table({"id": ["x"] * shard.rows}), "key")
    assert missing_parts(out, plan, "key") == []
    assert missing_parts(out, plan, "other") == plan.shards
    part = tmp_path / "out" / plan.shards[2].part
    part.write_bytes(part.read_bytes()[:-1])
    (tmp_path / "out" / plan.shards[4].part).write_bytes(b"")
    assert missing_parts(out, plan, "key") == [plan.shards[2], plan.shards[4]]


def test_a_full_disk_leaves_no_part_and_says_so(plan, tmp_path):
    table = pa.table({"id": np.random.default_rng(0).random(20000)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, before[1]))
    try:
        with pytest.raises(UserError, match=r"part-000001\.parquet: cannot be written"):
            write_part(str(tmp_path / "out"), plan.shards[1], table, "key")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_plan_depends_on_what_is_in_the_files(plan, tmp_path):
    again = plan_shards(str(tmp_path / "in"), 10)
    assert again == plan
    (tmp_path / "in" / "01.parquet").unlink()
    write(tmp_path / "in", [[30]])
    assert plan_shards(str(tmp_path / "in"), 10).fingerprint != plan.fingerprint


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"x\.parquet: not a readable Parquet file"):
        plan_shards(str(tmp_path), 10)


def test_a_worker_keeps_to_its_row_group_and_lost_shards_come_back():
    shards = [Shard(i, f"f{i // 4}", (0,), 10 * (i % 4), 10) for i in range(8)]
    lanes = Lanes(shards)
    assert [lanes.take(0).index, lanes.take(1).index, lanes.take(0).index, lanes.take(1).index] == [
        0,
        4,
        1,
        5,
    ]
    lanes.forget(1)
    lanes.put_back(shards[5])
    lanes.put_back(shards[4])
    assert [lanes.take(2).index for _ in range(4)] == [4, 5, 6, 7]
    assert lanes.take(2).index == 2  # nobody is left on a lane of its own: it helps the first worker
    assert lanes.left == 1
    assert lanes.take(0).index == 3
