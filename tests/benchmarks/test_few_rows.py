"""Draws on few rows: what is kept, and workers."""

import json
import sys
from pathlib import Path

import numpy as np
from recipes import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks.few_rows import draws, keep, read


def test_workers_make_the_same_draws_and_kept_ones_are_not_made_again(tmp_path: Path) -> None:
    kept, numbers = tmp_path / "kept.jsonl", range(3)
    alone = dict(draws("members=3", numbers, 1, True, 1, None))
    together = dict(draws("members=3", numbers, 1, True, 2, kept))
    assert sorted(together) == list(numbers)
    for number in numbers:
        np.testing.assert_allclose(together[number], alone[number], atol=1e-12)
    lines = kept.read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["draw"] for line in lines) == list(numbers)
    kept.write_text(lines[0] + "\n" + lines[1][:20], encoding="utf-8")  # killed while it wrote
    keep(kept, json.loads(lines[2]) | {"found": [9.0] * 7})
    first, last = (json.loads(line)["draw"] for line in (lines[0], lines[2]))
    found = dict(draws("members=3", numbers, 1, True, 1, kept))
    assert found[last] == [9.0] * 7
    np.testing.assert_allclose(found[first], alone[first], atol=1e-12)
    assert sorted(found) == list(numbers)
    assert read(kept, "members=3", pool=False, seeds=1) == {}
