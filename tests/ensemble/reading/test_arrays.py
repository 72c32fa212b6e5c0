"""Members as NumPy arrays, and ids as the text they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stack_files import CLASSES, write_csv

from data.errors import UserError
from ensemble.reading.load import load_members, load_problem
from ensemble.reading.members import load_member

PROBS = np.tile([0.5, 0.3, 0.2], (12, 1))
IDS = [f"{i:03d}" for i in range(12)]


def write_array(folder: Path, values: np.ndarray = PROBS, ids: list[str] | None = IDS) -> Path:
    np.save(folder / "m.npy", values)
    if ids is not None:
        (folder / "m.ids.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
    return folder / "m.npy"


def test_an_array_is_a_member_and_ids_keep_their_zeros(tmp_path: Path) -> None:
    array = write_array(tmp_path)
    table = write_csv(
        tmp_path / "t.csv", ["id", *CLASSES], [[i, *p] for i, p in zip(IDS, PROBS.tolist(), strict=True)]
    )
    labels = write_csv(tmp_path / "labels.csv", ["id", "label"], [[i, k % 3] for k, i in enumerate(IDS)])
    problem = load_problem([str(array), str(table)], labels)
    assert problem.row_ids == IDS
    assert problem.names == ("m", "t")
    assert problem.classes.names == CLASSES
    np.testing.assert_allclose(problem.P[:, 0], problem.P[:, 1])
    assert load_members([str(array)])[0].classes.names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("values", "ids", "words"),
    [
        (PROBS, None, "m.ids.txt"),
        (PROBS, IDS[:-1], "11 ids"),
        (PROBS, [*IDS[:-1], IDS[0]], "more than once"),
        (PROBS, [*IDS[:-1], ""], "has no id"),
        (PROBS[:, 0], IDS, "shape"),
        (PROBS * 2, IDS, "outside 0 to 1|sum to 1"),
        (np.where(PROBS == 0.5, np.nan, PROBS), IDS, "000"),
        (np.array([["a", "b"]] * 12), IDS, "needs numbers"),
    ],
)
def test_a_damaged_array_is_named(
    tmp_path: Path, values: np.ndarray, ids: list[str] | None, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        load_member(write_array(tmp_path, values, ids))


def test_a_file_that_is_no_array_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.npy"
    path.write_bytes(b"not an array")
    with pytest.raises(UserError, match="NumPy"):
        load_member(path)
