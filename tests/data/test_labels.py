"""One reader of labels for sources and label files: names, then indices, only where nothing contradicts."""

from __future__ import annotations

import pytest

from data.classes import RESERVED, Classes
from data.errors import UserError
from data.labels import LabelReader, winner_index


@pytest.mark.parametrize("cell", [None, "", " ", float("nan"), "NaN", "NA", "nan", "None", "null"])
def test_what_is_missing(cell: object) -> None:
    assert LabelReader(Classes(("x", "y")), "f")(cell, "r") is None


def test_a_class_of_a_missing_words_name_is_a_class() -> None:
    read = LabelReader(Classes(("none", "toxic")), "f")
    assert [read("none", "r"), read("toxic", "r"), read("None", "r")] == [0, 1, None]


def test_names_go_before_indices() -> None:
    read = LabelReader(Classes(("a", "b")), "f")
    assert [read("b", "r"), read("0", "r"), read(1.0, "r"), read("1.0", "r")] == [1, 0, 1, 1]
    grades = LabelReader(Classes(("1", "2", "3")), "f")
    assert [grades("1", "r"), grades(3, "r"), grades("2.0", "r")] == [0, 2, 1]
    assert read.indices == {0, 1}
    assert grades.indices == set()


@pytest.mark.parametrize(("names", "cell"), [(("1", "2", "3"), 0), (("a", "b"), 2), (("a", "b"), -1)])
def test_a_stray_label_is_refused(names: tuple[str, ...], cell: object) -> None:
    with pytest.raises(UserError, match=f"f: row r has label {cell}, none of the {len(names)} classes"):
        LabelReader(Classes(names), "f")(cell, "r")


def test_numbers_without_a_0_are_refused() -> None:
    read = LabelReader(Classes(("a", "b", "c")), "f")
    for cell in (1, 2, 1):
        read(cell, "r")
    with pytest.raises(UserError, match="numbers 1, 2 and none is 0"):
        read.check_counting()
    read(0, "r")
    read.check_counting()


def test_a_winner_is_one_of_the_classes_there_are() -> None:
    assert [winner_index(cell, 3, "r", "f") for cell in ("model_b", "tie (bothbad)", "", "nan")] == [
        1,
        2,
        None,
        None,
    ]
    with pytest.raises(UserError, match="row r has winner tie; it must be one of model_a, model_b"):
        winner_index("tie", 2, "r", "f")


@pytest.mark.parametrize("name", [*RESERVED, "ID", "Label"])
def test_a_class_cannot_be_called_as_a_column_of_predictions(name: str) -> None:
    with pytest.raises(UserError, match=f"class name {name} is that of a column"):
        Classes((name, "fr"))
