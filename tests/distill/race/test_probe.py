"""A probe of frozen states finds what is there and does not know left from right."""

from __future__ import annotations

import numpy as np
from paired_texts import pairs

from data.classes import PREFERENCE
from data.folds import make_folds
from data.schema import Rows, make_rows
from distill.race.probe import length_features, probe, state_features, texts_of


def test_a_planted_signal_is_found_and_lengths_alone_find_nothing() -> None:
    rows, states = pairs(400)
    folds = make_folds(rows, 4, seed=0)
    found = probe(state_features(states, texts_of(rows), rows), rows, folds)
    blind = probe(length_features(rows), rows, folds)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found.argmax(axis=1) == rows.labels).mean() > 0.9
    assert (blind.argmax(axis=1) == rows.labels).mean() < 0.65


def test_swapped_rows_get_swapped_predictions() -> None:
    rows, states = pairs(200)
    folds = make_folds(rows, 4, seed=0)
    features = state_features(states, texts_of(rows), rows)
    straight = probe(features, rows, folds)
    table = rows.table.rename_columns(
        [
            {"response_a": "response_b", "response_b": "response_a"}.get(name, name)
            for name in rows.table.column_names
        ]
    )
    labels = [PREFERENCE.permutation[label] for label in rows.labels]
    place = table.column_names.index("label")
    swapped = Rows(table.set_column(place, "label", [labels]), PREFERENCE)
    turned = probe(features[::-1], swapped, folds)
    np.testing.assert_allclose(turned[:, PREFERENCE.permutation], straight, atol=1e-3)


def test_a_text_is_read_once_however_often_it_recurs() -> None:
    columns = {
        "row_id": ["1", "2"],
        "prompt": [["q"], ["q"]],
        "response_a": [["x"], ["y"]],
        "response_b": [["y"], ["x"]],
        "label": [0, 1],
    }
    texts = texts_of(make_rows(columns, PREFERENCE, "test"))
    assert texts.texts == [("q\n\n", "x"), ("q\n\n", "y")]
    assert texts.sides.tolist() == [[0, 1], [1, 0]]
