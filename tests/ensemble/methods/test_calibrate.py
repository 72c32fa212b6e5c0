"""Temperature scaling: the right answer, the bracket, and honest fitting after a flexible method."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from data.softmax import softmax
from ensemble.methods.blend import EqualMean
from ensemble.methods.calibrate import Calibrated
from ensemble.methods.temperature import LEAST_T, MOST_T, TemperatureScaling
from ensemble.solvers.numbers import cross_entropy, log_probs


def drawn(n: int, k: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions that are over-confident by exactly ``temperature``, and labels."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, k))
    truth = softmax(z)
    labels = np.minimum((rng.random((n, 1)) > truth.cumsum(axis=1)).sum(axis=1), k - 1)
    return softmax(z * temperature), labels


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_finds_the_temperature_that_was_put_in(k: int, temperature: float) -> None:
    probs, y = drawn(40_000, k, temperature)
    assert TemperatureScaling().fit(probs, y).temperature_ == pytest.approx(temperature, rel=0.06)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.floats(0.3, 4))
def test_no_temperature_in_the_bracket_is_better(seed: int, k: int, temperature: float) -> None:
    probs, y = drawn(60, k, temperature, seed)
    targets, logs = np.eye(k)[y], log_probs(probs)
    found = TemperatureScaling().fit(probs, y)

    def loss(log_t: float) -> float:
        return float(cross_entropy(softmax(logs / math.exp(log_t)), targets).mean())

    bracket = math.log(LEAST_T), math.log(MOST_T)
    best = minimize_scalar(loss, bounds=bracket, method="bounded", options={"xatol": 1e-10})
    assert loss(math.log(found.temperature_)) <= best.fun + 1e-9


def test_stays_in_its_bracket_on_perfect_useless_and_reversed_predictions() -> None:
    y = np.arange(30) % 3
    perfect = np.full((30, 3), 0.1) + 0.7 * np.eye(3)[y]
    reversed_ = perfect[:, [1, 2, 0]]
    low, high = LEAST_T, MOST_T
    assert TemperatureScaling().fit(perfect, y).temperature_ == pytest.approx(low)
    assert TemperatureScaling().fit(reversed_, y).temperature_ == pytest.approx(high)
    assert TemperatureScaling().fit(np.full((30, 3), 1 / 3), y).temperature_ == 1.0


def test_certain_predictions_stay_finite() -> None:
    y = np.arange(30) % 3
    probs = np.eye(3)[np.where(np.arange(30) < 6, (y + 1) % 3, y)]
    scaling = TemperatureScaling().fit(probs, y)
    assert np.isfinite(cross_entropy(scaling.predict_on(probs), np.eye(3)[y])).all()


def test_uses_crossfitted_predictions_where_the_method_has_them() -> None:
    class Memoriser(EqualMean):
        """Perfect on what it was fitted to, useless elsewhere, and honest about it in ``oof_``."""

        def fit_on(self, data):
            self.seen_ = np.full((len(y), 3), 0.01) + 0.97 * data.targets
            self.oof_ = np.roll(self.seen_, 1, axis=0)
            return self

        def predict_on(self, P):
            return self.seen_

    y = np.random.default_rng(0).integers(3, size=300)
    fitted = Calibrated(Memoriser()).fit(np.full((300, 1, 3), 1 / 3), y)
    assert fitted.temperature_ > 5
