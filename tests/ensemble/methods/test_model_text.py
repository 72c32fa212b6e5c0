"""LightGBM's text format: what is true predicts as before, and nothing else reaches LightGBM."""

from __future__ import annotations

import random
import re

import lightgbm
import numpy as np
import pytest

from ensemble.methods.model_text import checked_model

MUTANTS = 400


@pytest.fixture(scope="module")
def model() -> tuple[str, np.ndarray, np.ndarray]:
    """A model's text, rows, and its raw scores of these."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(300, 5)), rng.integers(0, 3, 300)
    X[:, 1] = np.round(X[:, 1])
    settings = {
        "objective": "multiclass",
        "num_class": 3,
        "num_leaves": 8,
        "extra_trees": True,
        "verbosity": -1,
        "num_threads": 1,
    }
    booster = lightgbm.train(settings, lightgbm.Dataset(X, label=y), 12)
    rows = np.concatenate([2 * rng.normal(size=(200, 5)), np.round(X[:50])])
    rows[0, 0] = np.nan
    return booster.model_to_string(), rows, booster.predict(rows, raw_score=True, num_threads=1)


def test_predicts_as_the_model_itself(model: tuple[str, np.ndarray, np.ndarray]) -> None:
    text, rows, wanted = model
    checked = checked_model(text)
    found = lightgbm.Booster(model_str=checked).predict(rows, raw_score=True, num_threads=1)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
    assert checked_model(checked) == checked


def test_trees_of_a_single_leaf_are_read() -> None:
    X = np.zeros((40, 2))
    settings = {"objective": "multiclass", "num_class": 2, "verbosity": -1, "num_threads": 1}
    booster = lightgbm.train(settings, lightgbm.Dataset(X, label=np.arange(40) % 2), 2)
    found = lightgbm.Booster(model_str=checked_model(booster.model_to_string()))
    np.testing.assert_array_equal(found.predict(X), booster.predict(X))


def mutate(text: str, rng: random.Random) -> str:
    """Spoil one thing: a byte, a number, a line, or the end."""
    kind = rng.randrange(5)
    lines = text.split("\n")
    at = rng.randrange(text.index("end of trees"))
    if kind == 0:
        return text[:at] + chr(rng.randrange(32, 127)) + text[at + 1 :]
    if kind == 1:
        numbers = list(re.finditer(r"-?\d+(\.\d+)?", text[: text.index("end of trees")]))
        number = rng.choice(numbers)
        new = rng.choice(
            ["-1", "0", "7", "99999999999", "nan", "inf", "1e999", "-2147483649", "", "x", "0x10"]
        )
        return text[: number.start()] + new + text[number.end() :]
    if kind == 2:
        del lines[rng.randrange(len(lines) // 2)]
    elif kind == 3:
        line = rng.randrange(len(lines) // 2)
        lines[line : line + 1] = [lines[line]] * 2
    else:
        return text[:at]
    return "\n".join(lines)


def test_no_mutant_aborts_hangs_or_breaks(model: tuple[str, np.ndarray, np.ndarray]) -> None:
    """An abort would end this very process."""
    text, rows, _ = model
    rng, refused = random.Random(0), 0
    for _ in range(MUTANTS):
        try:
            checked = checked_model(mutate(text, rng))
        except ValueError:
            refused += 1
            continue
        booster = lightgbm.Booster(model_str=checked)
        assert booster.num_trees() % 3 == 0
        if booster.num_feature() == rows.shape[1]:
            assert np.isfinite(booster.predict(rows, raw_score=True, num_threads=1)).all()
    assert refused > MUTANTS / 2


SPOILT = {
    "a way back": (r"(?<=left_child=)\S+", "0"),
    "a leaf twice": (r"(?<=right_child=)\S+", "-2"),
    "a feature that is not there": (r"(?<=split_feature=)\S+", "5"),
    "a threshold that is no number": (r"(?<=threshold=)\S+", "nan"),
    "a leaf without end": (r"(?<=leaf_value=)\S+", "1e999"),
    "categories": (r"num_cat=0", "num_cat=1"),
    "another decision": (r"(?<=decision_type=)\S+", "3"),
    "leaves beyond reason": (r"num_leaves=\d+", "num_leaves=999999999"),
    "a class more": (r"num_class=3", "num_class=4"),
    "another objective": (r"objective=multiclass", "objective=binary"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_is_spoilt_is_refused(model: tuple[str, np.ndarray, np.ndarray], what: str) -> None:
    spoilt = re.sub(*SPOILT[what], model[0], count=1)
    assert spoilt != model[0]
    with pytest.raises(ValueError, match=r"tree 0|its|num_class"):
        checked_model(spoilt)
