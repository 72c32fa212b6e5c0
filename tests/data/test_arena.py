"""The simulated arena: its probabilities are the ones stated, and its text shows what they depend on."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data.arena import ArenaConfig, bayes_log_loss, known_truth, preference_probs, simulate_arena
from data.arena_text import (
    BREAKS,
    HEDGES,
    POLITE,
    REFUSALS,
    RUDE,
    STRAYS,
    Dice,
    Quality,
    write_request,
    write_response,
)
from data.classes import PREFERENCE
from data.errors import UserError
from data.folds import make_folds
from data.groups import group_prompts
from data.schema import Rows, validate

WORTHS = hnp.arrays(np.float64, (4, 2), elements=st.floats(-30, 30))


def texts(rows: Rows, column: str) -> list[str]:
    return [turns[0] for turns in rows.table.column(column).to_pylist()]


def true_probs(rows: Rows) -> np.ndarray:
    return np.array(rows.table.column("true_probs").to_pylist())


@pytest.fixture(scope="module")
def big() -> Rows:
    return simulate_arena(ArenaConfig(n_rows=20_000, seed=1))


@pytest.fixture(scope="module")
def small() -> Rows:
    return simulate_arena(ArenaConfig(n_rows=1000))


@settings(deadline=None)
@given(worth=WORTHS, tie=st.floats(0.1, 5), bias=st.floats(-1, 1), noise=st.floats(0, 1))
def test_davidsons_odds(worth: np.ndarray, tie: float, bias: float, noise: float) -> None:
    config = ArenaConfig(tie=tie, position_bias=bias, noise=0)
    a, b, draw = preference_probs(config, worth).T
    difference = worth[:, 0] + bias - worth[:, 1]
    np.testing.assert_allclose(np.log(a) - np.log(b), difference, atol=1e-6)
    np.testing.assert_allclose(draw, tie * np.sqrt(a * b), rtol=1e-6)
    np.testing.assert_allclose(a + b + draw, 1)
    noisy = preference_probs(replace(config, noise=noise), worth)
    np.testing.assert_allclose(noisy.T, (1 - noise) * np.array([a, b, draw]) + noise / 3, atol=1e-12)


@settings(deadline=None)
@given(worth=WORTHS)
def test_without_position_bias_a_swap_swaps_the_probabilities(worth: np.ndarray) -> None:
    config = ArenaConfig(position_bias=0)
    swapped = preference_probs(config, worth[:, ::-1])
    np.testing.assert_allclose(preference_probs(config, worth), swapped[:, PREFERENCE.permutation])


def test_probabilities_of_extreme_worths_are_finite() -> None:
    probs = preference_probs(ArenaConfig(noise=0), np.array([[1e4, -1e4], [-1e4, 1e4]]))
    np.testing.assert_allclose(probs, [[1, 0, 0], [0, 1, 0]])


def test_labels_fall_as_often_as_the_stored_probabilities_say(big: Rows) -> None:
    probs, labels = true_probs(big), big.labels
    for k in range(3):
        order = np.argsort(probs[:, k])
        for part in np.array_split(order, 10):
            expected, found = probs[part, k].mean(), (labels[part] == k).mean()
            error = np.sqrt(expected * (1 - expected) / len(part))
            assert abs(found - expected) < 4.5 * error


def test_stored_probabilities_follow_from_the_stored_worths(small: Rows) -> None:
    worth = np.stack([small.table.column(f"worth_{side}").to_numpy() for side in "ab"], axis=1)
    np.testing.assert_allclose(true_probs(small), preference_probs(ArenaConfig(), worth), atol=1e-5)
    assert small.table.schema.field("true_probs").type == pa.list_(pa.float32(), 3)
    np.testing.assert_allclose(true_probs(small).sum(axis=1), 1, atol=1e-6)


def test_same_config_same_rows_and_another_seed_other_rows(small: Rows) -> None:
    assert simulate_arena(ArenaConfig(n_rows=1000)).table.equals(small.table)
    other = simulate_arena(ArenaConfig(n_rows=1000, seed=1))
    assert not set(other.row_ids) & set(small.row_ids)
    assert texts(other, "response_a") != texts(small, "response_a")


def test_bayes_log_loss_by_hand(small: Rows) -> None:
    rows = small.take(np.arange(50))
    expected, realised = bayes_log_loss(rows)
    probs = true_probs(rows)
    by_hand = [-np.log(p[label]) for p, label in zip(probs, rows.labels, strict=True)]
    np.testing.assert_allclose(realised, by_hand)
    assert expected == pytest.approx(np.mean([-(p * np.log(p)).sum() for p in probs]))


def test_no_other_prediction_beats_the_bayes_log_loss(big: Rows) -> None:
    expected, realised = bayes_log_loss(big)
    assert realised.mean() == pytest.approx(expected, abs=0.02)
    probs = true_probs(big)
    flatter = np.sqrt(probs) / np.sqrt(probs).sum(axis=1, keepdims=True)
    assert -np.log(flatter[np.arange(len(big)), big.labels]).mean() > realised.mean() + 0.01


def test_bayes_log_loss_needs_labels_and_true_probabilities(small: Rows) -> None:
    place = small.table.column_names.index("true_probs")
    others = [["sure"] * len(small), [[1.0]] * len(small), [[0.5, 0.5, None]] * len(small), [7] * len(small)]
    strange = [small.table.set_column(place, "true_probs", pa.array(other)) for other in others]
    for table in (small.table.drop_columns(["true_probs"]), *strange):
        assert known_truth(Rows(table, PREFERENCE)) is None  # of somebody else's column nothing is known
        with pytest.raises(UserError, match="no column true_probs"):
            bayes_log_loss(Rows(table, PREFERENCE))
    at = small.table.column_names.index("label")
    unlabelled = small.table.set_column(at, "label", pa.nulls(len(small), pa.int8()))
    with pytest.raises(UserError, match="unlabelled rows"):
        bayes_log_loss(Rows(unlabelled, PREFERENCE))


def test_difficulty_is_graded(small: Rows) -> None:
    """Counting words beats the prior clearly, and leaves clear room up to the Bayes optimum."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    a, b, labels = texts(small, "response_a"), texts(small, "response_b"), small.labels
    folds = make_folds(small, 5)
    counter = CountVectorizer(token_pattern=r"\w+|[^\w\s]").fit(a + b)
    words = (counter.transform(a) - counter.transform(b)).astype(float)
    losses = np.empty(len(small))
    for k in range(5):
        train, test = folds.fold != k, folds.fold == k
        probs = (
            LogisticRegression(C=0.03, max_iter=500)
            .fit(words[train], labels[train])
            .predict_proba(words[test])
        )
        losses[test] = -np.log(probs[np.arange(test.sum()), labels[test]])
    shares = np.bincount(labels) / len(labels)
    prior = -(shares * np.log(shares)).sum()
    expected, _ = bayes_log_loss(small)
    assert 0.25 < shares[2] < 0.32
    assert 1.05 < prior < 1.10
    assert losses.mean() < prior - 0.1
    assert 0.70 < expected < 0.82
    assert expected < losses.mean() - 0.08


def test_biases_show_in_the_labels(big: Rows) -> None:
    worth = np.stack([big.table.column(f"worth_{side}").to_numpy() for side in "ab"], axis=1)
    even = np.abs(worth[:, 0] - worth[:, 1]) < 0.3
    wins = np.bincount(big.labels[even], minlength=3)
    assert wins[0] > wins[1]  # standing first helps
    plain = simulate_arena(ArenaConfig(n_rows=4000, length_bias=0.0))
    long = simulate_arena(ArenaConfig(n_rows=4000, length_bias=1.0))

    def mean_advantage_of_the_winner(rows: Rows) -> float:
        words = [[len(text.split()) for text in texts(rows, f"response_{side}")] for side in "ab"]
        more = np.subtract(*words)
        return float(more[rows.labels == 0].mean() - more[rows.labels == 1].mean())

    assert mean_advantage_of_the_winner(long) > mean_advantage_of_the_winner(plain) + 1


def test_rows_are_short_valid_and_partly_share_prompts(small: Rows) -> None:
    validate(small, "arena")
    prompts, answers = texts(small, "prompt"), texts(small, "response_a") + texts(small, "response_b")
    assert np.percentile([len(text.split()) for text in prompts], [0, 100]).tolist()[1] <= 32
    assert max(len(text.split()) for text in answers) <= 60
    assert all(text and text == text.strip() for text in prompts + answers)
    groups = group_prompts([text] for text in prompts)
    shared = np.mean([groups.count(group) > 1 for group in groups])
    assert 0.1 < shared < 0.35
    everything = " ".join(prompts + answers)
    assert all(character in everything for character in '<>&"\n')
    assert len(set(everything.split())) < 2500
    pairs = zip(*(small.table.column(f"model_{side}").to_pylist() for side in "ab"), strict=True)
    assert all(first != second for first, second in pairs)


GOOD = Quality(
    correct=True, complete=True, well_formed=True, refused=False, hedged=False, strayed=False,
    broken_off=False, rude=False, polite=False, fillers=0,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_every_trait_can_be_read_off_the_text(seed: int) -> None:
    dice = Dice(np.random.default_rng(seed))
    request = write_request(dice)
    assert request.right != request.wrong
    assert len(request.right) == len(request.wrong)

    def answer(**changes: bool) -> str:
        return write_response(dice, request, replace(GOOD, **changes))

    def held(text: str, items: tuple[str, ...]) -> list[str]:
        """Those of the items that stand in the text as whole words, in the order of the text."""
        places = {
            match.start(): item
            for item in items
            for match in re.finditer(rf"(?<![\w-]){re.escape(item)}(?![\w-])", text)
        }
        return [item for _, item in sorted(places.items())]

    surface = {
        "polite": POLITE, "rude": RUDE, "hedged": HEDGES, "refused": REFUSALS, "strayed": STRAYS,
        "broken_off": BREAKS,
    }  # fmt: skip
    for trait, phrases in surface.items():
        showing, without = answer(**{trait: True}), answer()
        assert any(phrase in showing for phrase in phrases)
        assert not any(phrase in without for phrase in phrases)
    assert held(answer(), request.right) == list(request.right)
    assert held(answer(correct=False), request.wrong) == list(request.wrong)
    assert held(answer(correct=False), request.right) != list(request.right)
    if request.reason_asked:
        assert request.reason in answer()
        assert request.reason not in answer(complete=False)
    if len(request.right) > 1:
        assert len(held(answer(complete=False), request.right)) == len(request.right) - 1
        shortened = held(answer(complete=False, correct=False), request.wrong)
        assert len(shortened) == len(request.wrong) - 1
        assert shortened != [item for item in request.right if item in shortened]  # wrong all the same
    marks = {"bullets": "- ", "tags": "<b>", "quotes": '"'}
    if request.form:
        assert marks[request.form] in answer()
        assert marks[request.form] not in answer(well_formed=False)


@pytest.mark.parametrize("changes", [{"n_rows": 0}, {"tie": -1.0}, {"noise": 1.5}, {"repeat": -0.1}])
def test_impossible_configurations_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(UserError, match="arena"):
        ArenaConfig(**changes)  # type: ignore[arg-type]
