"""Greedy ensemble selection, which benchmarks compare the simplex blend with."""

import sys

import numpy as np
import pytest
from recipes import ROOT
from tasks import task

from ensemble.methods.blend import SimplexBlend
from ensemble.solvers.numbers import log_loss

sys.path.insert(0, str(ROOT))
from benchmarks.greedy import greedy_weights


def test_greedy_selection_approaches_the_simplex_blend_from_above() -> None:
    P, y = task(1000, members=5)
    ways = (greedy_weights(P, y), SimplexBlend().fit(P, y).weights_)
    greedy, exact = (log_loss(np.einsum("nmk,m->nk", P, weights), y).mean() for weights in ways)
    assert ways[0].sum() == pytest.approx(1)
    assert exact - 1e-9 <= greedy < exact + 2e-3
