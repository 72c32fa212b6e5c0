"""Members and labels as people have them: what is good is read alike however written, the rest is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from stack_files import competition, prepared

from data.errors import UserError
from ensemble.reading.load import load_problem
from ensemble.reading.problem import Problem

N = 40
P, Y = competition(N)
IDS = [str(i) for i in range(1, N + 1)]
TONES = ("neg", "neu", "pos")


def member(m: int = 0, classes: tuple[str, ...] = TONES, probs: np.ndarray = P) -> pd.DataFrame:
    return pd.DataFrame({"id": IDS, **{name: probs[:, m, k] for k, name in enumerate(classes)}})


def labels(values: Any = Y, **more: Any) -> pd.DataFrame:
    return pd.DataFrame({"id": IDS, "label": values, **more})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for m in (0, 1):
        member(m).to_csv(f"m{m + 1}.csv", index=False)
    labels().to_csv("labels.csv", index=False)
    return tmp_path


def load(first: str = "m1.csv", second: str = "m2.csv", truth: str = "labels.csv") -> Problem:
    return load_problem([first, second], Path(truth))


def with_index_twice() -> str:
    member().to_csv("t.csv")
    pd.read_csv("t.csv", dtype={"id": str}).to_csv("o.csv", index=False)
    return "o.csv"


def in_parquet(table: pd.DataFrame) -> str:
    table.to_parquet("o.parquet")
    return "o.parquet"


def array(encoding: str, end: str) -> str:
    np.save("o.npy", P[:, 0])
    Path("o.ids.txt").write_bytes((end.join(IDS) + end).encode(encoding))
    return "o.npy"


WRITTEN: dict[str, Callable[[], object]] = {
    "o.csv": lambda: member().to_csv("o.csv"),
    "index column twice": with_index_twice,
    "index in Parquet": lambda: in_parquet(member().set_index(np.arange(5, 5 + N))),
    "o.csv.gz": lambda: member().to_csv("o.csv.gz", index=False),
    "ids of a file with a mark": lambda: array("utf-8-sig", "\r\n"),
}


@pytest.mark.parametrize("form", WRITTEN)
def test_sets_are_read_alike_however_they_are_written(folder: Path, form: str) -> None:
    file = WRITTEN[form]() or form
    problem, usual = load(f"m1={file}"), load()
    np.testing.assert_allclose(problem.P, usual.P, atol=1e-15)
    assert problem.classes == usual.classes


def test_a_packed_set_is_called_by_its_stem(folder: Path) -> None:
    member().to_csv("llama.csv.gz", index=False)
    assert load("llama.csv.gz").names == ("llama", "m2")


@pytest.mark.parametrize("kind", [str, int, float])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("names", [("1", "2", "0"), ("3", "1", "2")])
def test_a_number_is_a_class_name_where_classes_are_numbers(
    folder: Path, kind: type, suffix: str, names: tuple[str, ...]
) -> None:
    for m in (0, 1):
        member(m, names).to_csv(f"m{m + 1}.csv", index=False)
    truth = labels([kind(names[k]) for k in Y])
    truth.to_csv("t.csv", index=False)
    truth.to_parquet("t.parquet")
    problem = load(truth=f"t.{suffix}")
    found = dict(zip(problem.row_ids, problem.labels.tolist(), strict=True))
    assert [found[row_id] for row_id in IDS] == Y.tolist()


def test_one_hot_labels_may_be_truths(folder: Path) -> None:
    hot = pd.concat([labels()[["id"]], pd.DataFrame({c: k == Y for k, c in enumerate(TONES)})], axis=1)
    hot.to_csv("hot.csv", index=False)
    hot.to_parquet("hot.parquet")
    for file in ("hot.csv", "hot.parquet"):
        np.testing.assert_array_equal(load(truth=file).y, load().y)


def test_an_index_means_nothing_where_columns_stand_in_different_orders(folder: Path) -> None:
    member(1)[["id", *TONES[::-1]]].to_csv("m2.csv", index=False)
    for order in (("m1.csv", "m2.csv"), ("m2.csv", "m1.csv")):
        with pytest.raises(UserError, match=r"labels\.csv: .*index of a class.*different orders"):
            load(*order)
    labels([TONES[k] for k in Y]).to_csv("labels.csv", index=False)
    first, second = load(), load("m2.csv", "m1.csv")
    np.testing.assert_array_equal(first.P, second.P)
    np.testing.assert_array_equal(first.y, second.y)


def test_weights_of_any_size_count(folder: Path) -> None:
    weight = np.linspace(0.1, 1, N)
    labels(weight=weight).to_csv("labels.csv", index=False)
    usual = load()
    labels(weight=weight * 1.5e308).to_csv("labels.csv", index=False)
    assert usual.weight is not None
    np.testing.assert_allclose(load().weight, usual.weight)  # type: ignore[arg-type]


def test_labels_that_are_prepared_data_bring_their_groups(tmp_path: Path) -> None:
    rows, probs = prepared(tmp_path / "data")
    table = {"id": rows.row_ids, **{c: probs[:, 0, k] for k, c in enumerate(rows.classes.names)}}
    pd.DataFrame(table).to_csv(tmp_path / "m.csv", index=False)
    for place in (tmp_path / "data", tmp_path / "data" / "rows.parquet"):
        problem = load_problem([str(tmp_path / "m.csv")], place)
        assert len(np.unique(problem.groups)) == 60
        assert "each row its own" not in problem.folds_from


def test_what_the_user_should_know_is_noted(folder: Path) -> None:
    wrong = P.copy()
    wrong[:2] = np.eye(3)[(Y[:2] + 1) % 3][:, None]
    member(probs=wrong).to_csv("m1.csv", index=False)
    labels(fold=0).to_csv("labels.csv", index=False)
    notes = " | ".join(load(second=array("utf-8", "\n")).notes)
    assert "m1 gives no probability to what happened in 2 rows" in notes
    assert "taken as 1e-15, a loss of 34.5" in notes
    assert "labels.csv: column fold is not used" in notes
    assert "columns of o.npy are taken as neg, neu, pos" in notes
    labels(np.minimum(Y, 1)).to_csv("labels.csv", index=False)
    assert "no row is labelled pos" in load().notes


def changed(**columns: Any) -> pd.DataFrame:
    return member().assign(**columns)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "one class alone": (
        lambda: labels([0] * N).to_csv("labels.csv", index=False), r"labels\.csv: every labelled row is neg",
    ),
    "a set as labels": (
        lambda: Path("labels.csv").unlink() or Path("labels.csv").symlink_to("m1.csv"),
        r"labels\.csv: is given as labels and as a prediction set",
    ),
    "ids as floats": (
        lambda: changed(id=[f"{i}.0" for i in IDS]).to_csv("m1.csv", index=False), r"'1\.0' is not '1'",
    ),
    "ids with zeros": (
        lambda: labels().assign(id=[f"00{i}" for i in IDS]).to_csv("labels.csv", index=False),
        r"labels\.csv: has no label for 40 .* '1' is not '001': write",
    ),
    "percentages": (lambda: member(probs=100 * P).to_csv("m1.csv", index=False), "divide percentages by 100"),
    "logits": (lambda: member(probs=np.log(P)).to_csv("m1.csv", index=False), "not logits"),
    "a word": (
        lambda: changed(neu=["x", *P[1:, 0, 1]]).to_csv("m1.csv", index=False),
        r"m1\.csv: row 1 has 'x' in column neu, where a number",
    ),
    "semicolons": (
        lambda: member().to_csv("m1.csv", index=False, sep=";"), r"m1\.csv: no id .*by semicolons",
    ),
    "too many classes": (
        lambda: pd.DataFrame({"id": IDS, **{f"c{k}": [1 / 130] * N for k in range(130)}}).to_csv("m1.csv"),
        r"m1\.csv: 130 classes are more",
    ),
    "labels in a list": (
        lambda: labels([[1]] * N).to_json("labels.csv", orient="records", lines=True), r"labels\.csv",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_named(folder: Path, case: str) -> None:
    damage, words = REFUSED[case]
    damage()
    with pytest.raises(UserError, match=words):
        load()


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([b"1"], "has the id b'1'"),
        ([[1]], r"has the id \[1\]"),
        ([True], "has the id True"),
        ([np.nan], "no id"),
    ],
)
def test_what_is_no_id_is_named(folder: Path, ids: list[Any], words: str) -> None:
    table = pd.DataFrame({"id": ids, **{c: P[:1, 0, k] for k, c in enumerate(TONES)}})
    table.to_parquet("odd.parquet")
    with pytest.raises(UserError, match=rf"odd\.parquet: line 1 of the data .*{words}"):
        load("odd.parquet")


def test_labels_of_no_kind_are_named(folder: Path) -> None:
    labels([[1]] * N).to_parquet("t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet: row 1 has label '\[1\]'"):
        load(truth="t.parquet")


def test_arrays_that_are_none_are_named(folder: Path) -> None:
    array("utf-8", "\n")
    whole = Path("o.npy").read_bytes()
    Path("o.npy").write_bytes(whole.replace(b"(40, 3)", b"(40000000000000, 3)"))
    with pytest.raises(UserError, match=r"o\.npy: cannot be read as a NumPy array"):
        load("o.npy")
    with open("o.npy", "wb") as handle:
        np.savez(handle, P)
    with pytest.raises(UserError, match=r"o\.npy: .*archive"):
        load("o.npy")


@pytest.mark.parametrize("name", ["\x1b[31mred", " ", "\u202e"])
def test_names_that_cannot_be_shown_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be called"):
        load(f"{name}=m1.csv")


def test_a_path_too_long_is_a_mistake(folder: Path) -> None:
    with pytest.raises(UserError, match="File name too long"):
        load("m" * 5000 + ".csv")


def test_too_few_groups_are_refused(folder: Path) -> None:
    for n_groups in (2, 3):
        group = np.arange(N) % n_groups
        pd.DataFrame({"row_id": IDS, "group_id": group.astype(str), "fold": group}).to_parquet("f.parquet")
        with pytest.raises(UserError, match=r"f\.parquet: \d of \d groups are outside fold 0"):
            load_problem(["m1.csv", "m2.csv"], Path("labels.csv"), folds=Path("f.parquet"))
